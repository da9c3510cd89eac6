"""Caches: what is in them, and how blocks get in, about and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from llmd import _core
from llmd._cuda_backend import Backend, BackendName, DlpackArray, DType, StreamLike, given
from llmd._types import UInt64Array, core_of, of_type

Layout: TypeAlias = Literal["NHD", "HND"]
"""Order of a cache's dimensions: ``(pages, P, Hkv, D)`` or ``(pages, Hkv, P, D)``."""


class KvCache:
    """One layer's cache of keys and values, as views of arrays that stay the caller's.

    The object keeps the arrays alive, takes their addresses once and waits for nothing: that work on them is ordered with
    the calls that get the cache is the caller's business. Immutable, for any thread.

    Parameters
    ----------
    k, v : array, shape (pages, P, Hkv, D) or (pages, Hkv, P, D)
        Pages of P token slots, f16, bf16 or e4m3. The last dimension is contiguous; the other strides are free, so both may be
        views of one array. Addresses and strides are multiples of 16 bytes.
    layout : {"NHD", "HND"}
        Order of the dimensions.
    dtype : {"f16", "bf16", "e4m3"}, optional
        For arrays of uint16 or uint8, of frameworks without the type itself.
    k_scale, v_scale : array of float32, shape (), (1,) or (Hkv,), optional
        On the cache's device, for e4m3: a value is what is stored times the scale.

    Examples
    --------
    >>> import numpy as np
    >>> kv = np.zeros((100, 2, 16, 8, 64), np.float16)  # both in one array, split in each page
    >>> KvCache(kv[:, 0], kv[:, 1])
    KvCache(num_pages=100, page_size=16, num_kv_heads=8, head_dim=64, dtype='f16', layout='NHD', device='cpu')
    """

    __slots__ = ("_core",)

    def __init__(
        self,
        k: DlpackArray,
        v: DlpackArray,
        *,
        layout: Layout = "NHD",
        dtype: DType | None = None,
        k_scale: DlpackArray | None = None,
        v_scale: DlpackArray | None = None,
    ) -> None:
        self._core = _core.KvCache(k, v, layout, dtype, k_scale, v_scale)

    @property
    def num_pages(self) -> int:
        """Pages."""
        return self._core.num_pages

    @property
    def page_size(self) -> int:
        """Tokens of a page, P."""
        return self._core.page_size

    @property
    def num_kv_heads(self) -> int:
        """Heads, Hkv."""
        return self._core.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Elements of a head, D."""
        return self._core.head_dim

    @property
    def dtype(self) -> DType:
        """Type of the elements."""
        return self._core.dtype

    @property
    def layout(self) -> Layout:
        """Order of the dimensions."""
        return self._core.layout

    @property
    def device(self) -> str:
        """``"cpu"`` or, for example, ``"cuda:0"``."""
        return self._core.device

    def __repr__(self) -> str:
        return (
            f"KvCache(num_pages={self.num_pages}, page_size={self.page_size}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, dtype={self.dtype!r}, layout={self.layout!r}, device={self.device!r})"
        )


@dataclass(frozen=True)
class PageList:
    """Which pages hold a request's tokens, in one of two formats.

    A block table has a row of page ids for each request, and `seq_lens`. A compressed list has all ids in one row, where
    each request's begin (`indptr`), and `last_page_len`. Lengths count the tokens that are being processed now. What lies
    past a request's length is never read. The functions do not keep a list, but a `Plan` does.

    Attributes
    ----------
    pages : array of int32, shape (B, max_pages) or (n,)
        Page ids. A table's rows may lie apart.
    seq_lens : array of int32, shape (B,), optional
        Tokens of each request; with a table.
    indptr : array of int32, shape (B + 1,), optional
        Request b has the pages ``pages[indptr[b]:indptr[b + 1]]``.
    last_page_len : array of int32, shape (B,), optional
        Tokens in the last page of each request, 1 to P; with `indptr`.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.array([[5, 6, 0], [7, 0, 0]], np.int32)
    >>> PageList(table, seq_lens=np.array([20, 3], np.int32))
    PageList(table of shape (2, 3))
    """

    pages: DlpackArray
    seq_lens: DlpackArray | None = None
    indptr: DlpackArray | None = None
    last_page_len: DlpackArray | None = None

    def __repr__(self) -> str:
        kind = "table" if self.indptr is None else "list"
        return f"PageList({kind} of shape {tuple(getattr(self.pages, 'shape', ('?',)))})"


def append_kv(
    cache: KvCache,
    k: DlpackArray,
    v: DlpackArray,
    *,
    slots: DlpackArray | None = None,
    batch_index: DlpackArray | None = None,
    positions: DlpackArray | None = None,
    pages: PageList | None = None,
    error: DlpackArray | None = None,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Stores the keys and values of T new tokens, at `slots`, or at `positions` of the requests `batch_index`.

    An e4m3 cache stores the nearest value to x / scale, 448 at most. No two tokens of a call may share a slot.

    Parameters
    ----------
    cache : KvCache
        Is written to.
    k, v : array, shape (T, Hkv, D)
        f32, f16 or bf16; views, for example of a fused projection, are read in place.
    slots : array of int64, shape (T,), optional
        page * P + offset; negative: the token is skipped.
    batch_index, positions : array of int32, shape (T,), optional
        Row of `pages` and position in the request; a negative row: the token is skipped.
    pages : PageList, optional
        Needs no lengths.
    error : array of int64, shape (3,), optional
        Zeros. Then places out of range are skipped, and the first that is seen is left here: (3, token, slot),
        (1, token, page id) or (2, token, position). Without it a place out of range raises in memory of the host, and is undefined
        on a CUDA device.
    dtype : {"f16", "bf16"}, optional
        Of `k` and `v` of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> cache = KvCache(np.zeros((4, 2, 1, 8), np.float16), np.zeros((4, 2, 1, 8), np.float16))
    >>> k = np.ones((3, 1, 8), np.float16)
    >>> append_kv(cache, k, k, slots=np.array([5, -1, 0]))
    >>> append_kv(cache, k, k, slots=np.array([1, 2, 8]))
    Traceback (most recent call last):
    ValueError: slots[2] is 8, past the last page
    """
    if pages is not None:
        of_type(pages, "pages", PageList)
    _core.append_kv(
        core_of(cache, "cache", KvCache), k, v, slots, batch_index, positions, pages, error, dtype, stream, given(backend)
    )  # fmt: skip


