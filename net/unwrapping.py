"""Errors that leave a ``run()`` block as they were raised in it.

Every nursery on the way (ours and libp2p's) wraps an error once more; a caller who writes ``except PeerUnavailable``
around a block means the error, not its wrapping. Knows nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_errors() -> Iterator[None]:
    """Unwrap groups of one error. Groups of several stay."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        # The cause chain would only repeat the wrapping.
        raise error from None
