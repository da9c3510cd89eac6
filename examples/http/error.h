// Errors as the engines answer them (spec: gateway.md 5.7).
#ifndef EXAMPLES_HTTP_ERROR_H_
#define EXAMPLES_HTTP_ERROR_H_

#include <string>
#include <string_view>

namespace llmd::http {

// {"object":"error","message":...,"type":...,"param":"","code":status}; the type follows from the status
// unless given. Bytes of the message that are no UTF-8 are replaced.
std::string ErrorBody(int status, std::string_view message, std::string_view type = {});

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_ERROR_H_
