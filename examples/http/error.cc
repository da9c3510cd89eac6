#include "examples/http/error.h"

#include <nlohmann/json.hpp>

namespace llmd::http {
namespace {

std::string_view TypeOf(int status) {
  switch (status) {
    case 404:
      return "NotFoundError";
    case 502:
      return "BadGateway";
    case 503:
      return "ServiceUnavailable";
    case 504:
      return "GatewayTimeout";
    default:
      return status >= 500 ? "InternalServerError" : "BadRequestError";
  }
}

}  // namespace

std::string ErrorBody(int status, std::string_view message, std::string_view type) {
  const nlohmann::ordered_json body = {{"object", "error"},
                                       {"message", message},
                                       {"type", type.empty() ? TypeOf(status) : type},
                                       {"param", ""},
                                       {"code", status}};
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace llmd::http
