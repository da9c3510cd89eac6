#include "tests/cuda/emulator/shared_memory.h"

#include <link.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace llmd::emulator {
namespace {

constexpr std::uint32_t kDynamicBase = 0x400;  // so that 0 is no address
constexpr std::uint32_t kStaticBase = 0x80000000;
constexpr std::size_t kAlignment = 1024;

struct Search {
  std::uintptr_t code;
  std::span<char> found;
};

int VisitLibrary(dl_phdr_info* info, std::size_t, void* data) {
  auto* search = static_cast<Search*>(data);
  bool mine = false;
  std::size_t bytes = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    const std::uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    if (segment.p_type == PT_LOAD && begin <= search->code && search->code < begin + segment.p_memsz)
      mine = true;
    if (segment.p_type == PT_TLS) bytes = segment.p_memsz;
  }
  if (!mine) return 0;
  if (info->dlpi_tls_data != nullptr) search->found = {static_cast<char*>(info->dlpi_tls_data), bytes};
  return 1;
}

}  // namespace

std::span<char> StaticShared(const void* code) {
  Search search{reinterpret_cast<std::uintptr_t>(code), {}};
  dl_iterate_phdr(VisitLibrary, &search);
  return search.found;
}

void SharedMemory::Free::operator()(char* memory) const { std::free(memory); }

void SharedMemory::Begin(std::size_t dynamic_bytes, std::span<char> statics) {
  if (dynamic_bytes != dynamic_bytes_ || dynamic_ == nullptr) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kAlignment, dynamic_bytes == 0 ? 1 : dynamic_bytes) != 0)
      throw std::bad_alloc();
    dynamic_.reset(static_cast<char*>(memory));
    dynamic_bytes_ = dynamic_bytes;
  }
  std::memset(dynamic_.get(), kPoison, dynamic_bytes);
  statics_ = statics;
  if (!statics.empty()) std::memset(statics.data(), kPoison, statics.size());
}

void SharedMemory::Save() { saved_.assign(statics_.begin(), statics_.end()); }

void SharedMemory::Restore() {
  if (!saved_.empty()) std::memcpy(statics_.data(), saved_.data(), saved_.size());
}

bool SharedMemory::AddressOf(const char* pointer, std::uint32_t* address) const {
  if (pointer >= dynamic_.get() && pointer <= dynamic_.get() + dynamic_bytes_) {
    *address = kDynamicBase + static_cast<std::uint32_t>(pointer - dynamic_.get());
    return true;
  }
  if (pointer >= statics_.data() && pointer < statics_.data() + statics_.size()) {
    *address = kStaticBase + static_cast<std::uint32_t>(pointer - statics_.data());
    return true;
  }
  return false;
}

char* SharedMemory::PointerTo(std::uint32_t address, std::size_t bytes) const {
  const auto inside = [&](std::uint32_t base, std::size_t size) {
    return address >= base && address - base + bytes <= size;
  };
  if (inside(kStaticBase, statics_.size())) return statics_.data() + (address - kStaticBase);
  if (inside(kDynamicBase, dynamic_bytes_)) return dynamic_.get() + (address - kDynamicBase);
  return nullptr;
}

}  // namespace llmd::emulator
