// Integer division for host and device.
#ifndef LLMD_CUDA_COMMON_DIVIDE_H_
#define LLMD_CUDA_COMMON_DIVIDE_H_

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define LLMD_HD __host__ __device__
#else
#define LLMD_HD
#endif

namespace llmd::cuda {

// a / b rounded up, in the wider of the two types; a + b - 1 must fit.
template <typename A, typename B>
LLMD_HD constexpr std::common_type_t<A, B> CeilDivide(A a, B b) {
  return (a + b - 1) / b;
}

// Division by a number known at launch (1 to 2^31): one multiply and one shift, exact for 0 <= n < 2^31.
// With s = ceil(log2 d) and m = ceil(2^(31 + s) / d), m * d exceeds 2^(31 + s) by less than d <= 2^s, so
// n * m / 2^(31 + s) exceeds n / d by less than 1 / d: too little to reach the next whole number.
class FastDivide {
 public:
  FastDivide() = default;
  explicit FastDivide(std::uint32_t divisor) : divisor_(divisor) {
    while ((std::uint64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + shift_)) + divisor - 1) / divisor);
  }
  LLMD_HD int Divide(int n) const {
    return static_cast<int>((static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * multiplier_) >>
                            (31 + shift_));
  }
  LLMD_HD std::uint32_t DivMod(std::uint32_t n, std::uint32_t* rest) const {
    const auto quotient = static_cast<std::uint32_t>(Divide(static_cast<int>(n)));
    *rest = n - quotient * divisor_;
    return quotient;
  }
  LLMD_HD int divisor() const { return static_cast<int>(divisor_); }

 private:
  std::uint32_t divisor_ = 1;
  std::uint32_t shift_ = 0;
  std::uint32_t multiplier_ = std::uint32_t{1} << 31;
};

}  // namespace llmd::cuda

#endif  // LLMD_CUDA_COMMON_DIVIDE_H_
