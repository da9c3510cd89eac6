// The probe: which hash function made this event?
//
// A router whose hashes disagree with the engine's does not fail, it just never hits. Given one stored event,
// Probe() tries every algorithm, seed and extra-key shape and says which reproduces the published hashes, or
// what comes closest: the wrong 64 bits of the right digest, swapped bytes, the right algorithm under an
// unknown seed. The best input is an event without a parent, since 64 published bits of a parent are not
// enough to continue most chains. Slow by design (some thousand hashes); not for hot paths. No state, any
// thread.
#ifndef LLMD_HASH_PROBE_H_
#define LLMD_HASH_PROBE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "llmd/base/types.h"
#include "llmd/hash/extra_keys.h"

namespace llmd::hash {

// A hash as an event carries it: an integer (signed ones reinterpreted), or bytes.
struct PublishedHash {
  BlockKey number = 0;
  std::string bytes;  // not empty: the byte form, and `number` is not read
};

struct ProbeInput {
  TokenSpan tokens;                     // of the event: hashes.size() * block_size
  std::uint32_t block_size = 0;         // of the event: 1 .. 65536
  std::vector<PublishedHash> hashes;    // at least one
  std::optional<PublishedHash> parent;  // none: the event starts a prompt

  // What is known of the request; anything may be left out.
  RequestExtras extras;
  std::vector<ExtraKeys> event_extra_keys;  // per block, as the event carries them; empty: it carries none
  std::uint64_t first_block = 0;            // index in its prompt of the event's first block

  // More to try, besides the usual: texts of PYTHONHASHSEED (or llm-d hash seeds), NONE_HASH values, model
  // names (which only llm-d's request keys cover).
  std::vector<std::string> seeds;
  std::vector<Digest> none_hashes;
  std::vector<std::string> models;
};

struct ProbeMatch {
  std::string engine;        // "vllm", "lmcache", "sglang", "trtllm", "dynamo" or "llm-d"
  std::string algorithm;     // e.g. "sha256_cbor"
  std::string seed;          // e.g. `PYTHONHASHSEED="0"`; empty where there is none
  std::string extra_keys;    // how they were built, e.g. "request, offset style"; empty: none
  std::string form;          // e.g. "low 64 bits"
  std::uint32_t blocks = 0;  // hashes reproduced, of hashes.size()
  bool native = false;       // the engine itself publishes this form, and every hash was reproduced
};

struct ProbeReport {
  std::optional<ProbeMatch> match;  // the first native one
  std::vector<ProbeMatch> near;     // the others, most blocks first, at most 8
  std::uint64_t combinations = 0;   // tried
  std::string summary;              // for a log: the verdict and what to do
};

// Error when the input contradicts itself (no hash, block size, token count).
absl::StatusOr<ProbeReport> Probe(const ProbeInput& input);

}  // namespace llmd::hash

#endif  // LLMD_HASH_PROBE_H_
