// Values that one plugin computes in one decision and others read: of every endpoint, or of the request.
//
// A datum is named by its type and the plugin that produces it, e.g. (PrefixCacheMatchInfo,
// approx-prefix-cache-producer). Names are resolved once, when a scheduler is built, to a *slot*; in a
// decision a DataSlot is an array with one element for each position of the pool, a RequestSlot a single
// value. Only a plugin that declared a datum has its slot, so nobody reads or writes what it did not declare.
// A data type T has `static constexpr std::string_view kDataType` and a default value.
//
// A DataLayout belongs to a scheduler and does not change; DataColumns are one decision's working memory, one
// thread's.
#ifndef LLMD_SCHED_DATA_H_
#define LLMD_SCHED_DATA_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <typeinfo>
#include <vector>

namespace llmd::sched {

template <typename T>
struct DataSlot {
  std::uint32_t index = 0;
};
template <typename T>
struct RequestSlot {
  std::uint32_t index = 0;
};

namespace internal {

struct ColumnBase {
  virtual ~ColumnBase() = default;
  bool published = false;
};

template <typename T>
struct Column final : ColumnBase {
  std::vector<T> values;
};

}  // namespace internal

class DataLayout {
 public:
  struct Entry {
    std::string data_type;
    std::string producer;  // plugin name
    const std::type_info* type = nullptr;
    std::unique_ptr<internal::ColumnBase> (*make_column)() = nullptr;
    bool of_request = false;  // one value, not one for each position
    bool required = false;    // some consumer cannot do without
  };

  // The slot of (T::kDataType, producer), new or known.
  template <typename T>
  DataSlot<T> Declare(std::string_view producer) {
    return {Find(T::kDataType, producer, typeid(T), &MakeColumn<T>, false)};
  }
  template <typename T>
  RequestSlot<T> DeclareForRequest(std::string_view producer) {
    return {Find(T::kDataType, producer, typeid(T), &MakeColumn<T>, true)};
  }

  std::vector<Entry>& entries() { return entries_; }
  const std::vector<Entry>& entries() const { return entries_; }
  // Slots whose name was at first declared with another C++ type, or once for endpoints and once for the
  // request.
  const std::vector<std::uint32_t>& type_conflicts() const { return type_conflicts_; }

 private:
  template <typename T>
  static std::unique_ptr<internal::ColumnBase> MakeColumn() {
    return std::make_unique<internal::Column<T>>();
  }
  std::uint32_t Find(std::string_view data_type, std::string_view producer, const std::type_info& type,
                     std::unique_ptr<internal::ColumnBase> (*make_column)(), bool of_request);

  std::vector<Entry> entries_;
  std::vector<std::uint32_t> type_conflicts_;
};

class DataColumns {
 public:
  explicit DataColumns(const DataLayout& layout);

  // Forgets what the previous decision published.
  void Begin(std::size_t pool_size);

  // The producer's array, every element T{} at first. One element for each position of the pool.
  template <typename T>
  std::span<T> Publish(DataSlot<T> slot) {
    auto& column = static_cast<internal::Column<T>&>(*columns_[slot.index]);
    column.values.assign(size_, T{});
    column.published = true;
    return column.values;
  }

  // The same for a value of the request, T{} at first; it keeps no memory of earlier decisions.
  template <typename T>
  T& Publish(RequestSlot<T> slot) {
    auto& column = static_cast<internal::Column<T>&>(*columns_[slot.index]);
    column.values.assign(1, T{});
    column.published = true;
    return column.values.front();
  }
  // Null when nothing was published in this decision.
  template <typename T>
  const T* Read(RequestSlot<T> slot) const {
    const auto& column = static_cast<const internal::Column<T>&>(*columns_[slot.index]);
    return column.published ? &column.values.front() : nullptr;
  }

  // Empty when the producer published nothing in this decision.
  template <typename T>
  std::span<const T> Read(DataSlot<T> slot) const {
    const auto& column = static_cast<const internal::Column<T>&>(*columns_[slot.index]);
    if (!column.published) return {};
    return column.values;
  }

  // For codecs (data_codec.h). `slot` is an index into DataLayout::entries().
  internal::ColumnBase& column(std::uint32_t slot) { return *columns_[slot]; }
  const internal::ColumnBase& column(std::uint32_t slot) const { return *columns_[slot]; }
  std::size_t pool_size() const { return size_; }

 private:
  std::vector<std::unique_ptr<internal::ColumnBase>> columns_;
  std::size_t size_ = 0;
};

}  // namespace llmd::sched

#endif  // LLMD_SCHED_DATA_H_
