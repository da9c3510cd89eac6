import json
import os
import pathlib
from typing import Any

import pytest
from hypothesis import settings

# The same examples in every run; HYPOTHESIS_PROFILE=default draws others each time.
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# They need a real vLLM, and run in its environment: scripts/test_vllm.sh.
collect_ignore = [] if os.environ.get("LLMD_REAL_VLLM") else ["real_vllm"]

ROOT = pathlib.Path(__file__).resolve().parents[2]


def golden(name: str) -> Any:
    return json.loads((ROOT / "tests" / "golden" / name).read_text())


@pytest.fixture(scope="session")
def block_hashes() -> Any:
    return golden("block_hashes.json")


@pytest.fixture(scope="session")
def kv_events() -> Any:
    return golden("kv_events.json")
