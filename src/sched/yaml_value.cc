#include "src/sched/yaml_value.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <exception>
#include <istream>
#include <map>
#include <optional>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::sched {
namespace {

// A key must fit on a line of its own, escaped, within the 1024 characters that YAML allows.
constexpr std::size_t kMaxKeyBytes = 500;

// Ends the parse; the message is in the builder's status.
struct Stop : std::exception {};

absl::Status ErrorAt(std::size_t line, std::string_view path, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("line ", line, ": ", path.empty() ? "the document" : ToAbsl(path), " ", ToAbsl(what)));
}

// Reads from memory that the caller owns.
class MemoryBuffer : public std::streambuf {
 public:
  explicit MemoryBuffer(std::string_view text) {
    char* begin = const_cast<char*>(text.data());  // never written to: there is no put area
    setg(begin, begin, begin + text.size());
  }
};

// Builds the tree from the parser's events.
class TreeBuilder final : public YAML::EventHandler {
 public:
  TreeBuilder(std::string_view text, const YamlLimits& limits) : text_(text), limits_(limits) {}

  const absl::Status& status() const { return status_; }
  Value Take() { return std::move(root_); }

  // Where in the document the parser is, for its own complaints.
  std::string Path() const {
    std::string path;
    for (const Frame& frame : frames_) {
      if (frame.is_list) {
        absl::StrAppend(&path, "[", frame.list.size(), "]");
      } else if (frame.key) {
        absl::StrAppend(&path, path.empty() ? "" : ".", *frame.key);
      }
    }
    return path;
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) Fail(Line(mark), "", "is a second one in the text, expected a single document");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    // A value that is not there has the next token's mark.
    if (AtKey()) Fail(Line(mark), Path(), "has a key that is null, expected a string");
    Count(0, Line(mark));
    Add(Value(), Line(mark), anchor, 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    CheckIndentation(mark);
    if (tag != "?") CheckQuotes(mark);
    if (AtKey()) return TakeKey(mark, value, tag == "?");
    Count(value.size(), Line(mark));
    Add(Typed(Line(mark), tag, value), Line(mark), anchor, 0);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (AtKey()) Fail(Line(mark), Path(), "has an alias as a key, expected a string");
    const auto it = anchors_.find(anchor);
    if (it == anchors_.end())
      Fail(Line(mark), Path(), "is an alias of what contains it, expected another one");
    const Anchor& target = it->second;
    if (frames_.size() + target.depth > limits_.depth) TooDeep(Line(mark));
    nodes_ += target.nodes;
    bytes_ += target.bytes;
    CheckCounts(Line(mark));
    Add(target.value, Line(mark), 0, target.depth);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value style) override {
    CheckTag(mark, tag, "tag:yaml.org,2002:seq");
    Open(mark, anchor, style, true);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value style) override {
    CheckTag(mark, tag, "tag:yaml.org,2002:map");
    Open(mark, anchor, style, false);
  }
  void OnSequenceEnd() override {
    Frame frame = Close();
    Finish(std::move(frame), Value::MakeList(std::move(frame.list)));
  }
  void OnMapEnd() override {
    Frame frame = Close();
    Merge(frame);
    Finish(std::move(frame), Value::MakeMap(std::move(frame.map)));
  }

 private:
  struct Frame {
    bool is_list = false;
    bool is_block = false;
    std::size_t line = 0;
    YAML::anchor_t anchor = 0;
    std::size_t depth = 0;         // of what is below
    std::size_t nodes_before = 0;  // counted when it was opened
    std::size_t bytes_before = 0;
    Value::List list = {};
    Value::Map map = {};
    std::map<std::string, std::size_t, std::less<>> key_lines = {};
    std::optional<std::string> key = {};
    std::size_t key_line = 0;
    bool key_is_merge = false;
    std::vector<Value> merged = {};
  };
  struct Anchor {
    Value value;
    std::size_t depth;
    std::size_t nodes;
    std::size_t bytes;
  };

  static std::size_t Line(const YAML::Mark& mark) { return static_cast<std::size_t>(mark.line) + 1; }

  [[noreturn]] void Fail(std::size_t line, std::string_view path, std::string_view what) {
    status_ = ErrorAt(line, path, what);
    throw Stop();
  }
  [[noreturn]] void TooDeep(std::size_t line) {
    Fail(line, Path(), absl::StrCat("is nested too deeply, expected at most ", limits_.depth, " levels"));
  }

  bool AtKey() const { return !frames_.empty() && !frames_.back().is_list && !frames_.back().key; }

  void Count(std::size_t bytes, std::size_t line) {
    ++nodes_;
    bytes_ += bytes;
    CheckCounts(line);
  }
  void CheckCounts(std::size_t line) {
    if (nodes_ > limits_.nodes) {
      Fail(line, Path(),
           absl::StrCat("is too much, expected at most ", limits_.nodes, " values, aliases expanded"));
    }
    if (bytes_ > limits_.value_bytes) {
      Fail(line, Path(),
           absl::StrCat("is too much, expected at most ", limits_.value_bytes, " bytes, aliases expanded"));
    }
  }

