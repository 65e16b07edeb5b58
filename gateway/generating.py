"""The three generating endpoints, and the one that resumes a cut-off stream."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import trio
from starlette.requests import Request
from starlette.responses import Response

from paceline.client.core import ClientCore
from paceline.client.mirror import Mirror
from paceline.client.options import GenerateOptions
from paceline.client.results import Piece
from paceline.client.stream import Stream
from paceline.gateway.audit import Audit, record
from paceline.gateway.catalogue import Catalogue
from paceline.gateway.chat_writer import ChatWriter
from paceline.gateway.config import GatewayConfig
from paceline.gateway.delivery import Delivery, Job
from paceline.gateway.errors import BadField, NotHere
from paceline.gateway.gate import Gate
from paceline.gateway.grammars import told_in_words
from paceline.gateway.line import Line, Tier
from paceline.gateway.metrics import Metrics, Watch
from paceline.gateway.quota import Meter
from paceline.gateway.replies import ResponsesReply
from paceline.gateway.requests import ChatRequest, CompletionRequest, ResponsesRequest
from paceline.gateway.responses_writer import ResponsesWriter
from paceline.gateway.shelf import Kept, Shelf
from paceline.gateway.source import LiveSource, ResumedSource, continuable
from paceline.gateway.spans import Answer, Spans
from paceline.gateway.text_writer import TextWriter
from paceline.gateway.writers import Head, Writer

MOST_CHOICES = 64
"""Answers that one request may ask for: prompts × n."""

_log = logging.getLogger("paceline.gateway")

Start = Callable[[GenerateOptions], Awaitable[Stream]]
MakeWriter = Callable[[Head], Writer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, ready to start. `starts`: one a choice, with the options of each."""

    endpoint: str
    prefix: str
    starts: Sequence[tuple[Start, GenerateOptions]]
    writer: MakeWriter
    streamed: bool
    events: bool
    tier: Tier


