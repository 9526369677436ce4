"""What each route is for: vectors, translations, classes, pictures, beams, tokens, and which model there is."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pydantic import BaseModel
from starlette.requests import Request as Http
from starlette.responses import Response

from nextile.base.errors import NextileError
from nextile.generation.beam import Beams
from nextile.generation.decode import Emitted
from nextile.generation.paint import palette_of
from nextile.generation.pool import text_ids
from nextile.generation.translate import Translation, source_ids
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

EVENTS = 24  # of a stream of pictures, some: a picture is a few kilobytes
READERS = ("lm", "masked", "denoise", "translate", "words", "classify-text")  # tasks of models of texts
MOST_PICTURES = 64  # of one request


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
    Route("/v1/tokens", tokens, TokensBody, TokensAnswer),
)
