#!/usr/bin/env python3
"""Gives the libraries inside a wheel names that no other library in the process has.

Usage: private_symbols.py WHEEL FOLDER

Each symbol that a library in WHEEL defines is renamed NAME.llmd, there and where it is used; the new wheel is written to
FOLDER. Without that, another copy of Abseil or Protobuf in the process could take the place of ours: one that was loaded
with RTLD_GLOBAL, and any at all for STB_GNU_UNIQUE symbols, which the loader shares through the whole process.
"""

import pathlib
import subprocess
import sys
import tempfile

from elftools.elf.elffile import ELFFile

SUFFIX = ".llmd"
NOT_LOOKED_UP = {"_init", "_fini"}


def defined(path):
    """The names of the symbols that a shared library defines for others."""
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynsym")
        return {symbol.name for symbol in section.iter_symbols()
                if symbol.name and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"}


def rename(folder):
    libraries = sorted(folder.glob("llmd.libs/*.so*"))
    names = set().union(*map(defined, libraries)) - NOT_LOOKED_UP
    names = {name for name in names if not name.endswith(SUFFIX)}
    with tempfile.NamedTemporaryFile("w", suffix=".map") as renames:
        renames.writelines(f"{name} {name}{SUFFIX}\n" for name in sorted(names))
        renames.flush()
        for path in [*folder.glob("llmd/*.so"), *libraries]:
            subprocess.run(["patchelf", "--rename-dynamic-symbols", renames.name, path], check=True)


def main():
    wheel, output = map(pathlib.Path, sys.argv[1:])
    tool = [sys.executable, "-m", "wheel"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([*tool, "unpack", "--dest", folder, wheel], check=True, stdout=subprocess.DEVNULL)
        (content,) = folder.iterdir()
        rename(content)
        subprocess.run([*tool, "pack", "--dest-dir", output, content], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
