"""Tests of check_docs.py: what it accepts and, above all, what it refuses."""

import pathlib
import tempfile
import unittest

import check_docs


class CheckDocsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def errors(self, text):
        (self.root / "README.md").write_text(text)
        return check_docs.check_tree(self.root, "c++")[2]

    def assert_refused(self, text, why):
        errors = self.errors(text)
        self.assertEqual(len(errors), 1, errors)
        self.assertIn(why, errors[0])

    def test_unmarked_block(self):
        self.assert_refused("text\n\n```cpp\nint x;\n```\n", "README.md:3: a cpp block without a comment")
        self.assertEqual(self.errors("```text\nanything\n```\n"), [])

    def test_mark_counts_for_one_block_only(self):
        self.assert_refused("<!-- test: run -->\n```sh\ntrue\n```\n\n```sh\ntrue\n```\n", "README.md:6")

    def test_compile(self):
        good = "#include <vector>\nstd::vector<int> v = {1};\nv.clear();\n"
        self.assertEqual(self.errors(f"<!-- test: compile -->\n\n```cpp\n{good}```\n"), [])
        self.assertEqual(self.errors("<!-- test: compile -->\n```cpp\nint main() {}\n```\n"), [])
        self.assertEqual(self.errors("<!-- test: compile -->\n```cpp\nvoid F(int i) {\n  ++i;\n}\n```\n"), [])
        self.assert_refused("<!-- test: compile -->\n```cpp\nint x = \"no\";\n```\n", "exits with 1")

    def test_compile_after_a_file(self):
        (self.root / "host.h").write_text("inline int Known();\n")
        for name, errors in (("Known", 0), ("Unknown", 1)):
            text = f"<!-- test: compile after host.h -->\n```cpp\nint i = {name}();\nreturn;\n```\n"
            self.assertEqual(len(self.errors(text)), errors)

    def test_run(self):
        self.assertEqual(self.errors("<!-- test: run -->\n```sh\ntest -f README.md\n```\n"), [])
        self.assert_refused("<!-- test: run -->\n```sh\nfalse\ntrue\n```\n", "exits with 1")

    def test_python_is_compiled(self):
        good = "<!-- test: python -->\n```python\nimport nowhere\n```\n"
        self.assertEqual(self.errors(good + "<!-- prints -->\n```text\n1\n```\n"), [])
        self.assert_refused("<!-- test: python -->\n```python\nx = = 1\n```\n", "no Python")
        self.assert_refused("<!-- prints -->\n```text\n1\n```\n", "no Python block before it")

    def run_python(self, text):
        path = self.root / "README.md"
        path.write_text(text)
        return check_docs.run_python(path)

    def test_python_runs(self):
        first = "<!-- test: python -->\n```python\nx = 1\n```\n"
        second = "text\n\n<!-- test: python -->\n\n```python\nprint(x)\n```\n"
        prints = "<!-- prints -->\n```text\n1\n```\n"
        self.assertIsNone(self.run_python(first + second + prints))
        self.assertIn("README.md:8: the block fails", self.run_python("no code\n\n\n" + second))
        self.assertIn("the block before prints\n1\n", self.run_python(first + second + prints.replace("1", "2")))

    def test_same_as(self):
        (self.root / "a.cc").write_text("int a;\n")
        self.assertEqual(self.errors("<!-- same as: a.cc -->\n```cpp\nint a;\n```\n"), [])
        self.assert_refused("<!-- same as: a.cc -->\n```cpp\nint b;\n```\n", "differs from a.cc")
        self.assert_refused("<!-- same as: b.cc -->\n```cpp\nint a;\n```\n", "no file b.cc")

    def test_part_of(self):
        (self.root / "a.cc").write_text("int a;\nint b;\nint c;\n")
        self.assertEqual(self.errors("<!-- part of: a.cc -->\n```cpp\nint b;\nint c;\n```\n"), [])
        self.assert_refused("<!-- part of: a.cc -->\n```cpp\nb;\n```\n", "differs from a.cc")

    def test_none_needs_a_reason(self):
        self.assertEqual(self.errors("<!-- test: none needs a cluster -->\n```sh\nfalse\n```\n"), [])
        self.assert_refused("<!-- test: none -->\n```sh\nfalse\n```\n", "no reason")

    def test_unclosed_block(self):
        self.assert_refused("<!-- test: run -->\n```sh\ntrue\n", "README.md:2: the code block is not closed")

    def test_links(self):
        self.assertEqual(self.errors("[a](README.md#top) [b](#here) [c](mailto:someone)\n"), [])
        self.assert_refused("[a](docs/nowhere.md)\n", "docs/nowhere.md leads nowhere")


if __name__ == "__main__":
    unittest.main()
