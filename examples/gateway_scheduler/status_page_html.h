// status_page.html, put into the program by CMake.
#ifndef EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_HTML_H_
#define EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_HTML_H_

#include <string_view>

namespace llmd::host {

extern const std::string_view kStatusPageHtml;  // {{nonce}} stands for the response's nonce

}  // namespace llmd::host

#endif  // EXAMPLES_GATEWAY_SCHEDULER_STATUS_PAGE_HTML_H_
