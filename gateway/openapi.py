"""The published OpenAPI schema, made from the same table of routes and the same records that serve the requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from paceline.gateway.replies import ErrorBody


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `body`: the request's record. `reply`: the reply's; None where it is not JSON, then
    `media` says what. `chunks`: what the data of a stream's events may be. `guarded`: asks for a key where keys are
    set.
    """

    path: str
    method: str
    summary: str
    reply: type[Struct] | None = None
    body: type[Struct] | None = None
    chunks: tuple[type[Struct], ...] = ()
    media: str = "application/json"
    parameters: tuple[dict[str, Any], ...] = ()
    errors: tuple[int, ...] = ()
    guarded: bool = True


def document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    kinds = {kind for o in operations for kind in (o.reply, o.body, *o.chunks) if kind is not None} | {ErrorBody}
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    refs, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(ordered, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Paceline gateway",
            "version": version,
            "description": "A swarm's models behind the OpenAI API. Streams are server-sent events; the event id is "
            "the index of the token, and `GET /paceline/streams/{id}` with `Last-Event-ID` resumes a cut-off one.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(operation: Operation, schemas: dict[type[Struct], Any]) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media: {"schema": schemas[operation.reply] if operation.reply else {}}}
    if operation.chunks:
        kinds: tuple[type[Struct], ...] = (*operation.chunks, ErrorBody)
        data = [schemas[kind] for kind in kinds]
        content["text/event-stream"] = {"schema": {}, "x-event-data": {"anyOf": data}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    for status in sorted({*operation.errors, *((401,) if operation.guarded else ())}):
        responses[str(status)] = {
            "description": "A typed error",
            "content": {"application/json": {"schema": schemas[ErrorBody]}},
        }
    made: dict[str, Any] = {"summary": operation.summary, "responses": responses}
    if operation.parameters:
        made["parameters"] = list(operation.parameters)
    if operation.body is not None:
        body = {"required": True, "content": {"application/json": {"schema": schemas[operation.body]}}}
        made["requestBody"] = body
    if operation.guarded:
        made["security"] = [{"key": []}, {}]
    return made
