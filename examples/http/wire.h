// What server and client share of HTTP/1.1 on the wire.
#ifndef EXAMPLES_HTTP_WIRE_H_
#define EXAMPLES_HTTP_WIRE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/message.hpp>

#include "examples/http/message.h"

namespace llmd::http {

inline std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

bool EqualsIgnoreCase(std::string_view a, std::string_view b);
// Of a comma-separated list.
bool HasToken(std::string_view list, std::string_view token);
std::optional<std::uint64_t> ParseLength(std::string_view text);

// Names in lower case.
Headers ToHeaders(const boost::beast::http::fields& fields);

// Appends "name: value\r\n". Throws boost::system::system_error (invalid_argument) when either holds what
// would end the line or is no name: nobody injects headers through a value.
void AppendHeader(std::string& out, std::string_view name, std::string_view value);

bool IsToken(std::string_view text);

// A body that grows as it arrives: what a content-length claims is no reason to allocate.
struct GrowingBody {
  using value_type = std::string;
  static std::uint64_t size(const value_type& body) { return body.size(); }

  class reader {
   public:
    template <bool isRequest, class Fields>
    reader(boost::beast::http::header<isRequest, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<std::uint64_t>& length, boost::beast::error_code& error) {
      constexpr std::uint64_t kMost = std::uint64_t{1} << 20;
      if (length) body_.reserve(static_cast<std::size_t>(std::min(*length, kMost)));
      error = {};
    }
    template <class Buffers>
    std::size_t put(const Buffers& buffers, boost::beast::error_code& error) {
      const std::size_t before = body_.size();
      const auto end = boost::asio::buffer_sequence_end(buffers);
      for (auto at = boost::asio::buffer_sequence_begin(buffers); at != end; ++at) {
        const boost::asio::const_buffer buffer(*at);
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
      }
      error = {};
      return body_.size() - before;
    }
    void finish(boost::beast::error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

}  // namespace llmd::http

#endif  // EXAMPLES_HTTP_WIRE_H_
