#include "bench/attention/cases.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "llmd/base/random.h"

namespace llmd::bench {
namespace {

struct Model {
  const char* name;
  int num_q_heads;
  int num_kv_heads;
  int head_dim;
  int window;
  bool quick;
};

constexpr Model kModels[] = {
    {"llama-3.1-8b", 32, 8, 128, 0, true},    {"llama-3.1-70b-tp8", 8, 1, 128, 0, true},
    {"qwen3-30b-a3b", 32, 4, 128, 0, false},  {"gpt-oss", 64, 8, 64, 0, false},
    {"gpt-oss-window", 64, 8, 64, 128, true}, {"llama-3.2-3b", 24, 8, 128, 0, false},
    {"qwen3-14b", 40, 8, 128, 0, false},      {"qwen3-32b", 64, 8, 128, 0, false},
};

AttentionCase Make(const Model& model) {
  AttentionCase c;
  c.num_q_heads = model.num_q_heads;
  c.num_kv_heads = model.num_kv_heads;
  c.head_dim = model.head_dim;
  c.window = model.window;
  return c;
}

AttentionCase Uniform(const Model& model, int batch, int length) {
  AttentionCase c = Make(model);
  c.kv_lens.assign(batch, length);
  c.new_lens.assign(batch, 1);
  return c;
}

void Name(AttentionCase& c, const std::string& part, const std::string& model, const std::string& what) {
  c.part = part;
  c.name = part + "/" + model + "/" + what + "/P" + std::to_string(c.page_size) + "/" +
           (c.hnd ? "HND" : "NHD") + "/" + (c.kv_dtype == LLMD_E4M3 ? "fp8" : "bf16");
}

std::string Shape(int batch, int length) {
  return "B" + std::to_string(batch) + "/L" + std::to_string(length);
}

void AddGrid(std::vector<AttentionCase>& cases, std::int64_t max_bytes) {
  for (const Model& model : kModels) {
    for (const int batch : {1, 2, 4, 8, 32, 128, 256}) {
      for (const int length : {512, 2048, 8192, 32768, 131072}) {
        if (model.window > 0 && length != 8192) continue;  // independent of the length
        AttentionCase c = Uniform(model, batch, length);
        const bool between = (batch == 2 || batch == 4) && length == 512;
        const bool quick = model.quick && batch <= 128 && length <= 32768 && c.kv_bytes() <= (2ll << 30);
        c.priority = quick && !between ? 0 : 1;
        Name(c, "decode", model.name, Shape(batch, length));
        if (c.kv_bytes() <= max_bytes) cases.push_back(c);
      }
    }
  }
}

void AddSweeps(std::vector<AttentionCase>& cases) {
  struct Point {
    int batch;
    int length;
  };
  const Model base = kModels[0];
  for (const Point p : {Point{1, 8192}, Point{32, 2048}, Point{128, 2048}}) {
    for (const int page_size : {32, 64, 128}) {
      AttentionCase c = Uniform(base, p.batch, p.length);
      c.page_size = page_size;
      c.priority = page_size == 32 ? 1 : 0;  // some like large pages best
      Name(c, "sweep", base.name, Shape(p.batch, p.length));
      cases.push_back(c);
    }
    for (const int page_size : {16, 64}) {
      AttentionCase c = Uniform(base, p.batch, p.length);
      c.page_size = page_size;
      c.hnd = true;
      c.priority = page_size == 16 ? 0 : 1;
      Name(c, "sweep", base.name, Shape(p.batch, p.length));
      cases.push_back(c);
    }
  }
  for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16}) {
    for (const Point p : {Point{1, 8192}, Point{32, 2048}}) {
      AttentionCase c = Uniform(base, p.batch, p.length);
      c.num_q_heads = group * c.num_kv_heads;
      c.priority = group == 1 || group == 8 || group == 16 ? 0 : 1;
      Name(c, "sweep", "G" + std::to_string(group), Shape(p.batch, p.length));
      cases.push_back(c);
    }
  }
  for (const Point p : {Point{1, 8192}, Point{32, 2048}, Point{32, 8192}}) {
    AttentionCase c = Uniform(base, p.batch, p.length);
    c.head_dim = 64;
    Name(c, "sweep", "D64", Shape(p.batch, p.length));
    cases.push_back(c);
  }
  for (const Point p : {Point{1, 2048}, Point{1, 32768}, Point{8, 8192}, Point{32, 2048}, Point{32, 8192},
                        Point{128, 2048}, Point{128, 8192}}) {
    AttentionCase c = Uniform(base, p.batch, p.length);
    c.kv_dtype = LLMD_E4M3;
    Name(c, "sweep", base.name, Shape(p.batch, p.length));
    c.priority = p.batch == 8 || p.length == 32768 ? 1 : 0;
    cases.push_back(c);
  }
  for (const Point p : {Point{1, 32768}, Point{32, 8192}}) {
    AttentionCase c = Uniform(kModels[1], p.batch, p.length);
    c.kv_dtype = LLMD_E4M3;
    Name(c, "sweep", kModels[1].name, Shape(p.batch, p.length));
    cases.push_back(c);
    c.kv_dtype = LLMD_BF16;
    c.page_size = 64;
    Name(c, "sweep", kModels[1].name, Shape(p.batch, p.length));
    cases.push_back(c);
  }
  for (const Point p : {Point{4, 8192}, Point{32, 8192}}) {
    AttentionCase c = Uniform(base, p.batch, p.length);
    c.kv_dtype = LLMD_E4M3;
    c.page_size = 64;
    Name(c, "sweep", base.name, Shape(p.batch, p.length));
    cases.push_back(c);
  }
}

