"""The examples in Python, run as a user runs them. The router has a test of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-B", *map(str, arguments)], capture_output=True, text=True, timeout=240, **options
    )


def test_offline_scorers():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "offline_scorers")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 passed" in done.stdout


def hit_rates(*arguments):
    pytest.importorskip("matplotlib")
    return run(EXAMPLES / "trace_hit_rates.py", *arguments, env=os.environ | {"MPLBACKEND": "Agg"})


def test_trace_hit_rates(tmp_path):
    plot = tmp_path / "plot.png"
    done = hit_rates("--requests", 400, "--out", plot)
    assert done.returncode == 0, done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000
    rates = {line[:24].strip(): float(line[24:].split("%")[0]) for line in done.stdout.splitlines() if "%" in line}
    assert list(rates) == [
        "infinite cache", "round robin", "fewest active requests", "approximate prefix", "exact prefix"
    ]  # fmt: skip
    assert max(rates.values()) == rates["infinite cache"]
    assert min(rates["approximate prefix"], rates["exact prefix"]) > 1.5 * rates["round robin"]


def test_trace_hit_rates_with_little_memory(tmp_path):
    done = hit_rates("--requests", 100, "--endpoints", 2, "--blocks", 8000, "--out", tmp_path / "plot.svg")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--requests", "0"], "argument --requests: 0 is less than 1"),
        (["--out", "/nowhere/plot.png"], "--out: no folder /nowhere"),
        (["--trace", "README.md"], "has no requests in Mooncake's schema"),
        (["--trace", os.devnull], "it is empty"),
        (["--requests", "1", "--blocks", "3"], "--blocks: request 0 alone has more tokens than an engine"),
    ],
)
def test_trace_hit_rates_says_what_is_wrong(arguments, why):
    done = hit_rates(*arguments)
    assert done.returncode != 0 and why in done.stderr and "Traceback" not in done.stderr
