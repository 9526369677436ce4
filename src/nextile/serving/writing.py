"""Completions and answers: prompts become requests of the engine, its tokens texts, whole or as a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request as Http
from starlette.responses import Response

from nextile.base.errors import NextileError
from nextile.generation.decode import Emitted
from nextile.serving import jobs
from nextile.serving.answers import (
    Choice,
    Finish,
    Piece,
    Shown,
    chat_logprobs,
    prompt_tokens,
    text_logprobs,
)
from nextile.serving.engine import Request
from nextile.serving.flow import Flow
from nextile.serving.protocol import (
    ChatAnswer,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatDeltaChoice,
    ChatMessage,
    CompletionBody,
    Refusal,
    TextAnswer,
    TextChoice,
    Usage,
    WriteBody,
)
from nextile.serving.reading import EventStream, attended
from nextile.serving.served import Served, answer, sampling_of
from nextile.text.chat import Message, conversation

DONE = b"data: [DONE]\n\n"
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ROOM = 16  # tokens of an answer, at least, where nobody says how many


# --- what is written --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beginning:
    """A prompt: its tokens; what is echoed of it, and the tokens that are shown of that."""

    ids: list[int]
    echo: str = ""
    shown: Sequence[Shown] = ()


@dataclass
class Written:
    """A text after a prompt; of a stream nothing is kept but its beginning and its counts."""

    beginning: Beginning
    choice: Choice
    text: str
    shown: list[Shown]

    def add(self, piece: Piece) -> None:
        """What is new."""
        self.text += piece.text
        self.shown += piece.tokens

    @property
    def rank(self) -> float:
        """Nats per token, by which the best of several is chosen."""
        return self.choice.logprob / max(1, self.choice.tokens)


class Writing:
    """Several texts that the engine writes for one request."""

    def __init__(
        self, served: Served, body: WriteBody, beginnings: Sequence[Beginning], *, each: int, most: int,
        alternatives: int | None, ends: frozenset[int],
    ):  # fmt: skip
        """each: texts of one beginning. most: tokens of a text. alternatives: others shown; None: nothing is shown."""
        self.served, self.body, self.alternatives = served, body, alternatives
        self.texts = [self._text(beginning) for beginning in beginnings for _ in range(each)]
        self.read = sum(len(beginning.ids) for beginning in beginnings)
        sampling = sampling_of(body)
        self.requests = [
            Request(
                prompt=text.beginning.ids, sampling=sampling, max_tokens=most, end_ids=ends,
                alternatives=alternatives or 0, stream=number % each, stop=text.choice.stop,
                min_tokens=body.min_tokens,
            )
            for number, text in enumerate(self.texts)
        ]  # fmt: skip
        self.most = most

    def _text(self, beginning: Beginning) -> Written:
        choice = Choice(
            self.served.model.tokenizer, self.body.stop, shown=self.alternatives is not None, start=len(beginning.echo)
        )
        return Written(beginning, choice, beginning.echo, list(beginning.shown))

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage.of(self.read, sum(text.choice.tokens for text in self.texts))

    def start(self, flow: Flow) -> None:
        """Give all of it to the engine. Errors: Refusal, where there is no room for all of it."""
        self.began = time.monotonic()
        if self.most:
            self.served.submit(flow, self.requests)

    async def news(self, flow: Flow) -> AsyncIterator[list[tuple[int, Piece]]]:
        """What is new of texts, by their numbers, until all are done. Errors: Refusal; whatever the engine tells."""
        if not self.most:
            return
        left, before = len(self.texts), [self.began] * len(self.texts)
        async for batch in flow.batches():
            now, found = time.monotonic(), []
            for number, told in batch:
                if not isinstance(told, Emitted):
                    raise self.served.told(told, 500) if isinstance(told, NextileError) else told
                text = self.texts[number]
                clock = self.served.metrics.each if text.choice.tokens else self.served.metrics.first
                clock.observe(now - before[number])
                before[number] = now
                piece = text.choice.take(told)
                left -= piece.finished is not None
                found.append((number, piece))
            yield found
            if not left:
                return

    async def all(self) -> None:
        """Wait until every text is whole."""
        with Flow() as flow:
            self.start(flow)
            async for news in self.news(flow):
                for number, piece in news:
                    self.texts[number].add(piece)

    def finish(self, text: Written) -> Finish:
        """Why a text ended; nothing was to be written of one that only echoes."""
        return text.choice.finished or "length"


# --- streams ----------------------------------------------------------------------------------------------------------


def event(thing: BaseModel) -> bytes:
    """A server-sent event; JSON has no line breaks that could end it."""
    return b"data: " + thing.model_dump_json(exclude_unset=True).encode() + b"\n\n"


def streamed(
    writing: Writing, first: Sequence[BaseModel], chunk: Callable[[int, Piece], BaseModel | None],
    last: Callable[[], BaseModel],
) -> EventStream:  # fmt: skip
    """A response of events: `first` at once, a chunk for each piece that says anything, at the end the usage if asked.

    Errors: Refusal before anything is sent, where there is no room.
    """
    flow = Flow()

    async def events() -> AsyncIterator[bytes]:
        for each in first:
            yield event(each)
        async for news in writing.news(flow):
            chunks = [chunk(number, piece) for number, piece in news]
            if data := b"".join(event(each) for each in chunks if each is not None):
                yield data
        if writing.body.counts_at_end:
            yield event(last())
        yield DONE

    try:
        writing.start(flow)
    except BaseException:
        flow.cancel()
        raise
    return EventStream(flow, events(), writing.served.seconds)


def head(kind: str, served: Served, **more: Any) -> dict[str, Any]:
    """What every answer begins with."""
    return {"id": f"{kind}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name, **more}


def with_usage(start: dict[str, Any], body: WriteBody) -> dict[str, Any]:
    """What an event begins with: where the last one tells the usage, the others say that they do not, as OpenAI's."""
    return {**start, "usage": None} if body.counts_at_end else start


