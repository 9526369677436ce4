"""What is asked and answered: OpenAI's protocol as types, requests read from hostile bytes, errors in one shape.

A key that is null counts as absent. Keys that other programs send and that change nothing here (IGNORED) are dropped;
those that ask for what is not done here (UNDONE) are refused with the reason unless they ask for nothing; any other
unknown key is refused with the nearest name.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

MOST_CHOICES = 128  # texts of one request, of all its prompts together
MOST_INPUTS = 2048  # of one request, where each has one answer
MOST_TOKENS = 1 << 17  # of one text
MOST_IDS = 1 << 20  # of one prompt
MOST_STOPS, LONGEST_STOP = 16, 256  # stop strings, and characters of one: the engine looks for them at every token
MOST_ALTERNATIVES = 20
MOST_BIASES = 1024

Prompt = str | tuple[int, ...]


# --- refusals -------------------------------------------------------------------------------------------------------


class Refusal(Exception):
    """A request that is not done: its status and what the client is told, in OpenAI's shape.

    retry: seconds after which to come again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        kind: str | None = None, retry: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry
        self.kind = kind or ("server_error" if status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """{"error": {"message", "type", "param", "code"}}."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is not 200."""

    error: ErrorBody


# --- values that come in several shapes -------------------------------------------------------------------------------


def _ids(value: list[Any]) -> tuple[int, ...]:
    if len(value) > MOST_IDS:
        raise ValueError(f"there are {len(value):,} token ids, and no model reads more than {MOST_IDS:,}")
    if not all(type(each) is int and 0 <= each < 1 << 31 for each in value):
        raise ValueError("token ids are whole numbers from 0 to 2147483647")
    return tuple(value)


def _text_or_ids(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return _ids(value)
    raise ValueError("each is a string or a list of token ids, not empty")


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, a list of strings, token ids, or a list of lists of them. Errors: ValueError for anything else."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError("give a string, a list of strings, token ids, or a list of lists of token ids")
    if type(value[0]) is int:
        return (_ids(value),)
    if len(value) > MOST_INPUTS:
        raise ValueError(f"there are {len(value):,}, and at most {MOST_INPUTS:,} are done at a time")
    return tuple(_text_or_ids(each) for each in value)


def read_texts(value: Any) -> tuple[str, ...]:
    """A string, or a list of them. Errors: ValueError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise ValueError("give a string or a list of strings")
    if len(texts) > MOST_INPUTS:
        raise ValueError(f"there are {len(texts):,}, and at most {MOST_INPUTS:,} are done at a time")
    if not all(isinstance(each, str) for each in texts):
        raise ValueError("give a string or a list of strings")
    return tuple(texts)


def read_stops(value: Any) -> tuple[str, ...]:
    """A string, or a few; empty ones, which some programs send, count as absent. Errors: ValueError for more."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise ValueError(f"give a string, or a list of at most {MOST_STOPS}")
    if not all(isinstance(each, str) and len(each) <= LONGEST_STOP for each in stops):
        raise ValueError(f"each is a string of at most {LONGEST_STOP} characters")
    return tuple(filter(None, stops))


def read_biases(value: Any) -> dict[int, float]:
    """{"token id": what is added to its logit, -100 to 100}. Errors: ValueError for anything else."""
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        raise ValueError(f"give at most {MOST_BIASES:,} token ids with a number each")
    return {_id(key): _bias(number) for key, number in value.items()}


def _id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 9):
        raise ValueError(f"{reprlib.repr(key)} is no token id")
    return int(key)


def _bias(number: Any) -> float:
    if type(number) not in (int, float) or not -100 <= number <= 100:
        raise ValueError(f"{reprlib.repr(number)} is not a number from -100 to 100")
    return float(number)


AnyPrompts = str | list[str] | list[int] | list[list[int]]
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(read_prompts, json_schema_input_type=AnyPrompts)]
Texts = Annotated[tuple[str, ...], PlainValidator(read_texts, json_schema_input_type=str | list[str])]
Stops = Annotated[tuple[str, ...], PlainValidator(read_stops, json_schema_input_type=str | list[str])]
Biases = Annotated[dict[int, float], PlainValidator(read_biases, json_schema_input_type=dict[str, float])]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]  # OpenAI's are signed
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Count = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Width = Annotated[int, Field(ge=1, le=64)]
Name = Annotated[str, Field(max_length=1000)]


# --- requests -------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """What every request may say. Numbers in quotes and the like are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    model: Name | None = None  # None: the one that is served


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    include_usage: bool = False


