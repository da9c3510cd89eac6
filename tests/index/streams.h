// Random operation streams over small universes, so that shared prefixes, branches, holes, twins and foreign
// keys are the rule and not the exception. A stream depends on its profile and seed alone.
#ifndef LLMD_TESTS_INDEX_STREAMS_H_
#define LLMD_TESTS_INDEX_STREAMS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "llmd/base/random.h"
#include "tests/index/operations.h"

namespace llmd::index {

struct StreamProfile {
  enum class Keys {
    kChained,    // a hash of the path: all holders publish the same key
    kPerHolder,  // a hash of path and holder: a fleet that shares no seed
    kShifting,   // per holder, and it changes now and then while the holder keeps its blocks
    kTwins,      // chained, but siblings with contents 2k and 2k + 1 collide
    kTiny,       // drawn from a few, whatever the content
  };

  std::string name;
  std::size_t operations = 6000;
  std::size_t holders = 6;
  std::uint32_t key_spaces = 1;
  std::uint32_t namespaces = 2;
  double refcount = 0;  // share of holders that count references
  Keys keys = Keys::kChained;
  std::uint64_t contents = 4;  // distinct content keys
  std::uint64_t tiny_keys = 12;
  std::size_t chains = 12;     // known at a time
  std::size_t max_chain = 32;  // blocks
  std::size_t max_batch = 8;   // blocks of one Store
  double lifecycle = 0.02;     // share of Clear, Retire and AddHolder
  double removes = 0.25;
  double mistakes = 0.02;       // share of stores with a wrong namespace, and of stores without their parent
  double new_chains = 0.01;     // share of operations before which a chain is replaced by another
  std::uint64_t onward = 2;     // of onward + 2 stores, so many go on where the holder's last one ended
  std::size_t match_every = 3;  // operations
};

// What GoogleTest prints of a parameter.
inline void PrintTo(const StreamProfile& profile, std::ostream* out) { *out << profile.name; }

class Stream {
 public:
  Stream(const StreamProfile& profile, std::uint64_t seed);

  // Writes only, until Next() has been asked `match_every` times; then a Match.
  Operation Next();
  // A query about a known chain: whole, cut, extended, diverging, in another namespace, or empty.
  Operation NextMatch();
  // The chain of every known prompt, whole.
  Operations MatchAll() const;

 private:
  struct Chain {
    NamespaceId ns;
    std::vector<BlockKey> contents;
    std::vector<std::uint64_t> paths;  // hash of the path up to each block
  };
  struct Holder {
    std::size_t ordinal = 0;
    bool live = false;
    std::uint64_t epoch = 0;
    std::map<std::size_t, std::size_t> progress;  // by chain: blocks stored in order so far
    HolderOptions options;
  };

  NamespaceId MakeNs(std::uint64_t number) const { return {number, 7}; }
  BlockKey Content();
  EngineKey Engine(const Holder& holder, const Chain& chain, std::size_t block);
  void NewChain(std::size_t at);
  Operation AddHolder(std::size_t at);
  Operation NextStore();
  Operation NextRemove();
  Operation NextLifecycle();
  std::vector<EngineKey> SomeKeys(Holder& holder);

  StreamProfile profile_;
  Random random_;
  std::vector<Holder> holders_;
  std::vector<Chain> chains_;
  std::size_t next_ordinal_ = 0;
  std::size_t asked_ = 0;
};

// A whole stream, closed by MatchAll().
Operations MakeOperations(const StreamProfile& profile, std::uint64_t seed);

}  // namespace llmd::index

#endif  // LLMD_TESTS_INDEX_STREAMS_H_
