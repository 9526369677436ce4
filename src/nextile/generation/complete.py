"""Text in, text out: prompts are encoded, continued, decoded, and cut at the first stop string."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from nextile.base.errors import UsageError
from nextile.generation.beam import Beams, Hypothesis, beam_search
from nextile.generation.decode import EagerReader, Emitted, Reason, check_ids, decode, evaluating
from nextile.generation.sample import Sampling
from nextile.generation.speculate import Draft, Lookup, ModelDraft, speculate
from nextile.text.tokenizer import DecodeStream, Tokenizer


class Pretrained(Protocol):
    """A model and the tokens that it speaks; `nextile.load` returns one."""

    @property
    def model(self) -> Any: ...
    @property
    def tokenizer(self) -> Tokenizer: ...


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    prompt: str
    text: str  # without the stop string
    tokens: list[int]  # all that were generated but an end token, so also those that a stop string cut
    finish_reason: Reason  # "end": the end token; "stop": a stop string; "length": max_tokens
    logprobs: list[dict[str, Any]] | None = None  # when asked: of each token, in nats, with the most probable others
    note: str | None = None  # what the user should be told: that the prompt was cut
    score: float | None = None  # of beams: what they were ranked by


# --- text from tokens ---------------------------------------------------------------------------------------------


class Text:
    """Text from tokens up to the first stop string, which may begin and end anywhere in them.

    First is the one that is complete first, however the text falls into pieces; of several at once the longest.
    """

    def __init__(self, decoder: DecodeStream, stops: Sequence[str] = ()):
        self._decoder, self._stops = decoder, stops
        self._held = ""  # what may be the beginning of a stop string
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that has become certain with this token."""
        return self._add(self._decoder.push(token))

    def flush(self) -> str:
        """What is left when no more tokens come."""
        piece = self._add(self._decoder.flush())
        piece, self._held = piece + self._held, ""
        return piece

    def _add(self, piece: str) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        self.stopped = bool(found)
        certain = min(found)[1] if found else len(text) - self._beginning(text)
        self._held = "" if found else text[certain:]
        return text[:certain]

    def _beginning(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        longest = min(len(text), max(map(len, self._stops), default=1) - 1)
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


# --- prompts ------------------------------------------------------------------------------------------------------


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt's tokens; of an empty one the token after which documents begin."""
    start = tokenizer.end_id if tokenizer.begin_id is None else tokenizer.begin_id
    return tokenizer.encode(prompt) or [start]


def _cut_note(tokens: int, context: int) -> str | None:
    if tokens <= context:
        return None
    return f"the prompt has {tokens} tokens and the model reads {context}: its first {tokens - context} were left out"


def _check(stop: Sequence[str], n: int, logprobs: int | None) -> None:
    if isinstance(stop, str) or "" in stop:
        raise UsageError(f"stop is {stop!r}: give a list of strings that are not empty")
    if n < 1:
        raise UsageError(f"n is {n}: ask for at least 1 completion")
    if logprobs is not None and logprobs < 0:
        raise UsageError(f"logprobs is {logprobs}: give how many of the most probable tokens to show, 0 or more")


def draft_by(pretrained: Pretrained, draft: Pretrained | Literal["lookup"]) -> Draft:
    """What proposes tokens to a model: another model, or "lookup", which knows the text alone.

    Errors: UsageError for another word and for a model of other tokens.
    """
    if draft == "lookup":
        return Lookup()
    if isinstance(draft, str):
        raise UsageError(f"draft is {draft!r}: give a loaded model or 'lookup'")
    if draft.tokenizer.fingerprint() != pretrained.tokenizer.fingerprint():
        raise UsageError("the draft has other tokens than the model: draft by a model of the same tokenizer")
    return ModelDraft(draft.model)


# --- completing ---------------------------------------------------------------------------------------------------


def complete(
    pretrained: Pretrained,
    prompts: Sequence[str],
    sampling: Sampling | None = None,
    *,
    max_tokens: int = 200,
    stop: Sequence[str] = (),
    n: int = 1,
    logprobs: int | None = None,
    end_ids: Collection[int] | None = None,
    batch: int = 16,
    compiled: bool | Literal["auto"] = "auto",
    draft: Draft | None = None,
) -> list[list[Completion]]:
    """n completions of each prompt; the i-th of a prompt is the same whatever is completed beside it.

    logprobs: how many of the most probable tokens to report beside each. end_ids: the tokenizer's end token when None.
    batch: texts at a time, a matter of memory only. compiled: see `decode`. draft: what proposes tokens, which the
    model confirms several at a time (`speculate`).
    Errors: UsageError for an empty stop string and for counts out of bounds; those of `decode`.
    """
    _check(stop, n, logprobs)
    wanted = [(prompt, stream) for prompt in prompts for stream in range(n)]
    completions: list[Completion] = []
    for start in range(0, len(wanted), batch):
        completions += _together(
            pretrained, wanted[start : start + batch], stop, logprobs,
            sampling=sampling or Sampling(), max_tokens=max_tokens, **_how(compiled, draft),
            end_ids={pretrained.tokenizer.end_id} if end_ids is None else end_ids,
        )  # fmt: skip
    return [completions[start : start + n] for start in range(0, len(completions), n)]


def _together(
    pretrained: Pretrained,
    wanted: Sequence[tuple[str, int]],
    stop: Sequence[str],
    logprobs: int | None,
    **settings: Any,
) -> list[Completion]:
    """One completion of each wanted (prompt, stream), all in one batch."""
    tokenizer = pretrained.tokenizer
    prompts = [encode_prompt(tokenizer, prompt) for prompt, _ in wanted]
    texts = [Text(tokenizer.decode_stream(), stop) for _ in wanted]
    written, events = [""] * len(wanted), [list[Emitted]() for _ in wanted]

    def stopped(row: int, token: int) -> bool:
        written[row] += texts[row].push(token)
        return texts[row].stopped

    streams = [stream for _, stream in wanted]
    for event in _events(
        pretrained.model, prompts, stop=stopped, streams=streams, alternatives=logprobs or 0, **settings
    ):
        events[event.row].append(event)
    return [
        Completion(
            prompt=wanted[row][0],
            text=written[row] + texts[row].flush(),
            tokens=[event.token for event in events[row] if event.finished != "end"],
            finish_reason="stop" if texts[row].stopped else _reason(events[row]),
            logprobs=None if logprobs is None else [_described(tokenizer, event) for event in events[row]],
            note=_cut_note(len(prompts[row]), pretrained.model.spec.context),
        )
        for row in range(len(wanted))
    ]


def _how(compiled: bool | Literal["auto"], draft: Draft | None) -> dict[str, Any]:
    """What `_events` is told of the way to a text, which does not change it."""
    return {"compiled": compiled} if draft is None else {"draft": draft}


def _events(model: Any, prompts: Sequence[Sequence[int]], *, sampling: Sampling, **settings: Any) -> Iterator[Emitted]:
    """By `speculate` where there is a draft, else by `decode`."""
    draft = settings.pop("draft", None)
    if draft is None:
        return decode(model, prompts, sampling, **settings)
    return speculate(model, prompts, sampling, draft, **settings)


def _reason(events: list[Emitted]) -> Reason:
    assert events[-1].finished is not None  # each row is decoded to its end
    return events[-1].finished


def _described(tokenizer: Tokenizer, event: Emitted) -> dict[str, Any]:
    """{"id": 262, "token": "Ġthe", "logprob": -1.5, "top": [the same of the most probable ones]}."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        known = token < tokenizer.vocab_size  # a model may have room for more tokens than its tokenizer has
        return {"id": token, "token": tokenizer.token(token) if known else None, "logprob": logprob}

    top = {"top": [one(*pair) for pair in event.alternatives]} if event.alternatives else {}
    return one(event.token, event.logprob) | top


def stream(
    pretrained: Pretrained,
    prompt: str | Sequence[int],
    sampling: Sampling | None = None,
    *,
    max_tokens: int = 200,
    stop: Sequence[str] = (),
    end_ids: Collection[int] | None = None,
    compiled: bool | Literal["auto"] = "auto",
    draft: Draft | None = None,
) -> Iterator[str]:
    """The text of the first completion of a prompt, or of its ids, piece by piece as it becomes certain."""
    _check(stop, 1, None)
    tokenizer = pretrained.tokenizer
    text = Text(tokenizer.decode_stream(), stop)
    ends = {tokenizer.end_id} if end_ids is None else end_ids
    events = _events(
        pretrained.model, [encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt],
        sampling=sampling or Sampling(),
        max_tokens=max_tokens, end_ids=ends, **_how(compiled, draft),
    )  # fmt: skip
    for event in events:
        piece = "" if event.finished == "end" else text.push(event.token)
        if piece:
            yield piece
        if text.stopped:
            return
    if rest := text.flush():
        yield rest


# --- by beams -----------------------------------------------------------------------------------------------------


def complete_by_beams(
    pretrained: Pretrained,
    prompts: Sequence[str],
    beams: Beams,
    *,
    max_tokens: int = 200,
    n: int = 1,
    end_ids: Collection[int] | None = None,
    batch: int = 16,
) -> list[list[Completion]]:
    """The n most probable completions of each prompt that beams find, best first.

    Beams do not outgrow the context: a prompt that leaves too little room is cut, to half of the context at most, and
    a completion ends with the context at the latest. end_ids, batch: as in `complete`.
    Errors: UsageError for counts out of bounds; NextileError when the model predicts NaN.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}: ask for at least 1")
    ends = {pretrained.tokenizer.end_id} if end_ids is None else end_ids
    found: list[list[Completion]] = []
    for start in range(0, len(prompts), batch):
        found += _beamed(pretrained, prompts[start : start + batch], beams, max_tokens, n=n, end_ids=ends)
    return found


