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

__all__ = ["AsyncClient", "AsyncGeneration", "Client", "GenerateOptions", "Generation", "Piece", "Result"]


def __getattr__(name: str) -> Any:
    if name in ("AsyncClient", "AsyncGeneration"):
        from paceline.client import aio

        return getattr(aio, name)
    if name in ("Client", "Generation"):
        from paceline.client import sync

        return getattr(sync, name)
    if name in ("Piece", "Result"):
        from paceline.client import results

        return getattr(results, name)
    if name == "GenerateOptions":
        from paceline.client.options import GenerateOptions

        return GenerateOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