class DrawBody(Body):
    """How the next token is chosen; a top_k of 0 or -1 is none, as other servers have it."""

    temperature: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    seed: Seed | None = None


class WriteBody(DrawBody):
    """What completions and answers have in common."""

    n: Count = 1
    min_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 0
    stop: Stops = ()
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0  # further out logits would overflow
    logit_bias: Biases = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_have_a_stream(self):
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are those of a stream: leave them out, or set stream")
        return self

    @property
    def counts_at_end(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(WriteBody):
    """POST /v1/completions."""

    prompt: Prompts = ("",)
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    echo: bool = False
    best_of: Count | None = None

    @model_validator(mode="after")
    def _can_be(self):
        _refuse_more(self.min_tokens, self.max_tokens)
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, which only an echo has use for: ask for at least 1, or set echo")
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of is {self.best_of}, less than the {self.n} of n")
        if self.stream and self.drawn > self.n:
            raise ValueError("best_of is known only at the end: leave it out, or the stream")
        if len(self.prompt) * self.drawn > MOST_CHOICES:
            raise ValueError(
                f"{len(self.prompt):,} prompts with {self.drawn} texts each are more than {MOST_CHOICES} at a time"
            )
        return self

    @property
    def drawn(self) -> int:
        """Texts of each prompt, those included that are not shown."""
        return self.best_of or self.n


class ChatBody(WriteBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 0

    @model_validator(mode="after")
    def _can_be(self):
        if self.limit is not None:
            _refuse_more(self.min_tokens, self.limit)
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs are beside logprobs: set logprobs to true, or leave them out")
        return self

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer; None: as many as there is room for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def _refuse_more(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"min_tokens is {least} and max_tokens {most}: the first is not more than the second")


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"


class TranslationBody(Body):
    """POST /v1/translate."""

    input: Texts
    beams: Width = 5
    n: Annotated[int, Field(ge=1, le=64)] = 1
    length_penalty: Annotated[float, Field(ge=-16.0, le=16.0)] = 1.0
    max_tokens: Tokens | None = None

    @model_validator(mode="after")
    def _few_of_many(self):
        return _no_wider(self)


class BeamBody(Body):
    """POST /v1/beams."""

    input: str
    beams: Width = 4
    n: Annotated[int, Field(ge=1, le=64)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=256)] = 16

    @model_validator(mode="after")
    def _few_of_many(self):
        return _no_wider(self)


def _no_wider(body: Any) -> Any:
    if body.n > body.beams:
        raise ValueError(f"n is {body.n} and the beams are {body.beams}: ask for as many at most")
    return body


class ClassifyBody(Body):
    """POST /v1/classify: texts, or pictures as data URLs."""

    input: Texts
    top: Annotated[int, Field(ge=1, le=1000)] = 5


class PaintBody(DrawBody):
    """POST /v1/paint: from nothing, or from the upper half of a picture, a data URL."""

    n: Annotated[int, Field(ge=1, le=16)] = 1
    image: str | None = None
    stream: bool = False


class FillBody(Body):
    """POST /v1/fill: texts in which what is missing is written [MASK].

    top: other tokens for each gap that are shown; temperature, seed: of masked models. beams, max_tokens: of denoisers.
    """

    input: Texts
    n: Annotated[int, Field(ge=1, le=16)] = 1
    top: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] = 5
    temperature: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    seed: Seed | None = None
    beams: Width = 5
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 64


class InspectBody(Body):
    """POST /v1/inspect: a text, words, or a picture as a data URL; of an encoder-decoder also a target.

    which, layer, head: what is looked at first; without them something worth a look. max_tokens, beams: of what is
    written.
    """

    input: Annotated[str, Field(min_length=1)]
    target: str | None = None
    which: Literal["self", "encoder", "cross"] | None = None
    layer: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    head: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=64)] = 12
    beams: Annotated[int, Field(ge=1, le=16)] = 4


class HeadBody(Body):
    """POST /v1/inspect/head: one head, of the same input (and with the same beams, where the target is the model's)."""

    input: Annotated[str, Field(min_length=1)]
    target: str | None = None
    which: Literal["self", "encoder", "cross"] = "self"
    layer: Annotated[int, Field(ge=0, le=1 << 16)]
    head: Annotated[int, Field(ge=0, le=1 << 16)]
    beams: Annotated[int, Field(ge=1, le=16)] = 4


class TokensBody(Body):
    """POST /v1/tokens."""

    input: str


IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
     "parallel_tool_calls")
)  # fmt: skip
# Why something is not done, and with what value it asks for nothing.
UNDONE: dict[str, tuple[str, tuple[Any, ...]]] = {
    "suffix": ("a text is written from left to right, with nothing after it", ("",)),
    "tools": ("models here call no tools", ([],)),
    "tool_choice": ("models here call no tools", ("none", "auto")),
    "functions": ("models here call no functions", ([],)),
    "function_call": ("models here call no functions", ("none", "auto")),
    "response_format": ("only text is written", ({"type": "text"},)),
    "modalities": ("only text is written", (["text"],)),
    "audio": ("only text is written", ()),
    "prediction": ("predicted outputs are not read", ()),
    "reasoning_effort": ("models here have no effort to choose", ("none",)),
    "verbosity": ("models here have no verbosity to choose", ("medium",)),
    "web_search_options": ("models here search nothing", ()),
    "dimensions": ("a vector has the width of the model", ()),
}
BodyType = TypeVar("BodyType", bound=Body)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


# --- reading --------------------------------------------------------------------------------------------------------


def read_json(data: bytes) -> dict[str, Any]:
    """The object in a request's bytes.

    Errors: Refusal (400) for what is no UTF-8, no JSON or no object, for NaN, infinities and numbers beyond a double,
    for lone surrogates, and for lists in lists without end.
    """
    try:
        tree = json.loads(data.decode(), parse_constant=_no_number, parse_float=_finite)
        if _SURROGATE.search(data):
            json.dumps(tree, ensure_ascii=False).encode()  # which fails for one that stands alone
    except UnicodeDecodeError as error:
        raise _broken(f"it is no UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise _broken("it has a lone surrogate, half of a character") from None
    except RecursionError:
        raise _broken("it is nested too deep") from None
    except ValueError as error:
        raise _broken(str(error).splitlines()[0][:200]) from None
    if not isinstance(tree, dict):
        raise _broken(f"it is {reprlib.repr(tree)} and no object")
    return tree


def _broken(why: str) -> Refusal:
    return Refusal(400, f"the body cannot be read as JSON: {why}", code="invalid_json")


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def parse(schema: type[BodyType], tree: Mapping[str, Any]) -> BodyType:
    """The request in a JSON object. Errors: Refusal (400) naming the first thing that is wrong."""
    given = {name: value for name, value in tree.items() if value is not None and name not in IGNORED}
    for name in [name for name in given if name not in schema.model_fields]:
        _refuse_unknown(name, given.pop(name), schema)
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise _explained(error) from None


def _refuse_unknown(name: str, value: Any, schema: type[Body]) -> None:
    """Errors: Refusal, unless the key asks for nothing."""
    why, nothing = UNDONE.get(name, ("", ()))
    if value in nothing:
        return
    if why:
        raise Refusal(400, f"'{name}' is not done here: {why}; leave it out", param=name, code="unsupported_parameter")
    shown = reprlib.repr(name)
    near = difflib.get_close_matches(name[:100], schema.model_fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(schema.model_fields)}"
    raise Refusal(400, f"unrecognized argument {shown}: {hint}", param=name[:100], code="unknown_parameter")


def _explained(error: ValidationError) -> Refusal:
    """The first problem in one line."""
    problem = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in problem["loc"])[:100]
    param = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "missing":
        return Refusal(400, f"'{name}' is missing", param=param, code="missing_required_parameter")
    own = problem.get("ctx", {}).get("error")  # what one of ours raised
    said = _lower(problem["msg"]) if own is None else str(own)
    if param is None:
        return Refusal(400, said, code="invalid_value")
    return Refusal(400, f"'{name}' is {reprlib.repr(problem['input'])}: {said}", param=param, code="invalid_value")


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


# --- answers --------------------------------------------------------------------------------------------------------


class Usage(BaseModel):
    """Tokens that were read and written; the end token counts, and so does what a stop string cut."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int

    @classmethod
    def of(cls, read: int, written: int = 0) -> Usage:
        """The sum of both."""
        return cls(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class Logprobs(BaseModel):
    """Of each token of a completion its text, its log-probability (nats), the likeliest others, where it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """A completion, or what is new of it."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class TextAnswer(BaseModel):
    """Of POST /v1/completions; of a stream every event is one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | None = None


