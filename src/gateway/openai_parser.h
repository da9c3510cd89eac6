// The reader behind OpenAiParser: one pass over the top-level fields, each handed to the code that knows its
// shape.
#ifndef SRC_GATEWAY_OPENAI_PARSER_H_
#define SRC_GATEWAY_OPENAI_PARSER_H_

#include <string_view>
#include <vector>

#include "llmd/gateway/openai_request.h"
#include "src/gateway/json_reader.h"
#include "vllm/grpc/engine.pb.h"

namespace llmd::gateway {

class OpenAiParser::Impl {
 public:
  explicit Impl(const OpenAiLimits& limits) : limits_(limits), reader_(limits.max_depth) {}
  absl::Status Parse(Api api, std::string_view body, OpenAiRequest& request);

 private:
  using Pieces = std::vector<std::string_view>;

  // What a field's value may be.
  enum class Wanted : std::uint8_t { kMissing, kEmpty, kGiven };

  absl::Status ParseJson();
  absl::Status ParseGrpc(std::string_view body);
  absl::Status Finish();
  absl::Status Invalid(std::string_view what) const;

  // Each reads one value. They return false on an error, JSON's own or one set by Refuse().
  bool ReadField(std::string_view key);
  bool ReadCommonField(std::string_view key, bool& known);
  bool ReadModel();
  bool ReadPrompt();
  bool ReadTokenRun();
  bool ReadMessages(std::string_view what);
  bool ReadMessage(std::string_view what);
  bool ReadContent();
  bool ReadBlock();
  bool ReadMedia(std::string_view& data, std::string_view& format);
  bool ReadLead();
  bool ReadFeatures();
  bool ReadHashes();
  bool ReadPlaceholders();
  bool ReadSamplingParams();
  bool ReadStreamOptions();
  bool ReadConversation();
  bool ReadLimit(std::optional<std::uint32_t>& limit);
  // Reads a value of that type, skips one of another.
  bool ReadStringOrSkip(std::string_view& value);
  bool ReadFlagOrSkip(bool& value);
  bool ReadRaw(std::string_view& raw);

  bool Refuse(std::string_view what);
  bool AddMedia(std::string_view modality, std::string_view data, std::string_view format);
  void ForgetPrompt();
  void PairFeatures();

  struct Placeholder {
    std::string_view modality;
    std::uint64_t offset = 0, length = 0;
  };
  struct MediaHash {
    std::string_view modality, hash;
  };

  const OpenAiLimits limits_;
  JsonReader reader_;
  TextArena arena_;
  OpenAiRequest* out_ = nullptr;
  Api api_ = Api::kNone;
  Pieces lead_;               // instructions or system prompt, before the messages
  Pieces* pieces_ = nullptr;  // where text goes: lead_ or out_->text
  bool has_prompt_ = false;   // the field that the interface cannot do without
  std::optional<std::uint32_t> max_tokens_, max_completion_tokens_;
  std::vector<Placeholder> placeholders_;
  std::vector<MediaHash> hashes_;
  vllm::grpc::engine::GenerateRequest grpc_;
  std::string refusal_;
  std::size_t refusal_offset_ = 0;
};

}  // namespace llmd::gateway

#endif  // SRC_GATEWAY_OPENAI_PARSER_H_
