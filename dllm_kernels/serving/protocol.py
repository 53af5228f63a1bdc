"""The bodies of /v1/completions: OpenAI's, with `num_inference_steps` and `guidance_scale` beside them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SAMPLES = 128
"""Samples a prompt, and prompts a request."""


class CompletionRequest(BaseModel):
    """What is asked. Fields of OpenAI's that a model of this kind cannot honour are taken at their neutral value only."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="as /v1/models names it")
    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_SAMPLES)] | None = Field(
        None, description="what to continue; none, or an empty text, for text without a prompt"
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="up to the model's T, which is the default")
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = Field(1, description="samples for each prompt")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(None, description="sample j is sample j of the seed")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(0, description="0 takes the most likely token")
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = Field(None, description="log-probabilities of the tokens taken")
    num_inference_steps: int | None = Field(None, description="one of the server's step counts")
    guidance_scale: Annotated[float, Field(gt=-100, lt=100)] = Field(1, description="1 is no guidance")
    user: str | None = None
    stream: Literal[False] | None = Field(None, description="all tokens come at once, so there is nothing to stream")
    stream_options: None = None
    echo: Literal[False] | None = None
    stop: None = None
    suffix: None = None
    top_p: Annotated[float, Field(ge=1, le=1)] | None = None
    best_of: None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: None = None


class Logprobs(BaseModel):
    """Log-probabilities of a choice; `top_logprobs` would need the logits, which are never written."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class Choice(BaseModel):
    """One sample: "stop" where an end token is among the tokens asked for, "length" where they were cut, or T was reached."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens read, and tokens of the choices, each up to its end token, which counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """What is answered."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Model(BaseModel):
    """What is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dllm-kernels"


class Models(BaseModel):
    """A list of one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Error(BaseModel):
    """What went wrong: a sentence, its kind, and the field where it is a field's."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    error: Error
