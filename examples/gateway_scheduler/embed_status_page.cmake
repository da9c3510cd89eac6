# Writes OUTPUT, a source that defines llmd::host::kStatusPageHtml, from INPUT.
file(READ ${INPUT} _hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," _bytes "${_hex}")
string(REGEX REPLACE "((0x[0-9a-f][0-9a-f],){24})" "\\1\n" _bytes "${_bytes}")
file(WRITE ${OUTPUT} "#include \"examples/gateway_scheduler/status_page_html.h\"

namespace llmd::host {
namespace {
constexpr unsigned char kBytes[] = {
${_bytes}};
}  // namespace
const std::string_view kStatusPageHtml(reinterpret_cast<const char*>(kBytes), sizeof kBytes);
}  // namespace llmd::host
")
