// Plugin parameters: a small tree of values such as YAML or JSON gives, and a strict reader for it.
//
//   ParameterReader read("queue-scorer", parameters);
//   int depth = 5;
//   read.Optional("depth", &depth);
//   absl::Status status = read.Finish();   // unknown fields and wrong types are errors
//
// A complaint reads "queue-scorer: depth is a string, expected an integer", or, for values read from a file,
// "line 12: plugins[2].parameters.depth is a string, expected an integer".
//
// Plain values, no threads.
#ifndef LLMD_SCHED_PARAMETERS_H_
#define LLMD_SCHED_PARAMETERS_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace llmd::sched {

class Value {
 public:
  using List = std::vector<Value>;
  using Field = std::pair<std::string, Value>;
  using Map = std::vector<Field>;  // in the order of the source

  Value() = default;                               // null
  Value(bool b) : data_(b) {}                      // NOLINT: a literal reads as a value
  Value(int i) : data_(std::int64_t{i}) {}         // NOLINT
  Value(std::int64_t i) : data_(i) {}              // NOLINT
  Value(double d) : data_(d) {}                    // NOLINT
  Value(const char* s) : data_(std::string(s)) {}  // NOLINT
  Value(std::string s) : data_(std::move(s)) {}    // NOLINT
  static Value MakeList(List list) { return Value(std::move(list)); }
  static Value MakeMap(Map map) { return Value(std::move(map)); }

  bool is_null() const { return std::holds_alternative<std::monostate>(data_); }
  // Null when the value is of another type.
  const bool* AsBool() const { return std::get_if<bool>(&data_); }
  const std::int64_t* AsInt() const { return std::get_if<std::int64_t>(&data_); }
  const double* AsDouble() const { return std::get_if<double>(&data_); }
  const std::string* AsString() const { return std::get_if<std::string>(&data_); }
  const List* AsList() const { return std::get_if<List>(&data_); }
  const Map* AsMap() const { return std::get_if<Map>(&data_); }

  // "a string", "a list" ...
  std::string_view kind() const;

  // Line of the file that the value was read from; 0 when it was made in code.
  std::uint32_t line() const { return line_; }
  void set_line(std::uint32_t line) { line_ = line; }

 private:
  explicit Value(List list) : data_(std::move(list)) {}
  explicit Value(Map map) : data_(std::move(map)) {}

  std::variant<std::monostate, bool, std::int64_t, double, std::string, List, Map> data_;
  std::uint32_t line_ = 0;
};

// Parameters of a plugin: a map or null.
inline Value Parameters(std::initializer_list<Value::Field> fields) {
  return Value::MakeMap(Value::Map(fields));
}

class ParameterReader {
 public:
  // `owner` names the plugin in messages. `parameters` must outlive the reader.
  ParameterReader(std::string_view owner, const Value& parameters);
  // Fields are named by their path, such as "plugins[2].parameters".
  static ParameterReader At(std::string_view path, const Value& parameters);
  // Reads the map in `field` (no fields when absent), named as a part of this one. Finish() both.
  ParameterReader Nested(std::string_view field);
  // One of a list of maps in `field`, `item` being the list's element `index`.
  ParameterReader NestedItem(std::string_view field, std::size_t index, const Value& item) const;

  // Sets `out` when the field is present and not null.
  void Optional(std::string_view field, bool* out);
  void Optional(std::string_view field, std::int64_t* out);
  void Optional(std::string_view field, double* out);  // an integer is accepted
  void Optional(std::string_view field, std::string* out);
  void Optional(std::string_view field, std::vector<std::string>* out);
  void Optional(std::string_view field, absl::Duration* out);  // "200ms"
  // "1Gi", "5k", or an integer, in the syntax of Kubernetes quantities; at least 0.
  void OptionalQuantity(std::string_view field, std::uint64_t* out);
  // The elements of a list; null when absent.
  const Value::List* OptionalList(std::string_view field);
  // The field itself, for nested structures; null when absent.
  const Value* Raw(std::string_view field);

  // Records that the field's value is not allowed; the first complaint wins.
  void Reject(std::string_view field, std::string_view value, std::string_view expected);

  // InvalidArgument with the first complaint: wrong type, rejected value, unknown or repeated field.
  absl::Status Finish();
  // The first complaint so far, without looking for unknown fields.
  const absl::Status& Complaint() const { return status_; }

 private:
  // `prefix` stands before a field's name, `whole` for all of the parameters.
  ParameterReader(std::string prefix, std::string whole, const Value& parameters);

  void WrongType(std::string_view field, const Value& value, std::string_view expected);
  std::uint32_t LineOf(std::string_view field) const;
  std::string KnownFields() const;

  std::string prefix_;
  std::string whole_;
  std::uint32_t line_;
  Value::Map empty_;
  const Value::Map* fields_;
  std::vector<bool> used_;
  std::vector<std::string> known_;  // fields asked for
  absl::Status status_;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_PARAMETERS_H_