class Generating:
    """The endpoints."""

    def __init__(
        self,
        core: ClientCore,
        config: GatewayConfig,
        gate: Gate,
        catalogue: Catalogue,
        metrics: Metrics,
        spans: Spans | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self._core = core
        self._config = config
        self._gate = gate
        self._catalogue = catalogue
        self._metrics = metrics
        self._spans = spans
        self._mirror = mirror
        self._shelf = Shelf(config.resumable, config.resume_s)
        self._line = Line(config.running)
        self._audit = Audit(config.audit, time.time) if config.audit else None

    # --- endpoints ----------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answered(request, self._chat)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answered(request, self._completions)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        return await self._answered(request, self._responses)

    async def resume(self, request: Request) -> Response:
        """GET /paceline/streams/{id}: the rest of a stream, after the token that ``Last-Event-ID`` names."""
        with self._admitted(request) as meter:
            return await self._resumed(request, meter)

    async def _answered(self, request: Request, prepare: Callable[[Request], Awaitable[Ask]]) -> Response:
        began = trio.current_time()
        with self._admitted(request) as meter:
            ask = await prepare(request)
            await self._line.take(ask.tier)
            with ExitStack() as stack:
                stack.callback(self._line.leave)
                response = await self._started(ask, meter, began, request.headers)
                stack.pop_all()
            return response

    @contextmanager
    def _admitted(self, request: Request) -> Iterator[Meter]:
        """The caller's meter, which counts the request out where no response comes of it; a response does it itself."""
        meter = self._gate.admit(request)
        with ExitStack() as stack:
            stack.callback(lambda: meter.done(0, trio.current_time()))
            yield meter
            stack.pop_all()

    # --- what is asked for --------------------------------------------------------------------------------------

    async def _chat(self, request: Request) -> Ask:
        body = await self._gate.body(request, ChatRequest)
        options = body.options(self._config.default_tokens, self._config.ring_wait_s)
        await self._catalogue.check(body.model)
        conversation, tools = body.conversation(), body.offered_tools
        variables = {"tools": tools} if tools else {}
        if tools and not await self._catalogue.knows_tools(options, conversation, tools):
            conversation, variables = told_in_words(conversation, tools), {}

        async def start(options: GenerateOptions) -> Stream:
            return await self._core.chat(conversation, options, **variables)

        n = body.n or 1
        return Ask(
            endpoint="chat",
            prefix="chatcmpl-",
            starts=_choices(start, options, n),
            writer=partial(
                ChatWriter, choices=n, logprobs=bool(body.logprobs), tools=bool(tools), with_usage=body.wants_usage
            ),
            streamed=bool(body.stream),
            events=body.paceline_events,
            tier=body.service_tier or "auto",
        )

    async def _completions(self, request: Request) -> Ask:
        body = await self._gate.body(request, CompletionRequest)
        options, n = body.options(self._config.ring_wait_s), body.n or 1
        prompts = body.prompts()
        if len(prompts) * n > MOST_CHOICES:
            raise BadField(f"{len(prompts)} prompts × {n}: at most {MOST_CHOICES} answers a request", param="n")
        await self._catalogue.check(body.model)
        await self._catalogue.require_vocabulary(options, prompts)
        echoes = [await self._echo(body, options, prompt) for prompt in prompts for _ in range(n)]
        starts = [pair for prompt in prompts for pair in _choices(partial(self._core.generate, prompt), options, n)]
        return Ask(
            endpoint="completions",
            prefix="cmpl-",
            starts=starts,
            writer=partial(
                TextWriter, echoes=echoes, prompts=len(prompts), logprobs=body.logprobs, with_usage=body.wants_usage
            ),
            streamed=bool(body.stream),
            events=body.paceline_events,
            tier=body.service_tier or "auto",
        )

    async def _echo(self, body: CompletionRequest, options: GenerateOptions, prompt: str | list[int]) -> str:
        if not body.echo or isinstance(prompt, str):
            return prompt if body.echo and isinstance(prompt, str) else ""
        return (await self._core.model(options)).tokenizer.decode(prompt)

    async def _responses(self, request: Request) -> Ask:
        body = await self._gate.body(request, ResponsesRequest)
        options = body.options(self._config.default_tokens, self._config.ring_wait_s)
        await self._catalogue.check(body.model)
        conversation = body.conversation()
        return Ask(
            endpoint="responses",
            prefix="resp_",
            starts=[(partial(self._core.chat, conversation), options)],
            writer=partial(_responses_writer, body, options),
            streamed=bool(body.stream),
            events=body.paceline_events,
            tier=body.service_tier or "auto",
        )

    # --- running it ---------------------------------------------------------------------------------------------

    async def _started(self, ask: Ask, meter: Meter, began: float, headers: Mapping[str, str]) -> Response:
        sources: list[LiveSource] = []
        with ExitStack() as stack:
            for start, options in ask.starts:
                most = min(options.max_tokens, meter.key.answer_tokens or options.max_tokens)
                traced = options.trace or self._spans is not None
                sources.append(LiveSource(await start(replace(options, max_tokens=most, trace=traced))))
                stack.callback(sources[-1].cancel)
            stack.pop_all()
        head = self._head(ask, sources[0])
        job = Job(sources=sources, writer=ask.writer(head), streamed=ask.streamed, events=ask.events)
        job.options = [options for _, options in ask.starts]
        kept = None
        if ask.streamed and len(sources) == 1 and ask.endpoint != "responses":
            kept = self._keep(ask, head, sources[0], meter)
            job.numbered = True
            job.extra = {"x-paceline-stream": head.id}
        told = [self._spans.begin(headers, each.result(), ask.endpoint) for each in sources] if self._spans else []
        return self._delivered(job, meter, began, head.id, kept, told, self._line.leave)

    def _keep(self, ask: Ask, head: Head, source: LiveSource, meter: Meter) -> Kept:
        kept = Kept(
            owner=meter.key.name,
            options=ask.starts[0][1],
            writer=partial(ask.writer, head),
            endpoint=ask.endpoint,
            source=source,
            events=ask.events,
        )
        self._shelf.put(head.id, kept, trio.current_time())
        return kept

    def _delivered(
        self,
        job: Job,
        meter: Meter,
        began: float,
        name: str,
        kept: Kept | None,
        told: Sequence[Answer] = (),
        leave: Callable[[], None] = lambda: None,
    ) -> Response:
        watch = Watch(self._metrics, began, len(job.sources), replayed=len(kept.pieces) if kept else 0)

        def on_piece(choice: int, piece: Piece) -> None:
            watch.piece(choice, piece)
            if kept is not None and piece.index == len(kept.pieces):
                kept.pieces.append(piece)
            if told:
                told[choice].piece(piece, job.sources[choice].stages)

        def on_over(job: Job) -> None:
            leave()
            results = [source.result() for source in job.sources]
            watch.over(results, job.error, complete=job.complete)
            meter.done(sum(result.prompt_tokens for result in results) + watch.tokens, trio.current_time())
            for answer, result in zip(told, results, strict=False):
                answer.over(result, job.error)
            endpoint = name.partition("-")[0].partition("_")[0]
            for result in results:
                told_of = record(meter.key.name, endpoint, result, job.error, complete=job.complete)
                _log.info("answer", told_of)
                if self._audit is not None:
                    self._audit.note(told_of)
            if self._mirror is not None and job.complete:
                for result, options in zip(results, job.options, strict=False):
                    self._mirror.offer(result, options)
            if kept is not None:
                kept.finished = job.results[0]
                self._shelf.touch(name, kept, trio.current_time())

        job.on_piece, job.on_over = on_piece, on_over
        return Delivery(job)

    def _head(self, ask: Ask, source: LiveSource) -> Head:
        result = source.result()
        return Head(
            id=ask.prefix + secrets.token_hex(16),
            created=int(time.time()),
            model=result.model,
            fingerprint=f"fp_{result.revision[:12]}_{result.numerics}",
        )

    # --- coming back --------------------------------------------------------------------------------------------

    async def _resumed(self, request: Request, meter: Meter) -> Response:
        name, began = request.path_params["id"], trio.current_time()
        after = request.headers.get("last-event-id") or request.query_params.get("after") or "-1"
        kept = self._shelf.find(name, meter.key.name, began)
        if kept is None:
            raise NotHere(f"no stream {name!r} is kept here", cure="streams are kept some minutes; ask again")
        if not after.removeprefix("-").isdecimal() or not -1 <= int(after) <= len(kept.pieces):
            raise BadField(f"Last-Event-ID {after!r} is no token index of this stream", param="last-event-id")
        kept.source.cancel()  # its reader is here now, not there
        kept = replace(kept, pieces=list(kept.pieces))
        self._shelf.put(name, kept, began)
        kept.source = await self._continued(kept)
        self._metrics.resumed.inc()
        job = Job(
            sources=[kept.source],
            writer=kept.writer(),
            streamed=True,
            events=kept.events,
            after=int(after),
            numbered=True,
            extra={"x-paceline-stream": name},
        )
        return self._delivered(job, meter, began, name, kept)

    async def _continued(self, kept: Kept) -> ResumedSource:
        last = kept.source.result()
        if kept.finished is not None:
            return ResumedSource(kept.pieces, None, kept.finished)
        stream = await self._core.resume(continuable(last.state, len(kept.pieces)), kept.options)
        return ResumedSource(kept.pieces, stream, last)


def _choices(start: Start, options: GenerateOptions, n: int) -> list[tuple[Start, GenerateOptions]]:
    """`n` answers to one prompt: with a seed, the following seeds; without, fresh ones."""
    if options.seed is None:
        return [(start, options)] * n
    return [(start, replace(options, seed=(options.seed + index) % (1 << 63))) for index in range(n)]


def _responses_writer(body: ResponsesRequest, options: GenerateOptions, head: Head) -> ResponsesWriter:
    return ResponsesWriter(
        ResponsesReply(
            id=head.id,
            created_at=head.created,
            status="in_progress",
            model=head.model,
            output=[],
            usage=None,
            instructions=body.instructions,
            temperature=options.temperature,
            top_p=options.top_p,
            max_output_tokens=body.max_output_tokens,
        )
    )
