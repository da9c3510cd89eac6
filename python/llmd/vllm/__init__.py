"""Plugins for vLLM, and what a gateway needs beside a vLLM engine.

- `llmd.vllm.hashing`: the block-hash functions in C++; loaded by vLLM itself through the entry point ``llmd_hashing`` of
  the group ``vllm.general_plugins``.
- `llmd.vllm.events`: a subscriber to an engine's KV events, with threads or asyncio (needs pyzmq).

Importing this package imports neither vLLM nor pyzmq. A connector is a module of this package that vLLM loads by its
path: ``{"kv_connector": NAME, "kv_connector_module_path": "llmd.vllm.MODULE"}``.
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """What vLLM calls when it loads its plugins, in every process and maybe more than once. Never raises."""
    from llmd.vllm import hashing

    hashing.register()
