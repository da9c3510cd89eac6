"""The Python code in the documents does what they say; tests/docs/check_docs.py explains how it is marked."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "docs"))
import check_docs  # noqa: E402

DOCUMENTS = [path for path in check_docs.markdown_files(ROOT) if check_docs.python_program(path)]


def test_the_documents_are_found():
    assert {"README.md", "docs/python.md"} <= {str(path.relative_to(ROOT)) for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_code(path):
    pytest.importorskip("zmq")
    command = [sys.executable, "-B", ROOT / "tests" / "docs" / "check_docs.py", ROOT, "--run-python", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
