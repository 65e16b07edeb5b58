"""A copy of a world that shares what cannot change: `copy.deepcopy` cannot copy the journals' views.

Knows that messages, clocks, entries and other frozen records are values. Aliases stay aliases.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from types import FunctionType, MethodType
from typing import Any, TypeVar

T = TypeVar("T")

_VALUES = (int, float, str, bytes, bool, type(None), memoryview, tuple, frozenset, Enum, FunctionType, type)
_is_value: dict[type, bool] = {}


def clone(thing: T) -> T:
    """A copy; nothing that either of the two does is seen by the other."""
    return _copy(thing, {})  # type: ignore[no-any-return]


def _value(kind: type) -> bool:
    known = _is_value.get(kind)
    if known is None:
        parameters = getattr(kind, "__dataclass_params__", None)
        frozen = hasattr(kind, "__struct_fields__") or (parameters is not None and parameters.frozen)
        known = _is_value[kind] = frozen or issubclass(kind, _VALUES)
    return known


def _copy(thing: Any, memo: dict[int, Any]) -> Any:
    kind = type(thing)
    if _value(kind):
        return thing
    found = memo.get(id(thing))
    if found is not None:
        return found
    if issubclass(kind, dict):
        named = memo[id(thing)] = kind()
        for key, value in thing.items():
            named[key] = _copy(value, memo)
        return named
    if kind in (list, deque, set):
        items = [_copy(item, memo) for item in thing]
        several = memo[id(thing)] = deque(items, thing.maxlen) if kind is deque else kind(items)
        return several
    if kind is MethodType:
        return getattr(_copy(thing.__self__, memo), thing.__name__)
    made = memo[id(thing)] = object.__new__(kind)
    names = thing.__dict__ if hasattr(thing, "__dict__") else {name: getattr(thing, name) for name in kind.__slots__}
    for name, value in names.items():
        object.__setattr__(made, name, _copy(value, memo))
    return made