class BlockBases(NamedTuple):
    """Where the blocks of all layers are, for `copy_blocks`, `gather_blocks` and `scatter_blocks`.

    Attributes
    ----------
    bases : array of uint64, shape (2 * layers,)
        Addresses of K and V of each layer. For a CUDA device it is to be copied there. It does not keep the caches alive.
    page_stride_bytes : int
        Distance between blocks.
    block_bytes : int
        Size of one.
    """

    bases: UInt64Array
    page_stride_bytes: int
    block_bytes: int


def block_bases(caches: Sequence[KvCache]) -> BlockBases:
    """The addresses and sizes of layers that are alike, each page of K and of V in one piece.

    Raises
    ------
    ValueError
        If pages are not in one piece, or the layers differ.

    Examples
    --------
    >>> import numpy as np
    >>> layers = [KvCache(*np.zeros((2, 10, 16, 8, 64), np.float16)) for _ in range(4)]
    >>> bases, page_stride_bytes, block_bytes = block_bases(layers)
    >>> bases.shape, page_stride_bytes, block_bytes
    ((8,), 16384, 16384)
    """
    cores = [core_of(cache, f"caches[{i}]", KvCache) for i, cache in enumerate(caches)]
    if not cores:
        raise ValueError("caches has no elements, wanted at least 1")
    sizes = [(stride, core.block_bytes) for core in cores for stride in core.page_stride_bytes]
    for i, size in enumerate(sizes):
        if size != sizes[0]:
            raise ValueError(f"caches[{i // 2}] has {size} bytes from page to page and a page, wanted {sizes[0]} as the first")
    bases = np.array([address for core in cores for address in core.addresses], np.uint64)
    return BlockBases(bases, *sizes[0])


