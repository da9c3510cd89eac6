import json
import pathlib
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def golden(name: str) -> Any:
    return json.loads((ROOT / "tests" / "golden" / name).read_text())


@pytest.fixture(scope="session")
def block_hashes() -> Any:
    return golden("block_hashes.json")


@pytest.fixture(scope="session")
def kv_events() -> Any:
    return golden("kv_events.json")
