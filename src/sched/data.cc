#include "llmd/sched/data.h"

namespace llmd::sched {

std::uint32_t DataLayout::Find(std::string_view data_type, std::string_view producer,
                               const std::type_info& type,
                               std::unique_ptr<internal::ColumnBase> (*make_column)(), bool of_request) {
  bool conflict = false;
  for (std::uint32_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].data_type != data_type || entries_[i].producer != producer) continue;
    if (*entries_[i].type == type && entries_[i].of_request == of_request) return i;
    conflict = true;
  }
  const auto index = static_cast<std::uint32_t>(entries_.size());
  entries_.push_back({std::string(data_type), std::string(producer), &type, make_column, of_request});
  if (conflict) type_conflicts_.push_back(index);
  return index;
}

DataColumns::DataColumns(const DataLayout& layout) {
  for (const DataLayout::Entry& entry : layout.entries()) columns_.push_back(entry.make_column());
}

void DataColumns::Begin(std::size_t pool_size) {
  size_ = pool_size;
  for (const auto& column : columns_) column->published = false;
}

}  // namespace llmd::sched
