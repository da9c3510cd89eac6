"""The package as a whole: types, examples, import, what it shows to others."""

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types

import pytest

import llmd

MODULES = [
    "llmd",
    "llmd._cuda_attention",
    "llmd._cuda_backend",
    "llmd._cuda_cache",
    "llmd._cuda_layers",
    "llmd._decision",
    "llmd._engine_hash",
    "llmd._ext_proc",
    "llmd._openai",
    "llmd._plugins",
    "llmd._pool",
    "llmd._probe",
    "llmd._router_hash",
    "llmd._vllm_hash",
    "llmd.cuda",
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


PUBLIC = [name for name in MODULES if "._" not in name]


def public_objects(*kinds):
    """(name, object) of what modules show, once each; what is C++ is described in _core.pyi."""
    found, native = {}, list(vars(llmd._core).values())
    for name in PUBLIC:
        module = importlib.import_module(name)
        for public in module.__all__:
            value = getattr(module, public)
            if isinstance(value, kinds) and value.__module__.startswith("llmd") and value not in native:
                found.setdefault(id(value), (f"{name}.{public}", value))
    return list(found.values())


def is_record(value):
    return issubclass(value, tuple) or dataclasses.is_dataclass(value)


def test_everything_public_is_documented():
    for name, value in public_objects(type, types.FunctionType):
        assert value.__doc__, name
        members = vars(value).items() if isinstance(value, type) else ()
        for member, attribute in members:
            if member.startswith("_") or is_record(value) and member in field_names(value):
                continue
            if callable(attribute) or isinstance(attribute, (property, classmethod, staticmethod)):
                assert attribute.__doc__, f"{name}.{member}"


def field_names(value):
    return [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else list(value._fields)


def test_fields_are_described():
    for name, value in public_objects(type):
        if is_record(value):
            described = value.__doc__.partition("Attributes\n    ----------\n")[2]
            for field in field_names(value):
                if not field.startswith("_"):
                    assert re.search(rf"^    (.*, )?{field}\b", described, re.M), f"{name}.{field}"


def test_what_one_calls_has_an_example():
    without = []
    for name, value in public_objects(type, types.FunctionType):
        if "vllm" in name or isinstance(value, type) and (is_record(value) or issubclass(value, Exception)):
            continue  # needs an engine; comes as a result
        if not re.search(r"Examples\n\s+--------\n[^>]*>>>", value.__doc__):
            without.append(name)
    assert not without


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_where_the_reference_shows_them(name):
    source = inspect.getsource(importlib.import_module(name))
    for docstring in re.findall(r'"""(.*?)"""', source, re.S):
        assert ">>>" not in docstring.partition("Examples\n")[0], docstring


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
    code = "import sys, llmd; print([m for m in ('yaml', 'zmq', 'torch', 'asyncio', 'llmd.cuda') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_version():
    assert llmd.__version__.count(".") == 2


def test_the_extra_goes_with_the_version():
    project = pathlib.Path(__file__).resolve().parents[2] / "pyproject.toml"
    wanted = re.search(r'"llmd-cuda~=(\d+\.\d+)\.\d+"', project.read_text())
    assert wanted and llmd.__version__.startswith(wanted[1] + ".")
