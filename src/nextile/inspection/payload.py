"""An inspection as a JSON-able dict for a page: arrays packed, and what is too large left out by a rule that is said.

Nothing is rounded by more than 1e-5: weights are whole numbers of 1/65535, all else float32.
Shapes: L layers, H heads, Q queries, K keys, T positions, D width, E head width, R ranks, V tokens.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nextile.base.errors import UsageError
from nextile.inspection.look import Inspection
from nextile.inspection.look_pictures import PictureLook
from nextile.inspection.neighbours import near
from nextile.inspection.pieces import Piece
from nextile.inspection.stack import within
from nextile.inspection.wordmap import make_map
from nextile.models import count

VERSION = 1
STEPS = 65535  # of a weight
WEIGHTS = 480_000  # base64 characters for the weights of all heads, of all stacks together
HEADS = 330_000  # and for queries, keys and values
GLANCE = 24  # rows and columns at most of the small picture of a head whose weights are left out
SHOWN = 64  # numbers of an embedding
TOP = 5  # tokens of a lens, and that a neuron speaks for
ACTIVE = 5  # neurons of a position
PROMOTED = 320  # neurons of which it is said what they speak for
TOGETHER = 16  # of these, at a time
LIKELIEST = 200  # tokens of a distribution by name
TAIL = 16_384  # groups at most of the others
NEAR = 8  # neighbours of a piece
WIDE = 30  # and of a word on its map
CROWD = 160  # words of a map
GAPS = 4  # gaps of which the distribution is told

Payload = dict[str, Any]


# --- arrays ---------------------------------------------------------------------------------------------------------


def floats(values: Any) -> Payload:
    """An array as float32."""
    array = np.ascontiguousarray(values, "<f4")
    return {"shape": list(array.shape), "type": "f4", "data": _text(array)}


def wholes(values: Any) -> Payload:
    """An array of whole numbers from 0 to 2**32 - 1."""
    array = np.ascontiguousarray(values, "<u4")
    return {"shape": list(array.shape), "type": "u4", "data": _text(array)}


def shares(values: Any) -> Payload:
    """An array of numbers from 0 to 1, to 1/131070; of squares with nothing above the diagonal the rest alone."""
    array = np.asarray(values, np.float64)
    steps = np.rint(np.clip(np.nan_to_num(array), 0, 1) * STEPS).astype("<u2")
    packed: Payload = {"shape": list(array.shape), "type": "u2"}
    if array.ndim >= 2 and array.shape[-1] == array.shape[-2] and not np.triu(steps, 1).any():
        steps = np.ascontiguousarray(steps[..., *np.tril_indices(array.shape[-1])])
        packed["lower"] = True
    return packed | {"data": _text(steps)}


def flags(values: Any) -> Payload:
    """An array of booleans, eight in a byte."""
    array = np.asarray(values, bool)
    return {"shape": list(array.shape), "type": "bits", "data": _text(np.packbits(array.ravel(), bitorder="little"))}


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


# --- heads ----------------------------------------------------------------------------------------------------------


def pointed(weights: np.ndarray, causal: bool) -> np.ndarray:
    """How much each head looks at single tokens that are neither the first nor the query's own, (L, H).

    weights (L, H, Q, K). Many heads rest on the first token (Xiao et al. 2024), which shows nothing.
    """
    elsewhere = weights.copy()
    if weights.shape[-1] > 2 and causal:
        elsewhere[..., 0] = 0
        elsewhere[..., np.arange(weights.shape[-2]), np.arange(weights.shape[-1])] = 0
    return elsewhere.max(axis=-1).mean(axis=-1)


def shaped(weights: np.ndarray) -> np.ndarray:
    """How near each head comes to looking at a twelfth of a picture, where a shape is seen best, (L, H)."""
    spread = -np.where(weights > 0, weights * np.log(np.maximum(weights, 1e-30)), 0).sum(-1).mean(-1)  # nats, (L, H)
    return -np.abs(spread - np.log(max(2.0, weights.shape[-1] / 12)))


def is_causal(weights: np.ndarray) -> bool:
    """Whether no query of a square sees what comes after it."""
    return weights.shape[-1] == weights.shape[-2] and not np.triu(weights, 1).any()


def head_part(inspection: Inspection, which: str, layer: int, head: int) -> Payload:
    """What a page needs to reckon one head: Q (Q, E), K and V (K, E), the mask, and what else makes the scores."""
    found = inspection.head(layer, head, which)
    hidden = np.asarray(found.hidden)
    square = hidden.shape[0] == hidden.shape[1]
    part: Payload = {"which": which, "layer": layer, "head": head, "scale": found.scale, "rotated": found.rotated}
    part |= {name: floats(getattr(found, name)) for name in ("queries", "keys", "values")}
    part["hidden"] = "causal" if square and (hidden == ~np.tri(len(hidden), dtype=bool)).all() else flags(hidden)
    part |= {"cap": found.cap, "bias": None if found.bias is None else floats(found.bias)}
    return part | {"weights": shares(found.weights)}


class Opening:
    """The stack, layer, head and query that a page opens with: what is asked for, else what is worth a look."""

    def __init__(self, inspection: Inspection, which: str | None, layer: int | None, head: int | None):
        """Errors: UsageError for an attention, a layer or a head that there is not."""
        self._inspection = inspection
        self.which = which or ("cross" if "cross" in inspection.which else "self")
        depth = inspection.depth(self.which)
        self._layer = None if layer is None else within(layer, depth, "layer")
        self._head = None if head is None else within(head, inspection.heads(self.which), "head")

    @cached_property
    def place(self) -> tuple[int, int]:
        """Layer and head: the best of those that were not ruled out."""
        score = self.scores(self.which)
        layers = range(len(score)) if self._layer is None else [self._layer]
        heads = range(score.shape[1]) if self._head is None else [self._head]
        return max(((layer, head) for layer in layers for head in heads), key=lambda place: score[place])

    def scores(self, which: str) -> np.ndarray:
        """How much each head is worth a look, (L, H)."""
        weights = np.asarray(self._inspection.weights(which))
        if isinstance(self._inspection, PictureLook):
            return shaped(weights)
        return pointed(weights, which != "cross" and is_causal(weights))

    @cached_property
    def query(self) -> int:
        """The last position where the model writes, a gap where it fills them, a summary or the middle of a picture."""
        look, weights = self._inspection, self._inspection.weights(self.which)
        queries = weights.sizes["query"]
        if isinstance(look, PictureLook):
            return 0 if look.kind == "classify" and look.summaries else queries // 2 + look.grid[1] // 2
        if self.which == "cross":
            return queries // 2
        gaps = gaps_of(look)
        return gaps[0] if gaps else queries - 1

    def order(self) -> list[tuple[str, int, int]]:
        """All heads: the chosen one, then the best of each layer, stack by stack, then the others."""
        ranked: list[tuple[int, float, str, int, int]] = []
        for which in self._inspection.which:
            for layer, row in enumerate(self.scores(which)):
                best = np.argsort(-row, kind="stable").tolist()
                ranked += [(rank, -float(row[head]), which, layer, head) for rank, head in enumerate(best)]
        chosen = (self.which, *self.place)
        return [chosen, *(each[2:] for each in sorted(ranked) if each[2:] != chosen)]


def gaps_of(inspection: Inspection) -> list[int]:
    """The positions of the gaps in a text; none where there are none to be filled."""
    if inspection.kind != "masked":
        return []
    mask = inspection.pretrained.tokenizer.mask_id
    return [place for place, each in enumerate(inspection.pieces) if each.id == mask]


# --- the parts ------------------------------------------------------------------------------------------------------


class Writer:
    """The parts of a payload, one by one; `words` are the tokens that they name, `left_out` what they lack.

    Those that take many forward passes are generators, of which each `next` is one, or a few.
    """

    def __init__(self, inspection: Inspection, choice: Opening | None, max_tokens: int, beams: int):
        self.look, self.choice, self.max_tokens, self.beams = inspection, choice, max_tokens, beams
        self.words: dict[int, str] = {}
        self.kept: set[tuple[str, int]] = set()  # the layers whose weights are there
        self.left_out: list[str] = []

    def part(self, name: str) -> Generator[None, None, Any]:
        """The part of this name."""
        made = getattr(self, name)()
        return (yield from made) if isinstance(made, Generator) else made

    # --- attention ---

    def weights(self) -> Payload:
        """Of each stack the weights of all heads of as many layers as there is room for."""
        found = {which: self._weights(which) for which in self.look.which}
        self.kept = {(which, layer) for which, each in found.items() for layer in each["layers"]}
        return found

    def _weights(self, which: str) -> Payload:
        whole = np.asarray(self.look.weights(which))  # (L, H, Q, K)
        depth, each = len(whole), len(shares(whole[-1])["data"])
        layers = self._spread(which, depth, WEIGHTS // len(self.look.which) // each)
        found: Payload = {"layers": layers, "values": shares(whole[layers])}
        if len(layers) < depth:
            self.left_out.append(f"the weights of {depth - len(layers)} of {depth} layers ({which})")
            found["glance"] = shares(self._glance(whole))
        return found

    def _glance(self, whole: np.ndarray) -> np.ndarray:
        """Of all heads less: of a picture the row of the query (L, H, 1, K), else the largest of each small square."""
        assert self.choice is not None
        if isinstance(self.look, PictureLook):
            return whole[:, :, self.choice.query : self.choice.query + 1]
        starts = [
            np.unique(np.linspace(0, size, min(size, GLANCE), endpoint=False).astype(int)) for size in whole.shape[2:]
        ]
        return np.maximum.reduceat(np.maximum.reduceat(whole, starts[0], axis=2), starts[1], axis=3)

    def _spread(self, which: str, depth: int, room: int) -> list[int]:
        """So many layers: the chosen one, and others at equal distances."""
        assert self.choice is not None
        chosen = self.choice.place[0] if which == self.choice.which else depth - 1
        evenly = np.linspace(0, depth - 1, max(0, min(room, depth))).round().astype(int).tolist()
        if evenly and chosen not in evenly:
            evenly[int(np.argmin([abs(each - chosen) for each in evenly]))] = chosen
        return sorted(set(evenly))

    def heads(self) -> Generator[None, None, list[Payload]]:
        """Queries, keys and values of as many heads as there is room for, the chosen one in any case."""
        assert self.choice is not None
        order, room, parts = self.choice.order(), HEADS, list[Payload]()
        for which, layer, head in order:
            part = head_part(self.look, which, layer, head)
            room -= sum(len(part[name]["data"]) for name in ("queries", "keys", "values"))
            if room < 0 and parts:
                break
            if (which, layer) in self.kept:
                del part["weights"]  # which are there already
            parts.append(part)
            yield
        if len(parts) < len(order):
            self.left_out.append(f"queries, keys and values of {len(order) - len(parts)} of {len(order)} heads")
        return parts

    def rollout(self) -> Payload:
        """Of each stack whose tokens look at each other."""
        return {which: shares(self.look.rollout(which)) for which in self.look.which if which != "cross"}

    # --- vectors ---

    def embedding(self) -> Payload:
        """Of each stack's tokens and positions the first numbers."""
        return {which: self._embedding(which) for which in self._stacks or ["self"]}

    def _embedding(self, which: str) -> Payload:
        found = self.look.embedding(which)
        entered, together = np.asarray(found.entered), np.asarray(found.sum)
        first = {name: None if (v := getattr(found, name)) is None else floats(np.asarray(v)[:, :SHOWN])
                 for name in ("tokens", "positions")}  # fmt: skip
        normed = floats(entered[:, :SHOWN]) if np.abs(entered - together).max(initial=0) > 1e-6 else None
        return first | {"entered": normed, "of": together.shape[1], "shown": min(SHOWN, together.shape[1])}

    @property
    def _stacks(self) -> list[str]:
        """One name for each stack: the cross-attention is in the decoder's."""
        return [which for which in self.look.which if which != "cross"]

    def stream(self) -> Payload:
        """Of each stack the lengths of the stream's vectors (L + 1, T), and of what each part adds (L, P, T)."""
        return {which: self._stream(which) for which in self._stacks}

    def _stream(self, which: str) -> Payload:
        whole = np.asarray(self.look.stream(which), np.float64)  # (L + 1, T, D)
        lengths = np.linalg.norm(whole, axis=-1)
        last = whole[-1] / np.maximum(lengths[-1], 1e-30)[:, None]
        like = (whole * last).sum(-1) / np.maximum(lengths, 1e-30)  # (L + 1, T): the cosine to the last layer
        parts = [part.replace("_", "-") for part in self.look.parts(which)]
        added, norm = floats(self.look.added(which)), self.look.norm_place(which)
        return {"lengths": floats(lengths), "added": added, "parts": parts, "like": floats(like), "norm": norm}

    # --- predictions ---

    def lens(self) -> Payload:
        """What each layer would have said."""
        found = self.look.lens(TOP)
        ids = np.asarray(found.ids)
        self._name(ids.ravel().tolist())
        return {"ids": wholes(ids), "probabilities": floats(found.probabilities),
                "rank": floats(found.rank)}  # fmt: skip

    def neurons(self) -> Generator[None, None, Payload]:
        """The strongest neurons of each position, and what those of the likeliest places of interest speak for."""
        found = self.look.neurons(ACTIVE)
        indices = np.asarray(found.indices)  # (L, T, R)
        asked = self._of_interest(indices)
        said: dict[str, Any] = {}
        for number, (layer, neuron) in enumerate(asked):
            each = found.promotes(layer, neuron, TOP)
            self.words |= {token: text for token, text, _ in each}
            said[f"{layer}.{neuron}"] = [[token, round(score, 5)] for token, _, score in each]
            if number % TOGETHER == 0:
                yield
        return {"indices": wholes(indices), "activations": floats(found.activations), "promotes": said}

    def _of_interest(self, indices: np.ndarray) -> list[tuple[int, int]]:
        """Neurons (layer, number), those of the chosen position first, then those of the last ones."""
        chosen = [self.choice.query] if self.choice and self.choice.which != "encoder" else []
        positions = [*chosen, *gaps_of(self.look), *range(indices.shape[1] - 1, -1, -1)]
        places = ((layer, int(n)) for place in positions for layer, row in enumerate(indices[:, place]) for n in row)
        every = list(dict.fromkeys(places))
        if len(every) > PROMOTED:
            self.left_out.append(f"what {len(every) - PROMOTED:,} of {len(every):,} neurons speak for")
        return every[:PROMOTED]

    def distributions(self) -> list[Payload]:
        """The whole distribution of what comes next, or of each gap."""
        logits = np.asarray(self.look.logits)  # (T, V)
        places = gaps_of(self.look)[:GAPS] or [
            self.choice.query if self.look.kind == "paint" and self.choice else len(logits) - 1
        ]
        return [{"position": place} | self._distribution(logits[place]) for place in places]

    def _distribution(self, logits: np.ndarray) -> Payload:
        """The likeliest tokens by name; of the others, in groups of neighbours, the log-mean-exp."""
        logits = logits.astype(np.float64) - logits.max()
        order = np.argsort(-logits, kind="stable")
        first, rest = order[:LIKELIEST], logits[order[LIKELIEST:]]
        self._name(first.tolist())
        size = max(1, -(-len(rest) // TAIL))
        groups = [rest[begin : begin + size] for begin in range(0, len(rest), size)]
        means = [float(np.log(np.exp(group - group[0]).mean()) + group[0]) for group in groups]
        return {"ids": first.tolist(), "logits": floats(logits[first]), "others": floats(means),
                "size": size, "count": len(logits)}  # fmt: skip

    def steps(self) -> list[Payload]:
        """The decoding step by step, the likeliest each time."""
        return [
            {"id": step.id, "text": step.text, "logprob": step.logprob, "entropy": step.entropy,
             "alternatives": [[token, text, logprob] for token, text, logprob in step.alternatives]}
            for step in self.look.steps(self.max_tokens)
        ]  # fmt: skip

    def beam(self) -> Payload:
        """The tree of beams."""
        tree = self.look.beam(self.beams, self.max_tokens)
        rounds = [[vars(node) for node in looked] for looked in tree.rounds]
        return {"rounds": rounds, "texts": [vars(text) for text in tree.texts]}

    def _name(self, ids: Iterable[int]) -> None:
        self.words |= {index: self.look.token_text(index) for index in ids if index not in self.words}

    def classes(self) -> list[Payload]:
        """Classes with their probabilities, likeliest first."""
        return [{"text": name, "probability": share} for name, share in self.look.classes]

    def neighbours(self) -> list[Payload]:
        """Of each piece the words whose vectors point as its own does; of pieces that have none nothing."""
        found = self.look.neighbours(NEAR)
        return [{"text": text, "near": [[word, cosine] for word, cosine in near]} for text, near in found]

    def map(self) -> Payload:
        """Where the words, their neighbours and those of these lie, the closest ones together."""
        words = list(dict.fromkeys(self._crowd()))[:CROWD]
        drawn = make_map(self.look.lookup, words)  # type: ignore[attr-defined]
        return {"words": list(drawn.words), "places": floats(drawn.places), "clusters": drawn.clusters.tolist(),
                "beside": drawn.beside.tolist(), "asked": len(self.look.pieces)}  # fmt: skip

    def _crowd(self) -> Iterator[str]:
        lookup = self.look.lookup  # type: ignore[attr-defined]
        found = [(piece.text, near(lookup, piece.text, WIDE)) for piece in self.look.pieces]
        yield from (text for text, _ in found)
        yield from (word for _, those in found for word, _ in those)
        yield from lookup.table.words[:CROWD]


# --- the whole ------------------------------------------------------------------------------------------------------

ATTENTION = ("weights", "heads", "rollout", "embedding", "stream", "lens", "neurons")
WRITTEN = (*ATTENTION, "distributions", "steps", "beam", "neighbours")
# What there is to see, by what a model is for.
PARTS: dict[str, tuple[str, ...]] = {
    "lm": WRITTEN,
    "translate": WRITTEN,
    "denoise": WRITTEN,
    "masked": (*ATTENTION, "distributions", "neighbours"),
    "classify": (*ATTENTION, "classes"),
    "classify-text": (*ATTENTION, "classes"),
    "paint": (*ATTENTION, "distributions"),
    "words": ("embedding", "neighbours", "map"),
}


def payload(
    inspection: Inspection, *, which: str | None = None, layer: int | None = None, head: int | None = None,
    max_tokens: int = 12, beams: int = 4, advance: Callable[[], None] = lambda: None,
) -> Payload:  # fmt: skip
    """All that a page shows of an inspection, packed.

    which, layer, head: what the page opens with; None: what is worth a look (`Opening`).
    max_tokens, beams: of the decoding. advance: called after each of the `PARTS` of its kind.
    Errors: UsageError for an attention, a layer or a head that there is not.
    """
    work = payload_by_parts(
        inspection, which=which, layer=layer, head=head, max_tokens=max_tokens, beams=beams, advance=advance
    )  # fmt: skip
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def payload_by_parts(
    inspection: Inspection, *, which: str | None, layer: int | None, head: int | None, max_tokens: int, beams: int,
    advance: Callable[[], None] = lambda: None,
) -> Generator[None, None, Payload]:  # fmt: skip
    """The same as a generator, of which each `next` is a part or less: in a server others have their turns between."""
    asked = (which, layer, head) != (None, None, None)
    choice = Opening(inspection, which, layer, head) if inspection.which or asked else None
    writer = Writer(inspection, choice, max_tokens, beams)
    found = _introduction(inspection, choice)
    for name in PARTS[inspection.kind]:
        try:
            found[name] = yield from writer.part(name)
        except UsageError as error:  # a model that lacks one thing has the others
            writer.left_out.append(str(error))
        advance()
        yield
    return found | {"words": {str(index): text for index, text in writer.words.items()}, "leftOut": writer.left_out}


def _introduction(inspection: Inspection, choice: Opening | None) -> Payload:
    """What is looked at, and what of it is chosen."""
    pretrained = inspection.pretrained
    found: Payload = {
        "version": VERSION, "kind": inspection.kind, "which": list(inspection.which), "picture": _picture(inspection),
        "model": {"name": "" if pretrained.folder is None else pretrained.folder.name, "family": pretrained.family,
                  "parameters": count.parameters(pretrained.spec).total},
        "pieces": _pieces(inspection.pieces), "target": _pieces(inspection.target_pieces) or None,
        "stacks": {which: _stack(inspection, which) for which in inspection.which},
    }  # fmt: skip
    if choice is not None:
        layer, head = choice.place
        found["chosen"] = {"which": choice.which, "layer": layer, "head": head, "query": choice.query}
    return found


def _pieces(pieces: Sequence[Piece]) -> list[Payload]:
    return [{"id": each.id, "text": each.text, "merges": each.merges} for each in pieces]


def _stack(inspection: Inspection, which: str) -> Payload:
    paired = "cross" in inspection.which
    sides = {"self": ("target", "target") if paired else ("pieces", "pieces"), "encoder": ("pieces", "pieces"),
             "cross": ("target", "pieces")}  # fmt: skip
    queries, keys = sides[which]
    return {"depth": inspection.depth(which), "heads": inspection.heads(which), "queries": queries, "keys": keys}


def _picture(inspection: Inspection) -> Payload | None:
    """The pixels as the model sees them, uint8 (H, W, 3)."""
    if not isinstance(inspection, PictureLook):
        return None
    pixels = inspection.picture
    wide = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), np.uint8)
    return {"height": wide.shape[0], "width": wide.shape[1], "data": _text(wide), "grid": list(inspection.grid),
            "summaries": inspection.summaries}  # fmt: skip
