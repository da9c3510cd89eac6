"""Names in single backticks become links, as in the docstrings of NumPy, where they name something public of the package."""

import re
from collections.abc import Callable
from typing import Any

import griffe

NAME = re.compile(r"(?<![`\[])`([A-Za-z_][\w.]*)`(?![`\]])")
PACKAGE = "llmd"


class Links(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Knows which public module shows what, then rewrites every docstring."""
        self._public: dict[str, str] = {}  # path of the definition -> path under which it is shown
        self._members: dict[str, set[str]] = {}  # shown module or class -> names in it
        for module in self._modules(pkg):
            if any(part.startswith("_") for part in module.path.split(".")):
                continue
            self._members[module.path] = {str(name).strip("'\"") for name in module.exports or []}
            if "." in module.path:  # each has a page
                self._members[module.path.rpartition(".")[0]].add(module.name)
            for name in self._members[module.path]:
                member = module.members.get(name)
                if member is not None:
                    defined = member.target_path if isinstance(member, griffe.Alias) else member.path
                    self._public[defined] = f"{module.path}.{name}"
        self._visit(pkg, pkg.path, self._remember)
        self._visit(pkg, pkg.path, self._rewrite)

    def _modules(self, module: griffe.Module) -> list[griffe.Module]:
        below = [member for member in module.members.values() if isinstance(member, griffe.Module)]
        return [module, *(inner for m in below for inner in self._modules(m))]

    def _visit(self, item: griffe.Object, shown: str, action: Callable[[griffe.Object, str], None]) -> None:
        action(item, shown)
        for name, member in item.members.items():
            if not isinstance(member, griffe.Alias):
                self._visit(member, self._public.get(member.path, f"{shown}.{name}"), action)

    def _remember(self, item: griffe.Object, shown: str) -> None:
        if item.is_class:
            public = {name for name in item.members if not name.startswith("_")}
            self._members[shown] = {name for name in public if item.members[name].has_docstring}

    def _rewrite(self, item: griffe.Object, shown: str) -> None:
        if item.docstring:
            item.docstring.value = NAME.sub(lambda match: self._link(match, shown), item.docstring.value)

    def _link(self, match: re.Match[str], shown: str) -> str:
        name = match[1]
        if name.startswith(f"{PACKAGE}."):
            places = [""]
        else:  # from the inside to the outside
            parts = shown.split(".")
            places = [".".join(parts[:end]) + "." for end in range(len(parts), 0, -1)]
        for place in places:
            inside, _, last = (place + name).rpartition(".")
            if place + name != shown and last in self._members.get(inside, ()):
                return f"[`{name}`][{place + name}]"
        return match[0]