// The five mixes of section 4.4, each in a shuffled order so that no scheduler profits from where the long
// one is.
std::vector<std::pair<std::string, std::vector<std::int32_t>>> Mixes() {
  std::vector<std::pair<std::string, std::vector<std::int32_t>>> mixes;
  Random random(20);
  std::vector<std::int32_t> lens;
  for (int i = 0; i < 64; ++i) lens.push_back(1024 + static_cast<int>(random.Below(7169)));
  mixes.emplace_back("uniform-1k-8k", lens);
  lens.assign(32, 1024);
  lens[0] = 131072;
  mixes.emplace_back("one-128k", lens);
  lens.clear();
  for (int i = 0; i < 128; ++i) lens.push_back(static_cast<std::int32_t>(32768 / std::pow(i + 1, 0.8)));
  mixes.emplace_back("zipf", lens);
  lens.assign(128, 512);
  lens[0] = lens[1] = 32768;
  mixes.emplace_back("two-32k", lens);
  lens.clear();
  for (int i = 0; i < 32; ++i) lens.push_back(static_cast<std::int32_t>(16 * std::pow(4096.0, i / 31.0)));
  mixes.emplace_back("geometric", lens);
  for (auto& [name, values] : mixes) random.Shuffle(values);
  return mixes;
}

void AddMixes(std::vector<AttentionCase>& cases) {
  for (const auto& [name, lens] : Mixes()) {
    for (const Model& model : {kModels[0], kModels[1]}) {
      for (const int page_size : {16, 64}) {
        AttentionCase c = Make(model);
        c.kv_lens = lens;
        c.new_lens.assign(lens.size(), 1);
        c.page_size = page_size;
        c.priority = page_size == 16 ? 0 : 1;
        Name(c, "mixes", model.name, name);
        cases.push_back(c);
      }
    }
    AttentionCase c = Make(kModels[0]);
    c.kv_lens = lens;
    c.new_lens.assign(lens.size(), 1);
    c.kv_dtype = LLMD_E4M3;
    c.priority = 1;
    Name(c, "mixes", kModels[0].name, name);
    cases.push_back(c);
  }
}