class ChatToken(BaseModel):
    """A token with its log-probability in nats; bytes is null where its text depends on its neighbours."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatChosen(ChatToken):
    """A token that was written, and the likeliest in its place."""

    top_logprobs: list[ChatToken]


class ChatLogprobs(BaseModel):
    """Of each token of an answer."""

    content: list[ChatChosen]
    refusal: None = None


class ChatMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(BaseModel):
    """Of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(BaseModel):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatDeltaChoice(BaseModel):
    """What is new of an answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """An event of the stream of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatDeltaChoice]
    usage: Usage | None = None


class Embedding(BaseModel):
    """A vector: numbers, or their float32 bytes in base64, the lowest first."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingAnswer(BaseModel):
    """Of POST /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Translated(BaseModel):
    """A translation: its score is what beams rank by, its log-probability is in nats."""

    text: str
    score: float
    logprob: float
    finish_reason: Literal["stop", "length"]


class Translations(BaseModel):
    """The best translations of one text, best first."""

    index: int
    translations: list[Translated]


class TranslationAnswer(BaseModel):
    """Of POST /v1/translate."""

    object: Literal["list"] = "list"
    data: list[Translations]
    model: str
    usage: Usage


class ClassShare(BaseModel):
    """A class and how probable it is."""

    label: str
    probability: float


class Classes(BaseModel):
    """The most probable classes of one text or picture, most probable first."""

    index: int
    classes: list[ClassShare]


class ClassifyAnswer(BaseModel):
    """Of POST /v1/classify."""

    object: Literal["list"] = "list"
    data: list[Classes]
    model: str


class Painted(BaseModel):
    """A picture as PNG."""

    b64_json: str


class PaintAnswer(BaseModel):
    """Of POST /v1/paint."""

    created: int
    data: list[Painted]


class PaintEvent(BaseModel):
    """An event of a stream of POST /v1/paint: so many pixels of all are done; what is not yet is transparent."""

    done: int
    of: int
    data: list[Painted]


class BeamNode(BaseModel):
    """A beginning that was looked at: one token more than its parent's."""

    id: int
    parent: int | None
    token: int
    text: str
    logprob: float  # nats, of the whole path
    kept: bool


class BeamText(BaseModel):
    """A whole text that beams found."""

    text: str
    score: float
    ids: list[int]


class BeamAnswer(BaseModel):
    """Of POST /v1/beams: round by round what was looked at, and the best texts."""

    object: Literal["beams"] = "beams"
    rounds: list[list[BeamNode]]
    texts: list[BeamText]


class GapShare(BaseModel):
    """A token that a gap may have, and how probable it is there."""

    id: int
    text: str
    probability: float


class FilledText(BaseModel):
    """A text with its gaps filled, what stands in each of them, and by what beams rank it."""

    text: str
    fills: list[str]
    score: float | None


class Filled(BaseModel):
    """One text as the model would have it; of masked models what else each gap of the first may have."""

    index: int
    texts: list[FilledText]
    gaps: list[list[GapShare]]


class FillAnswer(BaseModel):
    """Of POST /v1/fill."""

    object: Literal["list"] = "list"
    data: list[Filled]
    model: str


class InspectAnswer(BaseModel):
    """Of POST /v1/inspect: all that the page shows of it, with arrays in base64 (`nextile.inspection.payload`)."""

    model_config = ConfigDict(extra="allow")

    version: int
    kind: str


class HeadAnswer(BaseModel):
    """Of POST /v1/inspect/head: a head's queries, keys, values, mask and weights, with arrays in base64."""

    model_config = ConfigDict(extra="allow")

    which: str
    layer: int
    head: int


class Token(BaseModel):
    """A token and its text."""

    id: int
    text: str


class TokensAnswer(BaseModel):
    """Of POST /v1/tokens."""

    data: list[Token]


class ImageShape(BaseModel):
    """The pictures that a model reads or paints."""

    size: int
    channels: int


class ModelFacts(BaseModel):
    """What a model is and can do."""

    task: str
    family: str
    parameters: int
    context: int
    chat: bool
    vocab: int | None
    image: ImageShape | None


class ModelEntry(BaseModel):
    """A model, as OpenAI lists it, and what nextile knows of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "nextile"
    nextile: ModelFacts


class ModelList(BaseModel):
    """Of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


def schemas(requests: list[type[BaseModel]], answers: list[type[BaseModel]]) -> dict[str, Any]:
    """The JSON schemas of these and of all that they hold, by name, as /openapi.json has them."""
    wanted = [(each, "validation") for each in requests] + [(each, "serialization") for each in answers]
    _, found = models_json_schema(wanted, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    return found["$defs"]
