"""One message in a line, for a replay that is read by a person."""

from __future__ import annotations

from typing import Any


def show(message: Any) -> str:
    """One message in a line."""
    name = type(message).__name__
    if not hasattr(message, "__struct_fields__"):
        return str(message)
    fields = {field: getattr(message, field) for field in message.__struct_fields__}
    wanted = ("epoch", "layer", "index", "branch", "start", "n", "ids", "lengths", "known", "have", "token", "finish")
    parts = [f"{key}={fields[key]}" for key in (*wanted, "length", "code", "accused", "shadow") if fields.get(key)]
    if "route" in fields:
        parts.append("route=" + ",".join(f"{s.at.peer}{[b.peer for b in s.standbys] or ''}" for s in fields["route"]))
    return f"{name}({', '.join(parts)})".replace(
        f"epoch={fields['epoch']}", f"epoch={fields['epoch'] >> 32}.{fields['epoch'] & 255}"
    )