  // YAML forbids tabs in the indentation of a block; the parser does not mind some of them.
  void CheckIndentation(const YAML::Mark& mark) {
    if (frames_.empty() || !frames_.back().is_block || mark.pos < 0) return;
    const auto at = std::min(static_cast<std::size_t>(mark.pos), text_.size());
    const std::size_t start = text_.rfind('\n', at == 0 ? 0 : at - 1);
    std::string_view before = text_.substr(start == std::string_view::npos ? 0 : start + 1);
    before = before.substr(0, before.find_first_not_of(" \t"));
    if (before.find('\t') != std::string_view::npos) {
      Fail(Line(mark), Path(), "is indented with a tab, expected spaces");
    }
  }

  // The parser takes the end of the text for a missing quote.
  void CheckQuotes(const YAML::Mark& mark) {
    std::string_view rest =
        text_.substr(std::min(static_cast<std::size_t>(std::max(mark.pos, 0)), text_.size()));
    while (rest.starts_with('&') || rest.starts_with('!')) {  // an anchor or a tag before it
      rest.remove_prefix(std::min(rest.find_first_of(" \t\r\n"), rest.size()));
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t\r\n"), rest.size()));
    }
    if (!rest.starts_with('"') && !rest.starts_with('\'')) return;
    const char quote = rest[0];
    std::size_t end = 1;
    for (; end < rest.size(); ++end) {
      const bool doubled = quote == '\'' && rest.substr(end).starts_with("''");
      if (doubled || (quote == '"' && rest[end] == '\\')) {
        ++end;  // escaped
      } else if (rest[end] == quote) {
        break;
      }
    }
    if (end >= rest.size()) Fail(Line(mark), Path(), "has a quote without an end, expected another one");
  }

  void CheckTag(const YAML::Mark& mark, const std::string& tag, std::string_view standard) {
    if (tag.empty() || tag == "?" || tag == "!" || tag == standard) return;
    Fail(Line(mark), Path(), absl::StrCat("has the tag ", tag, ", expected none"));
  }

  Value Typed(std::size_t line, const std::string& tag, const std::string& text) {
    if (tag == "!" || tag == "tag:yaml.org,2002:str") return text;
    Value value = ResolvePlainScalar(text);
    if (tag == "?" || tag.empty() || (tag == "tag:yaml.org,2002:null" && value.is_null()) ||
        (tag == "tag:yaml.org,2002:bool" && value.AsBool() != nullptr) ||
        (tag == "tag:yaml.org,2002:int" && value.AsInt() != nullptr)) {
      return value;
    }
    if (tag == "tag:yaml.org,2002:float") {
      if (value.AsDouble() != nullptr) return value;
      if (value.AsInt() != nullptr) return static_cast<double>(*value.AsInt());
    }
    Fail(line, Path(), absl::StrCat("has the tag ", tag, ", expected none or the tag of a type that fits"));
  }

  void TakeKey(const YAML::Mark& mark, const std::string& key, bool plain) {
    Count(key.size(), Line(mark));
    if (key.size() > kMaxKeyBytes) {
      Fail(Line(mark), Path(),
           absl::StrCat("has a key of ", key.size(), " bytes, expected at most ", kMaxKeyBytes));
    }
    const auto is_control = [](char c) { return (c >= 0 && c < 0x20) || c == 0x7F; };
    if (std::any_of(key.begin(), key.end(), is_control)) {
      Fail(Line(mark), Path(), "has a key with a control character, expected text");
    }
    Frame& frame = frames_.back();
    frame.key_is_merge = plain && key == "<<";
    const auto [it, is_new] = frame.key_lines.emplace(key, Line(mark));
    frame.key = key;
    frame.key_line = Line(mark);
    if (!is_new) {
      Fail(Line(mark), Path(),
           absl::StrCat("is given twice, first in line ", it->second, ", expected one value"));
    }
  }

  void Open(const YAML::Mark& mark, YAML::anchor_t anchor, YAML::EmitterStyle::value style, bool is_list) {
    if (AtKey()) Fail(Line(mark), Path(), "has a key that is a list or map, expected a string");
    CheckIndentation(mark);
    if (frames_.size() >= limits_.depth) TooDeep(Line(mark));
    Count(0, Line(mark));
    frames_.push_back({.is_list = is_list,
                       .is_block = style == YAML::EmitterStyle::Block,
                       .line = Line(mark),
                       .anchor = anchor,
                       .nodes_before = nodes_ - 1,
                       .bytes_before = bytes_});
  }

  Frame Close() {
    Frame frame = std::move(frames_.back());
    frames_.pop_back();
    return frame;
  }

  void Finish(Frame&& frame, Value value) {
    const std::size_t nodes = nodes_ - frame.nodes_before;
    const std::size_t bytes = bytes_ - frame.bytes_before;
    if (frame.anchor != 0)
      anchors_.insert_or_assign(frame.anchor, Anchor{value, frame.depth + 1, nodes, bytes});
    Add(std::move(value), frame.line, 0, frame.depth + 1);
  }

