// A priority queue threaded through nodes that live elsewhere: no memory of its own, removal from the middle.
// Private to the component.
//
// A pairing heap (Fredman, Sedgewick, Sleator, Tarjan 1986). Nodes are numbers; `Access` gives a node's links
// and compares two nodes:
//   HeapLinks& links(std::uint32_t node) const;
//   bool less(std::uint32_t a, std::uint32_t b) const;    // strict, and total for a deterministic order
// Push is O(1), Remove amortized O(log n), the root is the least. The root belongs to the caller.
#ifndef SRC_SCHED_PAIRING_HEAP_H_
#define SRC_SCHED_PAIRING_HEAP_H_

#include <cstdint>
#include <utility>

namespace llmd::sched {

inline constexpr std::uint32_t kNoNode = ~std::uint32_t{0};

struct HeapLinks {
  std::uint32_t child = kNoNode;
  std::uint32_t next = kNoNode;  // sibling
  std::uint32_t prev = kNoNode;  // sibling, or the parent of a first child
};

template <typename Access>
class PairingHeap {
 public:
  PairingHeap(const Access& access, std::uint32_t& root) : access_(access), root_(root) {}

  void Push(std::uint32_t node) {
    access_.links(node) = {};
    root_ = root_ == kNoNode ? node : Meld(root_, node);
  }

  // The node must be in this heap.
  void Remove(std::uint32_t node) {
    HeapLinks& links = access_.links(node);
    if (node == root_) {
      root_ = MergePairs(links.child);
    } else {
      HeapLinks& before = access_.links(links.prev);
      (before.child == node ? before.child : before.next) = links.next;
      if (links.next != kNoNode) access_.links(links.next).prev = links.prev;
      const std::uint32_t orphans = MergePairs(links.child);
      if (orphans != kNoNode) root_ = Meld(root_, orphans);
    }
    links = {};
  }

 private:
  // Of two roots.
  std::uint32_t Meld(std::uint32_t a, std::uint32_t b) {
    if (access_.less(b, a)) std::swap(a, b);
    HeapLinks& parent = access_.links(a);
    HeapLinks& child = access_.links(b);
    child.next = parent.child;
    child.prev = a;
    if (parent.child != kNoNode) access_.links(parent.child).prev = b;
    parent.child = b;
    parent.next = parent.prev = kNoNode;
    return a;
  }

  // One heap out of siblings.
  std::uint32_t MergePairs(std::uint32_t first) {
    std::uint32_t stack = kNoNode;  // linked by next
    while (first != kNoNode) {
      const std::uint32_t a = first;
      const std::uint32_t b = access_.links(a).next;
      first = b == kNoNode ? kNoNode : access_.links(b).next;
      const std::uint32_t pair = b == kNoNode ? a : Meld(a, b);
      access_.links(pair).next = stack;
      stack = pair;
    }
    std::uint32_t root = kNoNode;
    while (stack != kNoNode) {
      const std::uint32_t next = access_.links(stack).next;
      access_.links(stack).next = access_.links(stack).prev = kNoNode;
      root = root == kNoNode ? stack : Meld(root, stack);
      stack = next;
    }
    return root;
  }

  const Access& access_;
  std::uint32_t& root_;
};

}  // namespace llmd::sched

#endif  // SRC_SCHED_PAIRING_HEAP_H_
