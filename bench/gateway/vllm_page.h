// A metrics page as a vLLM server writes it.
#ifndef BENCH_GATEWAY_VLLM_PAGE_H_
#define BENCH_GATEWAY_VLLM_PAGE_H_

#include <string>

namespace llmd::bench {

// About 60 KB for one data-parallel rank, in vLLM's order of families: those that the scheduler reads come
// among the first.
std::string VllmPage(int ranks = 1);

}  // namespace llmd::bench

#endif  // BENCH_GATEWAY_VLLM_PAGE_H_