void AddPrefill(std::vector<AttentionCase>& cases) {
  struct Point {
    const char* name;
    int batch;
    int new_tokens;
    int prefix;
    int priority;
  };
  constexpr Point kPoints[] = {
      {"causal-8k", 1, 8192, 0, 0},
      {"causal-32k", 1, 32768, 0, 0},
      {"causal-8x1k", 8, 1024, 0, 1},
      {"chunk-512-over-32k", 1, 512, 32768, 0},
      {"chunk-2048-over-32k", 1, 2048, 32768, 0},
      {"chunk-512-over-128k", 1, 512, 131072, 1},
      {"chunk-2048-over-128k", 1, 2048, 131072, 0},
  };
  for (const Model& model : {kModels[0], kModels[1], kModels[3]}) {
    for (const Point& p : kPoints) {
      AttentionCase c = Make(model);
      c.kv_lens.assign(p.batch, p.prefix + p.new_tokens);
      c.new_lens.assign(p.batch, p.new_tokens);
      c.priority = model.num_kv_heads == 8 && model.head_dim == 128 ? p.priority : 1;
      Name(c, "prefill", model.name, p.name);
      cases.push_back(c);
      if (c.priority > 0) continue;
      c.kv_dtype = LLMD_E4M3;
      c.priority = 1;
      Name(c, "prefill", model.name, p.name);
      cases.push_back(c);
    }
  }
}

}  // namespace

std::int64_t AttentionCase::num_tokens() const {
  return std::accumulate(new_lens.begin(), new_lens.end(), std::int64_t{0});
}

std::int64_t AttentionCase::token_bytes() const {
  return std::int64_t{2} * num_kv_heads * head_dim * element_bytes();
}

std::int64_t AttentionCase::first_token(int b) const {
  if (window <= 0) return 0;
  return std::max(0, kv_lens[b] - new_lens[b] - window + 1);
}

std::int64_t AttentionCase::kv_bytes() const {
  std::int64_t tokens = 0;
  for (int b = 0; b < batch(); ++b) tokens += kv_lens[b] - first_token(b);
  return tokens * token_bytes();
}

std::int64_t AttentionCase::num_pages() const {
  std::int64_t pages = 0;
  for (int b = 0; b < batch(); ++b) pages += end_page(b) - first_page(b);
  return pages;
}

double AttentionCase::flop() const {
  double pairs = 0;
  for (int b = 0; b < batch(); ++b) {
    for (int i = 0; i < new_lens[b]; ++i) {
      const int visible = kv_lens[b] - new_lens[b] + i + 1;
      pairs += window > 0 ? std::min(visible, window) : visible;
    }
  }
  return 4.0 * num_q_heads * head_dim * pairs;
}

std::vector<AttentionCase> AttentionCases(bool full, std::int64_t max_bytes) {
  std::vector<AttentionCase> cases;
  AddGrid(cases, max_bytes);
  AddSweeps(cases);
  AddMixes(cases);
  AddPrefill(cases);
  if (!full) std::erase_if(cases, [](const AttentionCase& c) { return c.priority > 0; });
  return cases;
}

std::string ToJson(const AttentionCase& c) {
  const auto list = [](const std::vector<std::int32_t>& values) {
    std::string text = "[";
    for (const std::int32_t value : values) text += (text.size() > 1 ? "," : "") + std::to_string(value);
    return text + "]";
  };
  return "{\"part\":\"" + c.part + "\",\"name\":\"" + c.name +
         "\",\"num_q_heads\":" + std::to_string(c.num_q_heads) +
         ",\"num_kv_heads\":" + std::to_string(c.num_kv_heads) +
         ",\"head_dim\":" + std::to_string(c.head_dim) + ",\"page_size\":" + std::to_string(c.page_size) +
         ",\"hnd\":" + (c.hnd ? "true" : "false") +
         ",\"fp8\":" + (c.kv_dtype == LLMD_E4M3 ? "true" : "false") +
         ",\"window\":" + std::to_string(c.window) + ",\"priority\":" + std::to_string(c.priority) +
         ",\"kv_bytes\":" + std::to_string(c.kv_bytes()) + ",\"flop\":" + std::to_string(c.flop()) +
         ",\"kv_lens\":" + list(c.kv_lens) + ",\"new_lens\":" + list(c.new_lens) + "}";
}

}  // namespace llmd::bench
