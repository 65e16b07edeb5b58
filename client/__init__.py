"""The Python library: `Client` for blocking code, `AsyncClient` for trio and asyncio. No torch.

The names are loaded when first used, so that importing a part of the client does not import the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.client.aio import AsyncClient, AsyncGeneration
    from paceline.client.options import GenerateOptions
    from paceline.client.results import Piece, Result
    from paceline.client.sync import Client, Generation

_HOME = {
    "AsyncClient": "aio",
    "AsyncGeneration": "aio",
    "Client": "sync",
    "GenerateOptions": "options",
    "Generation": "sync",
    "Piece": "results",
    "Result": "results",
}

__all__ = ["AsyncClient", "AsyncGeneration", "Client", "GenerateOptions", "Generation", "Piece", "Result"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"paceline.client.{_HOME[name]}"), name)
