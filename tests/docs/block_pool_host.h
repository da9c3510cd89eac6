// What the host of docs/block-pool.md declares around the code shown there.
#include <vector>

#include "llmd/hash/vllm.h"
#include "llmd/worker/event_writer.h"
#include "llmd/worker/kv_cache_manager.h"

using namespace llmd;
using namespace llmd::worker;

extern hash::VllmHasher hasher;
extern std::vector<TokenId> tokens;
extern TokenId sampled;
extern BlockEvents step_events;
extern EventWriter writer;
extern double timestamp;
extern std::vector<std::byte> payload;
