// The rules that arguments are checked by: each names a field, its value and the limit in its message.
#ifndef LLMD_ATTENTION_RULES_H_
#define LLMD_ATTENTION_RULES_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "src/attention/check.h"

namespace llmd::attention {

template <typename Number>
std::string Text(Number value) {
  return std::to_string(value);
}

// An enumeration's value as C may have set it. Until it is known to be one of the enumerators, C++ must not
// read it as what it claims to be.
template <typename Enum>
int Value(const Enum& value) {
  int number;
  static_assert(sizeof number == sizeof value);
  std::memcpy(&number, &value, sizeof number);
  return number;
}

inline const char* Name(int dtype) {
  return dtype >= LLMD_F32 && dtype <= LLMD_E4M3 ? NameOf(static_cast<llmd_dtype>(dtype)) : "no dtype";
}

// The product of non-negative factors, or -1 if it is past 2^63 - 1.
template <typename... Factors>
int64_t Product(Factors... factors) {
  int64_t product = 1;
  const bool overflow = (__builtin_mul_overflow(product, static_cast<int64_t>(factors), &product) || ...);
  return overflow ? -1 : product;
}

// Tries rules one after the other and keeps the first that is broken. A field's name is `group` + `name`.
class Rules {
 public:
  explicit Rules(const char* function) : function_(function) {}

  bool ok() const { return code_ == LLMD_OK; }
  llmd_code code() const { return code_; }

  void Broken(const char* group, const char* name, const std::string& what) {
    if (!ok()) return;
    code_ = Fail(LLMD_INVALID_ARGUMENT, std::string(function_) + ": " + group + name + what);
  }

  void AtLeast(const char* group, const char* name, int64_t value, int64_t least) {
    if (value < least) Broken(group, name, " is " + Text(value) + ", must be at least " + Text(least));
  }
  void AtMost(const char* group, const char* name, int64_t value, int64_t most, const char* why) {
    if (value > most) Broken(group, name, " is " + Text(value) + ", must be at most " + Text(most) + why);
  }
  void Equal(const char* group, const char* name, int64_t value, int64_t wanted, const char* what) {
    if (value != wanted)
      Broken(group, name, " is " + Text(value) + ", must be " + what + ", " + Text(wanted));
  }
  void MultipleOf(const char* group, const char* name, int64_t value, int64_t unit) {
    if (value % unit != 0)
      Broken(group, name, " is " + Text(value) + ", must be a multiple of " + Text(unit));
  }
  void Finite(const char* group, const char* name, double value) {
    if (!std::isfinite(value)) Broken(group, name, " is " + Text(value) + ", must be finite");
  }
  void Positive(const char* group, const char* name, double value) {
    if (!(value > 0)) Broken(group, name, " is " + Text(value) + ", must be greater than 0");
  }

  // A pointer that must be given; alignment in bytes.
  void Pointer(const char* group, const char* name, const void* pointer, int64_t alignment) {
    if (pointer == nullptr) Broken(group, name, " is null");
    Optional(group, name, pointer, alignment);
  }
  void Optional(const char* group, const char* name, const void* pointer, int64_t alignment) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (address % static_cast<uintptr_t>(alignment) != 0) {
      Broken(group, name, " is not a multiple of " + Text(alignment) + " bytes");
    }
  }

  void Float(const char* group, const char* name, const llmd_dtype& dtype, bool f32) {
    const int value = Value(dtype);
    if (value == LLMD_F16 || value == LLMD_BF16 || (f32 && value == LLMD_F32)) return;
    Broken(group, name,
           std::string(" is ") + Name(value) + ", must be " + (f32 ? "f32, " : "") + "f16 or bf16");
  }
  void Stored(const char* group, const char* name, const llmd_dtype& dtype) {
    const int value = Value(dtype);
    if (value == LLMD_F16 || value == LLMD_BF16 || value == LLMD_E4M3) return;
    Broken(group, name, std::string(" is ") + Name(value) + ", must be f16, bf16 or e4m3");
  }

  // [tokens, heads, dim] that is read: rows may repeat, but lie inside 2^63 bytes.
  void Input(const char* group, const char* name, llmd_token_strides strides, int64_t tokens, int64_t heads,
             int64_t dim, llmd_dtype dtype) {
    if (!ok()) return;
    Stride(group, name, ".token", strides.token, 0);
    Stride(group, name, ".head", strides.head, 0);
    if (ok() && Extent(tokens, strides.token, heads, strides.head, dim, dtype) < 0) {
      Broken(group, name, " reach past 2^63 bytes");
    }
  }

  // [tokens, heads, dim] that is written: no two elements share a place.
  void Output(const char* group, const char* name, llmd_token_strides strides, int64_t tokens, int64_t heads,
              int64_t dim, llmd_dtype dtype) {
    Input(group, name, strides, tokens, heads, dim, dtype);
    if (!ok() || tokens == 0) return;
    if (tokens > 1) Stride(group, name, ".token", strides.token, dim);
    if (heads > 1) Stride(group, name, ".head", strides.head, dim);
    const bool apart = tokens == 1 || heads == 1 || (heads - 1) * strides.head + dim <= strides.token ||
                       (tokens - 1) * strides.token + dim <= strides.head;
    if (!apart) {
      Broken(group, name,
             " {" + Text(strides.token) + ", " + Text(strides.head) + "} make rows of " + Text(dim) +
                 " elements overlap");
    }
  }

  void Stride(const char* group, const char* name, const char* dim, int64_t value, int64_t least) {
    if (value < least) {
      Broken(group, name, dim + (" is " + Text(value) + ", must be at least " + Text(least)));
    }
  }

  // `out` may be the memory of `in` only element for element.
  void InPlace(const char* group, const char* name, const void* in, llmd_token_strides in_strides,
               const void* out, llmd_token_strides out_strides) {
    if (in != nullptr && in == out &&
        (in_strides.token != out_strides.token || in_strides.head != out_strides.head)) {
      Broken(group, name, " differ from those of the input in the same memory");
    }
  }

 private:
  static int64_t Extent(int64_t tokens, int64_t token, int64_t heads, int64_t head, int64_t dim,
                        llmd_dtype dtype) {
    const auto size = static_cast<int64_t>(SizeOf(dtype));
    const int64_t a = tokens > 1 ? Product(tokens - 1, token, size) : 0;
    const int64_t b = heads > 1 ? Product(heads - 1, head, size) : 0;
    int64_t sum = Product(dim, size);
    if (a < 0 || b < 0 || sum < 0) return -1;
    if (__builtin_add_overflow(sum, a, &sum) || __builtin_add_overflow(sum, b, &sum)) return -1;
    return sum;
  }

  const char* function_;
  llmd_code code_ = LLMD_OK;
};

}  // namespace llmd::attention

#endif  // LLMD_ATTENTION_RULES_H_
