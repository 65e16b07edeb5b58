"""What can go wrong on the disk. Never crosses the wire."""

from __future__ import annotations

from typing import ClassVar

from paceline.wire.errors import PacelineError


class StoreError(PacelineError):
    """The model store cannot be read or written on this machine."""

    code: ClassVar[str] = "store_error"


class DiskFull(StoreError):
    """No room left for a block."""

    code: ClassVar[str] = "disk_full"


class QuotaReached(StoreError):
    """What is to come does not fit into what the owner of this machine gives to models."""

    code: ClassVar[str] = "quota_reached"


class InUse(StoreError):
    """A revision cannot go: a process serves it, or its owner has pinned it."""

    code: ClassVar[str] = "in_use"
