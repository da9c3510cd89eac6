// Division by a number known at launch: one multiply and one shift, exact for 0 <= n < 2^31.
#ifndef LLMD_CUDA_ATTENTION_FAST_DIVIDE_H_
#define LLMD_CUDA_ATTENTION_FAST_DIVIDE_H_

#include <cstdint>

namespace llmd::cuda {

class FastDivide {
 public:
  explicit FastDivide(std::uint32_t divisor) : divisor_(divisor) {
    while ((std::uint64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + shift_)) + divisor - 1) / divisor);
  }
#ifdef __CUDACC__
  __device__ int Divide(int n) const {
    return static_cast<int>((static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * multiplier_) >>
                            (31 + shift_));
  }
  __device__ int divisor() const { return static_cast<int>(divisor_); }
#endif

 private:
  std::uint32_t divisor_;
  std::uint32_t shift_ = 0;
  std::uint32_t multiplier_;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_ATTENTION_FAST_DIVIDE_H_