def _beams_read(context: int, max_tokens: int) -> int:
    """How many tokens of a prompt are read: what is left of the context, and half of it at least."""
    room = context + 1  # the last token is written without being read
    return max(room - max_tokens, room // 2)


def beam_window(tokens: list[int], context: int, max_tokens: int) -> tuple[list[int], int]:
    """What of a prompt's tokens beams read, and how many tokens they write at most."""
    window = tokens[-_beams_read(context, max_tokens) :]
    return window, min(max_tokens, context + 1 - len(window))


def _beamed(
    pretrained: Pretrained, prompts: Sequence[str], beams: Beams, max_tokens: int, **settings: Any
) -> list[list[Completion]]:
    model, tokenizer = pretrained.model, pretrained.tokenizer
    whole = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    check_ids(whole, model.spec.embed.vocab)
    read = _beams_read(model.spec.context, max_tokens)
    windows, limits = zip(*(beam_window(tokens, model.spec.context, max_tokens) for tokens in whole), strict=True)
    reader = EagerReader(model, max(len(window) + limit for window, limit in zip(windows, limits, strict=True)) - 1)
    with evaluating(model):
        found = beam_search(reader, windows, beams, limits=limits, **settings)

    def completion(prompt: str, tokens: int, text: Hypothesis) -> Completion:
        note, score = _cut_note(tokens, read), text.score
        return Completion(prompt, tokenizer.decode(text.tokens), text.tokens, text.finished, note=note, score=score)

    return [
        [completion(prompt, len(tokens), text) for text in texts]
        for prompt, tokens, texts in zip(prompts, whole, found, strict=True)
    ]
