// What the worker says about its cache is what is in it: events over the wire into the index, compared with
// the pool itself.
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <zmq.hpp>
#include <zmq_addon.hpp>

#include "absl/strings/str_cat.h"
#include "examples/sim_worker/kv_publisher.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "llmd/base/random.h"
#include "llmd/base/strings.h"
#include "llmd/events/decoder.h"
#include "llmd/events/frames.h"
#include "llmd/hash/vllm.h"
#include "llmd/index/prefix_index.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "llmd/worker/event_writer.h"
#include "tests/hosts/sim_test_util.h"

namespace llmd::sim {
namespace {

using events::Schema;

class Index {
 public:
  Index() {
    index_ = *index::PrefixIndex::Create({.max_bytes = 64 << 20, .max_holders = 8});
    ingestor_ = std::make_unique<ingest::KvEventIngestor>(*index_, ingest::IngestOptions());
    publisher_ = *ingestor_->AddPublisher({.endpoint = "127.0.0.1:8000", .model = "m"});
  }
  void Apply(std::span<const std::byte> payload) {
    events::EventBatch batch;
    ASSERT_TRUE(decoder_.Decode(payload, batch).ok());
    EXPECT_EQ(batch.skipped_events(), 0) << batch.first_error();
    EXPECT_TRUE(ingestor_->Apply(publisher_, batch).ok());
  }
  std::uint32_t Depth(TokenSpan tokens, const std::string& salt = "") const {
    std::vector<BlockKey> chain;
    ingest::ContentKeys({.tokens = tokens, .block_size = 16, .cache_salt = salt}, chain);
    index::PrefixIndex::Reader reader(*index_);
    index::MatchResult result;
    reader.Match(ingest::RequestNamespace("m", "", 16), chain, result);
    return result.empty() ? 0 : result.begin()->depth;
  }

