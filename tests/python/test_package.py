"""The package as a whole: types, examples, import, what it shows to others."""

import doctest
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import llmd

MODULES = [
    "llmd",
    "llmd._decision",
    "llmd._engine_hash",
    "llmd._ext_proc",
    "llmd._openai",
    "llmd._plugins",
    "llmd._pool",
    "llmd._probe",
    "llmd._router_hash",
    "llmd._vllm_hash",
    "llmd.errors",
    "llmd.events",
    "llmd.gateway",
    "llmd.hash",
    "llmd.index",
    "llmd.sched",
    "llmd.testing",
    "llmd.vllm",
    "llmd.vllm.events",
    "llmd.vllm.hashing",
    "llmd.worker",
]
WITHOUT_EXAMPLES = {  # or with those that need an engine
    "llmd._decision",
    "llmd._ext_proc",
    "llmd.errors",
    "llmd.vllm",
    "llmd.vllm.events",
    "llmd.vllm.hashing",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0 or name in WITHOUT_EXAMPLES


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        if isinstance(value, type) and value.__module__.startswith("llmd"):
            assert value.__doc__, public
            for member, attribute in vars(value).items():
                if not member.startswith("_") and callable(attribute) and value.__module__ != "llmd._core":
                    assert attribute.__doc__, f"{public}.{member}"
        elif inspect.isroutine(value):
            assert value.__doc__, public


def test_types():
    pytest.importorskip("mypy")
    folder = pathlib.Path(llmd.__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "/dev/null", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_the_module_is_visible():
    done = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", importlib.import_module("llmd._core").__file__],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("no nm")
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert names == {"PyInit__core"}


def test_importing_it_alone_is_light():
    code = "import sys, llmd; print([m for m in ('yaml', 'zmq', 'torch', 'asyncio') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_version():
    assert llmd.__version__.count(".") == 2
