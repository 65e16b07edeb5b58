"""What every request meets first: who may ask, how much, and what a body may be."""

from __future__ import annotations

from hashlib import sha256
from typing import TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request

from paceline.gateway.config import ApiKey, GatewayConfig
from paceline.gateway.errors import BadField, BadKey, BodyTooLarge, WrongType
from paceline.gateway.quota import Meter
from paceline.wire.errors import Cancelled

Record = TypeVar("Record")
ANYBODY = ApiKey(name="anybody", sha256="0" * 64)


class Gate:
    """One gateway's keys and what they have used."""

    def __init__(self, config: GatewayConfig) -> None:
        self._meters = {key.digest: Meter(key) for key in config.keys}
        self._open = None if config.keys else Meter(ANYBODY)
        self._most = config.max_body_bytes

    def meter(self, request: Request) -> Meter:
        """The caller's. Raises BadKey. Keys are compared by hash, so that no timing tells their characters."""
        if self._open is not None:
            return self._open
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        meter = self._meters.get(sha256(key.strip().encode()).hexdigest()) if scheme.lower() == "bearer" else None
        if meter is None:
            raise BadKey("no API key, or an unknown one", cure="send Authorization: Bearer <key>")
        return meter

    def admit(self, request: Request) -> Meter:
        """As `meter`, and counts the request in; pair with `Meter.done`. Raises RateLimited."""
        meter = self.meter(request)
        meter.admit(trio.current_time())
        return meter

    async def body(self, request: Request, kind: type[Record]) -> Record:
        """The JSON body as a record. Raises BodyTooLarge, WrongType, BadField.

        The content type is insisted on: a page of another origin cannot send it without asking first.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise WrongType("the body must be JSON", cure="send Content-Type: application/json")
        data = bytearray()
        try:
            async for part in request.stream():
                data += part
                if len(data) > self._most:
                    raise BodyTooLarge(f"the body is over {self._most} bytes")
        except ClientDisconnect as error:
            raise Cancelled("the client went away") from error
        return decode(bytes(data), kind)


def decode(data: bytes, kind: type[Record]) -> Record:
    """JSON → record. Raises BadField, which names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        param = where.rstrip("`") or (what.split("`")[1] if what.count("`") >= 2 else "")
        raise BadField(str(error), param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadField(f"not JSON: {error}") from error
