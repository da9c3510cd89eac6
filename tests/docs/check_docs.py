#!/usr/bin/env python3
"""Checks the documentation: every code block does what it says, and every relative link leads somewhere.

Usage: check_docs.py ROOT --cxx COMPILER
       check_docs.py ROOT --run-python FILE

A fenced block in a language of CHECKED must follow a line with one of these comments:
  <!-- test: compile -->       C++: a translation unit, or statements (its #include lines may come first);
                               `test: compile after PATH` puts a file first, which declares what a host would
  <!-- test: run -->           shell: runs in ROOT and exits with 0
  <!-- test: python -->        Python: the blocks of one file are one program, run in order in ROOT. Needs the package, so it runs in
                               the tests below tests/python, with --run-python; without that its syntax alone is checked
  <!-- prints -->              any language: what the Python block before it prints
  <!-- same as: PATH -->       is the file PATH, character for character
  <!-- part of: PATH -->       is a run of lines of the file PATH
  <!-- test: none REASON -->   is not checked, for the reason given
"""

import argparse
import contextlib
import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import traceback

CHECKED = {"cpp", "c++", "cmake", "make", "python", "sh", "bash", "shell", "console"}
FOLDERS = ("docs", "examples", "bench", "tests", "scripts", "python", "cuda")
FENCE = re.compile(r"^(```+|~~~+)\s*(\S*)")
MARK = re.compile(
    r"^<!--\s*(?P<kind>test: compile|test: run|test: python|test: none|same as:|part of:|prints)\s*(?P<argument>.*?)\s*-->$")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


@dataclasses.dataclass
class Block:
    line: int
    language: str
    mark: str  # the line before the fence, blank lines skipped
    text: str


def read_markdown(text):
    """Returns the fenced blocks and the prose lines, as (blocks, [(line number, prose)])."""
    blocks, prose = [], []
    fence, before, start, language, body = None, "", 0, "", []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if fence:
            if line.strip() == fence:
                blocks.append(Block(start, language, before, "".join(body)))
                fence, before = None, ""
            else:
                body.append(line)
            continue
        opening = FENCE.match(line)
        if opening:
            fence, language = opening.group(1), opening.group(2).lower()
            start, body = number, []
        else:
            prose.append((number, line))
            before = line.strip() or before
    if fence:
        raise ValueError(f"{start}: the code block is not closed")
    return blocks, prose


def as_translation_unit(text):
    if re.search(r"^(?!if|for|while|switch|else)\w[^;=]*\) {$|^(namespace|class|struct|int main)\b", text, re.M):
        return text
    lines = text.splitlines()
    includes = [line for line in lines if line.startswith("#include")]
    body = [line for line in lines if not line.startswith("#include")]
    return "\n".join([*includes, "[[maybe_unused]] static auto Snippet() {", *body, "}", ""])


def run(command, cwd, text):
    done = subprocess.run(command, cwd=cwd, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    return None if done.returncode == 0 else f"`{' '.join(command)}` exits with {done.returncode}:\n{done.stdout}"


def kind_of(block):
    mark = MARK.match(block.mark)
    return mark["kind"] if mark else None


def python_program(path):
    """The blocks of a file that are one Python program, each with the block of what it prints, or None."""
    program = []
    for block in read_markdown(path.read_text())[0]:
        if kind_of(block) == "test: python":
            program.append([block, None])
        elif kind_of(block) == "prints":
            program[-1][1] = block
    return program


def run_python(path):
    """Runs the Python blocks of a file in this process. Returns the first thing that is wrong, or None."""
    names = {"__name__": "__main__"}
    for block, prints in python_program(path):
        code = compile("\n" * block.line + block.text, str(path), "exec")
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(code, names)
        except Exception:
            return f"{path}:{block.line}: the block fails:\n{traceback.format_exc()}"
        if prints and printed.getvalue() != prints.text:
            return f"{path}:{prints.line}: the block before prints\n{printed.getvalue()}"
    return None


def check_block(block, root, cxx):
    """Returns what is wrong with the block, or None."""
    mark = MARK.match(block.mark)
    if not mark or mark["kind"] == "prints":
        return f"a {block.language} block without a comment that says how it is tested (see tests/docs/check_docs.py)"
    kind, argument = mark["kind"], mark["argument"]
    if kind == "test: none":
        return None if argument else "`test: none` gives no reason"
    if kind in ("same as:", "part of:"):
        path = root / argument
        if not path.is_file():
            return f"no file {argument}"
        text = path.read_text()
        same = text == block.text if kind == "same as:" else "\n" + block.text in "\n" + text
        return None if same and block.text else f"the block differs from {argument}"
    if kind == "test: python":
        try:
            compile(block.text, "block", "exec")
        except SyntaxError as error:
            return f"no Python: {error}"
        return None
    if kind == "test: run":
        return run(["bash", "-euo", "pipefail", "-s"], root, block.text)
    command = [cxx, "-std=c++20", "-fsyntax-only", f"-I{root / 'include'}"]
    if argument:
        command += ["-include", argument.removeprefix("after ")]
    return run([*command, "-x", "c++", "-"], root, as_translation_unit(block.text))


def check_file(path, root, cxx):
    """Returns (number of blocks checked, list of errors)."""
    try:
        blocks, prose = read_markdown(path.read_text())
    except ValueError as error:
        return 0, [f"{path}:{error}"]
    errors, count, program = [], 0, False
    for block in blocks:
        if kind_of(block) == "prints" and not program:
            errors.append(f"{path}:{block.line}: no Python block before it prints this")
        program = kind_of(block) == "test: python"
        if block.language in CHECKED:
            count += 1
            wrong = check_block(block, root, cxx)
            if wrong:
                errors.append(f"{path}:{block.line}: {wrong}")
    for number, line in prose:
        for target in LINK.findall(line):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                errors.append(f"{path}:{number}: the link to {target} leads nowhere")
    return count, errors


def markdown_files(root):
    files = sorted(root.glob("*.md"))
    for folder in FOLDERS:
        files += sorted((root / folder).rglob("*.md"))
    return files


def check_tree(root, cxx):
    files = markdown_files(root)
    total, errors = 0, []
    for path in files:
        count, wrong = check_file(path, root, cxx)
        total += count
        errors += wrong
    return len(files), total, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("--cxx", default="c++")
    parser.add_argument("--run-python", metavar="FILE", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.run_python:
        os.chdir(arguments.root)
        wrong = run_python(arguments.run_python)
        if wrong:
            print(wrong, file=sys.stderr)
        return 1 if wrong else 0
    files, blocks, errors = check_tree(arguments.root.resolve(), arguments.cxx)
    for error in errors:
        print(error, file=sys.stderr)
    print(f"{blocks} code blocks in {files} files, {len(errors)} errors")
    return 1 if errors or blocks == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