  // Puts a complete value where it belongs.
  void Add(Value value, std::size_t line, YAML::anchor_t anchor, std::size_t depth) {
    if (anchor != 0) {
      const std::size_t bytes = value.AsString() != nullptr ? value.AsString()->size() : 0;
      anchors_.insert_or_assign(anchor, Anchor{value, depth, 1, bytes});
    }
    if (frames_.empty()) {
      value.set_line(static_cast<std::uint32_t>(line));
      root_ = std::move(value);
      return;
    }
    Frame& frame = frames_.back();
    frame.depth = std::max(frame.depth, depth);
    if (frame.is_list) {
      value.set_line(static_cast<std::uint32_t>(line));
      frame.list.push_back(std::move(value));
      return;
    }
    value.set_line(static_cast<std::uint32_t>(frame.key_line));
    if (frame.key_is_merge) {
      TakeMerge(frame, std::move(value));
    } else {
      frame.map.emplace_back(*std::move(frame.key), std::move(value));
    }
    frame.key.reset();
  }

  // "<<": the fields of one map or of each of a list of maps, unless given otherwise.
  void TakeMerge(Frame& frame, Value value) {
    if (const Value::List* list = value.AsList()) {
      frame.merged = *list;
    } else {
      frame.merged = {std::move(value)};
    }
    for (const Value& map : frame.merged) {
      if (map.AsMap() == nullptr) {
        Fail(frame.key_line, Path(), absl::StrCat("is ", ToAbsl(map.kind()), ", expected a map to merge"));
      }
    }
  }
  static void Merge(Frame& frame) {
    for (const Value& source : frame.merged) {
      for (const Value::Field& field : *source.AsMap()) {
        if (frame.key_lines.emplace(field.first, 0).second) frame.map.push_back(field);
      }
    }
  }

  std::string_view text_;
  const YamlLimits& limits_;
  absl::Status status_;
  Value root_;
  std::vector<Frame> frames_;
  std::map<YAML::anchor_t, Anchor> anchors_;
  std::size_t documents_ = 0;
  std::size_t nodes_ = 0;
  std::size_t bytes_ = 0;
};

// The length of the UTF-8 character at the start of `text`; 0 when there is none, or one that YAML forbids.
std::size_t CharacterLength(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return first >= 0x20 || first == '\t' || first == '\n' || first == '\r' ? 1 : 0;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (length == 3 && ((first == 0xE0 && byte(1) < 0xA0) || (first == 0xED && byte(1) > 0x9F))) return 0;
  if (length == 4 && ((first == 0xF0 && byte(1) < 0x90) || (first == 0xF4 && byte(1) > 0x8F))) return 0;
  return length;
}

absl::Status CheckCharacters(std::string_view text) {
  std::size_t line = 1;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = CharacterLength(text.substr(at));
    if (length == 0) {
      const std::string hex = HexExcerpt(AsBytes(text.substr(at, 1)));
      return ErrorAt(line, "",
                     absl::StrCat("has the byte 0x", hex, " at offset ", at, ", expected text in UTF-8"));
    }
    if (text[at] == '\n') ++line;
    at += length;
  }
  return absl::OkStatus();
}

// The parser's complaint, in our form.
absl::Status SyntaxError(const YAML::Exception& error, std::string_view text, const std::string& path) {
  if (error.mark.is_null()) {
    return ErrorAt(1, path, absl::StrCat("is malformed (", error.msg, "), expected YAML"));
  }
  const auto line = static_cast<std::size_t>(error.mark.line) + 1;
  for (std::size_t i = 1, at = 0; i <= line && at < text.size(); ++i) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string_view indentation = text.substr(at, end - at);
    indentation = indentation.substr(0, indentation.find_first_not_of(" \t"));
    if (i + 1 >= line && indentation.find('\t') != std::string_view::npos) {
      return ErrorAt(i, path, "is indented with a tab, expected spaces");
    }
    at = end + 1;
  }
  return ErrorAt(
      line, path,
      absl::StrCat("is malformed at column ", error.mark.column + 1, " (", error.msg, "), expected YAML"));
}

}  // namespace

absl::StatusOr<Value> ParseYaml(std::string_view text, const YamlLimits& limits) {
  if (text.size() > limits.text_bytes) {
    return ErrorAt(1, "", absl::StrCat("has ", text.size(), " bytes, expected at most ", limits.text_bytes));
  }
  if (absl::Status status = CheckCharacters(text); !status.ok()) return status;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // positions are counted behind it
  TreeBuilder builder(text, limits);
  try {
    MemoryBuffer buffer(text);
    std::istream stream(&buffer);
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const Stop&) {
    return builder.status();
  } catch (const YAML::Exception& error) {
    return SyntaxError(error, text, builder.Path());
  } catch (const std::exception& error) {
    return ErrorAt(1, "", absl::StrCat("cannot be read (", error.what(), "), expected YAML"));
  }
  return builder.Take();
}

}  // namespace llmd::sched
