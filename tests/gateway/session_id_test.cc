#include "llmd/gateway/session_id.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace llmd::gateway {
namespace {

using ::testing::HasSubstr;
using Result = SessionId::Result;

SessionId Read(const std::vector<HeaderView>& headers, std::string& scratch, SessionIdOptions options = {}) {
  return SessionIdReader::Create(std::move(options))->Read(headers, scratch);
}

// The session, "-" when there is none, "!" when it is refused.
std::string Session(const std::vector<HeaderView>& headers) {
  std::string scratch;
  const SessionId id = Read(headers, scratch);
  return id.found() ? std::string(id.value) : id.result == Result::kAbsent ? "-" : "!";
}

TEST(SessionId, SourcesInOrder) {
  const HeaderView x = {"x-session-id", "x"}, s = {"session-id", "s"},
                   c = {"cookie", "session-id=c; session_id=u"}, u = {"cookie", "session_id=u"};
  EXPECT_EQ(Session({c, s, x}), "x");
  EXPECT_EQ(Session({c, s}), "s");
  EXPECT_EQ(Session({c}), "c");
  EXPECT_EQ(Session({u}), "u");
  EXPECT_EQ(Session({u, c}), "c");  // the first spelling in any cookie header before the second
  EXPECT_EQ(Session({}), "-");
  EXPECT_EQ(Session({{"x-session-token", "t"}, {"session_id", "u"}}), "-");
  std::string scratch;
  EXPECT_EQ(Read({x}, scratch).source, 0u);
  EXPECT_EQ(Read({u}, scratch).source, 3u);
}

TEST(SessionId, AnEmptyHeaderIsNone) {
  EXPECT_EQ(Session({{"x-session-id", ""}, {"session-id", "s"}}), "s");
  EXPECT_EQ(Session({{"x-session-id", ""}, {"session-id", ""}, {"cookie", "session-id=c"}}), "c");
  EXPECT_EQ(Session({{"x-session-id", ""}, {"cookie", ""}}), "-");
  EXPECT_EQ(Session({{"x-session-id", " "}, {"session-id", "s"}}), " ");  // a blank is a value
}

TEST(SessionId, NamesOfHeadersInAnyCaseAndOfCookiesExactly) {
  EXPECT_EQ(Session({{"X-Session-ID", "x"}}), "x");
  EXPECT_EQ(Session({{"Cookie", "session-id=c"}}), "c");
  EXPECT_EQ(Session({{"cookie", "Session-Id=c"}}), "-");
}

TEST(SessionId, RepeatedHeadersAreJoined) {
  EXPECT_EQ(Session({{"x-session-id", "a"}, {"other", "o"}, {"X-Session-Id", "b"}}), "a,b");
  EXPECT_EQ(Session({{"x-session-id", ""}, {"x-session-id", "b"}}), ",b");
  EXPECT_EQ(Session({{"session-id", "a"}, {"session-id", "b"}, {"session-id", "c"}}), "a,b,c");
  EXPECT_EQ(Session({{"cookie", "a=1"}, {"cookie", "session-id=x"}, {"cookie", "session-id=y"}}), "x");
}

struct CookieCase {
  const char* cookie;
  const char* value;  // "" for none
};

class Cookie : public ::testing::TestWithParam<CookieCase> {};

TEST_P(Cookie, Value) { EXPECT_EQ(FindCookie(GetParam().cookie, "session-id"), GetParam().value); }

INSTANTIATE_TEST_SUITE_P(
    Table, Cookie,
    ::testing::Values(CookieCase{"session-id=abc", "abc"}, CookieCase{"a=1; session-id=abc; b=2", "abc"},
                      CookieCase{"a=1;session-id=abc;b=2", "abc"}, CookieCase{"", ""}, CookieCase{";", ""},
                      CookieCase{";;;", ""}, CookieCase{"session-id", ""}, CookieCase{"session-id=", ""},
                      CookieCase{"=", ""}, CookieCase{"===", ""},
                      CookieCase{"session-id=;session-id=b", "b"},      // an empty value is no match
                      CookieCase{"session-id=a; session-id=b", "a"},    // the first match
                      CookieCase{"session-id=ab=cd", "ab"},             // cut at the second '='
                      CookieCase{"session-id=YWI==", "YWI"},            // base64 with padding
                      CookieCase{"session-id==x", ""},                  //
                      CookieCase{"  \t session-id=abc", "abc"},         // blanks before a part
                      CookieCase{"a=1;\r\n\v\fsession-id=abc", "abc"},  //
                      CookieCase{"session-id=abc  ; b=2", "abc  "},     // blanks after the value stay
                      CookieCase{"session-id= abc", " abc"},            // and before it
                      CookieCase{"session-id =abc", ""},                // the name has a blank at its end
                      CookieCase{"session-id=\"abc\"", "\"abc\""},      // quotes stay
                      CookieCase{"session-id=\"a;b\"", "\"a"},          // and do not protect a ';'
                      CookieCase{"a=\"session-id=x\"", ""},             // a's value
                      CookieCase{"a=\"; session-id=x\"", "x\""},        //
                      CookieCase{"xsession-id=abc", ""}, CookieCase{"session-idx=abc", ""},
                      CookieCase{"session_id=abc", ""},
                      CookieCase{"=session-id=abc", "abc"},    // what comes before the name may be '='
                      CookieCase{"a==session-id=abc", "abc"},  // or a piece without a neighbour
                      CookieCase{"a=session-id=abc", ""},      // but a and session-id are neighbours
                      CookieCase{"session-id=\xc3\xa9", "\xc3\xa9"}));

TEST(SessionId, RefusesControlCharacters) {
  for (const char c : {'\r', '\n', '\0', '\x01', '\x1b', '\x7f'}) {
    std::string text = std::string("abc") + c + "x-admin: 1";
    EXPECT_EQ(Session({{"x-session-id", text}, {"session-id", "s"}}), "!") << static_cast<int>(c);
    text.insert(0, "session-id=");
    EXPECT_EQ(Session({{"cookie", text}}), "!") << static_cast<int>(c);
  }
  std::string scratch;
  const SessionId id = Read({{"session-id", "a"}, {"session-id", "\n"}}, scratch);
  EXPECT_EQ(id.result, Result::kControl);
  EXPECT_EQ(id.source, 1u);
  EXPECT_TRUE(id.value.empty());
  EXPECT_EQ(Session({{"x-session-id", "a\tb"}}), "a\tb");  // HTTP allows it
  EXPECT_EQ(Session({{"x-session-id", "\xff\x80"}}), "\xff\x80");
}

TEST(SessionId, RefusesLongOnes) {
  std::string scratch;
  const std::string longest(1024, 'a');
  EXPECT_TRUE(Read({{"x-session-id", longest}}, scratch).found());
  EXPECT_EQ(Read({{"x-session-id", longest + "a"}, {"session-id", "s"}}, scratch).result, Result::kTooLong);
  SessionIdOptions options;
  options.max_bytes = 2;
  EXPECT_EQ(Read({{"cookie", "session-id=abc"}}, scratch, options).result, Result::kTooLong);
  EXPECT_EQ(Read({{"cookie", "session-id=ab"}}, scratch, options).value, "ab");
}

TEST(SessionId, OtherSources) {
  std::string scratch;
  SessionIdOptions options;
  options.sources = {{SessionSource::Kind::kCookie, "SID"}, {SessionSource::Kind::kHeader, "Authorization"}};
  EXPECT_EQ(Read({{"authorization", "b"}, {"cookie", "SID=a"}}, scratch, options).value, "a");
  EXPECT_EQ(Read({{"authorization", "b"}, {"x-session-id", "a"}}, scratch, options).value, "b");
  options.sources.clear();
  EXPECT_EQ(Read({{"x-session-id", "a"}}, scratch, options).result, Result::kAbsent);
}

TEST(SessionId, RefusesOptionsWithoutMeaning) {
  const auto error = [](std::vector<SessionSource> sources, std::size_t max_bytes = 9) {
    return std::string(SessionIdReader::Create({std::move(sources), max_bytes}).status().message());
  };
  using Kind = SessionSource::Kind;
  EXPECT_THAT(error({}, 0), HasSubstr("max_bytes is 0"));
  EXPECT_THAT(error({{Kind::kHeader, ""}}),
              HasSubstr("sources[0].name is \"\", expected the name of a header"));
  EXPECT_THAT(error({{Kind::kHeader, "a b"}}), HasSubstr("sources[0].name is \"a b\""));
  EXPECT_THAT(error({{Kind::kCookie, "a=b"}}), HasSubstr("expected the name of a cookie"));
  EXPECT_THAT(error({{Kind::kCookie, "a;"}}), HasSubstr("expected the name of a cookie"));
  EXPECT_THAT(error({{Kind::kCookie, "a\n"}}), HasSubstr("sources[0].name is \"a\\n\""));
  EXPECT_THAT(error({{Kind::kHeader, "a"}, {Kind::kHeader, "A"}}),
              HasSubstr("sources[1].name is \"a\" again"));
  EXPECT_EQ(error({{Kind::kHeader, "a"}, {Kind::kCookie, "a"}, {Kind::kCookie, "A"}}), "");
  EXPECT_THAT(error(std::vector<SessionSource>(17, {Kind::kHeader, "a"})), HasSubstr("at most 16"));
}

}  // namespace
}  // namespace llmd::gateway
