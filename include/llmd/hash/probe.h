// The probe: which hash function made this event?
//
// A router whose hashes disagree with the engine's does not fail, it just never hits. Given one stored event,
// Probe() tries every algorithm, seed and extra-key shape and says which reproduces the published hashes, or
// what is closest (right hash but the wrong 64 bits of it, right without the LoRA name, byte order swapped,
// ...). The best input is an event without a parent, since 64 published bits of a parent are not enough to
// continue most chains. Slow by design (some hundred hashes); not for hot paths. No state, any thread.
#ifndef LLMD_HASH_PROBE_H_
#define LLMD_HASH_PROBE_H_

#include <cstdint>
#include <optional>
#include <span>
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
  TokenSpan tokens;                   // all tokens of the event: hashes.size() * block_size
  std::uint32_t block_size = 0;       // of the event
  std::vector<PublishedHash> hashes;  // at least one
  std::optional<PublishedHash> parent;

  // What is known of the request; anything may be left out.
  RequestExtras extras;
  std::vector<ExtraKeys> event_extra_keys;  // as the event carries them, per block; empty: not carried

  std::vector<std::string>
      seeds;  // more PYTHONHASHSEED texts to try, besides 0, 42, "", random, the default ...
  std::vector<Digest> none_hashes;  // NONE_HASH values to try
  std::vector<std::string> models;  // names to try where the model is hashed (TensorRT-LLM and vLLM do not)
};

struct ProbeMatch {
  std::string engine;        // "vllm", "sglang", "trtllm", "dynamo", "llm-d"
  std::string algorithm;     // e.g. "sha256_cbor"
  std::string seed;          // e.g. `PYTHONHASHSEED="0"`; empty where there is none
  std::string extra_keys;    // how they were built, e.g. "lora name + (identifier, offset)"; empty: none
  std::string form;          // e.g. "low 64 bits", "first 64 bits", "whole digest"
  std::uint32_t blocks = 0;  // leading hashes reproduced, of hashes.size()
  // The engine itself publishes exactly this. False for near misses, e.g. SHA-256 of vLLM cut to the first 64
  // bits.
  bool native = false;
};

struct ProbeReport {
  std::optional<ProbeMatch> match;  // native, all blocks reproduced
  std::vector<ProbeMatch> near;     // reproduced some other way, best first
  std::uint64_t combinations = 0;   // tried
  std::string summary;              // a sentence or two for a log: the verdict and what to do
};

// Error when the input contradicts itself (no hash, block size 0, token count).
absl::StatusOr<ProbeReport> Probe(const ProbeInput& input);

}  // namespace llmd::hash

#endif  // LLMD_HASH_PROBE_H_
