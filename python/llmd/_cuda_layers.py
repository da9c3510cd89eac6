"""The rest of a decode layer: rotary embedding, norms, activations, sampling."""

from __future__ import annotations

from dataclasses import dataclass

from llmd import _core
from llmd._cuda_backend import Backend, BackendName, DlpackArray, DType, StreamLike, given
from llmd._cuda_cache import KvCache, PageList
from llmd._types import core_of, of_type


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding: at position p, pair i is turned by ``p * theta ** (-2 * i / rotary_dim)``.

    With a `scale_factor` s, frequencies f of wavelength l = 2 pi / f are scaled as Llama 3 does: kept where
    l < old_context / high_freq_factor, f / s where l > old_context / low_freq_factor, and mixed between.

    Attributes
    ----------
    theta : float
        Base of the frequencies.
    rotary_dim : int
        Elements of a head that turn, even; those past it stay.
    interleaved : bool
        Pairs are (2i, 2i + 1), else (i, i + rotary_dim / 2).
    scale_factor : float
        0: no scaling.
    low_freq_factor, high_freq_factor, old_context : float
        Of the scaling; the context is in tokens.

    Examples
    --------
    >>> rope = Rope(500000, 128, scale_factor=8, low_freq_factor=1, high_freq_factor=4, old_context=8192)  # Llama 3.1
    >>> rope.interleaved
    False
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scale_factor: float = 0.0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    old_context: float = 0.0


