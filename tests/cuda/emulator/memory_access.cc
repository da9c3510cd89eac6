// Shared memory by 32-bit addresses, and asynchronous copies to it.
#include <cstring>

#include "tests/cuda/emulator/schedule.h"

namespace llmd::emulator {
namespace {

constexpr std::size_t kCopyBytes = 16;

}  // namespace

char* DynamicShared() { return Current()->block->shared.dynamic(); }

std::uint32_t SharedAddress(const void* pointer) {
  std::uint32_t address = 0;
  if (!Current()->block->shared.AddressOf(static_cast<const char*>(pointer), &address)) {
    Fail(Site::Here(), "the address of shared memory is taken of a pointer to somewhere else");
  }
  return address;
}

void* SharedPointer(std::uint32_t address, std::size_t bytes, Site site) {
  char* pointer = Current()->block->shared.PointerTo(address, bytes);
  if (pointer == nullptr) Fail(site, "an access past the block's shared memory");
  if (address % bytes != 0) Fail(site, "an access to shared memory that is not aligned to its size");
  return pointer;
}

void CopyAsync(std::uint32_t shared, const void* global, bool live, Site site) {
  Thread& thread = *Current();
  char* target = static_cast<char*>(SharedPointer(shared, kCopyBytes, site));
  if (reinterpret_cast<std::uintptr_t>(global) % kCopyBytes != 0)
    Fail(site, "an asynchronous copy from a source that is not aligned");
  std::memset(target, kPoison, kCopyBytes);
  if (live) {  // while the caller can be seen
    char seen[kCopyBytes];
    std::memcpy(seen, global, kCopyBytes);
    asm volatile("" ::"m"(seen));
  }
  thread.copies.push_back({target, live ? static_cast<const char*>(global) : nullptr, thread.copy_group});
}

void CopyAsyncCommit() { ++Current()->copy_group; }

void CopyAsyncWait(int pending_groups) {
  Thread& thread = *Current();
  std::size_t done = 0;
  for (; done < thread.copies.size() && thread.copies[done].group < thread.copy_group - pending_groups;
       ++done) {
    const PendingCopy& copy = thread.copies[done];
    if (copy.source == nullptr) {
      std::memset(copy.target, 0, kCopyBytes);
    } else {
      std::memcpy(copy.target, copy.source, kCopyBytes);
    }
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace llmd::emulator
