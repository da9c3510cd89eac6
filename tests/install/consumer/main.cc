// Links an installed libllmd and uses something of every component of the core.
#include <cstdio>
#include <optional>
#include <string_view>
#include <vector>

#include "llmd/base/strings.h"
#include "llmd/events/decoder.h"
#include "llmd/hash/digest.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "llmd/sched/scheduler.h"

namespace {

int failures = 0;

void Check(bool ok, const char* what) {
  std::printf("%s: %s\n", what, ok ? "ok" : "FAILED");
  failures += ok ? 0 : 1;
}

}  // namespace

int main() {
  using namespace std::string_view_literals;

  Check(llmd::hash::Sha256(""sv).hex().substr(0, 8) == "e3b0c442", "hash");

  // [0.0, [["AllBlocksCleared"]]]
  constexpr auto payload =
      "\x92\xcb\0\0\0\0\0\0\0\0\x91\x91\xb0"
      "AllBlocksCleared"sv;
  llmd::events::EventBatch batch;
  const absl::Status decoded = llmd::events::EventDecoder().Decode(llmd::AsBytes(payload), batch);
  Check(decoded.ok() && batch.events().size() == 1, "events");

  const llmd::TokenId tokens[] = {1, 2, 3, 4, 5};
  std::vector<llmd::BlockKey> keys;
  llmd::ingest::ContentKeys({.tokens = tokens, .block_size = 2}, keys);
  Check(keys.size() == 2 && keys[0] != keys[1], "ingest");

  auto index = *llmd::index::PrefixIndex::Create({});
  const llmd::index::NamespaceId model = llmd::index::MakeNamespace({.model = "m"});
  const llmd::index::HolderId pod = *index->AddHolder({.endpoint = "pod"});
  const llmd::index::StoredBlock block[] = {{.engine = 1, .content = 2}};
  Check(index->Store(pod, model, std::nullopt, block).added == 1, "index");

  const auto scheduler = llmd::sched::Scheduler::Create(
      {.plugins = {{.name = "", .type = "no-such-plugin", .parameters = {}}}, .profiles = {}},
      llmd::sched::PluginRegistry::Builtin(), {});
  Check(scheduler.status().code() == absl::StatusCode::kInvalidArgument, "sched");
  return failures;
}
