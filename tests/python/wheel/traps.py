"""Makes a library with a function that crashes for each name that the third-party libraries inside a wheel had at first.

Usage: traps.py WHEEL COMPILER LIBRARY

With LIBRARY loaded first, and visible to all, only a wheel that looks nothing up outside itself goes on working.
"""

import pathlib
import re
import subprocess
import sys
import zipfile


def main() -> None:
    wheel, compiler, library = sys.argv[1:]
    with zipfile.ZipFile(wheel) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist() if name.startswith("llmd.libs/"))
    names = {name.decode() for name in re.findall(rb"\0(\w+)\.llmd(?=\0)", content)}
    names = {name for name in names if re.search("absl|google|simdjson|YAML", name) and not re.match("_ZNK?S|_ZS", name)}
    assert len(names) > 1000, len(names)
    source = pathlib.Path(library).with_suffix(".s")
    source.write_text(".text\n" + "".join(f".globl {n}\n.type {n},@function\n{n}:\n" for n in sorted(names)) + "ud2\n")
    subprocess.run([compiler, "-shared", "-nostdlib", "-o", library, str(source)], check=True)
    print(f"{len(names)} traps")


if __name__ == "__main__":
    main()
