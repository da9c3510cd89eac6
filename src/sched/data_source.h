// Reading data of other plugins: the parameter that names the producer, and values that may be missing.
// Private to the component.
#ifndef SRC_SCHED_DATA_SOURCE_H_
#define SRC_SCHED_DATA_SOURCE_H_

#include <span>
#include <string>
#include <string_view>

#include "llmd/sched/endpoint.h"
#include "llmd/sched/parameters.h"

namespace llmd::sched {

// The plugin that `field` names; `otherwise` when the field is absent or empty.
inline std::string ReadProducer(ParameterReader& read, std::string_view field, std::string_view otherwise) {
  std::string producer;
  read.Optional(field, &producer);
  return producer.empty() ? std::string(otherwise) : producer;
}

// The endpoint's value, T{} when the producer published nothing.
template <typename T>
T ValueAt(std::span<const T> column, Position position) {
  return position < column.size() ? column[position] : T{};
}

}  // namespace llmd::sched

#endif  // SRC_SCHED_DATA_SOURCE_H_
