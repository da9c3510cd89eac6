// The fields of a decision's record; decision_fields_reader.cc reads each in the same order.
#include <algorithm>

#include "llmd/base/strings.h"
#include "src/sched/decision_log_writer.h"

namespace llmd::sched {

using record::SameBits;

void DecisionLogWriter::Impl::Request(const ScheduleInput& input, ByteSink& sink, WordDigest& digest) {
  const sched::Request& request = input.request;
  const std::uint64_t prompts = record::PromptDigest(request);
  sink.Text(request.id);
  sink.Repeated(request.model, last_model);
  sink.Repeated(request.fairness_id, last_fairness);
  sink.Signed(request.priority);
  sink.Varint(request.size_bytes);
  if (request.max_output_tokens) sink.Varint(*request.max_output_tokens);
  const auto kept = [this](const sched::Header& header) { return options.keep_header(header.name); };
  sink.Varint(
      static_cast<std::uint64_t>(std::count_if(request.headers.begin(), request.headers.end(), kept)));
  for (const sched::Header& header : request.headers) {
    if (!kept(header)) continue;
    sink.Text(header.name);
    sink.Text(header.value);
  }
  sink.Varint(request.prompts.size());
  for (const Prompt& prompt : request.prompts) {
    sink.Varint(prompt.token_count);
    sink.Varint(prompt.items.size());
    for (const MultimodalItem& item : prompt.items) {
      sink.Text(item.modality);
      sink.Text(item.hash);
      sink.Varint(item.offset);
      sink.Varint(item.length);
    }
  }
  sink.Fixed64(prompts);
  digest.Add(prompts);
  record::AddRequest(request, options.keep_header, digest);
}

std::optional<absl::Time> DecisionLogWriter::Impl::NewCommonTime(const EndpointPool& pool) const {
  if (pool.size() == 0) return std::nullopt;
  const absl::Time sampled = pool[0].metrics.waiting_requests.at;
  bool news = false;
  for (Position i = 0; i < pool.size(); ++i) {
    const Metrics& now = pool[i].metrics;
    if (now.waiting_requests.at != sampled || now.running_requests.at != sampled ||
        now.kv_cache_usage.at != sampled) {
      return std::nullopt;
    }
    const Metrics& old = known[i].metrics;
    news |= old.waiting_requests.at != sampled || old.running_requests.at != sampled ||
            old.kv_cache_usage.at != sampled;
  }
  return news ? std::optional(sampled) : std::nullopt;
}

void DecisionLogWriter::Impl::States(const EndpointPool& pool, absl::Time base, ByteSink& sink) {
  std::uint32_t last = 0;
  for (std::uint32_t i = 0; i < pool.size(); ++i) State(pool[i], base, last, i, sink);
  sink.Varint(0);
}

void DecisionLogWriter::Impl::State(const Endpoint& endpoint, absl::Time base, std::uint32_t& last,
                                    std::uint32_t position, ByteSink& sink) {
  const Metrics& now = endpoint.metrics;
  Metrics& old = known[position].metrics;
  std::vector<Attribute>& attributes = known[position].attributes;
  const bool same_adapters = now.adapters.at == old.adapters.at &&
                             (now.adapters.value == old.adapters.value ||
                              (now.adapters.value != nullptr && old.adapters.value != nullptr &&
                               now.adapters.value->max_active == old.adapters.value->max_active &&
                               now.adapters.value->active == old.adapters.value->active &&
                               now.adapters.value->waiting == old.adapters.value->waiting));
  const bool same_attributes = std::equal(
      endpoint.attributes.begin(), endpoint.attributes.end(), attributes.begin(), attributes.end(),
      [](const Attribute& a, const Attribute& b) {
        return a.name == b.name && SameBits(a.sample.value, b.sample.value) && a.sample.at == b.sample.at;
      });
  std::uint8_t flags = 0;
  if (now.waiting_requests.value != old.waiting_requests.value) flags |= record::kWaiting;
  if (now.running_requests.value != old.running_requests.value) flags |= record::kRunning;
  if (!SameBits(now.kv_cache_usage.value, old.kv_cache_usage.value)) flags |= record::kCacheUsage;
  if (!same_adapters) flags |= record::kAdapters;
  if (now.cache_block_size != old.cache_block_size || now.cache_num_blocks != old.cache_num_blocks) {
    flags |= record::kCacheShape;
  }
  if (!same_attributes) flags |= record::kAttributes;
  if (now.waiting_requests.at != old.waiting_requests.at ||
      now.running_requests.at != old.running_requests.at || now.kv_cache_usage.at != old.kv_cache_usage.at) {
    flags |= record::kTimes;
  }
  if (flags == 0) return;
  sink.Varint(position - last + std::uint64_t{1});
  last = position;
  sink.U8(flags);
  if (flags & record::kWaiting) sink.Signed(now.waiting_requests.value);
  if (flags & record::kRunning) sink.Signed(now.running_requests.value);
  if (flags & record::kCacheUsage) sink.Double(now.kv_cache_usage.value);
  if (flags & record::kTimes) {
    sink.Time(now.waiting_requests.at, base);
    sink.Time(now.running_requests.at, base);
    sink.Time(now.kv_cache_usage.at, base);
  }
  if (flags & record::kAdapters) {
    sink.Time(now.adapters.at, base);
    const AdapterState* state = now.adapters.value.get();
    sink.U8(state != nullptr ? 1 : 0);
    if (state != nullptr) {
      sink.Signed(state->max_active);
      for (const auto* names : {&state->active, &state->waiting}) {
        sink.Varint(names->size());
        for (const std::string& name : *names) sink.Text(name);
      }
    }
  }
  if (flags & record::kCacheShape) {
    sink.Varint(now.cache_block_size);
    sink.Varint(now.cache_num_blocks);
  }
  if (flags & record::kAttributes) {
    sink.Varint(endpoint.attributes.size());
    for (const Attribute& attribute : endpoint.attributes) {
      Intern(attribute.name, sink);
      sink.Double(attribute.sample.value);
      sink.Time(attribute.sample.at, base);
    }
    attributes = endpoint.attributes;
  }
  old = now;
}

void DecisionLogWriter::Impl::Data(const EndpointPool& pool, const DataColumns& columns, ByteSink& sink) {
  for (const Slot& slot : slots) {
    const internal::ColumnBase& column = columns.column(slot.index);
    if (column.published) {
      words.resize(slot.codec.size(column));
      for (std::size_t i = 0; i < words.size(); ++i) slot.codec.get(column, i, words[i]);
    } else if (slot.table != nullptr) {
      words.resize(pool.size());
      for (Position i = 0; i < pool.size(); ++i) {
        const InFlightLoad load = slot.table->Get(pool[i].handle);
        words[i][0] = static_cast<std::uint64_t>(load.requests);
        words[i][1] = static_cast<std::uint64_t>(load.tokens);
      }
    } else {
      sink.U8(0);
      continue;
    }
    sink.U8(column.published ? 1 : 2);
    Datum(slot, words.size(), sink);
  }
}

void DecisionLogWriter::Impl::Datum(const Slot& slot, std::size_t size, ByteSink& sink) {
  const std::size_t fields = slot.codec.num_fields;
  const auto same = [fields](const FieldCoder::Words& a, const FieldCoder::Words& b) {
    return std::equal(a.begin(), a.begin() + fields, b.begin());
  };
  // The majority's value, if there is one (Boyer and Moore); else any value will do.
  FieldCoder::Words common{};
  std::size_t votes = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (votes == 0) common = words[i];
    votes = same(common, words[i]) ? votes + 1 : votes - 1;
  }
  sink.Varint(size);
  for (std::size_t f = 0; f < fields; ++f) {
    if (slot.codec.doubles >> f & 1u) {
      sink.Fixed64(common[f]);
    } else {
      sink.Signed(static_cast<std::int64_t>(common[f]));
    }
  }
  std::size_t last = 0;
  for (std::size_t i = 0; i < size; ++i) {
    if (same(common, words[i])) continue;
    sink.Varint(i - last + 1);
    last = i;
    std::uint32_t differing = 0;
    for (std::size_t f = 0; f < fields; ++f) differing |= std::uint32_t{words[i][f] != common[f]} << f;
    sink.Varint(differing);
    for (std::size_t f = 0; f < fields; ++f) {
      if (!(differing >> f & 1u)) continue;
      if (slot.codec.doubles >> f & 1u) {
        sink.Fixed64(words[i][f]);
      } else {
        sink.Signed(static_cast<std::int64_t>(words[i][f] - common[f]));
      }
    }
  }
  sink.Varint(0);
}

