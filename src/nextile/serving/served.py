"""The model that is served, its engine, and what every route asks of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.complete import encode_prompt
from nextile.generation.sample import Sampling
from nextile.images.processor import ImageProcessor
from nextile.models import count
from nextile.nn import specs
from nextile.serving.answers import Words
from nextile.serving.engine import Engine, Full, Request
from nextile.serving.flow import Flow, worked
from nextile.serving.guard import Life, closing, full
from nextile.serving.metrics import Metrics
from nextile.serving.protocol import DrawBody, ImageShape, ModelEntry, ModelFacts, Prompt, Refusal, WriteBody
from nextile.serving.reading import Reader
from nextile.tasks import run
from nextile.text.chat import Chat
from nextile.text.tokenizer import Tokenizer

T = TypeVar("T")
SHORT = 2000  # characters that are tokenized at once; more in a thread, so that no stream waits
WORKERS = 2  # threads that tokenize and decode pictures
LONGEST_MESSAGE = 1000  # characters of an error

# What a model of each task is, and which routes are for it.
WHAT = {
    "lm": "a language model: ask /v1/completions, /v1/chat/completions, /v1/beams or /v1/embeddings",
    "translate": "a translator: ask /v1/translate, /v1/beams or /v1/embeddings",
    "classify": "a classifier of pictures: ask /v1/classify",
    "classify-text": "a classifier of texts: ask /v1/classify or /v1/embeddings",
    "paint": "a painter: ask /v1/paint",
    "masked": "a masked model, which writes nothing from left to right: ask /v1/fill or /v1/embeddings",
    "denoise": "a denoiser, which writes nothing from left to right: ask /v1/fill or /v1/embeddings",
    "words": "one of word vectors, which writes nothing: ask /v1/embeddings",
}


def answer(thing: BaseModel) -> Response:
    """A typed answer as JSON."""
    return Response(thing.model_dump_json(), media_type="application/json")


class Served:
    """A model behind a server."""

    def __init__(
        self, model: Pretrained, engine: Engine, name: str, reader: Reader, metrics: Metrics, life: Life, seconds: float
    ):  # fmt: skip
        self.model, self.engine, self.name, self.reader = model, engine, name, reader
        self.metrics, self.life = metrics, life
        self.seconds = seconds  # that a client may take nothing of a stream
        self.created = int(time.time())
        self._threads = ThreadPoolExecutor(WORKERS, thread_name_prefix="nextile-serving")

    def prepare(self) -> None:
        """Find out now what takes a moment. Errors: UsageError for a model of texts that came without a tokenizer."""
        texts = not isinstance(self.model.processor, ImageProcessor)
        for name in ("entry", "most_characters") if texts else ("entry",):
            getattr(self, name)

    # --- what it is ---

    @cached_property
    def entry(self) -> ModelEntry:
        """The model as /v1/models has it."""
        processor = self.model.processor
        images = processor if isinstance(processor, ImageProcessor) else None
        facts = ModelFacts(
            task=self.model.task, family=self.model.family, parameters=count.parameters(self.model.spec).total,
            context=self.model.spec.context, chat=self.talks, vocab=getattr(processor, "vocab_size", None),
            image=None if images is None else ImageShape(size=images.size, channels=images.channels),
        )  # fmt: skip
        return ModelEntry(id=self.name, created=self.created, nextile=facts)

    @cached_property
    def talks(self) -> bool:
        """Whether it has learned how conversations are written: by a template of its own, or in its run."""
        processor, folder = self.model.processor, self.model.folder
        if self.model.task != "lm" or not isinstance(processor, Tokenizer):
            return False
        learned = folder is not None and (folder / run.RUN).is_file()
        return processor.chat_template is not None or (
            learned and run.read_run(folder).plan.task in ("chat", "prefer")  # type: ignore[arg-type]
        )

    @cached_property
    def chat(self) -> Chat:
        """How conversations are written."""
        return Chat(self.model.tokenizer)

    @cached_property
    def words(self) -> Words:
        """The texts of its tokens."""
        return Words(self.model.tokenizer)

    @cached_property
    def most_characters(self) -> int:
        """More than that no prompt has that fits the context; a vocabulary's texts have a character for each byte."""
        longest = max(map(len, self.model.tokenizer.core.get_vocab(with_added_tokens=True)), default=1)
        return max(1000, longest * self.model.spec.context)

    def refuse_unless(self, *tasks: str) -> None:
        """Errors: Refusal (400) for a model of another task."""
        if self.model.task not in tasks:
            raise Refusal(400, f"'{self.name}' is {WHAT[self.model.task]}", code="unsupported_model")

    def refuse_other(self, name: str | None) -> None:
        """Errors: Refusal (404) for the name of another model."""
        if name is not None and name != self.name:
            raise Refusal(
                404, f"the model {name[:200]!r} is not served here: '{self.name}' is", param="model",
                code="model_not_found",
            )  # fmt: skip

    # --- tokens ---

    async def threaded(self, call: Callable[..., T], *arguments: Any) -> T:
        """A call that takes long, beside the event loop. Errors: Refusal (400) for errors of ours."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        except NextileError as error:
            raise self._refused(error, 400) from None

    async def encoded(self, text: str, encode: Callable[[str], list[int]], param: str) -> list[int]:
        """The tokens of a text. Errors: Refusal (400) for more characters than the model could ever read."""
        if len(text) > self.most_characters:
            raise Refusal(
                400, f"the text has {len(text):,} characters, and this model reads at most {self.most_characters:,}",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        if len(text) > SHORT:
            return await self.threaded(encode, text)
        try:
            return encode(text)
        except NextileError as error:
            raise self._refused(error, 400) from None

    async def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt. Errors: Refusal (400) for more than the model reads, and for unknown ones."""
        if isinstance(prompt, str):
            ids = await self.encoded(prompt, lambda text: encode_prompt(self.model.tokenizer, text), "prompt")
        else:
            ids = list(prompt)
        self.refuse_ids(ids, "prompt")
        return ids

    def refuse_ids(self, ids: Sequence[int], param: str) -> None:
        """Errors: Refusal (400) for more tokens than the model reads, and for unknown ones."""
        context, vocab = self.model.spec.context, vocab_of(self.model.spec)
        if len(ids) > context:
            raise Refusal(
                400, f"the text has {len(ids):,} tokens, and this model reads at most {context:,}: shorten it",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        if max(ids) >= vocab:
            raise Refusal(400, f"token id {max(ids)} is none of the {vocab:,} of this model", param=param)

    # --- work ---

    async def job(self, work: Iterator[Any]) -> Any:
        """The result of a generator that the engine runs beside its batch. Errors: Refusal (400) for errors of ours."""
        try:
            return await worked(self.engine.run, work)
        except NextileError as error:
            raise self.told(error, 400) from None

    def submit(self, flow: Flow, requests: Sequence[Request]) -> None:
        """Give requests to the engine, to be told of by their places.

        Errors: Refusal: 429 where there is no room now, 400 where there never is for so many.
        """
        if len(requests) > self.engine.room:
            raise Refusal(
                400, f"{len(requests)} texts are asked for, and this server holds {self.engine.room} at a time, "
                "those included that wait: ask for fewer, or start it with more --rows or --queue",
            )  # fmt: skip
        try:
            for number, request in enumerate(requests):
                flow.hold(self.engine.submit(request, flow.teller(number)))
        except NextileError as error:
            raise self.told(error, 400) from None

    def told(self, error: NextileError, status: int) -> Refusal:
        """An error of the engine as an answer: 429 where it is full, 503 where it ends or has failed, else `status`."""
        if isinstance(error, Full):
            return full()
        if self.life.closing:
            return closing()
        return self._refused(error, status if self.engine.alive else 503)

    def said(self, words: str) -> str:
        """Words of ours to a client, who knows the model by its name, and is not told in which folder it lies."""
        return words if self.model.folder is None else words.replace(str(self.model.folder), self.name)

    def _refused(self, error: NextileError, status: int) -> Refusal:
        """An error of ours as an answer."""
        return Refusal(status, self.said(str(error))[:LONGEST_MESSAGE])

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def vocab_of(spec: Any) -> int:
    """How many tokens a model reads."""
    if isinstance(spec, specs.WordModel):
        return spec.vocab
    return (spec.source if isinstance(spec, specs.EncoderDecoder) else spec.embed).vocab


# --- sampling ---------------------------------------------------------------------------------------------------------


def sampling_of(body: DrawBody) -> Sampling:
    """How a request wants its tokens chosen; without a seed, one that nobody knows, so that its texts differ."""
    asked: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "min_p": body.min_p}
    asked["top_k"] = body.top_k if body.top_k is not None and body.top_k > 0 else None
    asked["seed"] = secrets.randbits(64) if body.seed is None else body.seed % (1 << 64)
    if isinstance(body, WriteBody):
        asked |= {
            name: getattr(body, name)
            for name in ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias")
            if name in body.model_fields_set
        }
    return Sampling(**asked)