def copy_blocks(
    bases: DlpackArray,
    pairs: DlpackArray,
    *,
    page_stride_bytes: int,
    block_bytes: int,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Copies blocks inside the caches of all layers, in one launch.

    Addresses and block numbers are not checked against anything: as in C, a wrong one is undefined behaviour.

    Parameters
    ----------
    bases : array of int64 or uint64, shape (2 * layers,)
        Addresses, on the device; from `block_bases`.
    pairs : array of int64, shape (n, 2)
        (source, destination); no block is both.
    page_stride_bytes, block_bytes : int
        Bytes, multiples of 16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> k, v = np.zeros((2, 10, 16, 1, 8), np.float16)
    >>> k[3] = 1
    >>> bases, page_stride_bytes, block_bytes = block_bases([KvCache(k, v)])
    >>> copy_blocks(bases, np.array([[3, 7]]), page_stride_bytes=page_stride_bytes, block_bytes=block_bytes)
    >>> bool((k[7] == 1).all())
    True
    """
    _core.copy_blocks(bases, pairs, page_stride_bytes, block_bytes, stream, given(backend))


def gather_blocks(
    bases: DlpackArray,
    blocks: DlpackArray,
    staging: DlpackArray,
    *,
    page_stride_bytes: int,
    block_bytes: int,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Copies blocks of all layers into one contiguous buffer ``[n][2 * layers][block_bytes]``.

    Addresses and block numbers are not checked, as in `copy_blocks`.

    Parameters
    ----------
    bases : array of int64 or uint64, shape (2 * layers,)
        Addresses, on the device; from `block_bases`.
    blocks : array of int64, shape (n,)
        On the device.
    staging : array of uint8, shape (bytes,)
        On the device, or page-locked memory of the host that is mapped to it.
    page_stride_bytes, block_bytes : int
        Bytes, multiples of 16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> layers = [KvCache(*np.ones((2, 10, 16, 1, 8), np.float16))]
    >>> bases, page_stride_bytes, block_bytes = block_bases(layers)
    >>> sizes = {"page_stride_bytes": page_stride_bytes, "block_bytes": block_bytes}
    >>> staging = np.zeros(3 * 2 * block_bytes, np.uint8)
    >>> gather_blocks(bases, np.array([4, 0, 9]), staging, **sizes)
    >>> scatter_blocks(bases, np.array([1, 2, 3]), staging, **sizes)
    """
    _core.move_blocks(True, bases, blocks, staging, page_stride_bytes, block_bytes, stream, given(backend))


def scatter_blocks(
    bases: DlpackArray,
    blocks: DlpackArray,
    staging: DlpackArray,
    *,
    page_stride_bytes: int,
    block_bytes: int,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """The way back of `gather_blocks`: from the buffer to the blocks. Takes the same arguments.

    Examples
    --------
    >>> import numpy as np
    >>> k, v = np.zeros((2, 4, 16, 1, 8), np.float16)
    >>> bases, page_stride_bytes, block_bytes = block_bases([KvCache(k, v)])
    >>> staging = np.full(2 * block_bytes, 0x3C, np.uint8)  # for K and V
    >>> sizes = {"page_stride_bytes": page_stride_bytes, "block_bytes": block_bytes}
    >>> scatter_blocks(bases, np.array([2]), staging, **sizes)
    >>> [float(page.min()) for page in k]
    [0.0, 0.0, 1.05859375, 0.0]
    """
    _core.move_blocks(False, bases, blocks, staging, page_stride_bytes, block_bytes, stream, given(backend))
