#include "tests/cuda/emulator/report.h"

#include <cstdio>
#include <map>

namespace llmd::emulator {
namespace {

std::string Triple(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

std::string Hex(unsigned value) {
  char text[16];
  std::snprintf(text, sizeof(text), "0x%08x", value);
  return text;
}

// Numbers as ranges: "0-31, 64".
std::string Ranges(const std::vector<unsigned>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end < numbers.size() && numbers[end] == numbers[end - 1] + 1) ++end;
    if (!text.empty()) text += ", ";
    text += std::to_string(numbers[i]);
    if (end - i > 1) text += "-" + std::to_string(numbers[end - 1]);
    i = end;
  }
  return text;
}

std::string Waiting(const Thread& thread) {
  std::string text = thread.waits_for;
  if (thread.waits_at == Thread::At::kBarrier) text += ", barrier " + std::to_string(thread.mask_or_barrier);
  if (thread.waits_at == Thread::At::kCollective) text += ", mask " + Hex(thread.mask_or_barrier);
  return text + ", at " + Place(thread.site);
}

}  // namespace

std::string Place(const Site& site) { return std::string(site.file) + ":" + std::to_string(site.line); }

std::string WhereIs(const Thread& thread) {
  return "kernel " + thread.block->grid->kernel + ", block " + Triple(thread.block->index) + ", thread " +
         Triple(thread.index);
}

std::string FailureReport(const Thread& thread, const std::string& what, const Site& site) {
  return WhereIs(thread) + ", at " + Place(site) + ": " + what;
}

std::string DeadlockReport(const std::vector<std::unique_ptr<Block>>& resident) {
  constexpr std::size_t kShown = 4;
  std::string text = "deadlock: no thread can go on";
  for (std::size_t i = 0; i < resident.size() && i < kShown; ++i) {
    const Block& block = *resident[i];
    text += "\n  kernel " + block.grid->kernel + ", block " + Triple(block.index) + ":";
    std::map<std::string, std::vector<unsigned>> groups;
    for (const auto& thread : block.threads) {
      groups[thread->done ? "returned" : "wait for " + Waiting(*thread)].push_back(thread->number);
    }
    for (const auto& [what, threads] : groups) text += "\n    threads " + Ranges(threads) + " " + what;
  }
  if (resident.size() > kShown)
    text += "\n  and " + std::to_string(resident.size() - kShown) + " more blocks";
  return text;
}

}  // namespace llmd::emulator
