"""Modules that a node process never runs, left out: a placeholder stands in sys.modules for each.

Libraries import far more than serving a span needs (compilers, symbolic algebra, hub clients, QUIC, mDNS): some 200 MB.
Rows say what is left out and why. Whatever is called after all is imported then, and everything else with it: a wrong
row costs memory, not a node. What cannot be mended so (a class derived from a placeholder, walking one) raises
PlaceholderUsed or shows as an ordinary error while the node loads and measures its span, and `paceline node` starts
over with everything.

For daemons only: nothing is put back. Knows the import system, and no library. Rows: engine.lean_imports,
net.lean_imports.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

Row = tuple[str, str, Mapping[str, Any]]
"""A module with all that is below it, why a node never runs it, and the few attributes that are wanted after all."""


class PlaceholderUsed(RuntimeError):
    """Something that was left out of this process is needed after all."""


SYMPTOMS = (AttributeError, ImportError, NameError, RuntimeError, TypeError)
"""How a missing piece may show: PlaceholderUsed, or what a library makes of it."""


class Absent:
    """Any attribute of a left-out module: may be named, annotated with, tested against and derived from."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.__name__ = self.__qualname__ = path.rpartition(".")[2]
        self.__module__ = path.rpartition(".")[0]

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._path}.{name}")

    def __getitem__(self, key: object) -> Absent:
        return self

    def __or__(self, other: object) -> Any:
        return Any

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return ()

    def __instancecheck__(self, instance: object) -> bool:
        return False

    def __subclasscheck__(self, subclass: type) -> bool:
        return False

    def __call__(self, *args: Any, **named: Any) -> Any:
        return fetch(self._path)(*args, **named)

    def __iter__(self) -> NoReturn:
        self._refuse()

    def __contains__(self, item: object) -> NoReturn:
        self._refuse()

    def __len__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise PlaceholderUsed(f"{self._path} was left out of this process")

    def __bool__(self) -> bool:
        return True


class _Placeholder(ModuleType):
    """A left-out module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = Absent(f"{self.__name__}.{name}")
        setattr(self, name, found)
        return found


class _Finder(MetaPathFinder, Loader):
    """Answers imports of left-out modules and of everything below them."""

    def __init__(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        self._wanted = wanted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parts = fullname.split(".")
        if any(".".join(parts[:length]) in self._wanted for length in range(1, len(parts) + 1)):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._wanted.get(module.__name__, {}))


def install(rows: Iterable[Row], hidden: Iterable[str] = ()) -> None:
    """From here on, leave out the modules of `rows`, and have the packages `hidden` look like not installed.

    What is imported already stays.
    """
    sys.meta_path.insert(0, _Finder({name: wanted for name, _, wanted in rows if name not in sys.modules}))
    for name in hidden:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def fetch(path: str) -> Any:
    """Import everything that was left out after all, and give what the dotted `path` names."""
    warnings.warn(f"{path} is needed after all: importing what was left out", RuntimeWarning, stacklevel=3)
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Placeholder)]:
        del sys.modules[name]
    parts = path.split(".")
    found: Any = import_module(parts[0])
    for length, part in enumerate(parts[1:], 2):
        if not hasattr(found, part) or isinstance(getattr(found, part), _Placeholder | Absent):
            import_module(".".join(parts[:length]))
        found = getattr(found, part)
    return found


def suspected(error: Exception) -> bool:
    """True where this process leaves something out, and `error`, or each part of a group, may come of it."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return False
    if isinstance(error, ExceptionGroup):
        return error.split(SYMPTOMS)[1] is None
    return isinstance(error, SYMPTOMS)
