"""What the API answers, as records: the shapes that `/openapi.json` publishes are made from these."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class ErrorObject(Struct, frozen=True):
    """`code`: one of Paceline's error codes, or OpenAI's where its clients look for one."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Struct, frozen=True):
    error: ErrorObject


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


# --- extensions -------------------------------------------------------------------------------------------------


class StageAccount(Struct, frozen=True):
    """One stage of the ring: who runs layers ``[start, end)``."""

    peer: str
    start: int
    end: int


class FailoverAccount(Struct, frozen=True):
    """One repair of the ring, at answer token `index`."""

    index: int
    lost: list[str]
    reason: str
    tier: str
    stall_s: float


class HedgeAccount(Struct, frozen=True):
    """Two rings were asked for the first token: which `won` (1: the cheapest), how many were begun, who rode in the one
    that was given up, by which error it ended (empty: cancelled), and prompt positions run in vain, at most.
    """

    won: int
    rings: int
    lost_ring: list[str]
    lost_with: str
    extra_positions: int


class RideAccount(Struct, frozen=True):
    """How the answer is made. Sent where `paceline_events` asks for it: with the first token, and with the first token
    after each change of the ring.
    """

    revision: str
    numerics: str
    seed: int
    epochs: int
    route: list[StageAccount]
    failovers: list[FailoverAccount]
    hedge: HedgeAccount | None = None


StageTimes = list[tuple[int, int, int]]
"""One trip around the ring: of each stage, head first, the µs of the hop to it, of waiting there and of computing."""


# --- chat ---------------------------------------------------------------------------------------------------------


class TopLogprob(Struct, frozen=True):
    """`bytes`: UTF-8 of `token`; null where the token is not whole characters."""

    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    content: list[ContentLogprob]
    refusal: None = None


class FunctionCall(Struct, frozen=True):
    """`arguments`: JSON, as text."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """`index` only in streamed deltas."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | UnsetType = UNSET


class Delta(Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    paceline: RideAccount | UnsetType = UNSET
    timings: StageTimes | UnsetType = UNSET


class AssistantMessage(Struct, frozen=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[ToolCall] | UnsetType = UNSET
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    paceline: RideAccount | UnsetType = UNSET


# --- completions ------------------------------------------------------------------------------------------------


class TextLogprobs(Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextCompletion(Struct, frozen=True, kw_only=True):
    """Also a streamed chunk, where `usage` comes last and alone."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    paceline: RideAccount | UnsetType = UNSET
    timings: StageTimes | UnsetType = UNSET


# --- responses --------------------------------------------------------------------------------------------------


class OutputText(Struct, frozen=True):
    text: str
    type: Literal["output_text"] = "output_text"
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class InputDetails(Struct, frozen=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponsesUsage(Struct, frozen=True, kw_only=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens_details: OutputDetails = OutputDetails()


class Incomplete(Struct, frozen=True):
    reason: Literal["max_output_tokens"]


class ResponsesError(Struct, frozen=True):
    code: str
    message: str


class ResponsesReply(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputMessage]
    usage: ResponsesUsage | None
    instructions: str | None
    temperature: float
    top_p: float
    max_output_tokens: int | None
    error: ResponsesError | None = None
    incomplete_details: Incomplete | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
    paceline: RideAccount | UnsetType = UNSET


# --- models and health ------------------------------------------------------------------------------------------


class ModelFacts(Struct, frozen=True):
    """`ready`: every layer of some revision is offered now. `revisions`: newest first is not implied."""

    ready: bool
    layers: int
    max_context: int
    nodes: int
    revisions: list[str]
    numerics: list[str]


class ModelCard(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["paceline"] = "paceline"
    paceline: ModelFacts


class ModelList(Struct, frozen=True):
    data: list[ModelCard]
    object: Literal["list"] = "list"


class Health(Struct, frozen=True):
    status: Literal["ok"]
    active: int
