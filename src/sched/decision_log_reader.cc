// Decision logs: header, frames and the order of a record's parts. decision_log_writer.cc writes the same.
#include "src/sched/decision_log_reader.h"

#include <memory>
#include <utility>

namespace llmd::sched {

absl::Status DecisionLogReader::Impl::NextFrame(std::uint8_t& kind, ByteSource& payload) {
  frame_at = at;
  const std::span<const std::byte> rest = log.subspan(at);
  if (rest.size() < record::kFrameOverhead) return Error("frame is cut short");
  ByteSource source(rest);
  const std::size_t length = source.Fixed32("length");
  if (length > record::kMaxFrame) {
    return Error(absl::StrCat("length is ", length, ", expected at most ", record::kMaxFrame));
  }
  if (rest.size() - record::kFrameOverhead < length) return Error("frame is cut short");
  const std::span<const std::byte> body = rest.subspan(4, length + 1);
  ByteSource tail(rest.subspan(5 + length, 8));
  const std::uint64_t expected = record::FrameChecksum(body, checksum);
  if (tail.Fixed64("checksum") != expected) {
    return Error("checksum differs: the frame was changed, or one before it is missing");
  }
  checksum = expected;
  kind = static_cast<std::uint8_t>(body.front());
  payload = ByteSource(body.subspan(1));
  at += record::kFrameOverhead + length;
  return absl::OkStatus();
}

absl::Status DecisionLogReader::Impl::Header() {
  if (log.size() < record::kMagic.size() ||
      !std::equal(record::kMagic.begin(), record::kMagic.end() - 1, log.begin(),
                  [](char a, std::byte b) { return std::byte(a) == b; })) {
    return Error("no decision log: magic differs");
  }
  const auto version = static_cast<int>(log[record::kMagic.size() - 1]);
  if (version != record::kMagic.back()) {
    return Error(absl::StrCat("version is ", version, ", expected ", int{record::kMagic.back()}));
  }
  at = record::kMagic.size();
  std::uint8_t kind = 0;
  ByteSource in;
  if (absl::Status s = NextFrame(kind, in); !s.ok()) return s;
  if (kind != record::kHeaderFrame) return Error("the first frame is no header");
  in.Text("text", header.text);
  header.config_digest = in.Fixed64("config digest");
  header.plugins.resize(in.Count("plugins", 10));
  for (DecisionLogHeader::Plugin& plugin : header.plugins) {
    in.Text("plugin name", plugin.name);
    in.Text("plugin type", plugin.type);
    plugin.digest = in.Fixed64("plugin digest");
  }
  header.profiles.resize(static_cast<std::size_t>(in.Below("profiles", record::kMaxProfiles)));
  std::size_t scorers = 0;
  for (DecisionLogHeader::Profile& profile : header.profiles) {
    in.Text("profile name", profile.name);
    profile.scorers.resize(static_cast<std::size_t>(in.Below("scorers", record::kMaxScorers - scorers)));
    scorers += profile.scorers.size();
    for (DecisionLogHeader::Scorer& scorer : profile.scorers) {
      in.Text("scorer name", scorer.name);
      scorer.weight = in.Double("scorer weight");
      scorer.remembers = in.U8("scorer memory") != 0;
    }
  }
  header.data.resize(static_cast<std::size_t>(in.Below("data", record::kMaxData)));
  for (DecisionLogHeader::Datum& datum : header.data) {
    in.Text("data type", datum.data_type);
    in.Text("data producer", datum.producer);
    datum.num_fields = static_cast<std::size_t>(in.Below("data fields", FieldCoder::kMaxFields));
    datum.doubles = static_cast<std::uint32_t>(in.Below("data fields", (1u << FieldCoder::kMaxFields) - 1));
  }
  header.unrecorded.resize(in.Count("unrecorded", 1));
  for (std::string& name : header.unrecorded) in.Text("unrecorded", name);
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the header's last field");
  last_scores.resize(header.profiles.size());
  return absl::OkStatus();
}

absl::Status DecisionLogReader::Impl::Endpoints(ByteSource in) {
  EndpointPool next;
  const std::size_t size = in.Count("endpoints", 1);
  if (size > options.max_endpoints) {
    return Error(absl::StrCat("endpoints is ", size, ", expected at most ", options.max_endpoints));
  }
  std::vector<char> used(pool.size(), 0);
  for (std::size_t i = 0; i < size && in.ok(); ++i) {
    const auto old = static_cast<std::size_t>(in.Below("endpoint", pool.size()));
    EndpointMetadata metadata;
    if (old > 0) {
      if (used[old - 1]++ != 0) return Error("endpoint is named twice");
      metadata = pool[static_cast<Position>(old - 1)].metadata();
    } else {
      in.Text("endpoint name", metadata.name);
      in.Text("endpoint namespace", metadata.pod_namespace);
      in.Text("endpoint address", metadata.address);
      metadata.port = static_cast<std::uint16_t>(in.Below("endpoint port", 65535));
      in.Text("endpoint node address", metadata.node_address);
      metadata.rank = static_cast<std::uint32_t>(in.Below("endpoint rank", ~std::uint32_t{0}));
      const std::size_t labels = in.Count("endpoint labels", 2);
      for (std::size_t l = 0; l < labels && in.ok(); ++l) {
        std::string label(in.Text("endpoint label"));
        metadata.labels[std::move(label)] = in.Text("endpoint label");
      }
      if (!in.ok()) break;
    }
    const absl::StatusOr<EndpointHandle> handle = next.Add(std::move(metadata));
    if (!handle.ok()) return Error(std::string(handle.status().message()));
    if (old > 0) {
      const Endpoint& from = pool[static_cast<Position>(old - 1)];
      *next.mutable_metrics(*handle) = from.metrics;
      for (const Attribute& a : from.attributes) next.SetAttribute(*handle, a.name, a.sample);
    }
  }
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the last endpoint");
  pool = std::move(next);
  ++pool_generation;
  for (record::LastScores& last : last_scores) last.survivors.clear();
  return absl::OkStatus();
}

absl::Status DecisionLogReader::Impl::Decision(ByteSource in, DecisionRecord& record) {
  const std::uint8_t flags = in.U8("flags");
  record.now = in.Time("now", last_now);
  const bool finite = record.now != absl::InfinitePast() && record.now != absl::InfiniteFuture();
  const absl::Time base = finite ? record.now : absl::UnixEpoch();
  last_now = base;
  record.seed = in.Fixed64("seed");
  Request(in, flags, record);
  Candidates(in, flags, record);
  if (flags & record::kSampledTogether) {
    const absl::Time sampled = in.Time("sample time", base);
    for (const Endpoint& endpoint : pool.endpoints()) {
      Metrics& metrics = *pool.mutable_metrics(endpoint.handle);
      metrics.waiting_requests.at = sampled;
      metrics.running_requests.at = sampled;
      metrics.kv_cache_usage.at = sampled;
    }
  }
  States(in, base);
  const std::span<const std::byte> before = in.rest();
  Data(in, record);
  if (!in.ok()) return Failed(in);
  const std::span<const std::byte> data = before.first(before.size() - in.left());
  record.inputs_digest = in.Fixed64("inputs digest");
  Outcome(in, record);
  if (!in.ok()) return Failed(in);
  if (in.left() > 0) return Error("bytes behind the last field");
  record.MakeRequest();

  WordDigest digest;
  digest.Add(record.now);
  digest.Add(record.seed);
  digest.Add(record.prompt_digest);
  record::AddRequest(
      record.request(), [](std::string_view) { return true; }, digest);
  for (const Position candidate : record.candidates) digest.Add(std::uint64_t{candidate});
  record::AddEndpoints(pool, digest);
  digest.Add(std::string_view(reinterpret_cast<const char*>(data.data()), data.size()));
  if (options.check_digests && digest.value() != record.inputs_digest)
    return Error("inputs digest differs from the inputs");
  record.index = next_index++;
  return absl::OkStatus();
}

void DecisionRecord::MakeRequest() {
  header_views_.clear();
  for (const auto& [name, value] : headers) header_views_.push_back({name, value});
  prompt_views_.clear();
  item_views_.resize(prompts.size());
  for (std::size_t p = 0; p < prompts.size(); ++p) {
    item_views_[p].clear();
    for (std::size_t i = 0; i < prompts[p].items.size(); ++i) {
      item_views_[p].push_back({.modality = prompts[p].items[i].first,
                                .hash = prompts[p].items[i].second,
                                .offset = prompts[p].places[i].first,
                                .length = prompts[p].places[i].second});
    }
    prompt_views_.push_back({.token_count = prompts[p].token_count, .items = item_views_[p]});
  }
  request_ = {.id = id,
              .model = model,
              .prompts = prompt_views_,
              .headers = header_views_,
              .priority = priority,
              .fairness_id = fairness_id,
              .size_bytes = size_bytes,
              .max_output_tokens = max_output_tokens};
}

const FieldCoder::Words& RecordedDatum::at(std::uint32_t element) const {
  const auto it = std::lower_bound(exceptions.begin(), exceptions.end(), element,
                                   [](const Exception& e, std::uint32_t i) { return e.element < i; });
  return it != exceptions.end() && it->element == element ? it->words : common;
}

DecisionLogReader::DecisionLogReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DecisionLogReader::~DecisionLogReader() = default;

absl::StatusOr<std::unique_ptr<DecisionLogReader>> DecisionLogReader::Open(std::span<const std::byte> log,
                                                                           const ReadOptions& options) {
  auto impl = std::make_unique<Impl>(log, options);
  if (absl::Status s = impl->Header(); !s.ok()) return s;
  return std::unique_ptr<DecisionLogReader>(new DecisionLogReader(std::move(impl)));
}

const DecisionLogHeader& DecisionLogReader::header() const { return impl_->header; }
const EndpointPool& DecisionLogReader::pool() const { return impl_->pool; }
std::uint64_t DecisionLogReader::pool_generation() const { return impl_->pool_generation; }
std::size_t DecisionLogReader::bytes_read() const { return impl_->at; }

absl::StatusOr<bool> DecisionLogReader::Next(DecisionRecord& record) {
  Impl& impl = *impl_;
  if (impl.failed) return absl::FailedPreconditionError("decision log: read on after an error");
  while (impl.at < impl.log.size()) {
    std::uint8_t kind = 0;
    ByteSource payload;
    absl::Status status = impl.NextFrame(kind, payload);
    if (status.ok()) {
      switch (kind) {
        case record::kEndpointsFrame:
          status = impl.Endpoints(payload);
          break;
        case record::kDecisionFrame:
          status = impl.Decision(payload, record);
          break;
        default:
          status = impl.Error(absl::StrCat("frame kind is ", int{kind}, ", expected 2 or 3"));
      }
    }
    if (!status.ok()) {
      impl.failed = true;
      return status;
    }
    if (kind == record::kDecisionFrame) return true;
  }
  return false;
}

}  // namespace llmd::sched