# --- completions ------------------------------------------------------------------------------------------------------


async def completions(served: Served, http: Http) -> Response:
    """POST /v1/completions."""
    body = await served.reader.read(http, CompletionBody)
    served.refuse_other(body.model)
    served.refuse_unless("lm")
    beginnings = [await _beginning(served, http, body, prompt) for prompt in body.prompt]
    writing = Writing(
        served, body, beginnings, each=body.drawn, most=body.max_tokens, alternatives=body.logprobs,
        ends=frozenset([served.model.tokenizer.end_id]),
    )  # fmt: skip
    if body.stream:
        return _stream_texts(writing, body)
    await attended(http.receive, writing.all())
    best = _best(writing.texts, body.drawn, body.n)
    choices = [_text_choice(writing, number, text) for number, text in enumerate(best)]
    return answer(TextAnswer(choices=choices, usage=writing.usage, **head("cmpl", served)))


async def _beginning(served: Served, http: Http, body: CompletionBody, prompt: Any) -> Beginning:
    """A prompt's tokens; of an echo also its text, and how likely it is where that is asked."""
    ids = await served.prompt_ids(prompt)
    if not body.echo:
        return Beginning(ids)
    text = prompt if isinstance(prompt, str) else served.model.tokenizer.decode(ids)
    if body.logprobs is None:
        return Beginning(ids, text)
    scores = await attended(http.receive, served.job(jobs.scores(served.model.model, ids, body.logprobs)))
    return Beginning(ids, text, prompt_tokens(served.model.tokenizer, ids, scores))


def _best(texts: Sequence[Written], drawn: int, n: int) -> list[Written]:
    """Of every `drawn` texts the n likeliest, by nats per token; all of them in their order where n is all."""
    if drawn == n:
        return list(texts)
    groups = [texts[start : start + drawn] for start in range(0, len(texts), drawn)]
    return [text for group in groups for text in sorted(group, key=lambda text: -text.rank)[:n]]


def _text_choice(writing: Writing, number: int, text: Written) -> TextChoice:
    shown = writing.alternatives
    logprobs = None if shown is None else text_logprobs(writing.served.words, text.shown, shown)
    return TextChoice(index=number, text=text.text, logprobs=logprobs, finish_reason=writing.finish(text))


def _stream_texts(writing: Writing, body: CompletionBody) -> EventStream:
    start = head("cmpl", writing.served, object="text_completion")
    common = with_usage(start, body)

    def chunk(number: int, piece: Piece) -> TextAnswer | None:
        if not (piece.text or piece.tokens or piece.finished):
            return None
        shown = writing.alternatives
        logprobs = None if shown is None else text_logprobs(writing.served.words, piece.tokens, shown)
        choice = TextChoice(index=number, text=piece.text, logprobs=logprobs, finish_reason=piece.finished)
        return TextAnswer(choices=[choice], **common)

    finish: Finish | None = None if writing.most else "length"
    echoes = [Piece(text.text, text.shown, finish) for text in writing.texts]
    first = [each for number, piece in enumerate(echoes) if (each := chunk(number, piece))] if body.echo else []
    return streamed(writing, first, chunk, lambda: TextAnswer(choices=[], usage=writing.usage, **start))


