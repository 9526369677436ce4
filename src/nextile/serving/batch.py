"""Many texts, a round at a time: what each reads next, where its keys lie, which token it writes.

Shapes: N tokens of a round, R texts that write one, D width, V vocabulary.

A round is one batch of tokens (Yu et al. 2022, Orca): the last of each text that is being written, and beside them at
most `chunk` of prompts, so that a long prompt holds nobody up (Agrawal et al. 2023, Sarathi). Texts come and go between
rounds. When pages run out the youngest text gives its own back and reads again when there is room: of a text all but
its tokens can be computed anew. What a text writes depends on nothing beside it.
"""

from __future__ import annotations

import math
import secrets
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from nextile.base.device import memory_available
from nextile.base.errors import NextileError, UsageError
from nextile.generation.decode import (
    Emitted,
    Ending,
    LanguageModel,
    Row,
    check_ids,
    is_plain,
    most_probable,
    seen_tokens,
    token_counts,
    withhold,
)
from nextile.generation.sample import Sampling, next_token, point, random_stream
from nextile.nn import specs
from nextile.nn.linear import Packed
from nextile.nn.paged import Key, PagedCache, Piece, bytes_a_token, chained
from nextile.serving.solo import Solo, can_be_compiled

Tell = Callable[[Any], object]  # is told an Emitted, or the error that ends the text


@dataclass(frozen=True)
class Request:
    """What to write after a prompt; the names mean what they do in `generation.decode.decode`."""

    prompt: Sequence[int]
    sampling: Sampling
    max_tokens: int
    end_ids: Collection[int] = ()
    alternatives: int = 0
    stream: int = 0
    stop: Callable[[int], bool] | None = None  # told of every token but end tokens; True ends the text
    min_tokens: int = 0  # end tokens are impossible before

    def ending(self) -> Ending:
        """When the text is over."""
        stop = self.stop
        told = None if stop is None else lambda row, token: stop(token)
        return Ending(self.max_tokens, frozenset(self.end_ids), told, self.min_tokens)


# --- a text -------------------------------------------------------------------------------------------------------


class Text:
    """A request as it is written."""

    def __init__(self, request: Request, tell: Tell, context: int):
        seed = secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed
        self.request, self.tell, self.ending = request, tell, request.ending()
        self.row = Row(0, list(request.prompt), context)
        self.random = random_stream(seed, request.stream)
        self.alike = request.sampling.model_copy(update={"seed": None}).model_dump_json()  # who can be drawn together
        self.number = -1  # in the order of arrival
        self.cancelled = False
        self.first = len(self.row.window)  # tokens of the window that nothing was written between
        self.forget()

    def forget(self) -> None:
        """Nothing of the window has been read."""
        self.pages = list[int]()
        self.there = 0  # tokens whose keys are there
        self.known = 0  # pages that others may share
        self.shared = 0  # tokens that others had read
        self._keys: list[Key] = []

    @property
    def left(self) -> int:
        """How many tokens of the window are to be read before the next is written; 1 while a text is being written."""
        return len(self.row.window) - self.there

    def key(self, index: int, page: int) -> Key:
        """Of the page of this number, of `page` tokens."""
        while len(self._keys) <= index:
            start = len(self._keys) * page
            before = self._keys[-1] if self._keys else b""
            self._keys.append(chained(before, self.row.window[start : start + page]))
        return self._keys[index]


# --- how large ----------------------------------------------------------------------------------------------------


def is_writer(model: Any) -> bool:
    """Whether a model writes text token by token."""
    spec = getattr(model, "spec", None)
    return isinstance(spec, specs.Transformer) and spec.stack.causal


def depends_on_length(spec: specs.Transformer) -> bool:
    """Whether the keys of a text's beginning are others in a longer text, so that it must be read in one piece."""
    local = spec.stack.local
    positions = [spec.stack.position, local.position if local else None]
    scalings = [position.scaling for position in positions if isinstance(position, specs.Rotary)]
    return any(isinstance(scaling, specs.DynamicScaling | specs.LongScaling) for scaling in scalings)


