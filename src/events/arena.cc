#include "llmd/events/arena.h"

#include <algorithm>

namespace llmd::events {

Arena& Arena::operator=(Arena&& other) noexcept {
  chunks_ = std::move(other.chunks_);
  other.chunks_.clear();
  next_ = std::exchange(other.next_, nullptr);
  left_ = std::exchange(other.left_, 0);
  used_ = std::exchange(other.used_, 0);
  capacity_ = std::exchange(other.capacity_, 0);
  return *this;
}

void Arena::AddChunk(std::size_t at_least) {
  const std::size_t bytes = std::max({at_least, kFirstChunk, capacity_});
  chunks_.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
  next_ = chunks_.back().get();
  left_ = bytes;
  capacity_ += bytes;
}

void Arena::Reset() {
  if (chunks_.size() > 1) {
    const std::size_t bytes = capacity_;
    chunks_.clear();
    capacity_ = 0;
    AddChunk(bytes);
  }
  next_ = chunks_.empty() ? nullptr : chunks_.back().get();
  left_ = capacity_;
  used_ = 0;
}

}  // namespace llmd::events
