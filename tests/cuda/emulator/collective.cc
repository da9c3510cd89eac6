// Where threads meet: collectives of a warp, barriers of a block.
#include <bit>
#include <cstring>
#include <utility>

#include "tests/cuda/emulator/report.h"
#include "tests/cuda/emulator/schedule.h"

namespace llmd::emulator {
namespace {

bool Same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void WaitFor(Thread& thread, const char* what, unsigned mask_or_barrier, const Site& site) {
  thread.waits_for = what;
  thread.mask_or_barrier = mask_or_barrier;
  thread.site = site;
  Wait(thread);
}

// Lets those go on who have come, if all have.
void TryComplete(Block& block, NamedBarrier& barrier, unsigned expected) {
  if (barrier.arrived == 0 || barrier.arrived < static_cast<int>(expected)) return;
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

unsigned Expected(const Block& block, const NamedBarrier& barrier) {
  return barrier.threads == 0 ? block.live : static_cast<unsigned>(barrier.threads);
}

}  // namespace

void Collective(const char* name, unsigned mask, void* argument, Together together, Site site, Lanes lanes) {
  Thread& thread = *Current();
  Block& block = *thread.block;
  Warp& warp = block.warps[thread.warp()];
  const unsigned mine = 1u << thread.lane();
  if ((mask & mine) == 0) return Fail(std::string(name) + " with a mask without the lane itself", site);
  if (lanes == Lanes::kAligned && warp.live != mask) {
    return Fail(std::string(name) + " needs all lanes, of which some have returned", site);
  }
  std::size_t at = 0;
  while (at < warp.meetings.size() && warp.meetings[at].mask != mask) ++at;
  if (at == warp.meetings.size()) warp.meetings.push_back({mask, 0, name, site});
  Meeting& meeting = warp.meetings[at];
  if (meeting.name != name && std::strcmp(meeting.name, name) != 0) {
    return Fail(std::string(name) + ", while lanes of the same mask are in " + meeting.name + " at " + Place(meeting.site),
                site);
  }
  if (!Same(meeting.site, site)) {
    return Fail(std::string(name) + ", while lanes of the same mask are in another one, at " + Place(meeting.site), site);
  }
  meeting.arrived |= mine;
  warp.arguments[thread.lane()] = argument;
  if ((mask & warp.live & ~meeting.arrived) != 0) return WaitFor(thread, name, mask, site);
  const unsigned come = meeting.arrived;
  warp.meetings.erase(warp.meetings.begin() + static_cast<std::ptrdiff_t>(at));
  together(warp.arguments, come);
  Wake(block, thread.warp(), come);
}

void LeaveWarp(Thread& thread) {
  Warp& warp = thread.block->warps[thread.warp()];
  for (const Meeting& meeting : warp.meetings) {
    if ((meeting.mask & 1u << thread.lane()) == 0) continue;
    return Fail("the thread returns, while lanes of its warp wait for it in " + std::string(meeting.name) + " at " +
                    Place(meeting.site),
                meeting.site);
  }
}

unsigned Barrier(const char* name, int number, int threads, bool predicate, Site site) {
  Thread& thread = *Current();
  Block& block = *thread.block;
  if (number < 0 || number > 15) return Fail(std::string(name) + ": there is no barrier " + std::to_string(number), site), 0;
  if (threads % 32 != 0) {
    return Fail(std::string(name) + " of " + std::to_string(threads) + " threads, no multiple of 32", site), 0;
  }
  NamedBarrier& barrier = block.barriers[number];
  if (barrier.arrived != 0 && barrier.threads != threads) {
    return Fail(std::string(name) + " of " + std::to_string(threads) + " threads, while others are there for one of " +
                    std::to_string(barrier.threads),
                site), 0;
  }
  unsigned& lanes = barrier.lanes[thread.warp()];
  if (lanes != 0 && !Same(barrier.sites[thread.warp()], site)) {
    return Fail(std::string(name) + ", while lanes of the warp are in another one, at " +
                    Place(barrier.sites[thread.warp()]),
                site), 0;
  }
  barrier.threads = threads;
  barrier.sites[thread.warp()] = site;
  barrier.arrived += 1;
  barrier.predicates += predicate;
  lanes |= 1u << thread.lane();
  block.SetWaiting(thread.warp(), 1u << thread.lane());
  TryComplete(block, barrier, Expected(block, barrier));
  if (lanes != 0) WaitFor(thread, name, static_cast<unsigned>(number), site);
  return thread.answer;
}

void LeaveBarriers(Thread& thread) {
  Block& block = *thread.block;
  for (NamedBarrier& barrier : block.barriers) {
    if (barrier.arrived != 0 && barrier.threads == 0) TryComplete(block, barrier, block.live);
  }
}

}  // namespace llmd::emulator
