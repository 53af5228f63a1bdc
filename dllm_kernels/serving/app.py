"""The HTTP application: OpenAI's completions over rows that something else generates."""

import asyncio
import math
import time
import uuid
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from dllm_kernels import __version__
from dllm_kernels.inference.load import load
from dllm_kernels.serving.limits import Limits, error_body
from dllm_kernels.serving.protocol import (
    MAX_SAMPLES,
    Choice,
    Completion,
    CompletionRequest,
    ErrorBody,
    Logprobs,
    Model,
    Models,
    Usage,
)
from dllm_kernels.serving.replica import Answer, Row, Settings, Text

Generate = Callable[[Row], Awaitable[Answer | None]]
"""A row to its answer, or to None where its time was over before it ran."""

Limit = Callable[[list[str], Callable[[int], str]], None]
"""Raises ValueError for a prompt that is too long, with what the second argument calls it."""

INVALID = "invalid_request_error"


class Lost(Exception):
    """A row's replica died, and so did the one that was asked next."""


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, status: int, message: str, kind: str = INVALID, param: str | None = None, retry_after: int | None = None
    ):
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, param)
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Metrics:
    """What /metrics tells, in a registry of its own."""

    def __init__(self):
        self.registry = CollectorRegistry()
        options = {"registry": self.registry}
        self.waiting = Gauge("dllm_queue_samples", "samples asked for and not yet answered", **options)
        self.requests = Counter("dllm_requests", "requests to /v1/completions by status", ["status"], **options)
        self.latency = Histogram(
            "dllm_request_seconds", "time to the answer of a request", buckets=[0.01 * 2**i for i in range(14)], **options
        )
        self.batch = Histogram(
            "dllm_batch_samples", "samples asked for in a call", buckets=[2**i for i in range(11)], **options
        )
        self.padding = Counter("dllm_padding_samples", "samples generated to fill a captured size", **options)
        self.call = Histogram(
            "dllm_call_seconds", "duration of a sampler's call", buckets=[0.001 * 2**i for i in range(16)], **options
        )
        self.tokens = Counter("dllm_tokens", "tokens generated for requests", **options)
        self.joules = Counter("dllm_joules", "energy of the cards in calls; stays 0 where a card does not tell", **options)

    def count(self, answer: Answer) -> None:
        """Takes in an answer, and the call that made it once."""
        self.tokens.inc(len(answer.tokens))
        if answer.leads:
            self.batch.observe(answer.rows)
            self.padding.inc(answer.size - answer.rows)
            self.call.observe(answer.seconds)
            self.joules.inc(answer.joules or 0)


