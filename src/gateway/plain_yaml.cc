#include "src/gateway/plain_yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <exception>
#include <istream>
#include <optional>
#include <streambuf>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::gateway {
namespace {

// Ends the parse; the builder has the status.
struct Stop : std::exception {};

class MemoryBuffer : public std::streambuf {
 public:
  explicit MemoryBuffer(std::string_view text) {
    char* begin = const_cast<char*>(text.data());  // there is no put area
    setg(begin, begin, begin + text.size());
  }
};

class Builder final : public YAML::EventHandler {
 public:
  explicit Builder(std::size_t max_depth) : max_depth_(max_depth) {}

  const absl::Status& status() const { return status_; }
  YamlNode Take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) Fail(mark, "a second document begins, expected one");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { Leaf(mark, YamlNode::Kind::kNull, {}); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { Fail(mark, "an alias, expected none"); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    CheckTag(mark, tag);
    const bool null = tag == "?" && (value.empty() || value == "~" || value == "null");
    Leaf(mark, null ? YamlNode::Kind::kNull : YamlNode::Kind::kScalar, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    Open(mark, tag, YamlNode::Kind::kList);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    Open(mark, tag, YamlNode::Kind::kMap);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapEnd() override { Close(); }

 private:
  struct Frame {
    YamlNode node;
    std::optional<std::string> key;  // of the value to come
    std::uint32_t key_line = 0;
  };

  static std::uint32_t Line(const YAML::Mark& mark) { return static_cast<std::uint32_t>(mark.line + 1); }

  [[noreturn]] void Fail(const YAML::Mark& mark, std::string_view what) {
    status_ = absl::InvalidArgumentError(absl::StrCat("line ", Line(mark), ": ", ToAbsl(what)));
    throw Stop();
  }
  void CheckTag(const YAML::Mark& mark, const std::string& tag) {
    if (!tag.empty() && tag != "?" && tag != "!")
      Fail(mark, absl::StrCat("the tag ", tag, ", expected none"));
  }
  bool AtKey() const {
    return !frames_.empty() && frames_.back().node.kind == YamlNode::Kind::kMap && !frames_.back().key;
  }
  void Leaf(const YAML::Mark& mark, YamlNode::Kind kind, const std::string& text) {
    if (AtKey()) {
      if (kind != YamlNode::Kind::kScalar) Fail(mark, "a key without a text, expected a text");
      frames_.back().key = text;
      frames_.back().key_line = Line(mark);
      return;
    }
    Add({.kind = kind, .line = Line(mark), .text = text});
  }
  void Open(const YAML::Mark& mark, const std::string& tag, YamlNode::Kind kind) {
    CheckTag(mark, tag);
    if (AtKey()) Fail(mark, "a list or map as a key, expected a text");
    if (frames_.size() == max_depth_) {
      Fail(mark, absl::StrCat("nested too deeply, expected at most ", max_depth_, " levels"));
    }
    frames_.push_back({.node = {.kind = kind, .line = Line(mark)}, .key = {}});
  }
  void Close() {
    YamlNode node = std::move(frames_.back().node);
    frames_.pop_back();
    Add(std::move(node));
  }
  void Add(YamlNode node) {
    if (frames_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = frames_.back();
    if (frame.node.kind == YamlNode::Kind::kList) {
      frame.node.items.push_back(std::move(node));
      return;
    }
    node.line = frame.key_line;
    frame.node.fields.emplace_back(*std::move(frame.key), std::move(node));
    frame.key.reset();
  }

  std::size_t max_depth_;
  absl::Status status_;
  YamlNode root_;
  std::vector<Frame> frames_;
  int documents_ = 0;
};

}  // namespace

std::string_view YamlNode::kind_name() const {
  static constexpr std::string_view kNames[] = {"null", "a text", "a list", "a map"};
  return kNames[static_cast<std::size_t>(kind)];
}

absl::StatusOr<YamlNode> ParsePlainYaml(std::string_view text, std::size_t max_depth) {
  Builder builder(max_depth);
  try {
    MemoryBuffer buffer(text);
    std::istream stream(&buffer);
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const Stop&) {
    return builder.status();
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("line ", error.mark.line + 1, ": not YAML: ", error.msg));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not YAML: ", error.what()));
  }
  return builder.Take();
}

}  // namespace llmd::gateway