void DecisionLogWriter::Impl::Profile(const ProfileResult& result, const Explanation::Profile& profile,
                                      record::LastScores& last, ByteSink& sink) {
  sink.U8(static_cast<std::uint8_t>(result.state));
  Drops(profile, sink);
  const std::size_t n = profile.totals.size();
  sink.U8(n > 0 ? 1 : 0);
  if (n > 0) {
    const bool comparable =
        std::equal(last.survivors.begin(), last.survivors.end(), profile.totals.begin(), profile.totals.end(),
                   [](Position position, const ScoredEndpoint& total) { return position == total.position; });
    for (std::size_t s = 0; s < profile.scorers.size(); ++s) {
      const auto row = std::span(profile.raw).subspan(s * n, n);
      Scores(row,
             comparable ? std::span<const double>(last.raw).subspan(s * n, n) : std::span<const double>(),
             sink);
    }
    last.survivors.resize(n);
    for (std::size_t i = 0; i < n; ++i) last.survivors[i] = profile.totals[i].position;
    last.raw.assign(profile.raw.begin(), profile.raw.end());
    sink.Fixed64(record::ScoresDigest(profile));
    sink.Fixed64(profile.tie_seed);
    sink.Varint(profile.picked.size());
    for (const Position position : profile.picked) sink.Varint(position);
  }
  const bool as_picked = result.targets == profile.picked;
  sink.U8(as_picked ? 1 : 0);
  if (!as_picked) {
    sink.Varint(result.targets.size());
    for (const Position position : result.targets) sink.Varint(position);
  }
  sink.Varint(result.port);
}

