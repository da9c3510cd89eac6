// Where threads meet: collectives of a warp, barriers of a block.
#include <bit>
#include <cstring>
#include <utility>

#include "tests/cuda/emulator/schedule.h"

namespace llmd::emulator {
namespace {

bool Same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void WaitFor(Thread& thread, const char* what, Thread::At at, unsigned mask_or_barrier, const Site& site) {
  thread.waits_for = what;
  thread.waits_at = at;
  thread.mask_or_barrier = mask_or_barrier;
  thread.site = site;
  Wait(thread);
}

// Lets those go on who have come, if all have.
void TryComplete(Block& block, NamedBarrier& barrier) {
  const int expected = barrier.threads == 0 ? static_cast<int>(block.live) : barrier.threads;
  if (barrier.arrived < expected) return;
  for (unsigned w = 0; w < 32; ++w) {
    const unsigned lanes = std::exchange(barrier.lanes[w], 0);
    if (lanes == 0) continue;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      block.threads[32 * w + std::countr_zero(rest)]->answer = barrier.predicates;
    }
    Wake(block, w, lanes);
  }
  barrier.threads = barrier.arrived = barrier.predicates = 0;
}

}  // namespace

void Collective(const char* name, unsigned mask, void* argument, Together together, Site site, Lanes lanes) {
  Thread& thread = *Current();
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  const unsigned mine = 1u << thread.lane();
  if ((mask & mine) == 0) Fail(site, "%s with a mask without the lane itself", name);
  if (lanes == Lanes::kAligned && warp.live != mask) {
    Fail(site, "%s needs all lanes, of which some have returned", name);
  }
  std::size_t at = 0;
  while (at < warp.meetings.size() && warp.meetings[at].mask != mask) ++at;
  if (at == warp.meetings.size()) warp.meetings.push_back({mask, 0, name, site});
  Meeting& meeting = warp.meetings[at];
  if (!Same(meeting.site, site) || std::strcmp(meeting.name, name) != 0) {
    Fail(site, "%s, while lanes of the same mask are in %s at %s:%d", name, meeting.name, meeting.site.file,
         meeting.site.line);
  }
  meeting.arrived |= mine;
  warp.arguments[thread.lane()] = argument;
  if ((mask & warp.live & ~meeting.arrived) != 0) {
    return WaitFor(thread, name, Thread::At::kCollective, mask, site);
  }
  const unsigned come = meeting.arrived;
  warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(at));
  together(warp.arguments, come);
  Wake(block, thread.warp(), come);
}

void LeaveWarp(Thread& thread) {
  for (const Meeting& meeting : thread.block->warps[thread.warp()].meetings) {
    if ((meeting.mask & 1u << thread.lane()) == 0) continue;
    Fail(meeting.site, "the thread returns, while lanes of its warp wait for it in %s", meeting.name);
  }
}

unsigned Barrier(const char* name, int number, int threads, bool predicate, Site site) {
  Thread& thread = *Current();
  Block& block = *thread.block;
  if (number < 0 || number > 15) Fail(site, "%s: there is no barrier %d", name, number);
  if (threads % 32 != 0) Fail(site, "%s of %d threads, no multiple of 32", name, threads);
  NamedBarrier& barrier = block.barriers[number];
  if (barrier.arrived != 0 && barrier.threads != threads) {
    Fail(site, "%s of %d threads, while others are there for one of %d", name, threads, barrier.threads);
  }
  unsigned& lanes = barrier.lanes[thread.warp()];
  const Site& other = barrier.sites[thread.warp()];
  if (lanes != 0 && !Same(other, site)) {
    Fail(site, "%s, while lanes of the warp are in another one, at %s:%d", name, other.file, other.line);
  }
  barrier.threads = threads;
  barrier.sites[thread.warp()] = site;
  barrier.arrived += 1;
  barrier.predicates += predicate;
  lanes |= 1u << thread.lane();
  TryComplete(block, barrier);
  if (lanes != 0) WaitFor(thread, name, Thread::At::kBarrier, static_cast<unsigned>(number), site);
  return thread.answer;
}

void LeaveBarriers(Thread& thread) {
  for (NamedBarrier& barrier : thread.block->barriers) {
    if (barrier.arrived != 0) TryComplete(*thread.block, barrier);
  }
}

}  // namespace llmd::emulator
