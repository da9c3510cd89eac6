#include "examples/gateway_scheduler/estimate_token_source.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/hash/approx_prefix.h"
#include "tests/hosts/toy_worker.h"

namespace llmd::host {
namespace {

using testing::ElementsAre;

std::vector<TokenId> Packed(std::string_view text) {
  hash::EstimatePacker packer;
  packer.AddText(text);
  std::vector<TokenId> tokens;
  packer.Finish(tokens);
  return tokens;
}

std::vector<std::vector<TokenId>> Estimate(const std::string& path, const std::string& body) {
  EstimateTokenSource source;
  const TokenResult result = Tokenize(source, ToyRequest(path, body));
  EXPECT_TRUE(result.ok());
  return (*result)->prompts;
}

TEST(EstimateTokenSourceTest, TextIsItsBytes) {
  EXPECT_THAT(Estimate("/v1/completions", R"({"prompt":"abcde"})"),
              ElementsAre(ElementsAre(0x64636261, 0x65)));
  EXPECT_THAT(Estimate("/v1/completions", R"({"prompt":["abc","d\n"]})"),
              ElementsAre(Packed("abc"), Packed("d\n")));
  EXPECT_THAT(Estimate("/v1/completions", R"({"prompt":[[1,2],[3]]})"),
              ElementsAre(ElementsAre(1, 2), ElementsAre(3)));
}

TEST(EstimateTokenSourceTest, AChatIsToolsRolesAndTexts) {
  EXPECT_THAT(Estimate("/v1/chat/completions", R"({"tools":[{"a":1}],"messages":[
                       {"role":"system","content":"be good"},
                       {"role":"user","content":[{"type":"text","text":"one"},{"type":"text","text":"two"}]},
                       {"role":"assistant","content":null},
                       {"role":"user","content":""}]})"),
              ElementsAre(Packed(R"([{"a":1}]systembe gooduseronetwoassistantuser)")));
  EXPECT_THAT(Estimate("/v1/messages", R"({"system":"sys","messages":[{"role":"user","content":"hi"}]})"),
              ElementsAre(Packed("sysuserhi")));
}

TEST(EstimateTokenSourceTest, AssetsRepeatATokenOfTheirOwn) {
  const auto prompts = Estimate("/v1/chat/completions", R"({"messages":[{"role":"user","content":[
      {"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"http://x/y.png"}},
      {"type":"text","text":"b"}]}]})");
  hash::EstimatePacker packer;
  packer.AddText("usera");
  packer.AddAsset("http://x/y.png", 640 * 360 / 1024);
  packer.AddText("b");
  std::vector<TokenId> expected;
  packer.Finish(expected);
  EXPECT_THAT(prompts, ElementsAre(expected));
}

// A longer conversation begins with the tokens of the shorter one, up to its last, padded token.
TEST(EstimateTokenSourceTest, AConversationKeepsItsBeginning) {
  const std::string first = R"({"role":"user","content":"Tell me about the moon."})";
  const auto one = Estimate("/v1/chat/completions", absl::StrCat(R"({"messages":[)", first, "]}"))[0];
  const auto two =
      Estimate("/v1/chat/completions",
               absl::StrCat(R"({"messages":[)", first, R"(,{"role":"assistant","content":"No."}]})"))[0];
  ASSERT_GT(two.size(), one.size());
  EXPECT_TRUE(std::equal(one.begin(), one.end() - 1, two.begin()));
}

std::string Png(std::uint32_t width, std::uint32_t height) {
  std::string png("\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16);
  for (const std::uint32_t number : {width, height}) {
    for (int shift = 24; shift >= 0; shift -= 8) png.push_back(static_cast<char>(number >> shift));
  }
  png += std::string(20, '\0');
  std::string base64;
  absl::Base64Escape(png, &base64);
  return "data:image/png;base64," + base64;
}

TEST(MediaEstimateTest, Images) {
  const MediaEstimate estimate;
  const auto tokens = [&](const std::string& url) {
    return estimate.Tokens({.modality = "image", .data = url});
  };
  EXPECT_EQ(tokens("http://x/y"), 225);
  EXPECT_EQ(tokens(Png(1024, 512)), 512);
  EXPECT_EQ(tokens(Png(3, 3)), 1);
  EXPECT_EQ(tokens(Png(0xffffffff, 0xffffffff)), kMaxAssetTokens);
  EXPECT_EQ(tokens(Png(0, 5)), 225);
  EXPECT_EQ(tokens("data:image/png;base64,!!!!"), 225);
  EXPECT_EQ(tokens("data:image/png;base64,"), 225);
  std::string jpeg(
      "\xFF\xD8\xFF\xE0\0\x04zz\xFF\xC0\0\x11\x08\x02\0\x01\0\x03\x01\x11\0\x02\x11\x01\x03\x11\x01", 27);
  std::string base64;
  absl::Base64Escape(jpeg, &base64);
  EXPECT_EQ(tokens("data:image/jpeg;base64," + base64), 512 * 256 / 1024);
  // Cut off anywhere, a header is none.
  for (std::size_t bytes = 0; bytes + 1 < jpeg.size(); ++bytes) {
    absl::Base64Escape(jpeg.substr(0, bytes), &base64);
    EXPECT_GE(tokens("data:image/jpeg;base64," + base64), 1);
  }
}

TEST(MediaEstimateTest, VideosAndSounds) {
  const MediaEstimate estimate;
  EXPECT_EQ(estimate.Tokens({.modality = "video", .data = "http://v"}), 20 * 225);
  EXPECT_EQ(estimate.Tokens({.modality = "audio", .data = "http://a"}), 14 + 125);
  std::string wav(
      "RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data\0\xfa\0\0", 44);
  std::string base64;
  absl::Base64Escape(wav, &base64);
  EXPECT_EQ(estimate.Tokens({.modality = "audio", .data = base64, .format = "wav"}), 14 + 25);
  EXPECT_EQ(estimate.Tokens({.modality = "audio", .data = std::string(64000, 'A'), .format = "mp3"}),
            14 + 37);
}

TEST(MediaEstimateTest, RequestsOfManyAssetsAreBounded) {
  std::string body = R"({"messages":[{"role":"user","content":[)";
  const std::string url = Png(60000, 60000);
  for (int i = 0; i < 2000; ++i) {
    absl::StrAppend(&body, i == 0 ? "" : ",", R"({"type":"image_url","image_url":{"url":")", url, "\"}}");
  }
  body += "]}]}";
  const auto prompts = Estimate("/v1/chat/completions", body);
  EXPECT_LE(prompts[0].size(), kMaxRequestAssetTokens + 2000 + 1);
}

}  // namespace
}  // namespace llmd::host
