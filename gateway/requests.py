"""What the API is asked, as records, and how a request becomes options of the client library.

Fields that change nothing about the answer's text are accepted and ignored (listed as such). Fields that would change
it and are not supported are refused, and so are unknown ones: an answer that silently ignored them would be false.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from paceline.client.options import GenerateOptions, Objective
from paceline.gateway.errors import BadField
from paceline.gateway.grammars import of_schema, of_tools
from paceline.gateway.line import PRIORITY, Tier
from paceline.wire.limits import MAX_CONTEXT, MAX_TOP_LOGPROBS, MAX_VOCAB

Tokens = Annotated[int, Meta(ge=1, le=MAX_CONTEXT)]
Temperature = Annotated[float, Meta(ge=0.0, le=100.0)]
Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
TopP = Annotated[float, Meta(gt=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Choices = Annotated[int, Meta(ge=1, le=16)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=16)] | None
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
TokenId = Annotated[int, Meta(ge=0, lt=MAX_VOCAB)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(Struct, frozen=True):
    """Chat's has the schema in `json_schema`, beside a name; that of responses has it in `schema`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None

    def grammar(self, param: str) -> str:
        """What the tail holds the answer to. Raises BadField."""
        return of_schema(self.type, self.schema or (self.json_schema or {}).get("schema"), param)


