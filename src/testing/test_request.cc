#include <utility>

#include "llmd/testing/test_bed.h"
#include "src/testing/fatal.h"

namespace llmd::testing {

TestRequest& TestRequest::Prompt(std::string_view text, std::size_t tokens) {
  prompts_.push_back({std::string(text), tokens, {}});
  return *this;
}

TestRequest& TestRequest::Item(std::string_view modality, std::string_view hash) {
  if (prompts_.empty()) Fatal("TestRequest::Item() before Prompt()");
  prompts_.back().items.emplace_back(modality, hash);
  return *this;
}

TestRequest& TestRequest::Id(std::string_view id) {
  id_ = id;
  return *this;
}

TestRequest& TestRequest::Model(std::string_view model) {
  model_ = model;
  return *this;
}

TestRequest& TestRequest::Header(std::string_view name, std::string_view value) {
  headers_.emplace_back(name, value);
  return *this;
}

TestRequest& TestRequest::Priority(std::int32_t priority) {
  priority_ = priority;
  return *this;
}

TestRequest& TestRequest::FairnessId(std::string_view id) {
  fairness_id_ = id;
  return *this;
}

TestRequest& TestRequest::MaxOutputTokens(std::uint32_t tokens) {
  max_output_tokens_ = tokens;
  return *this;
}

}  // namespace llmd::testing
