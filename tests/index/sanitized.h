// Whether this build is instrumented by a sanitizer: it finds more in each round, and takes ten times as long
// for it.
#ifndef LLMD_TESTS_INDEX_SANITIZED_H_
#define LLMD_TESTS_INDEX_SANITIZED_H_

namespace llmd::index {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace llmd::index

#endif  // LLMD_TESTS_INDEX_SANITIZED_H_
