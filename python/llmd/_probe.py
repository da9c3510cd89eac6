"""Which hash function made this event? Public through `llmd.hash`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmd import _core
from llmd._types import TokensLike, listed
from llmd._vllm_hash import ExtraKeys, RequestExtras


class ProbeMatch(NamedTuple):
    """A way to compute published hashes.

    Attributes
    ----------
    engine, algorithm : str
        Whose, and which of its functions.
    seed : str
        What the first parent is made from.
    extra_keys : str
        The shape of extra keys.
    form : str
        What of a digest is published.
    blocks : int
        Hashes reproduced.
    native : bool
        The engine itself publishes this form, and every hash was reproduced.
    """

    engine: str
    algorithm: str
    seed: str
    extra_keys: str
    form: str
    blocks: int
    native: bool


class ProbeReport(NamedTuple):
    """What `probe` found.

    Attributes
    ----------
    match : ProbeMatch or None
        The way that reproduces the hashes, if there is one.
    near : tuple of ProbeMatch
        What comes closest.
    combinations : int
        How many were tried.
    summary : str
        For a log.
    """

    match: ProbeMatch | None
    near: tuple[ProbeMatch, ...]
    combinations: int
    summary: str


def probe(
    tokens: TokensLike,
    hashes: Sequence[int | bytes],
    *,
    block_size: int,
    parent: int | bytes | None = None,
    extras: RequestExtras | None = None,
    event_extra_keys: Sequence[ExtraKeys] = (),
    first_block: int = 0,
    seeds: Sequence[str] = (),
    none_hashes: Sequence[bytes] = (),
    models: Sequence[str] = (),
) -> ProbeReport:
    """Which hash function made this event? Tries every algorithm, seed and extra-key shape. Slow by design.

    Parameters
    ----------
    tokens : array of int32, uint32 or int64, shape (len(hashes) * block_size,), or list of int
        Token ids of the event.
    hashes : list of int or bytes
        As the event carries them.
    block_size : int
        Tokens per block.
    parent : int or bytes, optional
        None: the event starts a prompt.
    extras, event_extra_keys
        What is known of the request, and what the event says.
    first_block : int
        Index in its prompt of the event's first block.
    seeds, none_hashes, models
        More to try, besides the usual.

    Returns
    -------
    ProbeReport

    Examples
    --------
    >>> from llmd.hash import VllmHasher
    >>> hasher = VllmHasher("sha256_cbor", block_size=4, seed="42")
    >>> report = probe([1, 2, 3, 4], [int(hasher.block_keys([1, 2, 3, 4])[0])], block_size=4, seeds=["42"])
    >>> report.match.engine, report.match.algorithm
    ('vllm', 'sha256_cbor')
    """
    match, near, combinations, summary = _core.probe(
        tokens,
        block_size,
        listed(hashes, "hashes"),
        parent,
        extras,
        listed(event_extra_keys, "event_extra_keys"),
        first_block,
        listed(seeds, "seeds"),
        listed(none_hashes, "none_hashes"),
        listed(models, "models"),
    )
    return ProbeReport(
        None if match is None else ProbeMatch(*match), tuple(ProbeMatch(*m) for m in near), combinations, summary
    )


__all__ = ["ProbeMatch", "ProbeReport", "probe"]
