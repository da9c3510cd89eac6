// Extra keys of blocks as Python objects: None, int, str, bytes, tuples of such; llmd.hash.Tag is a str.
#ifndef LLMD_PYTHON_SRC_EXTRA_KEYS_H_
#define LLMD_PYTHON_SRC_EXTRA_KEYS_H_

#include <pybind11/pybind11.h>

#include <vector>

#include "llmd/hash/extra_keys.h"

namespace llmd::python {

// One block's keys: None, or a tuple or list.
hash::ExtraKeys ToExtraKeys(pybind11::handle object, const char* name);
// None when empty, else a tuple.
pybind11::object FromExtraKeys(const hash::ExtraKeys& keys);
// Per block: None (no block has any), or a list or tuple of the above.
std::vector<hash::ExtraKeys> ToExtraKeysOfBlocks(pybind11::handle object, const char* name);

// From an llmd.hash.RequestExtras, by its attributes; None gives none.
hash::RequestExtras ToRequestExtras(pybind11::handle object);
hash::ExtraKeyStyle ToStyle(pybind11::handle object);

}  // namespace llmd::python

#endif  // LLMD_PYTHON_SRC_EXTRA_KEYS_H_
