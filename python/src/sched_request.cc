#include "python/src/sched_request.h"

#include <pybind11/stl.h>

#include "absl/strings/ascii.h"
#include "llmd/hash/approx_prefix.h"
#include "llmd/ingest/kv_event_ingestor.h"
#include "llmd/sched/endpoint_pool.h"
#include "python/src/arguments.h"
#include "python/src/buffers.h"
#include "python/src/module.h"
#include "python/src/sched_types.h"
#include "python/src/status.h"

namespace llmd::python {
namespace py = pybind11;

OwnedPrompt::OwnedPrompt(std::vector<TokenId> tokens, std::size_t token_count, std::vector<Chain> chains,
                         std::vector<Item> items)
    : tokens_(std::move(tokens)), chains_(std::move(chains)), items_(std::move(items)) {
  for (const Chain& chain : chains_) chain_views_.push_back({chain.ns, chain.block_size, chain.keys});
  for (const Item& item : items_) item_views_.push_back({item.modality, item.hash, item.offset, item.length});
  view_ = {.token_count = token_count, .tokens = tokens_, .chains = chain_views_, .items = item_views_};
}

std::vector<OwnedPrompt::Chain> MakeChains(const PrefixPlan& plan, const std::string& model,
                                           const std::string& lora, const std::string& cache_salt,
                                           std::uint32_t engine_block_size, TokenSpan tokens,
                                           const std::vector<OwnedPrompt::Item>& items) {
  std::vector<OwnedPrompt::Chain> chains;
  if (!plan.wants_tokens()) return chains;
  chains.resize(plan.approx ? 2 : 1);
  if (plan.precise) {
    std::vector<ingest::MultimodalItem> engine_items;
    for (const OwnedPrompt::Item& item : items) {
      if (item.length == 0) continue;  // where it stands among the tokens is not known
      engine_items.push_back(
          {item.hash, static_cast<std::uint32_t>(item.offset), static_cast<std::uint32_t>(item.length)});
    }
    OwnedPrompt::Chain& chain = chains[sched::kExactSource];
    chain.block_size = static_cast<std::uint32_t>(plan.precise->block_size);
    chain.ns = ingest::RequestNamespace(model, lora, chain.block_size);
    ingest::ContentKeys(
        {.tokens = tokens, .block_size = chain.block_size, .cache_salt = cache_salt, .items = engine_items},
        chain.keys);
  }
  if (plan.approx) {
    const std::string& effective = lora.empty() ? model : lora;
    OwnedPrompt::Chain& chain = chains[sched::kApproximateSource];
    chain.block_size = plan.approx->BlockSize(engine_block_size);
    chain.ns = index::MakeNamespace({.model = effective, .block_size = chain.block_size});
    hash::ApproxPrefixKeys(tokens, effective, cache_salt,
                           {.block_size = chain.block_size,
                            .max_prefix_tokens = 0,
                            .max_prefix_blocks = plan.approx->MaxBlocks(chain.block_size)},
                           chain.keys);
  }
  return chains;
}

OwnedRequest::OwnedRequest(Fields fields) : fields_(std::move(fields)) {
  for (auto& [name, value] : fields_.headers) absl::AsciiStrToLower(&name);
  for (const auto& [name, value] : fields_.headers) headers_.push_back({name, value});
  for (const auto& prompt : fields_.prompts) prompts_.push_back(prompt->view());
  view_ = {.id = fields_.id,
           .model = fields_.model,
           .prompts = prompts_,
           .headers = headers_,
           .priority = fields_.priority,
           .fairness_id = fields_.fairness_id,
           .size_bytes = fields_.size_bytes,
           .max_output_tokens = fields_.max_output_tokens};
}

namespace {

using Items = std::vector<std::tuple<std::string, std::string, std::size_t, std::size_t>>;

std::vector<OwnedPrompt::Item> ToItems(const Items& items) {
  std::vector<OwnedPrompt::Item> out;
  for (const auto& [modality, hash, offset, length] : items) {
    // Both become 32-bit numbers of the engine's.
    if (offset > 0xFFFFFFFFu || length > 0xFFFFFFFFu) {
      throw py::value_error("items: offset " + std::to_string(offset) + " and length " +
                            std::to_string(length) + ", wanted below 2^32");
    }
    out.push_back({modality, hash, offset, length});
  }
  return out;
}

// chains: (namespace, block_size, keys) or None of each source.
std::shared_ptr<OwnedPrompt> MakePrompt(Arg<"token_count", std::size_t> count, py::object tokens,
                                        const py::list& chains, Arg<"items", Items> items) {
  std::size_t token_count = *count;
  std::vector<TokenId> ids;
  if (!tokens.is_none()) {
    const TokenBuffer buffer(tokens, "tokens");
    ids.assign(buffer.span().begin(), buffer.span().end());
    token_count = ids.size();
  }
  if (chains.size() > sched::kMaxPrefixSources) {
    throw py::value_error("chains has " + std::to_string(chains.size()) + " elements, wanted at most " +
                          std::to_string(sched::kMaxPrefixSources));
  }
  std::vector<OwnedPrompt::Chain> owned;
  for (const py::handle item : chains) {
    OwnedPrompt::Chain& chain = owned.emplace_back();
    if (item.is_none()) continue;
    const py::tuple parts = py::cast<py::tuple>(item);
    chain.ns = ToNamespaceId(parts[0], "namespace");
    chain.block_size = static_cast<std::uint32_t>(ToInt(parts[1], "block_size", 1, 0xFFFFFFFF));
    const KeyBuffer keys(parts[2], "keys");
    chain.keys.assign(keys.span().begin(), keys.span().end());
  }
  return std::make_shared<OwnedPrompt>(std::move(ids), token_count, std::move(owned), ToItems(*items));
}

std::shared_ptr<OwnedPrompt> HashPrompt(const PrefixPlan& plan, Arg<"model", std::string> model,
                                        Arg<"lora", std::string> lora,
                                        Arg<"cache_salt", std::string> cache_salt,
                                        Arg<"engine_block_size", std::uint32_t> engine_block_size,
                                        py::object tokens, Arg<"items", Items> items) {
  const TokenBuffer buffer(tokens, "tokens");
  std::vector<OwnedPrompt::Item> owned_items = ToItems(*items);
  const py::gil_scoped_release release;
  std::vector<TokenId> ids(buffer.span().begin(), buffer.span().end());
  std::vector<OwnedPrompt::Chain> chains =
      MakeChains(plan, *model, *lora, *cache_salt, *engine_block_size, ids, owned_items);
  const std::size_t count = ids.size();
  return std::make_shared<OwnedPrompt>(std::move(ids), count, std::move(chains), std::move(owned_items));
}

}  // namespace

void BindRequest(py::module_& m) {
  py::class_<PrefixPlan>(m, "PrefixPlan")
      .def_property_readonly("exact_block_size",
                             [](const PrefixPlan& p) -> std::optional<std::int64_t> {
                               if (!p.precise) return std::nullopt;
                               return p.precise->block_size;
                             })
      .def("approx_block_size",
           [](const PrefixPlan& p, Arg<"reported", std::uint32_t> reported) -> std::optional<std::uint32_t> {
             if (!p.approx) return std::nullopt;
             return p.approx->BlockSize(*reported);
           });

  py::class_<OwnedPrompt, std::shared_ptr<OwnedPrompt>>(m, "SchedulerPrompt")
      .def(py::init(&MakePrompt))
      .def_static("hashed", &HashPrompt)
      .def_property_readonly("token_count", [](const OwnedPrompt& p) { return p.view().token_count; })
      .def_property_readonly("tokens", [](const OwnedPrompt& p) { return ToArray(p.tokens()); })
      .def_property_readonly("chains", [](const OwnedPrompt& p) {
        py::list out;
        for (const OwnedPrompt::Chain& chain : p.chains()) {
          out.append(py::make_tuple(py::make_tuple(chain.ns.hi, chain.ns.lo), chain.block_size,
                                    ToArray(chain.keys)));
        }
        return out;
      });

  py::class_<OwnedRequest, std::shared_ptr<OwnedRequest>>(m, "SchedulerRequest")
      .def(py::init([](Arg<"id", std::string> id, Arg<"model", std::string> model,
                       Arg<"fairness_id", std::string> fairness_id, Arg<"priority", std::int32_t> priority,
                       Arg<"size_bytes", std::size_t> size_bytes,
                       Arg<"max_output_tokens", std::optional<std::uint32_t>> max_output_tokens,
                       Arg<"headers", std::vector<std::pair<std::string, std::string>>> headers,
                       Arg<"prompts", std::vector<std::shared_ptr<OwnedPrompt>>> prompts) {
        OwnedRequest::Fields fields{.id = std::move(*id),
                                    .model = std::move(*model),
                                    .fairness_id = std::move(*fairness_id),
                                    .priority = *priority,
                                    .size_bytes = *size_bytes,
                                    .max_output_tokens = *max_output_tokens,
                                    .headers = std::move(*headers),
                                    .prompts = {prompts->begin(), prompts->end()}};
        return std::make_shared<OwnedRequest>(std::move(fields));
      }));
}

}  // namespace llmd::python
