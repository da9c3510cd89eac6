// The indexes with what makes them safe for Python threads: a lock for the writer, a pool of readers for
// matching.
//
// Matching takes no lock of the index and never waits for a writer. A reader belongs to one match at a time;
// as many exist as matches once ran at the same time, at most kMaxReaders, beyond which a match waits for
// another to end.
#ifndef LLMD_PYTHON_SRC_INDEX_OBJECTS_H_
#define LLMD_PYTHON_SRC_INDEX_OBJECTS_H_

#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "llmd/index/approx_index.h"
#include "llmd/index/prefix_index.h"
#include "llmd/index/types.h"

namespace llmd::python {

template <typename Index>
class ReaderPool {
 public:
  static constexpr std::size_t kMaxReaders = 512;  // the index has room for 1024

  explicit ReaderPool(const Index& index) : index_(index) {}

  // Call with the GIL held or not. Never waits unless kMaxReaders matches run without the GIL.
  void Match(const index::NamespaceId& ns, BlockKeySpan chain, index::MatchResult& result) {
    std::unique_ptr<Reader> reader = Get();
    reader->Match(ns, chain, result);
    {
      std::lock_guard lock(mutex_);
      free_.push_back(std::move(reader));
    }
    if (waiting_) returned_.notify_one();
  }

 private:
  using Reader = typename Index::Reader;

  std::unique_ptr<Reader> Get() {
    std::unique_lock lock(mutex_);
    if (free_.empty() && made_ == kMaxReaders) {
      waiting_ = true;
      returned_.wait(lock, [&] { return !free_.empty(); });
    }
    if (free_.empty()) {
      ++made_;
      return std::make_unique<Reader>(index_);
    }
    std::unique_ptr<Reader> reader = std::move(free_.back());
    free_.pop_back();
    return reader;
  }

  const Index& index_;
  std::mutex mutex_;
  std::condition_variable returned_;
  std::vector<std::unique_ptr<Reader>> free_;
  std::size_t made_ = 0;
  std::atomic<bool> waiting_ = false;  // somebody has waited; from then on a returned reader is announced
};

// Chains at least this long are matched without the GIL.
inline constexpr std::size_t kLongChain = 1024;

// An index, its writer's lock and its readers. `Index` is PrefixIndex or ApproxIndex.
template <typename Index>
struct IndexObject {
  explicit IndexObject(std::unique_ptr<Index> made) : index(std::move(made)), readers(*index) {}

  std::unique_ptr<Index> index;
  std::mutex mutex;  // of the writer, const members included
  ReaderPool<Index> readers;
};
using PrefixIndexObject = IndexObject<index::PrefixIndex>;
using ApproxIndexObject = IndexObject<index::ApproxIndex>;

// Result of a match, as a Python object.
struct MatchObject {
  index::MatchResult rows;
};

// "set" or "refcount"; the error names the argument.
index::RemovalPolicy ToRemovalPolicy(pybind11::handle object, const char* name);

// A namespace, holder or holder handle as Python objects.
pybind11::tuple FromHolderOptions(const index::HolderOptions& options);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_INDEX_OBJECTS_H_