 private:
  std::unique_ptr<index::PrefixIndex> index_;
  std::unique_ptr<ingest::KvEventIngestor> ingestor_;
  ingest::PublisherId publisher_ = 0;
  events::EventDecoder decoder_;
};

class SimEventsTest : public testing::TestWithParam<Schema> {};

TEST_P(SimEventsTest, TheIndexPredictsWhatThePoolHas) {
  const EngineOptions options = {.num_gpu_blocks = 48,
                                 .max_model_len = 400,
                                 .max_num_seqs = 5,
                                 .hash_algorithm = hash::VllmAlgorithm::kSha256Cbor,
                                 .python_hash_seed = "42",
                                 .mean_output_tokens = 30};
  Index index;
  worker::EventWriter writer({.schema = GetParam(), .full_digests = GetParam() == Schema::kMapWide});
  std::vector<std::byte> payload;
  int batches = 0;
  SimEngine sim(options, [&](const worker::BlockEvents& events) {
    writer.Encode(events, 1.0, payload);
    index.Apply(payload);
    ++batches;
  });
  const auto hasher = hash::VllmHasher::Create(
      {.algorithm = options.hash_algorithm, .none_hash = hash::NoneHash::SeedText("42"), .block_size = 16});
  const auto in_pool = [&](const Tokens& tokens) {
    std::vector<hash::Digest> digests;
    hasher->HashBlocks(tokens, nullptr, {}, digests);
    std::uint32_t depth = 0;
    while (depth < digests.size() && sim.engine().pool().Find(digests[depth]) != worker::kNoBlock) ++depth;
    return depth;
  };

  Random random(7);
  std::vector<Tokens> sequences;
  std::vector<std::pair<Tokens, std::shared_ptr<Received>>> open;
  std::uint64_t found = 0;
  for (int round = 0; round < 400; ++round) {
    // A new prompt, or one that goes on where an old one ended.
    Tokens prompt =
        sequences.empty() || random.Chance(0.3) ? Tokens() : sequences[random.Below(sequences.size())];
    prompt.resize(std::min<std::size_t>(prompt.size(), random.Below(250)));
    const Tokens more = MakePrompt(random.Next(), 1 + random.Below(60));
    prompt.insert(prompt.end(), more.begin(), more.end());
    open.emplace_back(prompt, sim.Add(prompt, 60, {.remote_prefill = random.Chance(0.2)}));
    if (random.Chance(0.1)) sim.engine().Abort(sim.last_id() - random.Below(3), sim.now());
    for (std::uint64_t steps = random.Below(30); steps > 0; --steps) sim.Step();
    for (auto it = open.begin(); it != open.end();) {
      if (it->second->ends == 0) {
        ++it;
        continue;
      }
      Tokens whole = it->first;
      whole.insert(whole.end(), it->second->tokens.begin(), it->second->tokens.end());
      sequences.push_back(std::move(whole));
      it = open.erase(it);
    }
    if (sequences.size() > 40) sequences.erase(sequences.begin());
    for (const Tokens& sequence : sequences) {
      const std::uint32_t depth = in_pool(sequence);
      ASSERT_EQ(index.Depth(sequence), depth) << "round " << round;
      found += depth;
    }
  }
  EXPECT_GT(found, 1000);
  EXPECT_GT(batches, 100);
  EXPECT_GT(sim.engine().pool().stats().blocks_evicted, 100);
  sim.RunToEnd();
  EXPECT_TRUE(sim.engine().ResetPrefixCache());
  for (const Tokens& sequence : sequences) EXPECT_EQ(index.Depth(sequence), 0);
}

INSTANTIATE_TEST_SUITE_P(Schemas, SimEventsTest,
                         testing::Values(Schema::kMap, Schema::kMapWide, Schema::kArray7, Schema::kArray12));

// --- the sockets ---

std::vector<std::byte> Payload(std::string_view text) {
  const std::span<const std::byte> bytes = AsBytes(text);
  return {bytes.begin(), bytes.end()};
}

class Dealer {
 public:
  explicit Dealer(std::uint16_t port) {
    socket_.set(zmq::sockopt::linger, 0);
    socket_.set(zmq::sockopt::rcvtimeo, 20'000);
    socket_.connect(absl::StrCat("tcp://127.0.0.1:", port));
  }
  void Send(std::span<const events::Frame> frames) {
    for (std::size_t i = 0; i < frames.size(); ++i) {
      socket_.send(zmq::const_buffer(frames[i].data(), frames[i].size()),
                   i + 1 < frames.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  }
  // "seq:payload" of each batch up to the end marker.
  std::vector<std::string> Replay(std::uint64_t start, const std::string& topic) {
    const events::ReplayRequest request(start);
    Send(request.frames());
    std::vector<std::string> batches;
    while (true) {
      std::vector<zmq::message_t> parts;
      if (!zmq::recv_multipart(socket_, std::back_inserter(parts))) {
        ADD_FAILURE() << "no answer";
        return batches;
      }
      std::vector<events::Frame> frames;
      for (const zmq::message_t& part : parts) {
        frames.emplace_back(static_cast<const std::byte*>(part.data()), part.size());
      }
      const auto message = events::ParseReplayMessage(frames);
      EXPECT_TRUE(message.ok()) << message.status();
      if (!message.ok() || message->end) return batches;
      EXPECT_EQ(message->topic, topic);
      batches.push_back(
          absl::StrCat(message->seq, ":") +
          std::string(reinterpret_cast<const char*>(message->payload.data()), message->payload.size()));
    }
  }

 private:
  zmq::context_t context_;
  zmq::socket_t socket_{context_, zmq::socket_type::dealer};
};

TEST(SimPublisherTest, LiveBatchesAndReplay) {
  for (const bool with_topic : {true, false}) {
    auto publisher = KvPublisher::Create({.endpoint = "tcp://127.0.0.1:*",
                                          .replay_endpoint = "tcp://127.0.0.1:*",
                                          .topic = "kv@127.0.0.1:8000@m",
                                          .buffer_steps = 3,
                                          .replay_topic = with_topic});
    ASSERT_TRUE(publisher.ok()) << publisher.status();
    zmq::context_t context;
    zmq::socket_t sub(context, zmq::socket_type::sub);
    sub.set(zmq::sockopt::linger, 0);
    sub.set(zmq::sockopt::subscribe, "kv@");
    sub.set(zmq::sockopt::rcvtimeo, 10);
    sub.connect(absl::StrCat("tcp://127.0.0.1:", (*publisher)->port()));
    // The subscription takes its time; what is published before is lost.
    std::vector<zmq::message_t> parts;
    std::uint64_t published = 0;
    while (parts.empty()) {
      ASSERT_LT(published, 3000);
      (*publisher)->Publish(Payload(absl::StrCat("batch ", published++)));
      (void)zmq::recv_multipart(sub, std::back_inserter(parts));
    }
    ASSERT_EQ(parts.size(), 3);
    EXPECT_EQ(parts[0].to_string_view(), "kv@127.0.0.1:8000@m");
    std::vector<events::Frame> frames;
    for (const zmq::message_t& part : parts) {
      frames.emplace_back(static_cast<const std::byte*>(part.data()), part.size());
    }
    const auto live = events::ParseLiveMessage(frames);
    ASSERT_TRUE(live.ok()) << live.status();
    EXPECT_EQ(parts[2].to_string_view(), absl::StrCat("batch ", live->seq));

    for (int i = 0; i < 4; ++i) (*publisher)->Publish(Payload(absl::StrCat("batch ", published++)));
    EXPECT_EQ((*publisher)->next_seq(), published);
    const auto batch = [](std::uint64_t seq) { return absl::StrCat(seq, ":batch ", seq); };
    Dealer dealer((*publisher)->replay_port());
    // Requests of another shape are passed over.
    dealer.Send(std::vector<events::Frame>{AsBytes("only one")});
    dealer.Send(std::vector<events::Frame>{AsBytes(""), AsBytes("short")});
    dealer.Send(std::vector<events::Frame>{AsBytes(""), AsBytes("12345678"), AsBytes("x")});
    const std::string topic = with_topic ? "kv@127.0.0.1:8000@m" : "";
    EXPECT_THAT(dealer.Replay(0, topic),
                testing::ElementsAre(batch(published - 3), batch(published - 2), batch(published - 1)));
    EXPECT_THAT(dealer.Replay(published - 1, topic), testing::ElementsAre(batch(published - 1)));
    EXPECT_THAT(dealer.Replay(published, topic), testing::IsEmpty());
    EXPECT_THAT(dealer.Replay(events::kEndSeq - 1, topic), testing::IsEmpty());
  }
}

TEST(SimPublisherTest, AnEndpointThatIsTakenIsAnError) {
  const auto first = KvPublisher::Create({.endpoint = "tcp://127.0.0.1:*"});
  ASSERT_TRUE(first.ok());
  const std::string endpoint = absl::StrCat("tcp://127.0.0.1:", (*first)->port());
  const auto second = KvPublisher::Create({.endpoint = endpoint});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(second.status().message(), testing::HasSubstr(endpoint));
  EXPECT_FALSE(KvPublisher::Create({.endpoint = "tcp://127.0.0.1:*", .replay_endpoint = endpoint}).ok());
  EXPECT_FALSE(KvPublisher::Create({.endpoint = "nonsense"}).ok());
}

}  // namespace
}  // namespace llmd::sim