class Desk:
    """Takes requests while fewer than `queue` samples wait, and sees each to its answer.

    Args:
        settings: what is served.
        seq_len: the model's T.
        generate: makes a sample.
        limit: of prompts' lengths; None where no prompt is taken.
    """

    def __init__(self, settings: Settings, seq_len: int, generate: Generate, limit: Limit | None = None):
        self.settings, self.seq_len, self._generate, self._limit = settings, seq_len, generate, limit
        self.metrics, self.draining, self.waiting = Metrics(), False, 0
        self.model = Model(id=settings.model, created=int(time.time()))
        self._text = Text(load(settings, elsewhere=True).tokenizer)
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds_a_sample = 0.1

    def rows(self, body: CompletionRequest) -> list[Row]:
        """The samples that a request asks for. Raises Refused."""
        settings = self.settings
        if body.model != self.model.id:
            raise Refused(404, f"there is no model {body.model!r} here; /v1/models names it", param="model")
        if (body.max_tokens or 1) > self.seq_len:
            raise Refused(400, f"max_tokens is {body.max_tokens}; this model makes {self.seq_len}", param="max_tokens")
        steps = settings.steps[0] if body.num_inference_steps is None else body.num_inference_steps
        if steps not in settings.steps:
            allowed = ", ".join(map(str, settings.steps))
            raise Refused(400, f"num_inference_steps is {steps}; this server has {allowed}", param="num_inference_steps")
        prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        for prompt in filter(None, prompts):
            if not settings.prompt_len:
                raise Refused(400, "this model takes no prompt; an empty one is allowed", param="prompt")
            if len(prompt) > settings.most_prompt:
                message = f"a prompt has {len(prompt)} characters; at most {settings.most_prompt} are read"
                raise Refused(400, message, param="prompt")
        if body.guidance_scale != 1 and not (settings.guidance and all(prompts)):
            message = "guidance_scale needs a prompt and a server with guidance"
            raise Refused(400, message, param="guidance_scale")
        until = time.time() + settings.deadline_s
        common = body.guidance_scale, float(body.temperature or 0), body.seed
        count = body.n or 1
        return [
            Row(steps, prompt or None, *common, p * count + j, until) for p, prompt in enumerate(prompts) for j in range(count)
        ]

    async def complete(self, body: CompletionRequest) -> Completion:
        """A request's answer. Raises Refused."""
        rows = self.rows(body)
        if len(rows) > self.settings.queue:
            raise Refused(400, f"a request has at most {self.settings.queue} samples; this one has {len(rows)}", param="n")
        if self.draining:
            raise Refused(503, "the server is shutting down", "server_error", retry_after=5)
        if self.waiting + len(rows) > self.settings.queue:
            message = f"{self.waiting} samples wait, and the queue holds {self.settings.queue}"
            raise Refused(429, message, "rate_limit_error", retry_after=math.ceil(self.waiting * self._seconds_a_sample))
        begin = time.monotonic()
        self._wait(len(rows))
        try:
            async with asyncio.timeout(self.settings.deadline_s):
                await self._check_prompts([row.prompt for row in rows[:: body.n or 1]])
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._generate(row)) for row in rows]
            answers = [task.result() for task in tasks]
        except TimeoutError:
            answers = [None]
        except ExceptionGroup as errors:
            if errors.subgroup(Lost) is None:
                raise
            message = "the replica that held this request was lost; ask again"
            raise Refused(503, message, "server_error", retry_after=1) from errors
        finally:
            self._wait(-len(rows))
        if None in answers:
            message = f"no answer within the deadline of {self.settings.deadline_s:g} s"
            raise Refused(504, message, "timeout_error")
        seconds = time.monotonic() - begin
        self._seconds_a_sample += 0.1 * (seconds / (self.waiting + len(rows)) - self._seconds_a_sample)
        self.metrics.latency.observe(seconds)
        for answer in answers:
            self.metrics.count(answer)
        return self._completion(body, answers)

    async def _check_prompts(self, prompts: list[str | None]) -> None:
        places = [place for place, prompt in enumerate(prompts) if prompt is not None]
        if not places:
            return
        try:
            # A body of the largest size takes a second, in which others are answered.
            await asyncio.to_thread(self._limit, [prompts[i] for i in places], lambda i: f"prompt {places[i]}")
        except ValueError as error:
            raise Refused(400, str(error), param="prompt") from error

    async def drained(self) -> None:
        """Takes no more requests, and returns when all that were taken are answered."""
        self.draining = True
        await self._idle.wait()

    def _wait(self, rows: int) -> None:
        self.waiting += rows
        self.metrics.waiting.set(self.waiting)
        (self._idle.set if self.waiting == 0 else self._idle.clear)()

    def _completion(self, body: CompletionRequest, answers: list[Answer]) -> Completion:
        length = body.max_tokens or self.seq_len
        choices, made = [], 0
        for index, answer in enumerate(answers):
            (tokens, ended), logprobs = self._text.until_end(answer.tokens[:length]), None
            made += len(tokens)
            text = self._text(tokens)
            if body.logprobs is not None:
                pieces, offsets = self._text.pieces(tokens)
                logprobs = Logprobs(tokens=pieces, token_logprobs=answer.logprobs[: len(tokens)], text_offset=offsets)
            choices.append(Choice(index=index, text=text, logprobs=logprobs, finish_reason="stop" if ended else "length"))
        read = sum(answer.prompt_tokens for answer in answers[:: body.n or 1])
        usage = Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)
        return Completion(
            id=f"cmpl-{uuid.uuid4().hex}", created=int(time.time()), model=self.model.id, choices=choices, usage=usage
        )


def create_app(desk: Desk) -> FastAPI:
    """The application; everything but /health asks for the key where the settings have one."""
    app = FastAPI(title="dllm-kernels", version=__version__, docs_url=None, redoc_url=None)
    errors = {status: {"model": ErrorBody} for status in (400, 401, 404, 413, 429, 503, 504)}

    @app.post("/v1/completions", responses=errors)
    async def completions(body: CompletionRequest) -> Completion:
        """Generates samples, with a prompt or without."""
        return await desk.complete(body)

    @app.get("/v1/models", responses={401: {"model": ErrorBody}})
    async def models() -> Models:
        """The model that is served."""
        return Models(data=[desk.model])

    @app.get("/health", responses={503: {"model": ErrorBody}})
    async def health() -> dict[str, str]:
        """Whether requests are taken."""
        if desk.draining:
            raise Refused(503, "the server is shutting down", "server_error")
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": ErrorBody}})
    async def metrics() -> PlainTextResponse:
        """Prometheus's text format."""
        return PlainTextResponse(generate_latest(desk.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    def answer(request: Request, status: int, body: dict, headers: dict[str, str]) -> JSONResponse:
        return JSONResponse(body, status, headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(request, error.status, error.body, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        # After "body" stands the field, or the place in it where it stops being JSON.
        field = next((part for part in first["loc"][1:2] if isinstance(part, str)), None)
        # Each type that a prompt may have has a reason of its own, of which the first says what one of them is.
        reason = f"it must be a text, or a list of 1 to {MAX_SAMPLES} texts" if field == "prompt" else first["msg"]
        return answer(request, 400, error_body(f"{field or 'the body'}: {reason}", INVALID, field), {})

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return answer(request, error.status_code, error_body(str(error.detail), INVALID), dict(error.headers or {}))

    def told(path: str, status: int) -> None:
        if path == "/v1/completions":
            desk.metrics.requests.labels(str(status)).inc()

    settings = desk.settings
    app.add_middleware(Limits, key_digest=settings.key_digest, most_body=settings.most_body, told=told)
    # The document names what this server has, where the types alone allow more.
    fields = app.openapi()["components"]["schemas"]["CompletionRequest"]["properties"]
    fields["model"]["enum"] = [desk.model.id]
    fields["max_tokens"]["anyOf"][0]["maximum"] = desk.seq_len
    fields["num_inference_steps"]["anyOf"][0]["enum"] = list(settings.steps)
    return app