def pages_for(model: LanguageModel, rows: int, page: int, memory: int | None) -> int:
    """How many pages fit in `memory` bytes; None: what `rows` texts of full length need, or a quarter of what is free.

    Errors: UsageError for memory that does not hold a page.
    """
    each = bytes_a_token(model.new_cache(1, 1)) * page
    context = -(-model.spec.context // page)
    if memory is None:
        free = memory_available(next(model.parameters()).device) // 4
        return max(context, min(rows * context, free // each))
    if memory < each:
        raise UsageError(f"{memory:,} bytes do not hold a page of {page} tokens, {each:,} bytes: give more memory")
    return memory // each


# --- many texts ---------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What a batch has done so far."""

    written: int = 0  # tokens
    read: int = 0  # tokens of prompts
    reused: int = 0  # tokens of prompts that others had read
    steps: int = 0


class Batch:
    """Texts that are written side by side, at most `rows`; for one thread.

    A round reads at most `chunk` tokens of prompts. The pages of `page` tokens are allocated once. compiled: a text
    that is alone is written by a compiled step, as soon as there is one.
    """

    def __init__(
        self, model: LanguageModel, *, rows: int, pages: int, page: int, chunk: int, compiled: bool = False
    ):  # fmt: skip
        self.model, self.rows, self.page, self.chunk = model, rows, page, chunk
        self.cache = PagedCache(model.new_cache(1, 1), pages, page)
        self.device = self.cache.device
        self.whole = depends_on_length(model.spec)
        self.waiting: deque[Text] = deque()
        self.active: list[Text] = []  # the oldest first
        self.counts = Counts()
        self._packed = Packed(cast(nn.Module, model)) if rows > 1 else None
        self._solo = Solo(model, self.cache) if compiled and can_be_compiled(self.device.type) else None
        self._reading: deque[Text] = deque()  # whose turn it is to read a prompt
        self._arrived = 0

    # --- coming and going ---

    def check(self, request: Request) -> None:
        """Errors: NextileError for ids that the model does not know and for a text that can never fit; UsageError for
        counts out of bounds."""
        vocab, context = self.model.spec.embed.vocab, self.model.spec.context
        check_ids([request.prompt], vocab)
        request.ending().check(vocab)
        if request.alternatives < 0:
            raise UsageError(f"alternatives is {request.alternatives}: give 0 or more")
        longest = min(context, len(request.prompt) + request.max_tokens - 1)  # the last token is never read
        room = self.cache.pages.total * self.page
        if longest > room:
            raise NextileError(
                f"the text may have {longest:,} tokens and there is memory for {room:,}: ask for fewer tokens"
            )

    def add(self, text: Text) -> None:
        """It waits for its turn."""
        text.number, self._arrived = self._arrived, self._arrived + 1
        self.waiting.append(text)

    def drop_cancelled(self) -> None:
        """Free rows and pages of texts that nobody wants any more."""
        for text in [text for text in self.active if text.cancelled]:
            self._leave(text)
        if any(text.cancelled for text in self.waiting):
            self.waiting = deque(text for text in self.waiting if not text.cancelled)

    def fail(self, error: BaseException) -> None:
        """End the texts that are being written: a round of theirs went wrong."""
        for text in list(self.active):
            self._end(text, error)

    def __len__(self) -> int:
        return len(self.active) + len(self.waiting)

    @property
    def pages_used(self) -> int:
        """How many pages texts look at now; those kept for texts to come are free to be taken."""
        return self.cache.pages.total - self.cache.pages.available

    def _leave(self, text: Text) -> None:
        self.cache.pages.release(text.pages)
        text.forget()
        self.active.remove(text)
        if text in self._reading:
            self._reading.remove(text)

    def _put_back(self, text: Text) -> None:
        """It waits again, before all others, and will be read again."""
        self._leave(text)
        self.waiting.appendleft(text)

    def _admit(self) -> None:
        """Take in who waits, in order, as far as there are rows and pages for what all of them still have to read."""
        pages = self.cache.pages
        promised = sum(self._pages_to_read(text) for text in self.active)
        while self.waiting and len(self.active) < self.rows:
            text = self.waiting[0]
            self._reuse(text)
            needed = self._pages_to_read(text)
            growth = sum(map(self._may_grow, self.active))  # a page for each, so that not the next round puts one back
            if self.active and promised + needed + growth > pages.available:
                pages.release(text.pages)
                text.forget()
                return
            promised += needed
            self.active.append(self.waiting.popleft())
            self.active.sort(key=lambda text: text.number)

    def _may_grow(self, text: Text) -> bool:
        """Whether a text may come to need a page that it has not."""
        longest = len(text.row.window) + text.request.max_tokens - text.row.count - 1  # the last is never read
        return min(self.model.spec.context, longest) > len(text.pages) * self.page

    def _pages_to_read(self, text: Text) -> int:
        return max(0, -(-len(text.row.window) // self.page) - len(text.pages))

    # --- what a round reads ---

    def _reuse(self, text: Text) -> None:
        """Take the pages that others have read already, but for the last token, whose successor is asked."""
        while not self.whole and text.there % self.page == 0 and text.left > self.page:
            index = text.there // self.page
            page = self.cache.pages.share(text.key(index, self.page))
            if page is None:
                return
            text.pages.append(page)
            text.there, text.known = text.there + self.page, index + 1
            text.shared += self.page

    def _wanted(self) -> dict[Text, int]:
        """How many tokens each text reads in this round, none of which another reads for it."""
        wanted = {text: 1 for text in self.active if text.left == 1}
        room, coming = self.chunk, set[Key]()
        self._reading += [text for text in self.active if text.left > 1 and text not in self._reading]
        for text in list(self._reading):
            self._reuse(text)
            count = self._share_of(text, room)
            keys = self._filled(text, count)
            if text.left == 1 or count == 0 or (keys and keys[0] in coming):
                continue
            wanted[text], room = count, room - count
            coming.update(keys)
            self._reading.remove(text)
            if text.left > count:
                self._reading.append(text)  # the others first
        self._reading = deque(text for text in self._reading if text.left > 1)
        return wanted

    def _share_of(self, text: Text, room: int) -> int:
        """How much of a prompt is read where there is room for so many tokens: all the rest, or up to a page's end.

        Where keys hang on the length of the text, what was read in one piece, or token by token, is so read again.
        """
        if self.whole:
            rest = text.first - text.there
            return 1 if rest <= 0 else rest if room == self.chunk else 0
        if text.left <= room:
            return text.left
        return max(0, (text.there + room) // self.page * self.page - text.there)

    def _filled(self, text: Text, count: int) -> list[Key]:
        """The pages that are full when so many tokens more are there."""
        if self.whole:
            return []
        return [
            text.key(index, self.page) for index in range(text.there // self.page, (text.there + count) // self.page)
        ]

    def _with_pages(self, wanted: dict[Text, int]) -> dict[Text, int]:
        """Take the pages that are needed, for the older texts from the younger where there are none."""
        taken, found = list[int](), dict[Text, int]()
        for text in sorted(wanted, key=lambda text: text.number):
            if text not in self.active:
                continue  # put back for an older one
            while len(text.pages) * self.page < text.there + wanted[text] and text in self.active:
                page = self.cache.pages.take()
                if page is None:
                    self._put_back(self.active[-1])
                else:
                    text.pages.append(page)
                    taken.append(page)
            if text in self.active:
                found[text] = wanted[text]
        self.cache.clear(taken)
        return found

    # --- a round ---

    def round(self) -> None:
        """Read on, write a token of each text that has been read, tell."""
        self._admit()
        if self._is_alone():
            self._write_alone(self.active[0])
            return
        reading = self._with_pages(self._wanted())
        if not reading:
            return
        self.counts.steps += 1
        features = [features for call in self._calls(reading) for features in self._read(call)]
        for text, count in reading.items():
            text.there += count
            self.counts.read += count if text.row.count == 0 else 0
            self._know(text)
        ready = [(text, last) for text, last in features if text.left == 0]
        if ready:
            last = torch.stack([last for _, last in ready])[:, None]  # (R, 1, D)
            self._write([text for text, _ in ready], self.model.head(last)[:, 0].float())

    def _calls(self, reading: dict[Text, int]) -> Iterator[dict[Text, int]]:
        """What the model reads in one go: all of it, but for prompts that must be read in one piece."""
        alone = {text for text, count in reading.items() if count > 1} if self.whole else set[Text]()
        beside = {text: count for text, count in reading.items() if text not in alone}
        order = sorted(beside, key=lambda text: (beside[text] > 1, text.there))
        if beside:
            yield {text: beside[text] for text in order}
        for text in alone:
            yield {text: reading[text]}

    def _read(self, call: dict[Text, int]) -> list[tuple[Text, Tensor]]:
        """The features (D,) of each text's last token."""
        self.cache.place([Piece(text.pages, text.there, count) for text, count in call.items()])
        ids = [token for text, count in call.items() for token in text.row.window[text.there : text.there + count]]
        given = torch.tensor([ids] if self.whole and len(call) == 1 else ids, device=self.device)
        given = given if given.dim() == 2 else given[:, None]  # (1, N) or (N, 1)
        x = self.model.features(given, cache=self.cache).flatten(0, 1)  # (N, D)
        ends = torch.tensor(list(call.values())).cumsum(0) - 1
        return list(zip(call, x[ends.to(self.device)].unbind(0), strict=True))

    def _know(self, text: Text) -> None:
        """Full pages may be shared from now on."""
        for index in range(text.known, 0 if self.whole else text.there // self.page):
            self.cache.pages.know(text.pages[index], text.key(index, self.page))
            text.known = index + 1

    # --- alone ---

    def _is_alone(self) -> bool:
        """Whether a text is written by itself that can be written by the step."""
        if self._solo is None or len(self.active) != 1 or self.waiting:
            return False
        text = self.active[0]
        here = text.left == 1 or self._solo.holds(text, len(text.row.window) - 1)
        return here and text.row.count > 0 and self._solo.can_take(len(text.row.window))

    def _write_alone(self, text: Text) -> None:
        solo, window, sampling = self._solo, text.row.window, text.request.sampling
        assert solo is not None
        if not solo.holds(text, len(window) - 1):
            solo.take(text, text.pages, text.there, sampling.temperature)
        told = is_plain(sampling) and text.row.count >= text.ending.min_tokens
        drawing = told and sampling.temperature > 0.0
        logits, found = solo.follow(window[-1], point(text.random) if drawing else 0.0)
        self.counts.steps += 1
        self._catch_up(text)
        if told and math.isfinite(found.total):
            token = (found.drawn, found.drawn_logprob) if drawing else (found.best, found.best_logprob)
            totals = torch.full((1, 1), found.total, device=self.device)
            self._emit(text, *token, self._alternatives([text], logits, totals)[0])
        else:
            self._write([text], logits)

    def _catch_up(self, text: Text) -> None:
        """Bring the text's pages up to its last full one, as far as there is room."""
        assert self._solo is not None
        full = self._solo.there // self.page * self.page
        if full <= text.there:
            return
        while len(text.pages) * self.page < full:
            page = self.cache.pages.take()
            if page is None:
                return
            text.pages.append(page)
        self._solo.give_back(text.pages, text.there, full)
        text.there = full
        self._know(text)

    # --- writing ---

    def _write(self, texts: list[Text], logits: Tensor) -> None:
        """A token of each text from its logits (R, V)."""
        totals = logits.logsumexp(-1, keepdim=True)  # (R, 1)
        sound = totals[:, 0].isfinite().tolist()
        for text in [text for text, good in zip(texts, sound, strict=True) if not good]:
            self._end(text, NextileError("the model predicts NaN or infinity here: its weights are broken"))
        if not all(sound):
            texts, rows = [text for text, good in zip(texts, sound, strict=True) if good], torch.tensor(sound)
            logits, totals = logits[rows.to(self.device)], totals[rows.to(self.device)]
        if not texts:
            return
        chosen = self._choose(texts, logits)  # (R,)
        own = (logits.gather(-1, chosen[:, None]) - totals)[:, 0].tolist()
        best = self._alternatives(texts, logits, totals)
        for text, token, logprob, others in zip(texts, chosen.tolist(), own, best, strict=True):
            self._emit(text, token, logprob, others)

    def _choose(self, texts: list[Text], logits: Tensor) -> Tensor:
        """The tokens (R,), of those texts in one go whose tokens are drawn alike."""
        chosen = torch.empty(len(texts), dtype=torch.long, device=self.device)
        groups = dict[str, list[int]]()
        for place, text in enumerate(texts):
            groups.setdefault(text.alike, []).append(place)
        for places in groups.values():
            some, rows = [texts[place] for place in places], torch.tensor(places, device=self.device)
            mine = logits if len(places) == len(texts) else logits[rows]
            chosen[rows] = self._drawn(some, mine)
        return chosen

    def _drawn(self, texts: list[Text], logits: Tensor) -> Tensor:
        sampling, rows = texts[0].request.sampling, [text.row for text in texts]
        seen, counts = seen_tokens(rows, logits, sampling), token_counts(rows, logits, sampling)
        held = [text.row.count < text.ending.min_tokens for text in texts]
        for place in [place for place, is_held in enumerate(held) if is_held]:
            only = [number == place for number in range(len(texts))]
            logits = withhold(logits, only, texts[place].ending.end_ids)
        return next_token(logits, sampling, [text.random for text in texts], seen, counts)

    @staticmethod
    def _alternatives(texts: list[Text], logits: Tensor, totals: Tensor) -> list[tuple[tuple[int, float], ...]]:
        asked = [text.request.alternatives for text in texts]
        if not any(asked):
            return [()] * len(texts)
        best = most_probable(logits - totals, max(asked))
        return [some[:count] for some, count in zip(best, asked, strict=True)]

    def _emit(self, text: Text, token: int, logprob: float, others: tuple[tuple[int, float], ...]) -> None:
        self.counts.written += 1
        self.counts.reused += text.shared if text.row.count == 0 else 0
        text.row.add(token)
        try:
            reason = text.ending.reason(text.row, token)
        except Exception as error:  # its owner's
            self._end(text, error)
            return
        if not text.cancelled:
            text.tell(Emitted(0, token, logprob, others, reason))
        if reason is not None:
            self._leave(text)
        elif text.row.slide():
            self.cache.pages.release(text.pages)
            text.forget()
            text.first = len(text.row.window)

    def _end(self, text: Text, error: BaseException) -> None:
        self._leave(text)
        if not text.cancelled:
            text.tell(error)
