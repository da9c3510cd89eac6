#include "examples/sim_worker/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "llmd/base/random.h"

namespace llmd::sim {
namespace {

constexpr TokenId kFirstHashed = Tokenizer::kFirstWord + Tokenizer::kWords;
constexpr TokenId kHashed = Tokenizer::kBos - kFirstHashed;
constexpr std::size_t kMaxLetters = 6;
constexpr std::size_t kMaxDigits = 3;
constexpr std::size_t kMaxSpaces = 7;

constexpr std::string_view kConsonants = "bdfghjklmnprstvz";
constexpr std::string_view kVowels = "aeiou";
constexpr std::uint32_t kSyllables = 80;
static_assert(kSyllables * kSyllables == Tokenizer::kWords);
static_assert(kSyllables * kSyllables * kSyllables >= kHashed);

enum class Class : std::uint8_t { kSpace, kLetter, kDigit, kOther };

constexpr std::array<Class, 256> MakeClasses() {
  std::array<Class, 256> classes{};
  for (int i = 0; i < 256; ++i) {
    const bool letter = (i >= 'a' && i <= 'z') || (i >= 'A' && i <= 'Z') || i == '_' || i >= 0x80;
    const bool space = i == ' ' || (i >= '\t' && i <= '\r');
    classes[i] = letter                   ? Class::kLetter
                 : space                  ? Class::kSpace
                 : (i >= '0' && i <= '9') ? Class::kDigit
                                          : Class::kOther;
  }
  return classes;
}
constexpr std::array<Class, 256> kClasses = MakeClasses();

Class ClassOf(char c) { return kClasses[static_cast<unsigned char>(c)]; }

// End of the piece that begins at `begin` < text.size().
std::size_t PieceEnd(std::string_view text, std::size_t begin) {
  std::size_t i = begin;
  if (ClassOf(text[i]) == Class::kSpace) {
    const auto leads = [&](std::size_t at) {
      return text[at] == ' ' && at + 1 < text.size() && ClassOf(text[at + 1]) != Class::kSpace;
    };
    if (!leads(i)) {
      do {
        ++i;
      } while (i < text.size() && i - begin < kMaxSpaces && ClassOf(text[i]) == Class::kSpace && !leads(i));
      return i;
    }
    ++i;
  }
  const Class kind = ClassOf(text[i]);
  if (kind == Class::kOther) return i + 1;
  const std::size_t most = kind == Class::kDigit ? kMaxDigits : kMaxLetters;
  std::size_t end = i + 1;
  while (end < text.size() && end - i < most && ClassOf(text[end]) == kind) ++end;
  // Not in the middle of a character, unless there is no other place.
  std::size_t cut = end;
  while (cut > i && cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return cut > i ? cut : end;
}

// The number that the syllables spell; kHashed when they are none.
std::uint32_t Spelled(std::string_view letters) {
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < letters.size(); i += 2) {
    const std::size_t consonant = kConsonants.find(letters[i]);
    const std::size_t vowel = kVowels.find(letters[i + 1]);
    if (consonant == std::string_view::npos || vowel == std::string_view::npos) return kHashed;
    number = number * kSyllables + static_cast<std::uint32_t>(consonant * kVowels.size() + vowel);
  }
  return number;
}

std::uint64_t Pack(std::string_view piece) {
  std::uint64_t packed = std::uint64_t{piece.size()} << 56;
  for (std::size_t i = 0; i < piece.size(); ++i) {
    packed |= std::uint64_t{static_cast<unsigned char>(piece[i])} << (8 * i);
  }
  return packed;
}

void AppendSyllables(std::uint32_t number, int count, std::string& out) {
  out += ' ';
  std::uint32_t divisor = count == 2 ? kSyllables : kSyllables * kSyllables;
  for (; divisor > 0; divisor /= kSyllables) {
    const std::uint32_t syllable = number / divisor % kSyllables;
    out += kConsonants[syllable / kVowels.size()];
    out += kVowels[syllable % kVowels.size()];
  }
}

}  // namespace

Tokenizer::Tokenizer() : seen_(std::make_unique<std::atomic<std::uint64_t>[]>(kHashed)) {}

void Tokenizer::Encode(std::string_view text, std::vector<TokenId>& out) const {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = PieceEnd(text, begin);
    const std::string_view piece = text.substr(begin, end - begin);
    begin = end;
    if (piece.size() == 1) {
      out.push_back(static_cast<unsigned char>(piece[0]));
      continue;
    }
    if (piece[0] == ' ' && (piece.size() == 5 || piece.size() == 7)) {
      const std::uint32_t number = Spelled(piece.substr(1));
      if (number < kHashed) {
        out.push_back((piece.size() == 5 ? kFirstWord : kFirstHashed) + number);
        continue;
      }
    }
    const std::uint64_t packed = Pack(piece);
    std::uint64_t state = packed;
    const auto slot = static_cast<std::uint32_t>(SplitMix64(state) % kHashed);
    if (seen_[slot].load(std::memory_order_relaxed) != packed) {
      seen_[slot].store(packed, std::memory_order_relaxed);
    }
    out.push_back(kFirstHashed + slot);
  }
}

void Tokenizer::AppendCanonical(TokenId id, std::string& out) {
  if (id < kFirstWord) {
    out += static_cast<char>(id);
  } else if (id < kFirstHashed) {
    AppendSyllables(id - kFirstWord, 2, out);
  } else if (id < kBos) {
    AppendSyllables(id - kFirstHashed, 3, out);
  } else if (id == kBos) {
    out += "<|begin_of_text|>";
  } else if (id == kStartHeader) {
    out += "<|start_header_id|>";
  } else if (id == kEndHeader) {
    out += "<|end_header_id|>";
  } else if (id == kEot) {
    out += "<|eot_id|>";
  } else if (id == kMedia) {
    out += "<|media|>";
  } else {
    absl::StrAppend(&out, "<|reserved_", id, "|>");
  }
}

void Tokenizer::AppendText(TokenId id, std::string& out) const {
  if (id >= kFirstHashed && id < kBos) {
    if (const std::uint64_t packed = seen_[id - kFirstHashed].load(std::memory_order_relaxed); packed != 0) {
      for (std::uint64_t i = 0; i < packed >> 56; ++i) out += static_cast<char>(packed >> (8 * i) & 0xFF);
      return;
    }
  }
  AppendCanonical(id, out);
}

}  // namespace llmd::sim
