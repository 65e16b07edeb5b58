"""What `response_format` and `tool_choice` ask of an answer, as a grammar for the tail; and how a model whose template
knows no tools is told of them. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from paceline.client.options import json_schema
from paceline.gateway.errors import BadField
from paceline.wire.limits import MAX_GRAMMAR

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
HOW_TO_CALL = (
    "You can call these functions:\n{tools}\n"
    'To call one, answer with one JSON object and nothing else: {{"name": "<function>", "arguments": {{…}}}}'
)


def of_schema(kind: str, schema: Any, param: str) -> str:
    """Grammar of a format: `kind` is text, json_object or json_schema; `schema` is the last one's. Raises BadField."""
    if kind == "text":
        return ""
    if kind == "json_schema" and not isinstance(schema, dict):
        raise BadField(f"{param} of type json_schema needs a schema", param=param)
    return _bounded(json_schema(schema if kind == "json_schema" else ANY_OBJECT), param)


def of_tools(tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any] | None) -> str:
    """Grammar of one call, where `choice` insists on one: "required", or a function by name. Raises BadField."""
    if choice in (None, "none", "auto"):
        return ""
    functions = [tool["function"] for tool in tools]
    if choice != "required":
        name = _named(choice)
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise BadField(f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
    if not functions:
        raise BadField("tool_choice asks for a call, but there are no tools", param="tool_choice")
    return _bounded(json_schema({"anyOf": [_call(function) for function in functions]}), "tools")


def _named(choice: str | Mapping[str, Any] | None) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise BadField("tool_choice is none of: none, auto, required, one function", param="tool_choice")
    return name


def _call(function: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": function.get("parameters") or ANY_OBJECT},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _bounded(grammar: str, param: str) -> str:
    if len(grammar) > MAX_GRAMMAR:
        raise BadField(f"the schema is over {MAX_GRAMMAR} characters", param=param)
    return grammar


def told_in_words(
    conversation: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`conversation` for a template that knows no tools: a system message names them, and calls are text."""
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    words = HOW_TO_CALL.format(tools=listed)
    spoken = [_spoken(message) for message in conversation]
    if spoken and spoken[0]["role"] == "system":
        return [{"role": "system", "content": f"{spoken[0]['content']}\n\n{words}"}, *spoken[1:]]
    return [{"role": "system", "content": words}, *spoken]


def _spoken(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return {"role": message["role"], "content": "\n".join([*filter(None, [message["content"]]), *calls])}
