// A block's shared memory. The dynamic part is an allocation of exactly the launch's size. `__shared__`
// variables are thread-local variables of the kernels' library: on the device's OS thread its thread-local
// segment is the static shared memory of the block that runs, and is exchanged with the block.
#ifndef LLMD_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
#define LLMD_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace llmd::emulator {

// Shared memory begins with it: NaN in every floating type, -1 as an integer.
inline constexpr unsigned char kPoison = 0xff;

// The calling thread's thread-local variables of the library that `code` is part of.
std::span<char> StaticShared(const void* code);

class SharedMemory {
 public:
  // Poison for a block that begins.
  void Begin(std::size_t dynamic_bytes, std::span<char> statics);
  void Save();     // another block goes on
  void Restore();  // this one goes on

  char* dynamic() { return dynamic_.get(); }
  // 32-bit addresses: those of the dynamic part, and those of the static one.
  bool AddressOf(const char* pointer, std::uint32_t* address) const;
  char* PointerTo(std::uint32_t address, std::size_t bytes) const;  // null: out of range

 private:
  struct Free {
    void operator()(char* memory) const;
  };
  std::unique_ptr<char, Free> dynamic_;
  std::size_t dynamic_bytes_ = 0;
  std::span<char> statics_;
  std::vector<char> saved_;
};

}  // namespace llmd::emulator

#endif  // LLMD_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
