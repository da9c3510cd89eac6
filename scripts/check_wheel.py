#!/usr/bin/env python3
"""Checks that a wheel of ours can be given to others.

Usage: check_wheel.py WHEEL

It has a manylinux tag, no more than 25 MB, every library that it needs beyond those that each Linux has, and no symbol that
another library in the process could take for its own, or be taken for.
"""

import io
import pathlib
import re
import sys
import zipfile

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

LIMIT_BYTES = 25_000_000
SYSTEM = re.compile(r"(libc|libm|libz|libpthread|libdl|librt|libstdc\+\+|libgcc_s|ld-linux-[\w-]+)\.so\.\d+")


def binaries(archive):
    return [(name, ELFFile(io.BytesIO(archive.read(name)))) for name in archive.namelist() if re.search(r"\.so(\.|$)", name)]


def tags(elf, tag):
    return [getattr(each, tag.removeprefix("DT_").lower(), None)
            for section in elf.iter_sections() if isinstance(section, DynamicSection) for each in section.iter_tags(tag)]


def visible(elf):
    return {symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
            if symbol.name and symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL"}


def problems(wheel):
    if not re.search(r"-cp3\d+-cp3\d+-manylinux_2_\d+_\w+\.whl$", wheel.name):
        yield "its name has no manylinux tag"
    if wheel.stat().st_size > LIMIT_BYTES:
        yield f"{wheel.stat().st_size:,} bytes are more than {LIMIT_BYTES:,}"
    with zipfile.ZipFile(wheel) as archive:
        files = binaries(archive)
        bundled = {pathlib.PurePath(name).name for name, _ in files}
        if sum(name.startswith("llmd/_core.") for name, _ in files) != 1:
            yield "it has no extension module"
        for name, elf in files:
            needed = tags(elf, "DT_NEEDED")
            for each in needed:
                if each not in bundled and not SYSTEM.fullmatch(each):
                    yield f"{name} needs {each}, which is not inside"
            if bundled & set(needed) and not any("$ORIGIN" in (path or "") for path in
                                                 [*tags(elf, "DT_RPATH"), *tags(elf, "DT_RUNPATH")]):
                yield f"{name} does not look for its libraries beside itself"
            names = visible(elf)
            if name.startswith("llmd/_core."):
                others = names - {"PyInit__core"}
            else:
                others = {each for each in names if not each.endswith(".llmd")} - {"_init", "_fini"}
            if others:
                yield f"{name} shows {len(others)} symbols under common names: {', '.join(sorted(others)[:3])}"


def main():
    wheel = pathlib.Path(sys.argv[1])
    found = list(problems(wheel))
    for problem in found:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
