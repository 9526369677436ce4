"""What each route is for: vectors, translations, classes, pictures, gaps, beams, looks inside, and what is served."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel
from starlette.requests import Request as Http
from starlette.responses import Response

from nextile.base.errors import NextileError
from nextile.generation.beam import Beams
from nextile.generation.decode import Emitted
from nextile.generation.paint import palette_of
from nextile.generation.pool import text_ids
from nextile.generation.sample import Sampling
from nextile.generation.translate import Translation, source_ids
from nextile.inspection.inspect import inspect as look_into
from nextile.inspection.look import Inspection
from nextile.inspection.look_pairs import PairLook
from nextile.inspection.page import finite
from nextile.inspection.payload import payload_by_parts
from nextile.serving import jobs
from nextile.serving.answers import REASONS
from nextile.serving.engine import Request
from nextile.serving.flow import Flow
from nextile.serving.pictures import drawn, picture_bytes, read_picture, upper_half
from nextile.serving.protocol import (
    BeamAnswer,
    BeamBody,
    Body,
    ChatAnswer,
    ChatBody,
    Classes,
    ClassifyAnswer,
    ClassifyBody,
    CompletionBody,
    Embedding,
    EmbeddingAnswer,
    EmbeddingBody,
    FillAnswer,
    FillBody,
    Filled,
    HeadAnswer,
    HeadBody,
    InspectAnswer,
    InspectBody,
    ModelList,
    PaintAnswer,
    PaintBody,
    PaintEvent,
    Prompt,
    Refusal,
    TextAnswer,
    Token,
    TokensAnswer,
    TokensBody,
    Translated,
    TranslationAnswer,
    TranslationBody,
    Translations,
    Usage,
)
from nextile.serving.reading import EventStream, attended
from nextile.serving.served import Served, answer, sampling_of
from nextile.serving.writing import DONE, chat, completions, event
from nextile.text.masks import MASK

EVENTS = 24  # of a stream of pictures, some: a picture is a few kilobytes
READERS = ("lm", "masked", "denoise", "translate", "words", "classify-text")  # tasks of models of texts
MOST_PICTURES = 64  # of one request
MOST_GAPS = 64  # of a text, all ways to fill them together
MOST_PIECES = 512  # of what is looked into
MOST_WEIGHTS = 256 << 20  # bytes, of all heads of all its stacks


# --- vectors ----------------------------------------------------------------------------------------------------------


async def embeddings(served: Served, http: Http) -> Response:
    """POST /v1/embeddings."""
    body = await served.reader.read(http, EmbeddingBody)
    served.refuse_other(body.model)
    served.refuse_unless(*READERS)
    rows = [await _row(served, prompt) for prompt in body.input]
    vectors = await attended(http.receive, served.job(jobs.embeddings(served.model, rows)))
    write = _in_base64 if body.encoding_format == "base64" else np.ndarray.tolist
    data = [Embedding(index=number, embedding=write(each)) for number, each in enumerate(vectors)]
    usage = Usage(prompt_tokens=(read := sum(map(len, rows))), total_tokens=read)
    return answer(EmbeddingAnswer(data=data, model=served.name, usage=usage))


async def _row(served: Served, prompt: Prompt) -> list[int]:
    if not isinstance(prompt, str):
        served.refuse_ids(prompt, "input")
        return list(prompt)
    return await served.encoded(prompt, partial(text_ids, served.model), "input")


def _in_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


# --- translations -----------------------------------------------------------------------------------------------------


async def translate(served: Served, http: Http) -> Response:
    """POST /v1/translate."""
    body = await served.reader.read(http, TranslationBody)
    served.refuse_other(body.model)
    served.refuse_unless("translate")
    read = [await _source(served, text) for text in body.input]
    beams = Beams(width=body.beams, length_penalty=body.length_penalty)
    work = jobs.translations(served.model, body.input, beams, body.n, body.max_tokens)
    found: list[list[Translation]] = await attended(http.receive, served.job(work))
    data = [
        Translations(index=number, translations=[_translated(each) for each in best])
        for number, best in enumerate(found)
    ]
    usage = Usage.of(sum(map(len, read)), sum(len(each.tokens) for best in found for each in best))
    return answer(TranslationAnswer(data=data, model=served.name, usage=usage))


async def _source(served: Served, text: str) -> list[int]:
    """The tokens of a text to be translated. Errors: Refusal for more than are read, which the command would cut."""
    ids = await served.encoded(text, partial(source_ids, served.model.tokenizer), "input")
    served.refuse_ids(ids, "input")
    return ids


def _translated(found: Translation) -> Translated:
    return Translated(
        text=found.text, score=found.score, logprob=found.logprob, finish_reason=REASONS[found.finish_reason]
    )


# --- classes ----------------------------------------------------------------------------------------------------------


async def classify(served: Served, http: Http) -> Response:
    """POST /v1/classify."""
    body = await served.reader.read(http, ClassifyBody)
    served.refuse_other(body.model)
    served.refuse_unless("classify", "classify-text")
    if served.model.task == "classify-text":
        for text in body.input:
            await served.encoded(text, lambda text: [], "input")  # which refuses what is too long
        work = jobs.text_classes(served.model, body.input, body.top)
    else:
        work = jobs.picture_classes(served.model, await _pictures(served, body.input), body.top)
    found: list[Classes] = await attended(http.receive, served.job(work))
    return answer(ClassifyAnswer(data=found, model=served.name))


async def _pictures(served: Served, urls: Sequence[str]) -> np.ndarray:
    """Pictures in data URLs, decoded one after the other: uint8 (N, H, W, C)."""
    if len(urls) > MOST_PICTURES:
        raise Refusal(400, f"there are {len(urls)} pictures: send at most {MOST_PICTURES} at a time", param="input")
    files = [picture_bytes(url, "input") for url in urls]
    return np.stack([await served.threaded(read_picture, data, served.model.images, "input") for data in files])


# --- pictures ---------------------------------------------------------------------------------------------------------


async def paint(served: Served, http: Http) -> Response:
    """POST /v1/paint."""
    body = await served.reader.read(http, PaintBody)
    served.refuse_other(body.model)
    served.refuse_unless("paint")
    painting = Painting(served, body, await _upper(served, body.image))
    flow = Flow()
    try:
        served.submit(flow, painting.requests)
        if body.stream:
            return EventStream(flow, painting.events(flow), served.seconds)
        await attended(http.receive, painting.all(flow))
    except BaseException:
        flow.cancel()
        raise
    data = await served.threaded(drawn, painting.palette, painting.colours)
    return answer(PaintAnswer(created=int(time.time()), data=data))


async def _upper(served: Served, url: str | None) -> list[int]:
    """The colours of the upper half of a picture, if one is given."""
    if url is None:
        return []
    pixels = await served.threaded(read_picture, picture_bytes(url, "image"), served.model.images, "image")
    return upper_half(pixels, palette_of(served.model))


class Painting:
    """Pictures that the engine paints for one request: colours, pixel by pixel."""

    def __init__(self, served: Served, body: PaintBody, upper: Sequence[int]):
        self.served, self.palette = served, palette_of(served.model)
        self.colours = [list(upper) for _ in range(body.n)]
        self.given, self.of = body.n * len(upper), body.n * self.palette.size**2
        sampling, left = sampling_of(body), self.palette.size**2 - len(upper)
        self.requests = [
            Request(prompt=[self.palette.start_id, *upper], sampling=sampling, max_tokens=left, stream=number)
            for number in range(body.n)
        ]

    async def rounds(self, flow: Flow) -> AsyncIterator[int]:
        """How many pixels there are, each time when there are more. Errors: whatever the engine tells."""
        done = self.given
        async for batch in flow.batches():
            for number, told in batch:
                if not isinstance(told, Emitted):
                    raise self.served.told(told, 500) if isinstance(told, NextileError) else told
                self.colours[number].append(told.token)
            done += len(batch)
            yield done
            if done == self.of:
                return

    async def all(self, flow: Flow) -> None:
        """Wait until all pictures are whole."""
        async for _ in self.rounds(flow):
            pass

    async def events(self, flow: Flow) -> AsyncIterator[bytes]:
        """The pictures as far as they are, now and then, and whole at the end."""
        every = max(1, (self.of - self.given) // EVENTS)
        due = self.given + every
        async for done in self.rounds(flow):
            if done >= min(due, self.of):
                due = done + every
                data = await self.served.threaded(drawn, self.palette, [list(each) for each in self.colours])
                yield event(PaintEvent(done=done, of=self.of, data=data))
        yield DONE


# --- gaps -------------------------------------------------------------------------------------------------------------


async def fill(served: Served, http: Http) -> Response:
    """POST /v1/fill."""
    body = await served.reader.read(http, FillBody)
    served.refuse_other(body.model)
    served.refuse_unless("masked", "denoise")
    for text in body.input:
        await served.encoded(text, lambda text: [], "input")  # which refuses what is too long
    work = _masks(served, body) if served.model.task == "masked" else _spans(served, body)
    found: list[Filled] = await attended(http.receive, served.job(work))
    return answer(FillAnswer(data=found, model=served.name))


def _masks(served: Served, body: FillBody) -> jobs.Work:
    """Errors: Refusal (400) for what a masked model does not do, and for more gaps than are filled at a time."""
    _refuse_fields(body, "a masked model fills each gap by one token", "beams", "max_tokens")
    if body.n > 1 and body.temperature == 0:
        raise Refusal(400, f"n is {body.n} and the temperature 0: all would be alike; give a temperature", param="n")
    gaps = max(text.count(MASK) for text in body.input) * body.n
    if gaps > MOST_GAPS:
        raise Refusal(400, f"{gaps} gaps are to be filled, and at most {MOST_GAPS} of a text are: leave fewer, or "
                      "ask for fewer texts", param="input")  # fmt: skip
    seed = secrets.randbits(64) if body.seed is None else body.seed % (1 << 64)
    sampling = Sampling(temperature=body.temperature, seed=seed)
    return jobs.masks(served.model, served.words, body.input, sampling, body.n, body.top)


def _spans(served: Served, body: FillBody) -> jobs.Work:
    """Errors: Refusal (400) for what a denoiser does not do."""
    _refuse_fields(body, "a denoiser seeks the likeliest text", "temperature", "seed", "top")
    if body.n > body.beams:
        raise Refusal(400, f"n is {body.n} and the beams are {body.beams}: ask for as many at most", param="n")
    return jobs.spans(served.model, body.input, Beams(width=body.beams), body.n, body.max_tokens)


def _refuse_fields(body: FillBody, why: str, *names: str) -> None:
    given = [name for name in names if name in body.model_fields_set]
    if given:
        raise Refusal(400, f"'{given[0]}' does nothing here: {why}; leave it out", param=given[0])


# --- looking inside ---------------------------------------------------------------------------------------------------


async def inspect(served: Served, http: Http) -> Response:
    """POST /v1/inspect."""
    body = await served.reader.read(http, InspectBody)
    served.refuse_other(body.model)
    look = await _look(served, body.input, body.target, body.beams)
    chosen = {"which": body.which, "layer": body.layer, "head": body.head}
    work = payload_by_parts(look, max_tokens=body.max_tokens, beams=body.beams, **chosen)
    found = await attended(http.receive, served.job(work))
    found["model"]["name"] = served.name  # and not that of its folder
    found["leftOut"] = [served.said(each) for each in found["leftOut"]]
    return await _packed(served, found)


async def inspect_head(served: Served, http: Http) -> Response:
    """POST /v1/inspect/head."""
    body = await served.reader.read(http, HeadBody)
    served.refuse_other(body.model)
    look = await _look(served, body.input, body.target, body.beams)
    work = jobs.head(look, body.which, body.layer, body.head)
    return await _packed(served, await attended(http.receive, served.job(work)))


async def _look(served: Served, given: str, target: str | None, beams: int) -> Inspection:
    """What there is to look at; nothing is computed yet. Errors: Refusal (400) for what is too long or too large."""
    what: str | bytes = given
    if served.model.task in ("classify", "paint"):
        what = picture_bytes(given, "input")
        await served.threaded(read_picture, what, served.model.images, "input")  # which refuses giants
    else:
        await served.encoded(given, lambda text: [], "input")  # which refuses what is too long
        if target is not None:
            if served.model.task not in ("translate", "denoise"):
                raise Refusal(400, f"'{served.name}' reads no pairs: leave out the target", param="target")
            served.refuse_ids(await served.encoded(target, served.model.tokenizer.encode, "target") or [0], "target")
    look = await served.threaded(partial(look_into, served.model, what, target, beams=beams))
    await served.threaded(_refuse_large, look)
    return look


def _refuse_large(look: Inspection) -> None:
    """Errors: Refusal (400) where the weights of all heads would take too much memory."""
    pieces = len(look.pieces)
    written = look.most_ids if isinstance(look, PairLook) else pieces
    if pieces > MOST_PIECES:
        raise Refusal(
            400, f"there are {pieces:,} positions, and at most {MOST_PIECES:,} are looked at here: shorten the text",
            param="input", code="context_length_exceeded",
        )  # fmt: skip
    places = {"encoder": pieces**2, "self": written**2, "cross": written * pieces}
    size = sum(4 * look.depth(which) * look.heads(which) * places[which] for which in look.which)
    if size > MOST_WEIGHTS:
        raise Refusal(
            400, f"the weights of all heads are {size >> 20:,} MiB, and at most {MOST_WEIGHTS >> 20} are looked at "
            "here: give less at a time, or use nextile inspect", param="input",
        )  # fmt: skip


async def _packed(served: Served, found: dict[str, Any]) -> Response:
    """A payload as JSON, made beside the event loop: it is some megabytes."""
    text = await served.threaded(lambda: json.dumps(finite(found), separators=(",", ":")))
    return Response(text, media_type="application/json")


# --- beams and tokens -------------------------------------------------------------------------------------------------


async def beams(served: Served, http: Http) -> Response:
    """POST /v1/beams."""
    body = await served.reader.read(http, BeamBody)
    served.refuse_other(body.model)
    served.refuse_unless("lm", "translate")
    context = served.model.spec.context
    if served.model.task == "translate":
        await _source(served, body.input)
        room = context - 1
    else:
        room = context + 1 - len(await served.prompt_ids(body.input))  # the last token is written without being read
    if body.max_tokens > room:
        raise Refusal(
            400, f"max_tokens is {body.max_tokens}, and the context of {context} has room for {room}: ask for fewer",
            param="max_tokens", code="context_length_exceeded",
        )  # fmt: skip
    work = jobs.beam_tree(served.model, served.words, body.input, Beams(width=body.beams), body.n, body.max_tokens)
    return answer(await attended(http.receive, served.job(work)))


async def tokens(served: Served, http: Http) -> Response:
    """POST /v1/tokens."""
    body = await served.reader.read(http, TokensBody)
    served.refuse_other(body.model)
    served.refuse_unless(*READERS)
    ids = await served.encoded(body.input, served.model.tokenizer.encode, "input")
    return answer(TokensAnswer(data=[Token(id=each, text=served.words.text(each)) for each in ids]))


# --- the model --------------------------------------------------------------------------------------------------------


async def models(served: Served, http: Http) -> Response:
    """GET /v1/models."""
    return answer(ModelList(data=[served.entry]))


async def model(served: Served, http: Http) -> Response:
    """GET /v1/models/NAME."""
    served.refuse_other(http.path_params["name"])
    return answer(served.entry)


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """A path, what is asked there and what is answered."""

    path: str
    handle: Callable[[Served, Http], Awaitable[Response]]
    body: type[Body]
    answer: type[BaseModel]


POSTED = (
    Route("/v1/completions", completions, CompletionBody, TextAnswer),
    Route("/v1/chat/completions", chat, ChatBody, ChatAnswer),
    Route("/v1/embeddings", embeddings, EmbeddingBody, EmbeddingAnswer),
    Route("/v1/translate", translate, TranslationBody, TranslationAnswer),
    Route("/v1/classify", classify, ClassifyBody, ClassifyAnswer),
    Route("/v1/paint", paint, PaintBody, PaintAnswer),
    Route("/v1/beams", beams, BeamBody, BeamAnswer),
    Route("/v1/fill", fill, FillBody, FillAnswer),
    Route("/v1/inspect", inspect, InspectBody, InspectAnswer),
    Route("/v1/inspect/head", inspect_head, HeadBody, HeadAnswer),
    Route("/v1/tokens", tokens, TokensBody, TokensAnswer),
)
