#include "tests/hosts/session_bed.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "llmd/base/strings.h"

namespace llmd::host {

namespace pb = envoy::service::ext_proc::v3;
using BodyMode = envoy::extensions::filters::http::ext_proc::v3::ProcessingMode;

sched::EndpointMetadata MakeEndpoint(std::string name, std::uint16_t port, sched::Labels labels) {
  return {.name = std::move(name), .address = "127.0.0.1", .port = port, .labels = std::move(labels)};
}

void Mailbox::Post(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  work_.push_back(std::move(work));
  wake_.notify_one();
}

bool Mailbox::RunSome(absl::Duration patience) {
  std::deque<std::function<void()>> work;
  {
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, absl::ToChronoMilliseconds(patience), [this] { return !work_.empty(); });
    work.swap(work_);
  }
  for (const auto& each : work) each();
  return !work.empty();
}

Exchange::Exchange(Gateway& gateway, Worker& worker, std::shared_ptr<Mailbox> mailbox)
    : session_(Session::Create(
          gateway, worker, [mailbox](std::function<void()> work) { mailbox->Post(std::move(work)); },
          [this] { Pump(); })) {}

void Exchange::Send(gateway::ProcessingRequest message) {
  if (first_) {
    message.mutable_protocol_config()->set_request_body_mode(BodyMode::FULL_DUPLEX_STREAMED);
    message.mutable_protocol_config()->set_response_body_mode(BodyMode::FULL_DUPLEX_STREAMED);
    first_ = false;
  }
  session_->Receive(std::move(message));
  Pump();
}

void Exchange::Pump() {
  gateway::ProcessingResponse answer;
  while (session_->Next(answer)) answers_.push_back(answer);
}

void Exchange::Headers(std::string_view path, const std::vector<std::pair<std::string, std::string>>& more,
                       bool end) {
  gateway::ProcessingRequest message;
  auto& headers = *message.mutable_request_headers();
  headers.set_end_of_stream(end);
  const auto add = [&](std::string_view name, std::string_view value) {
    auto& header = *headers.mutable_headers()->add_headers();
    header.set_key(std::string(name));
    header.set_raw_value(std::string(value));
  };
  add(":method", end ? "GET" : "POST");
  add(":path", path);
  for (const auto& [name, value] : more) add(name, value);
  Send(std::move(message));
}

void Exchange::Body(std::string_view body, bool end) {
  gateway::ProcessingRequest message;
  message.mutable_request_body()->set_body(std::string(body));
  message.mutable_request_body()->set_end_of_stream(end);
  Send(std::move(message));
}

void Exchange::ResponseHeaders(int status, std::string_view type) {
  gateway::ProcessingRequest message;
  auto& headers = *message.mutable_response_headers()->mutable_headers();
  const auto add = [&](std::string_view name, std::string value) {
    auto& header = *headers.add_headers();
    header.set_key(std::string(name));
    header.set_raw_value(std::move(value));
  };
  add(":status", absl::StrCat(status));
  add("content-type", std::string(type));
  Send(std::move(message));
}

void Exchange::ResponseBody(std::string_view body, bool end) {
  gateway::ProcessingRequest message;
  message.mutable_response_body()->set_body(std::string(body));
  message.mutable_response_body()->set_end_of_stream(end);
  Send(std::move(message));
}

std::string Exchange::SetHeader(std::string_view name) const {
  for (const gateway::ProcessingResponse& answer : answers_) {
    if (!answer.has_request_headers()) continue;
    for (const auto& option : answer.request_headers().response().header_mutation().set_headers()) {
      if (option.header().key() == name) return option.header().raw_value();
    }
  }
  return {};
}

int Exchange::refused_with() const {
  for (const gateway::ProcessingResponse& answer : answers_) {
    if (answer.has_immediate_response()) return answer.immediate_response().status().code();
  }
  return 0;
}

std::string Exchange::refusal_reason() const {
  for (const gateway::ProcessingResponse& answer : answers_) {
    if (!answer.has_immediate_response()) continue;
    for (const auto& option : answer.immediate_response().headers().set_headers()) {
      if (option.header().key() == "x-llm-d-request-dropped-reason") return option.header().raw_value();
    }
  }
  return {};
}

std::string ChatBody(std::string_view text, std::string_view model) {
  return absl::StrCat(R"({"model":")", ToAbsl(model), R"(","messages":[{"role":"user","content":")",
                      ToAbsl(text), R"("}]})");
}

}  // namespace llmd::host
