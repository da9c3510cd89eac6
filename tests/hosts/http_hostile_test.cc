// What nobody should send to the hosts' HTTP server.
#include <gtest/gtest.h>

#include "tests/hosts/http_bed.h"

namespace llmd::http {
namespace {}  // namespace
}  // namespace llmd::http
