#include "examples/gateway_scheduler/estimate_token_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"
#include "llmd/hash/approx_prefix.h"

namespace llmd::host {
namespace {

class Stream {
 public:
  Stream(const gateway::OpenAiRequest& request, const MediaEstimate& media)
      : request_(request), media_(media) {}

  void Text(std::string_view text) { packer_.AddText(text); }

  // A content: a string is one piece; of blocks, each text is followed by a piece that is a blank, which is
  // not part of the stream.
  void Content(std::size_t first, std::size_t count) {
    for (std::size_t piece = first; piece < first + count; piece += 2) {
      Assets(piece);
      packer_.AddText(request_.text[piece]);
    }
    Assets(first + count);
  }

  // Those that stand before the piece.
  void Assets(std::size_t piece) {
    for (; next_asset_ < request_.media.size() && request_.media[next_asset_].piece <= piece; ++next_asset_) {
      const gateway::MediaItem& item = request_.media[next_asset_];
      const std::uint32_t count = std::max(std::min(media_.Tokens(item), left_), 1u);
      left_ -= std::min(left_, count);
      if (item.format.empty()) {
        packer_.AddAsset(item.data, count);
      } else {
        packer_.AddAsset(absl::StrCat(ToAbsl(item.data), ToAbsl(item.format)), count);
      }
    }
  }

  void Finish(std::vector<TokenId>& out) { packer_.Finish(out); }

 private:
  const gateway::OpenAiRequest& request_;
  const MediaEstimate& media_;
  hash::EstimatePacker packer_;
  std::size_t next_asset_ = 0;
  std::uint32_t left_ = kMaxRequestAssetTokens;
};

}  // namespace

void EstimateTokenSource::Tokenize(const TokenQuery& query, Done done) {
  const gateway::OpenAiRequest& request = *query.openai;
  auto tokens = std::make_shared<PromptTokens>();
  if (!request.messages.empty()) {
    Stream stream(request, media_);
    const std::size_t lead = request.messages.front().first_piece;  // a system prompt or instructions
    const bool instructions_first = request.api == gateway::Api::kResponses;
    if (instructions_first) stream.Content(0, lead);
    stream.Text(request.raw_tools);
    if (!instructions_first) stream.Content(0, lead);
    for (const gateway::ChatMessage& message : request.messages) {
      stream.Text(message.role);
      stream.Content(message.first_piece, message.piece_count);
    }
    stream.Assets(request.text.size());
    stream.Finish(tokens->prompts.emplace_back());
  } else {
    for (const auto& prompt : request.prompts) {
      std::vector<TokenId>& out = tokens->prompts.emplace_back();
      if (prompt.token_count > 0) {
        const TokenSpan span = request.TokensOf(prompt);
        out.assign(span.begin(), span.end());
        continue;
      }
      hash::EstimatePacker packer;
      for (std::size_t i = 0; i < prompt.piece_count; ++i)
        packer.AddText(request.text[prompt.first_piece + i]);
      packer.Finish(out);
    }
  }
  done(std::shared_ptr<const PromptTokens>(std::move(tokens)));
}

absl::StatusOr<MediaEstimate> MediaEstimateOf(const sched::Scheduler& scheduler) {
  for (const sched::PluginSpec& plugin : scheduler.config().plugins) {
    if (plugin.type != "token-producer" && plugin.type != "tokenizer") continue;
    const sched::Value::Map* fields = plugin.parameters.AsMap();
    if (fields == nullptr) continue;
    for (const auto& [name, value] : *fields) {
      if (name == "estimate") return MediaEstimate::FromParameters(value);
    }
  }
  return MediaEstimate();
}

}  // namespace llmd::host