def rope(
    rope: Rope,
    positions: DlpackArray,
    q: DlpackArray,
    k: DlpackArray | None = None,
    *,
    q_out: DlpackArray | None = None,
    k_out: DlpackArray | None = None,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Turns queries and keys by their positions, in place unless `q_out` and `k_out` are given.

    Parameters
    ----------
    rope : Rope
        The embedding.
    positions : array of int32, shape (T,)
        Of the tokens.
    q : array, shape (T, Hq, D)
        f32, f16 or bf16.
    k : array, shape (T, Hkv, D), optional
        Of the same type.
    q_out, k_out : array, optional
        Are written to; of the shapes of `q` and `k`.
    dtype : {"f16", "bf16"}, optional
        Of arrays of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> q = np.tile(np.array([1, 0], np.float32), (2, 1, 1))
    >>> rope(Rope(10000, 2), np.array([0, 1], np.int32), q)
    >>> q[:, 0].round(4).tolist()  # by 0 and by 1 radian
    [[1.0, 0.0], [0.5403000116348267, 0.8414999842643738]]
    """
    of_type(rope, "rope", Rope)
    _core.rope(rope, positions, q, k, q_out, k_out, dtype, stream, given(backend))


def rope_append(
    rope: Rope,
    cache: KvCache,
    q: DlpackArray,
    k: DlpackArray,
    v: DlpackArray,
    positions: DlpackArray,
    *,
    q_out: DlpackArray | None = None,
    slots: DlpackArray | None = None,
    batch_index: DlpackArray | None = None,
    pages: PageList | None = None,
    error: DlpackArray | None = None,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Turns queries in place or into `q_out`, turns keys straight into the cache, and appends values: `rope` and `append_kv` in one.

    Parameters
    ----------
    rope : Rope
        The embedding.
    cache : KvCache
        Is written to.
    q : array, shape (T, Hq, D)
        f32, f16 or bf16.
    k, v : array, shape (T, Hkv, D)
        Of the same type; keys as they are before the embedding.
    positions : array of int32, shape (T,)
        Of the tokens, for the embedding and, without `slots`, for their places.
    q_out : array, shape (T, Hq, D), optional
        Is written to.
    slots, batch_index, pages, error, dtype : optional
        As of `append_kv`.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> cache = KvCache(*np.zeros((2, 4, 2, 1, 8), np.float16))
    >>> q, k, v = np.ones((3, 1, 1, 8), np.float16)
    >>> rope_append(Rope(10000, 8), cache, q, k, v, np.array([3], np.int32), slots=np.array([3]))
    """
    of_type(rope, "rope", Rope)
    if pages is not None:
        of_type(pages, "pages", PageList)
    _core.rope_append(
        rope, core_of(cache, "cache", KvCache), q, k, v, positions, q_out, slots, batch_index, pages, error, dtype,
        stream, given(backend),
    )  # fmt: skip


def rms_norm(
    x: DlpackArray,
    weight: DlpackArray,
    y: DlpackArray,
    *,
    epsilon: float,
    residual: DlpackArray | None = None,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """``y = x * weight / sqrt(mean(x ** 2) + epsilon)`` over the last dimension, with sums in float32.

    With `residual`, ``residual += x`` comes first, and y is the norm of the sum.

    Parameters
    ----------
    x : array, shape (..., size)
        f32, f16 or bf16. Rows may lie apart, at even distances.
    weight : array, shape (size,)
        Of the same type.
    y : array, shape (..., size)
        Is written to; may be `x`.
    epsilon : float
        At least 0.
    residual : array, shape (..., size), optional
        Contiguous; is written to.
    dtype : {"f16", "bf16"}, optional
        Of arrays of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[3, 4]], np.float32)
    >>> rms_norm(x, np.ones(2, np.float32), x, epsilon=0)
    >>> (x * 12.5**0.5).round(3).tolist()
    [[3.0, 4.0]]
    """
    _core.rms_norm(x, weight, y, epsilon, residual, dtype, stream, given(backend))


def silu_and_mul(
    x: DlpackArray,
    y: DlpackArray,
    *,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """``y = silu(a) * b``, where a and b are the halves of x along the last dimension.

    Parameters
    ----------
    x : array, shape (..., 2 * size)
        f32, f16 or bf16, contiguous.
    y : array, shape (..., size)
        Is written to; of the same type, contiguous.
    dtype : {"f16", "bf16"}, optional
        Of arrays of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.zeros(1, np.float32)
    >>> silu_and_mul(np.array([0.5, 10], np.float32), y)
    >>> round(float(y[0]), 4)
    3.1123
    """
    _core.silu_and_mul(x, y, dtype, stream, given(backend))


def sample(
    logits: DlpackArray,
    tokens: DlpackArray,
    *,
    temperature: DlpackArray | None = None,
    min_p: DlpackArray | None = None,
    top_k: DlpackArray | None = None,
    top_p: DlpackArray | None = None,
    seed: int = 0,
    request_ids: DlpackArray | None = None,
    steps: DlpackArray | None = None,
    logprobs: DlpackArray | None = None,
    dtype: DType | None = None,
    stream: StreamLike | None = None,
    backend: Backend | BackendName | None = None,
) -> None:
    """Draws a token for each row: divides by the temperature, keeps what passes `min_p`, `top_k` and `top_p` in this order, draws.

    The random number of a row is Philox4x32-10 of the seed, the row's request and its step: it does not depend on the row's
    place in the batch. NaN counts as -inf; a row without a finite logit gives token -1.

    Parameters
    ----------
    logits : array, shape (B, vocab)
        f32, f16 or bf16; rows may lie apart.
    tokens : array of int32, shape (B,)
        Is written to.
    temperature : array of float32, shape (B,), optional
        0: the greatest logit, the lowest id of equals. 1 by default.
    min_p : array of float32, shape (B,), optional
        Keeps tokens of at least so much of the greatest probability.
    top_k : array of int32, shape (B,), optional
        Keeps the k most probable; 0: all.
    top_p : array of float32, shape (B,), optional
        Keeps the fewest, most probable ones whose share reaches p, at least one.
    seed : int
        0 to 2**64 - 1.
    request_ids, steps : array of int64 or uint64, shape (B,), optional
        By default the row's number and 0.
    logprobs : array of float32, shape (B,), optional
        Is written to: logarithm of the token's probability after the temperature, before the filters.
    dtype : {"f16", "bf16"}, optional
        Of logits of uint16.
    stream, backend : optional
        See `llmd.cuda`.

    Examples
    --------
    >>> import numpy as np
    >>> tokens = np.zeros(2, np.int32)
    >>> logits = np.array([[0, 5, 1], [9, 0, 0]], np.float32)
    >>> sample(logits, tokens, temperature=np.zeros(2, np.float32))
    >>> tokens.tolist()
    [1, 0]
    """
    _core.sample(
        logits, tokens, temperature, min_p, top_k, top_p, seed, request_ids, steps, logprobs, dtype, stream,
        given(backend),
    )  # fmt: skip
