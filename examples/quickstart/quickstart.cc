#include <cstdio>

#include "llmd/index/prefix_index.h"

int main() {
  using namespace llmd::index;
  auto index = *PrefixIndex::Create({});
  const NamespaceId model = MakeNamespace({.model = "llama-3-8b"});
  const HolderId pod = *index->AddHolder({.endpoint = "10.0.0.7:8000"});
  const StoredBlock stored[] = {{.engine = 901, .content = 11}, {.engine = 902, .content = 12}};
  index->Store(pod, model, std::nullopt, stored);  // as the pod's BlockStored event says
  const llmd::BlockKey prompt[] = {11, 12, 13};    // the keys of a prompt's blocks
  PrefixIndex::Reader reader(*index);
  MatchResult match;
  reader.Match(model, prompt, match);
  for (const HolderDepth& row : match) std::printf("holder %u has %u of 3 blocks\n", row.slot, row.depth);
}