// Neighbours with the same filter and reason together.
void DecisionLogWriter::Impl::Drops(const Explanation::Profile& profile, ByteSink& sink) {
  for (std::size_t i = 0; i < profile.drops.size();) {
    const Explanation::Drop& first = profile.drops[i];
    std::size_t end = i + 1;
    while (end < profile.drops.size() && profile.drops[end].filter == first.filter &&
           std::string_view(profile.drops[end].reason) == first.reason) {
      ++end;
    }
    sink.Varint(end - i);
    Intern(first.filter, sink);
    Intern(first.reason, sink);
    for (Position last = 0; i < end; ++i) {
      sink.Varint(profile.drops[i].position - last);
      last = profile.drops[i].position;
    }
  }
  sink.Varint(0);
}

void DecisionLogWriter::Impl::Scores(std::span<const double> raw, std::span<const double> before,
                                     ByteSink& sink) {
  const auto as_before = [&](std::size_t i) {
    std::size_t end = i;
    while (end < before.size() && SameBits(raw[end], before[end])) ++end;
    return end - i;
  };
  const auto repeated = [&](std::size_t i) {
    std::size_t end = i + 1;
    while (end < raw.size() && SameBits(raw[end], raw[i])) ++end;
    return end - i;
  };
  for (std::size_t i = 0; i < raw.size();) {
    const std::size_t same = as_before(i);
    const std::size_t repeats = repeated(i);
    if (same > 0 && same + 8 >= repeats) {
      sink.Varint(same * 4 + record::kAsBefore);
      i += same;
    } else if (repeats > 1) {
      sink.Varint(repeats * 4 + record::kRepeat);
      sink.Double(raw[i]);
      i += repeats;
    } else {
      std::size_t end = i + 1;
      while (end < raw.size() && as_before(end) == 0 && repeated(end) < 2) ++end;
      sink.Varint((end - i) * 4 + record::kLiteral);
      for (; i < end; ++i) sink.Double(raw[i]);
    }
  }
}

// A number for a text seen before; else the next number, and the text.
void DecisionLogWriter::Impl::Intern(std::string_view text, ByteSink& sink) {
  const auto it = texts.find(ToAbsl(text));
  if (it != texts.end()) return sink.Varint(it->second);
  if (texts.size() == record::kMaxTexts) {
    full = true;
    return;
  }
  const auto number = static_cast<std::uint32_t>(texts.size());
  texts.emplace(std::string(text), number);
  sink.Varint(number);
  sink.Text(text);
}

}  // namespace llmd::sched