class Common(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all generating endpoints share. `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos` and
    all that begins with `paceline_` are extensions.
    """

    model: Annotated[str, Meta(min_length=1, max_length=128)]
    stream: bool | None = False
    temperature: Temperature | None = 1.0
    top_p: TopP | None = 1.0
    seed: Seed | None = None
    top_k: Annotated[int, Meta(ge=0, lt=MAX_VOCAB)] = 0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=100.0)] = 1.0
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_CONTEXT)] = 0
    ignore_eos: bool = False
    paceline_events: bool = False
    paceline_consistency: Annotated[str, Meta(max_length=128)] = "available"
    """available, strong, bounded(k) or pinned(revision): docs/revisions.md."""
    paceline_objective: Objective = "latency"
    """What the ring is chosen for: docs/routing.md."""
    paceline_hedge: bool = False
    """The first token is asked of two rings, and whoever has it first stays: docs/routing.md."""
    service_tier: Tier | None = None
    """Who goes first where the gateway is full, or a node has more prompts than it can take at once: priority before
    default before flex.
    """
    user: str | None = None
    """Ignored, as are the next three."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    safety_identifier: str | None = None


class Sampled(Common, frozen=True, kw_only=True):
    """What chat and text completions share."""

    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Choices | None = 1
    stop: Stop = None
    frequency_penalty: Penalty | None = 0.0
    presence_penalty: Penalty | None = 0.0
    logit_bias: dict[str, float] | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


# --- chat -------------------------------------------------------------------------------------------------------


class TextPart(Struct, frozen=True):
    text: str
    type: Literal["text", "input_text", "output_text"] = "text"


class CalledFunction(Struct, frozen=True):
    name: str
    arguments: str


class CalledTool(Struct, frozen=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessage(Struct, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None


class Function(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool | None = None


class Tool(Struct, frozen=True):
    function: Function
    type: Literal["function"] = "function"


class ChatRequest(Sampled, frozen=True, kw_only=True):
    """POST /v1/chat/completions. `tools` reach the model through its chat template, where that knows tools."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = False
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    """Ignored: no served template knows it by this name."""

    def options(self, default_tokens: int, wait_s: float) -> GenerateOptions:
        """For the client library. Raises BadField."""
        if self.top_logprobs is not None and not self.logprobs:
            raise BadField("top_logprobs needs logprobs: true", param="top_logprobs")
        most = self.max_completion_tokens or self.max_tokens or default_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return _options(self, most, wait_s, logprobs=logprobs, grammar=self._grammar())

    def _grammar(self) -> str:
        call = of_tools(self.offered_tools, self.tool_choice)
        form = self.response_format.grammar("response_format") if self.response_format else ""
        if call and form:
            raise BadField("an answer cannot be a call and of a format at once", param="response_format")
        return call or form

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """As templates expect them; empty where the model shall not call any."""
        if not self.tools or self.tool_choice == "none":
            return []
        return [msgspec.to_builtins(tool) for tool in self.tools]

    def conversation(self) -> list[dict[str, Any]]:
        """As chat templates expect it."""
        return [_message(message) for message in self.messages]


def _message(message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_called(call) for call in message.tool_calls]
    return plain


def _called(call: CalledTool) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments)
    except msgspec.DecodeError as error:
        raise BadField(f"arguments of tool call {call.id!r} are not JSON: {error}", param="messages") from error
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """Plain text of a message's content."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


# --- completions ------------------------------------------------------------------------------------------------


class CompletionRequest(Sampled, frozen=True, kw_only=True):
    """POST /v1/completions. `prompt`: text, a list of texts, token ids, or a list of those."""

    prompt: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=MAX_CONTEXT)]
    echo: bool | None = False
    logprobs: TopLogprobs | None = None
    suffix: str | None = None
    best_of: int | None = None

    def options(self, wait_s: float) -> GenerateOptions:
        """For the client library. Raises BadField."""
        if self.suffix:
            raise BadField("suffix is not supported: no served model fills in the middle", param="suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise BadField("best_of is not supported", param="best_of", cure="ask for n and choose yourself")
        if self.echo and self.logprobs is not None:
            raise BadField("log probabilities of the prompt are not available", param="logprobs")
        return _options(self, self.max_tokens or 16, wait_s, logprobs=self.logprobs)

    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt. Raises BadField for mixtures and empty ones."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(part) for part in self.prompt}
        if len(kinds) > 1:
            raise BadField("prompt mixes texts and token ids", param="prompt")
        if kinds == {int}:
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]


# --- responses --------------------------------------------------------------------------------------------------


class InputMessage(Struct, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    type: Literal["message"] = "message"
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class TextFormat(Struct, frozen=True):
    format: ResponseFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Common, frozen=True, kw_only=True):
    """POST /v1/responses: text in, text out. Nothing is stored, so there is no `previous_response_id`."""

    input: str | Annotated[list[InputMessage], Meta(min_length=1, max_length=1024)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    text: TextFormat | None = None
    tools: Annotated[list[Any], Meta(max_length=0)] | None = None
    """No tools on this endpoint; chat completions has them."""
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: None = None
    include: list[str] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    reasoning: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None

    def options(self, default_tokens: int, wait_s: float) -> GenerateOptions:
        """For the client library. Raises BadField."""
        form = self.text.format if self.text else None
        grammar = form.grammar("text") if form else ""
        return _options(self, self.max_output_tokens or default_tokens, wait_s, grammar=grammar)

    def conversation(self) -> list[dict[str, Any]]:
        """As chat templates expect it."""
        first = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*first, {"role": "user", "content": self.input}]
        roles = {"developer": "system"}
        return first + [{"role": roles.get(m.role, m.role), "content": text_of(m.content)} for m in self.input]


def _options(
    request: Common, most: int, wait_s: float, logprobs: int | None = None, grammar: str = ""
) -> GenerateOptions:
    values: dict[str, Any] = {}
    if grammar and (request.ignore_eos or request.min_tokens):
        param = "ignore_eos" if request.ignore_eos else "min_tokens"
        raise BadField("an answer of a given form ends where that ends", param=param)
    if isinstance(request, Sampled):
        if request.logit_bias:
            raise BadField("logit_bias is not supported", param="logit_bias")
        values = {
            "stop": (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
            "frequency_penalty": request.frequency_penalty or 0.0,
            "presence_penalty": request.presence_penalty or 0.0,
            "trace": request.paceline_events and bool(request.stream),
        }
    return GenerateOptions(
        model=request.model,
        max_tokens=most,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        logprobs=logprobs,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        grammar=grammar,
        consistency=request.paceline_consistency,
        objective=request.paceline_objective,
        hedge=request.paceline_hedge,
        priority=PRIORITY[request.service_tier or "auto"],
        timeout_s=wait_s,
        **values,
    )
