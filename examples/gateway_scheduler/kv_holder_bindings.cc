#include "examples/gateway_scheduler/kv_holder_bindings.h"

#include <optional>

#include "llmd/base/strings.h"

namespace llmd::host {

void HolderBindings::Bind(std::string_view endpoint_id, std::string_view host_port, index::HolderId holder,
                          std::string_view tier) {
  notes_.push_back({true, std::string(endpoint_id), std::string(host_port), {holder, std::string(tier)}});
}

void HolderBindings::Unbind(std::string_view endpoint_id, index::HolderId holder) {
  notes_.push_back({false, std::string(endpoint_id), {}, {holder, {}}});
}

void HolderBindings::Flush(PoolStore& pool) {
  if (notes_.empty()) return;
  pool.Update([this](sched::EndpointPool& p) {
    for (const Note& note : notes_) Carry(note, p);
  });
  notes_.clear();
}

void HolderBindings::Carry(const Note& note, sched::EndpointPool& pool) {
  if (!note.bind) {
    pool.UnbindHolder(sched::kExactSource, note.holder.id);
    const auto it = bound_.find(ToAbsl(note.endpoint_id));
    if (it == bound_.end()) return;
    std::erase_if(it->second.holders, [&](const Holder& holder) { return holder.id == note.holder.id; });
    if (it->second.holders.empty()) bound_.erase(it);
    return;
  }
  const std::optional<sched::Position> position = pool.FindId(note.endpoint_id);
  // Gone or moved by now: the feed will hear of it.
  if (!position || pool[*position].host_port() != note.host_port) return;
  if (!pool.BindHolder(sched::kExactSource, note.holder.id, pool[*position].handle, note.holder.tier).ok()) {
    return;
  }
  Bound& bound = bound_[note.endpoint_id];
  bound.host_port = note.host_port;
  bound.holders.push_back(note.holder);
}

void HolderBindings::OnPoolChange(const PoolChange& change, sched::EndpointPool& pool) {
  for (const sched::Endpoint& endpoint : change.removed) {
    const auto it = bound_.find(ToAbsl(endpoint.id()));
    if (it == bound_.end()) continue;
    const std::optional<sched::Position> now = pool.FindId(endpoint.id());
    if (!now || pool[*now].host_port() != it->second.host_port) {
      bound_.erase(it);
      continue;
    }
    for (const Holder& holder : it->second.holders) {
      (void)pool.BindHolder(sched::kExactSource, holder.id, pool[*now].handle, holder.tier);
    }
  }
}

}  // namespace llmd::host