# --- conversations ----------------------------------------------------------------------------------------------------


async def chat(served: Served, http: Http) -> Response:
    """POST /v1/chat/completions."""
    body = await served.reader.read(http, ChatBody)
    served.refuse_other(body.model)
    served.refuse_unless("lm")
    if not served.talks:
        raise Refusal(
            400, f"'{served.name}' has no chat template, so that nobody knows how it reads conversations: use "
            "/v1/completions, or give it a chat_template.jinja, or fine-tune it by nextile train --task chat",
            param="messages", code="no_chat_template",
        )  # fmt: skip
    ids, ends = await served.threaded(_prompt, served, _messages(served, body.messages))
    served.refuse_ids(ids, "messages")
    most = body.limit or max(ROOM, body.min_tokens, served.model.spec.context - len(ids))
    writing = Writing(
        served, body, [Beginning(ids)], each=body.n, most=most, ends=ends,
        alternatives=body.top_logprobs if body.logprobs else None,
    )  # fmt: skip
    if body.stream:
        return _stream_answers(writing)
    await attended(http.receive, writing.all())
    choices = [_chat_choice(writing, number, text) for number, text in enumerate(writing.texts)]
    return answer(ChatAnswer(choices=choices, usage=writing.usage, **head("chatcmpl", served)))


def _messages(served: Served, messages: Sequence[dict[str, Any]]) -> list[Message]:
    """What was said. Errors: Refusal (400) for what is not text, and for more of it than the model could read."""
    found = [_message(number, each) for number, each in enumerate(messages)]
    if (size := sum(len(each["content"]) for each in found)) > served.most_characters:
        raise Refusal(
            400, f"the messages have {size:,} characters, and this model reads at most {served.most_characters:,}",
            param="messages", code="context_length_exceeded",
        )  # fmt: skip
    try:
        return conversation(found, "messages")
    except NextileError as error:
        raise Refusal(400, str(error), param="messages") from None


def _message(number: int, message: dict[str, Any]) -> dict[str, Any]:
    place, role = f"messages.{number}", message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(400, f"'{place}.role' is none of {', '.join(ROLES)}", param="messages")
    undone = [name for name, value in message.items() if name not in ("role", "content", "name") and value]
    if undone:
        raise Refusal(400, f"'{place}' has {undone[0][:80]!r}, which is not done here: leave it out", param="messages")
    name = message.get("name")
    extra = {"name": name} if isinstance(name, str) else {}
    return {"role": ROLES[role], "content": _content(message.get("content"), place), **extra}


def _content(content: Any, place: str) -> str:
    """The text of a message: a string, or parts of text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) < len(parts):
        raise Refusal(400, f"'{place}.content' is no text, and only text is read here", param="messages")
    return "".join(found)


def _prompt(served: Served, messages: list[Message]) -> tuple[list[int], frozenset[int]]:
    """The tokens of a conversation, and those that end an answer."""
    return served.chat.prompt(messages), served.chat.ends


def _chat_choice(writing: Writing, number: int, text: Written) -> ChatChoice:
    logprobs = None if writing.alternatives is None else chat_logprobs(writing.served.words, text.shown)
    message = ChatMessage(content=text.text)
    return ChatChoice(index=number, message=message, logprobs=logprobs, finish_reason=writing.finish(text))


def _stream_answers(writing: Writing) -> EventStream:
    start = head("chatcmpl", writing.served, object="chat.completion.chunk")
    common = with_usage(start, writing.body)

    def one(number: int, delta: ChatDelta, piece: Piece | None = None) -> ChatChunk:
        shown = piece is not None and writing.alternatives is not None
        logprobs = chat_logprobs(writing.served.words, piece.tokens) if piece is not None and shown else None
        finished = None if piece is None else piece.finished
        choice = ChatDeltaChoice(index=number, delta=delta, logprobs=logprobs, finish_reason=finished)
        return ChatChunk(choices=[choice], **common)

    def chunk(number: int, piece: Piece) -> ChatChunk | None:
        if not (piece.text or piece.tokens or piece.finished):
            return None
        return one(number, ChatDelta(content=piece.text) if piece.text else ChatDelta(), piece)

    first = [one(number, ChatDelta(role="assistant", content="")) for number in range(len(writing.texts))]
    return streamed(writing, first, chunk, lambda: ChatChunk(choices=[], usage=writing.usage, **start))
