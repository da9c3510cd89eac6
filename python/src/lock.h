// Work without the GIL, and locks that cannot deadlock with it.
//
// `work` must not touch Python; it returns C++ values (a Status, not an exception). The mutex is given back
// before the GIL is taken again, so nobody waits for the GIL while holding a mutex. Short work is done with
// the GIL held: giving it away costs more than the work, and among busy threads it may take milliseconds to
// come back.
#ifndef LLMD_PYTHON_SRC_LOCK_H_
#define LLMD_PYTHON_SRC_LOCK_H_

#include <pybind11/pybind11.h>

#include <mutex>

namespace llmd::python {

template <typename Work>
auto WithoutGil(bool is_long, Work&& work) {
  if (!is_long) return work();
  pybind11::gil_scoped_release release;
  return work();
}

template <typename Work>
auto Locked(std::mutex& mutex, bool is_long, Work&& work) {
  if (!is_long && mutex.try_lock()) {
    std::lock_guard lock(mutex, std::adopt_lock);
    return work();
  }
  pybind11::gil_scoped_release release;
  std::lock_guard lock(mutex);
  return work();
}

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_LOCK_H_
