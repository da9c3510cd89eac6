#!/usr/bin/env python3
"""Checks the documentation: every code block does what it says, and every relative link leads somewhere.

Usage: check_docs.py ROOT --cxx COMPILER

A fenced block in a language of CHECKED must follow a line with one of these comments:
  <!-- test: compile -->       C++: a translation unit, or statements (its #include lines may come first);
                               `test: compile after PATH` puts a file first, which declares what a host would
  <!-- test: run -->           shell: runs in ROOT and exits with 0
  <!-- same as: PATH -->       is the file PATH, character for character
  <!-- part of: PATH -->       is a run of lines of the file PATH
  <!-- test: none REASON -->   is not checked, for the reason given
"""

import argparse
import dataclasses
import pathlib
import re
import subprocess
import sys

CHECKED = {"cpp", "c++", "cmake", "make", "python", "sh", "bash", "shell", "console"}
FOLDERS = ("docs", "examples", "bench", "tests", "scripts", "python", "cuda")
FENCE = re.compile(r"^(```+|~~~+)\s*(\S*)")
MARK = re.compile(r"^<!--\s*(?P<kind>test: compile|test: run|test: none|same as:|part of:)\s*(?P<argument>.*?)\s*-->$")
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


def check_block(block, root, cxx):
    """Returns what is wrong with the block, or None."""
    mark = MARK.match(block.mark)
    if not mark:
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
    errors, count = [], 0
    for block in blocks:
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


def check_tree(root, cxx):
    files = sorted(root.glob("*.md"))
    for folder in FOLDERS:
        files += sorted((root / folder).rglob("*.md"))
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
    arguments = parser.parse_args()
    files, blocks, errors = check_tree(arguments.root.resolve(), arguments.cxx)
    for error in errors:
        print(error, file=sys.stderr)
    print(f"{blocks} code blocks in {files} files, {len(errors)} errors")
    return 1 if errors or blocks == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
