#include "examples/gateway_scheduler/worker.h"

#include <algorithm>

namespace llmd::host {

Worker::Worker(Gateway& gateway, std::uint64_t seed)
    : parser({.max_body_bytes = gateway.options().ext_proc.max_body_bytes}),
      random(seed),
      gateway_(gateway),
      session_reader_(gateway::SessionIdReader::Create().value()) {
  for (const sched::PrefixSource source : {sched::kExactSource, sched::kApproximateSource}) {
    matchers_[source] = gateway.NewMatcher(source);
  }
  Refresh();
}

void Worker::AddSessionHeader() {
  constexpr std::string_view kName = "x-session-id";
  header_views_.clear();
  for (const sched::Header& header : headers) {
    if (header.name == kName && !header.value.empty()) return;
    header_views_.push_back({header.name, header.value});
  }
  const gateway::SessionId session = session_reader_.Read(header_views_, session_scratch_);
  if (!session.found()) return;
  std::erase_if(headers, [](const sched::Header& header) { return header.name == kName; });
  headers.push_back({kName, session.value});
}

Worker::Held Worker::HeldAt(const sched::EndpointPool& pool, sched::EndpointHandle endpoint) {
  if (chains.prompts().empty()) return {};
  const std::span<const sched::KeyChain> all = chains.prompts().front().chains;
  for (const sched::PrefixSource source : {sched::kExactSource, sched::kApproximateSource}) {
    if (source >= all.size() || all[source].keys.empty()) continue;
    matchers_[source]->Match(all[source].ns, all[source].keys, match_);
    Held held{.of = static_cast<std::uint32_t>(all[source].keys.size())};
    const std::vector<sched::HolderBinding>& bound = pool.holders(source).by_slot;
    for (const index::HolderDepth& row : match_) {
      if (row.slot < bound.size() && bound[row.slot].endpoint == endpoint) {
        held.blocks = std::max(held.blocks, row.depth);
      }
    }
    return held;
  }
  return {};
}

void Worker::Refresh() {
  if (generation_ == gateway_.schedulers().generation()) return;
  workspace.reset();  // before its scheduler
  const sched::ReloadableScheduler::Snapshot current = gateway_.schedulers().Current();
  scheduler = current.scheduler;
  generation_ = current.generation;
  workspace.emplace(*scheduler);
  plan = PrefixPlan::From(scheduler->config()).value_or(PrefixPlan{});  // checked by the gateway
}

}  // namespace llmd::host
