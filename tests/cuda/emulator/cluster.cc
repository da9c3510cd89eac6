// Clusters: their barrier, and each other's shared memory.
#include <cstring>
#include <utility>

#include "tests/cuda/emulator/report.h"
#include "tests/cuda/emulator/schedule.h"

namespace llmd::emulator {
namespace {

unsigned Live(const Cluster& cluster) {
  unsigned live = 0;
  for (const Block* block : cluster.blocks) live += block == nullptr ? 0 : block->live;
  return live;
}

// Lets those go on who have come, if all have.
void TryComplete(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < Live(cluster)) return;
  cluster.arrived = 0;
  ++cluster.phase;
  for (Thread* thread : std::exchange(cluster.waiting, {})) {
    Wake(*thread->block, thread->warp(), 1u << thread->lane());
  }
}

}  // namespace

void ClusterArrive(Site site) {
  Thread& thread = *Current();
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_phase > cluster.phase) {
    Fail(site, "barrier.cluster.arrive, after another one that was not waited for");
  }
  thread.cluster_phase = cluster.phase + 1;
  ++cluster.arrived;
  TryComplete(cluster);
}

void ClusterWait(Site site) {
  Thread& thread = *Current();
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_phase <= cluster.phase) return;
  cluster.waiting.push_back(&thread);
  thread.waits_for = "barrier.cluster.wait";
  thread.site = site;
  Wait(thread);
}

void LeaveCluster(Thread& thread) {
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_phase > cluster.phase)
    --cluster.arrived;  // it came, and will not wait: for others it is gone
  if (cluster.blocks.size() > 1) TryComplete(cluster);
}

void* OfBlock(void* shared, unsigned rank, Site site) {
  const Block& block = *Current()->block;
  const Cluster& cluster = *block.cluster;
  std::uint32_t address = 0;
  if (!block.shared.AddressOf(static_cast<const char*>(shared), &address)) {
    Fail(site, "the address of shared memory is taken of a pointer to somewhere else");
  }
  if (rank >= cluster.blocks.size()) Fail(site, "the cluster has no block %u", rank);
  Block* other = cluster.blocks[rank];
  if (other == &block) return shared;
  if (other == nullptr || !other->started || other->live == 0) {
    Fail(site, "shared memory of block %u of the cluster, which does not run", rank);
  }
  // The other's __shared__ variables are not in place: only what is dynamic can be reached.
  const std::size_t offset =
      static_cast<std::size_t>(static_cast<char*>(shared) - Current()->block->shared.dynamic());
  if (offset >= block.grid->shared_bytes)
    Fail(site, "only dynamic shared memory of another block is emulated");
  return other->shared.dynamic() + offset;
}

}  // namespace llmd::emulator
