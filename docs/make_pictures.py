"""Makes the pictures of the lecture's pages from real models, which it trains on built-in data, or takes from a folder.

    python docs/make_pictures.py                        all; trains what is not in runs/lecture yet, half an hour
    python docs/make_pictures.py --models runs/lecture softmax beam_search

Each picture is a function of the models alone: the same models give the same picture.
Shapes: T tokens of a text, D width, H heads, L layers, V vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

import nextile
from nextile.data.corpora import open_corpus
from nextile.inspection.neighbours import near
from nextile.inspection.vectors import Lookup, open_vectors, word_vectors
from nextile.inspection.wordmap import make_map, picture
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import specs
from nextile.nn.attention import Place
from nextile.nn.position import RotaryPosition, sinusoid
from nextile.text import bpe
from nextile.text.build import train_tokenizer

HOUSE = Path(__file__).parents[1]
PLACE = HOUSE / "docs" / "lecture"
LARGEST = 80_000  # bytes of a picture,
WIDEST = 1_250  # and pixels
INK, FAINT, BLUE, RED, GREEN, ORANGE = "#1f2937", "#9ca3af", "#2563eb", "#be123c", "#15803d", "#c2410c"
HUES = ("#dbeafe", "#fde8d7", "#dcfce7", "#f3e8ff", "#ffe4e6", "#cffafe", "#fef3c7")  # behind text
STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 130,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.12,
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "image.interpolation": "nearest",
}
MONO = {"family": "DejaVu Sans Mono", "fontsize": 9}
CHARACTER = 0.602 * 9 / 72  # inches that a character of it takes
LAYER, HEAD = 3, 0  # of the GPT, where one is shown
TEXT = "The for statement is used to iterate over the elements of a sequence"

# --- the models -----------------------------------------------------------------------------------------------------

EXACT = {"threads": 1, "precision": "fp32", "compile": False}  # the same numbers each time
BPE = {**EXACT, "tokenizer.kind": "bpe", "tokenizer.size": 1024}
RECIPES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "gpt": (
        {"data": "python-docs", "preset": "gpt2", "steps": 1500},
        {**BPE, "model.stack.width": 128, "model.stack.depth": 4, "model.stack.attention.heads": 4},
    ),
    "masked": (
        {"data": "python-docs", "task": "masked", "steps": 2000},
        {**BPE, "model.stack.width": 128, "model.stack.depth": 3},
    ),
    "words": ({"data": "python-docs", "task": "words"}, {"threads": 1, "words.epochs": 40}),
    "translator": ({"data": "numbers-en-de", "steps": 1500}, {**EXACT, "tokenizer.size": 300}),
    "vit": (
        {"data": "digits", "preset": "vit", "steps": 600},
        {**EXACT, "model.stack.width": 64, "model.stack.depth": 4, "model.embed.patch": 2},
    ),
    "painter": (
        {"data": "digits", "task": "paint", "steps": 800},
        {**EXACT, "model.stack.width": 64, "model.stack.depth": 4},
    ),
}


class Models:
    """Trained models by name; one that the folder lacks is trained first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.get = cache(self._get)

    def _get(self, name: str) -> nextile.Model:
        place = self.folder / name
        if not (place / "model.safetensors").exists():
            what, settings = RECIPES[name]
            nextile.train(out=place, settings=settings, **what)  # type: ignore[arg-type]
        return nextile.load(place, device="cpu")

    def words(self) -> Lookup:
        """The word vectors."""
        self.get("words")
        return open_vectors(self.folder / "words")


def pieces(model: nextile.Model, ids: Sequence[int]) -> list[str]:
    """Tokens as they are shown: a space is ·, a line break ⏎."""
    tokenizer = model.tokenizer
    return [shown(tokenizer.bytes_of(index) or tokenizer.token(index).encode()) for index in ids]


def tame(text: str) -> str:
    """A token's text to be looked at."""
    return shown(text.encode())


def shown(data: bytes) -> str:
    """Bytes to be looked at."""
    return data.decode(errors="replace").replace(" ", "·").replace("\n", "⏎").replace("$", r"\$")


def logits_of(model: nextile.Model, ids: Sequence[int]) -> torch.Tensor:
    """(T,) -> (T, V)."""
    with torch.no_grad():
        return model.model(torch.tensor([list(ids)]))[0]


# --- how it is drawn ------------------------------------------------------------------------------------------------


def boxes(
    axes: Axes, words: Sequence[str], left: float, y: float, colours: Sequence[object], gap: float = 0.4
) -> list[float]:
    """Words in boxes in a row, in units of characters; the middle of each."""
    middles = []
    for word, colour in zip(words, colours, strict=True):
        width = len(word.replace("\\", "")) + 0.5
        axes.add_patch(plt.Rectangle((left, y - 0.42), width, 0.84, facecolor=colour))  # type: ignore[arg-type]
        axes.text(left + width / 2, y, word, ha="center", va="center", **MONO)
        middles.append(left + width / 2)
        left += width + gap
    return middles


def canvas(characters: float, lines: float, line: float = 0.21) -> tuple[Figure, Axes]:
    """An empty figure for text: so many characters wide, and lines high, the first of which is 0."""
    figure = plt.figure(figsize=(characters * CHARACTER, lines * line))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, characters), ylim=(lines - 0.5, -0.7))
    axes.axis("off")
    return figure, axes


def table(axes: Axes, values: np.ndarray, title: str, colours: str = "Blues", **rule: object) -> None:
    """A matrix as squares, with its shape below the title."""
    axes.imshow(values, cmap=colours, aspect="auto", **rule)  # type: ignore[arg-type]
    axes.set_title(f"{title}\n{' × '.join(map(str, values.shape))}")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def named(axes: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Tokens at both sides of a matrix."""
    axes.set_yticks(range(len(rows)), rows, **MONO)
    axes.set_xticks(range(len(columns)), columns, rotation=90, **MONO)
    axes.tick_params(length=0)


def written(figure: Figure | bytes, name: str) -> int:
    """Save a figure, or a PNG, as a PNG of few colours; its size in bytes. Errors: ValueError where it is too large."""
    file = BytesIO(figure if isinstance(figure, bytes) else b"")
    if isinstance(figure, Figure):
        figure.savefig(file, format="png")
        plt.close(figure)
    image = Image.open(file).convert("RGB")
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    image = image.quantize(200, dither=Image.Dither.NONE)
    path = PLACE / f"{name}.png"
    image.save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes and should have {LARGEST:,} at most")
    return path.stat().st_size


# --- text and tokens ------------------------------------------------------------------------------------------------


def language_model(models: Models) -> Figure:
    """What was expected at each place of a text, and how surprising came what did."""
    model = models.get("gpt")
    ids = model.tokenizer.encode(TEXT)
    chances = logits_of(model, ids).softmax(-1)
    names, best = pieces(model, ids), chances.topk(3)
    surprise = [-float(chances[place - 1, ids[place]].log()) for place in range(1, len(ids))]
    ramp = plt.get_cmap("Blues")
    words = [[f"{name} {chance:4.0%}" for name, chance in zip(pieces(model, row.tolist()), odds, strict=True)]
             for row, odds in zip(best.indices, best.values, strict=True)]  # fmt: skip
    height = len(ids)
    figure, axes = canvas(66, height + 1)
    for x, title in ((0, "token"), (17, "expected after those above it, with its probability")):
        axes.text(x, -0.3, title, color=FAINT)
    for place, name in enumerate(names):
        nats = surprise[place - 1] if place else 0.0
        boxes(axes, [name], 0, place + 0.8, [ramp(min(0.6, nats / 12))])
        if place:
            axes.text(14, place + 0.8, f"{nats:.1f}", va="center", ha="right", color=FAINT)
            right = [names[place] == word.rsplit(maxsplit=1)[0] for word in words[place - 1]]
            boxes(axes, words[place - 1], 17, place + 0.8, [HUES[2] if hit else "#f3f4f6" for hit in right])
    return figure


GAPS = {
    "An exception is raised if the argument is not a string.": ("·raised", "·the", "·not"),
    "A class is defined by a class definition and the names are bound.": ("·class", "·defined", "·names"),
}


def self_supervision(models: Models) -> Figure:
    """What a masked model puts into gaps."""
    model = models.get("masked")
    figure, axes = canvas(90, 10)
    for number, (text, gaps) in enumerate(GAPS.items()):
        ids, y = model.tokenizer.encode(text), 5.7 * number
        names = pieces(model, ids)
        places = [place for place, name in enumerate(names) if name in gaps]
        read = [model.tokenizer.mask_id if place in places else token for place, token in enumerate(ids)]
        best = logits_of(model, read).softmax(-1).topk(3)
        words = ["[MASK]" if place in places else name for place, name in enumerate(names)]
        middles = boxes(axes, words, 0, y, [HUES[1] if word == "[MASK]" else "#f3f4f6" for word in words], gap=1.0)
        for place in places:
            below(axes, middles[place], y, model, best.indices[place], best.values[place], ids[place])
    return figure


def below(
    axes: Axes, x: float, y: float, model: nextile.Model, tokens: torch.Tensor, chances: torch.Tensor, truth: int
) -> None:
    """What a gap is filled with, likeliest first, and what was there."""
    for rank, (token, name, chance) in enumerate(
        zip(tokens.tolist(), pieces(model, tokens.tolist()), chances, strict=True)
    ):
        look = {"color": GREEN, "weight": "bold"} if token == truth else {"color": INK}
        axes.text(
            x,
            y + 1.1 + 0.9 * rank,
            f"{name} {chance:.0%}",
            ha="center",
            va="center",
            **look,
            **{**MONO, "fontsize": 7.5},
        )
    axes.text(
        x,
        y + 3.9,
        f"was {pieces(model, [truth])[0]}",
        ha="center",
        va="center",
        color=FAINT,
        **{**MONO, "fontsize": 7.5},
    )


def word_embeddings(models: Models) -> bytes:
    """A map of the most frequent words."""
    lookup = models.words()
    return picture(make_map(lookup, [word for word in lookup.table.words if len(word) > 2][:130]))


def model_embeddings(models: Models) -> Figure:
    """The nearest tokens by the embedding of a language model."""
    lookup = word_vectors(models.get("gpt"))
    asked = [word for word in ("list", "is", "class", "1", "returns", "and") if lookup.row(word) is not None]
    figure, grid = plt.subplots(1, len(asked), figsize=(9, 2.0), layout="constrained")
    for axes, word in zip(grid, asked, strict=True):
        found = near(lookup, word, 6)
        axes.barh(range(len(found)), [cosine for _, cosine in found], color=BLUE, alpha=0.35, height=0.8)
        for place, (other, cosine) in enumerate(found):
            axes.text(0.02, place, f"{other}", va="center", **MONO)
            axes.text(1, place, f"{cosine:.2f}", va="center", ha="right", color=FAINT, fontsize=8)
        axes.set(xlim=(0, 1), ylim=(len(found) - 0.4, -0.6), xticks=[], yticks=[])
        axes.set_title(word, weight="bold")
        axes.spines[:].set_visible(False)
    return figure


def tokenization(models: Models) -> Figure:
    """One text in four kinds of tokens, learned from the same documents."""
    texts = list(open_corpus("python-docs").documents)
    text = "Iterating over naïve lists"
    figure, axes = canvas(58, 8.2)
    for number, (kind, size, name) in enumerate(
        (("word", 1024, "1,024 words"), ("bpe", 1024, "1,024 pieces"), ("char", 0, "characters"), ("byte", 0, "bytes"))
    ):
        tokenizer = train_tokenizer(kind, size, texts)
        ids = tokenizer.encode(text)
        spelled = [tokenizer.token(i) if i == tokenizer.unknown_id else tokenizer.bytes_of(i) for i in ids]
        words = [each if isinstance(each, str) else _seen(each or b"") for each in spelled]
        y = 0.3 + 2.2 * number
        axes.text(0, y - 0.95, f"{name}: {len(ids)} tokens of {tokenizer.vocab_size:,}", va="center", color=FAINT)
        boxes(
            axes,
            words,
            0,
            y,
            ["#fecaca" if word == "<unk>" else HUES[place % 2] for place, word in enumerate(words)],
            0.15,
        )
    return figure


def _seen(data: bytes) -> str:
    try:
        return shown(data) if data.decode() else ""
    except UnicodeDecodeError:
        return data.hex().upper()


def byte_pair_encoding(models: Models) -> Figure:
    """How merges build the words of a text."""
    merges = bpe.train(open_corpus("python-docs").documents, 1024)
    text = "The statement iterates over"
    figure, axes = canvas(72, 10.4)
    left = 0.0
    for word in bpe.pretokenize(text):
        left = _grown(axes, [bytes([byte]) for byte in word.encode()], merges, left) + 1.2
    axes.text(0, 9.5, "number: the place of the merge among the 767 learned", va="center", color=FAINT)
    return figure


def _grown(axes: Axes, symbols: list[bytes], merges: bpe.Merges, left: float) -> float:
    """A word from its characters below to its tokens above; where it ends."""
    step, bottom = 2.4, 8.2
    nodes = [(left + 0.9 + step * place, bottom, symbol) for place, symbol in enumerate(symbols)]
    for x, y, symbol in nodes:
        axes.text(x, y, shown(symbol), ha="center", va="center", **MONO)
    while pairs := [
        (merges.ranks[a[2], b[2]], i) for i, (a, b) in enumerate(pairwise(nodes)) if (a[2], b[2]) in merges.ranks
    ]:
        rank, at = min(pairs)
        (x0, y0, one), (x1, y1, two) = nodes[at : at + 2]
        x, y = (x0 + x1) / 2, min(y0, y1) - 1.75
        for x_, y_ in ((x0, y0), (x1, y1)):
            axes.plot([x, x_], [y + 0.5, y_ - 0.5], color=FAINT, linewidth=0.8)
        width = len(one + two) + 0.6
        axes.add_patch(plt.Rectangle((x - width / 2, y - 0.5), width, 1, facecolor=HUES[0]))
        axes.text(x, y, shown(one + two), ha="center", va="center", **MONO)
        axes.text(x, y + 0.95, f"{rank + 1}", ha="center", va="center", fontsize=6.5, color=ORANGE)
        nodes[at : at + 2] = [(x, y, one + two)]
    return left + step * len(symbols)


def embedding(models: Models) -> Figure:
    """One-hot vectors times the embedding."""
    model = models.get("gpt")
    ids = model.tokenizer.encode("a list of a list")
    weight = model.model.embed.token.weight.detach()
    names = pieces(model, ids)
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained", width_ratios=(3, 2, 2))
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(weight)).numpy()
    first.spy(one_hot, markersize=4, color=BLUE, aspect="auto")
    first.set_title(f"one-hot\n{one_hot.shape[0]} × {one_hot.shape[1]:,}")
    first.set_xticks([0, 1000])
    first.set_yticks(range(len(names)), names, **MONO)
    most = 2.5 * float(weight.std())
    table(second, weight.numpy(), "embedding", "RdBu", vmin=-most, vmax=most)
    table(third, weight[ids].numpy(), "vectors", "RdBu", vmin=-most, vmax=most)
    third.set_yticks(range(len(names)), names, **MONO)
    for axes in (first, third):
        axes.tick_params(length=0)
    return figure


# --- positions ------------------------------------------------------------------------------------------------------


def positions(models: Models) -> Figure:
    """Sinusoids, what a model has learned, and how products depend on the distance alone."""
    figure, (first, second, third) = plt.subplots(1, 3, figsize=(9.4, 2.9), layout="constrained")
    table(first, sinusoid(torch.arange(100), 64).numpy(), "sine | cosine", "RdBu")
    first.set(xlabel="number of the vector", ylabel="position")
    learned = models.get("gpt").model.embed.position.weight.detach()
    units = learned / learned.norm(dim=1, keepdim=True)
    second.imshow((units @ units.T).numpy(), cmap="RdBu", vmin=-1, vmax=1)
    second.set_title(f"learned: cosine of\npositions, {len(learned)} × {len(learned)}")
    second.set(xlabel="position", ylabel="position")
    distance = torch.arange(101)
    waves = sinusoid(distance, 64)
    third.plot(distance, (waves @ waves[0]) / 32, color=BLUE, label="sinusoids")
    turned = RotaryPosition(specs.Rotary(), 64)(distance)(torch.ones(1, 1, 101, 64))[0, 0]
    third.plot(distance, (turned @ turned[0]) / 64, "--", color=ORANGE, label="rotary, a vector of ones")
    later = RotaryPosition(specs.Rotary(), 64)(distance + 1000)(torch.ones(1, 1, 101, 64))[0, 0]
    third.plot(distance, (later @ later[0]) / 64, ":", color=INK, label="the same from 1,000 on")
    third.set_title("product at a distance")
    third.set(xlabel="distance")
    third.legend(frameon=False, fontsize=8)
    return figure


# --- the head -------------------------------------------------------------------------------------------------------


def softmax(models: Models) -> Figure:
    """Real logits under three temperatures."""
    model = models.get("gpt")
    prompt = "The function returns a"
    logits = logits_of(model, model.tokenizer.encode(prompt))[-1]
    best = logits.topk(14).indices
    names = pieces(model, best.tolist())
    figure, grid = plt.subplots(1, 4, figsize=(9.4, 3.0), layout="constrained", sharey=True)
    grid[0].barh(range(14), logits[best], color=FAINT, height=0.75)
    grid[0].set_title("logits")
    for axes, degree, colour in zip(grid[1:], (0.5, 1.0, 2.0), (RED, BLUE, GREEN), strict=True):
        chances = (logits / degree).softmax(-1)
        axes.barh(range(14), chances[best], color=colour, height=0.75, alpha=0.8)
        entropy = -float((chances * chances.clamp_min(1e-30).log()).sum())
        axes.set_title(f"temperature {degree:g}\nas unsure as among {np.exp(entropy):.0f}")
        axes.set(xlim=(0, None))
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    grid[0].set_yticks(range(14), names, **MONO)
    grid[0].set_ylim(13.6, -0.6)
    figure.suptitle(f"after “{prompt}”", fontsize=10)
    return figure


# --- attention ------------------------------------------------------------------------------------------------------


def attention(models: Models) -> Figure:
    """One head, from its queries to its result."""
    look = models.get("gpt").inspect(TEXT)
    head = look.head(LAYER, HEAD)
    names = [tame(piece.text) for piece in look.pieces]
    figure, grid = plt.subplots(2, 3, figsize=(9.4, 6.0), layout="constrained")
    panels = {
        "queries Q": head.queries, "keys K": head.keys, "values V": head.values,
        f"scores Q Kᵀ × {head.scale:.3f}": head.scores, "weights: masked, softmax": head.weights,
        "result: weights × V": head.result,
    }  # fmt: skip
    for axes, (title, array) in zip(grid.flat, panels.items(), strict=True):
        values = np.asarray(array)
        if title.startswith("weights"):
            table(axes, values, title, vmin=0)
        else:
            most = np.quantile(np.abs(values), 0.995)
            table(axes, values, title, "RdBu", vmin=-most, vmax=most)
        axes.tick_params(length=0)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(names)), names, family="DejaVu Sans Mono", fontsize=7)
    for axes in grid[1, :2]:
        axes.set_xticks(range(len(names)), names, family="DejaVu Sans Mono", fontsize=7, rotation=90)
    return figure


def masked_attention(models: Models) -> Figure:
    """Scores, scores without the future, weights."""
    look = models.get("gpt").inspect("A list of names is a list")
    head = look.head(LAYER, HEAD)
    names = [tame(piece.text) for piece in look.pieces]
    scores, hidden, weights = (np.asarray(array) for array in (head.scores, head.hidden, head.weights))
    most = np.abs(scores).max()
    figure, grid = plt.subplots(1, 3, figsize=(9.4, 3.5), layout="constrained")
    for axes, values, title in zip(
        grid, (scores, np.ma.masked_where(hidden.astype(bool), scores), weights),
        ("scores", "the future is hidden", "weights"), strict=True,
    ):  # fmt: skip
        last = title == "weights"
        axes.set_facecolor("#e5e7eb")
        axes.imshow(values, cmap="Blues" if last else "RdBu", vmin=0 if last else -most, vmax=1 if last else most)
        axes.set_title(title)
        axes.spines[:].set_visible(False)
        named(axes, names if axes is grid[0] else [], names)
        for (row, column), value in np.ndenumerate(values):
            if axes is grid[0] or not hidden[row, column]:
                strong = abs(value) > 0.6 * (1 if last else most)
                axes.text(column, row, f"{value:.2f}" if last else f"{value:.1f}", ha="center", va="center",
                          fontsize=6.5, color="white" if strong else INK)  # fmt: skip
    return figure


def multi_head(models: Models) -> Figure:
    """All heads of all layers on one sentence."""
    look = models.get("gpt").inspect(TEXT)
    weights = look.weights()
    depth, heads = look.depth(), look.heads()
    names = [tame(piece.text) for piece in look.pieces]
    figure, grid = plt.subplots(depth, heads, figsize=(9.0, 9.2), layout="constrained")
    for (layer, head), axes in np.ndenumerate(grid):
        axes.imshow(np.asarray(weights.isel(layer=layer, head=head)), cmap="Blues", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color(FAINT)
        axes.set_title(f"layer {layer}, head {head}", fontsize=8)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(names)), names, family="DejaVu Sans Mono", fontsize=6)
        axes.tick_params(length=0)
    return figure


def cross_attention(models: Models) -> Figure:
    """Which words of the source a translator looks at for each that it writes."""
    look = models.get("translator").inspect("three hundred and forty-two thousand, six hundred and ninety-one")
    weights = np.asarray(look.weights("cross", layer=look.depth() - 1)).mean(0)
    read, write = ([tame(piece.text) for piece in side] for side in (look.pieces, look.target_pieces[1:]))
    figure, axes = plt.subplots(figsize=(8.0, 6.4), layout="constrained")
    axes.imshow(weights, cmap="Blues", vmin=0)
    named(axes, [*write, "the end"], [*read[:-1], "the end"])
    axes.set(xlabel="read", ylabel="written")
    axes.set_xticks(np.arange(len(read) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(write) + 2) - 0.5, minor=True)
    axes.grid(which="minor", color="#e5e7eb", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    return figure


# --- blocks ---------------------------------------------------------------------------------------------------------


def transformer(models: Models) -> Figure:
    """The parts of a model with the shapes and numbers of each, and how they are joined."""
    model = models.get("gpt")
    spec = model.spec
    vocab, width, hidden, depth = spec.embed.vocab, spec.stack.width, spec.stack.feed_forward.hidden, spec.stack.depth
    numbers = {
        name: sum(p.numel() for p in part.parameters()) for name, part in model.model.stack.blocks[0].named_children()
    }
    parts = [
        (0.6, "head: norm, then the embedding read backwards", f"{width} → {vocab:,} logits", HUES[3]),
        (4.4, "feed-forward", f"{width} → {hidden} → {width}     {numbers['feed_forward']:,}", HUES[2]),
        (7.9, f"self-attention, {spec.stack.attention.heads} heads",
         f"4 × ({width} → {width})     {numbers['self_attention']:,}", HUES[0]),
        (12.2, "embedding + position",
         f"({vocab:,} + {spec.context}) × {width}     {(vocab + spec.context) * width:,}", HUES[1]),
    ]  # fmt: skip
    figure, axes = canvas(72, 15, line=0.26)
    axes.add_patch(plt.Rectangle((4, 2.4), 60, 8.1, facecolor="#f9fafb", edgecolor=FAINT))
    axes.text(63, 3.0, f"block, {depth} times", ha="right", va="center", color=FAINT)
    axes.plot([12, 12], [14.0, 1.3], color=INK, linewidth=2.2, zorder=1)
    for y, title, what, colour in parts:
        inside = y in (4.4, 7.9)
        left = 22 if inside else 6
        axes.add_patch(plt.Rectangle((left, y - 0.75), 38 if inside else 56, 1.7, facecolor=colour, zorder=2))
        axes.text(left + 1, y - 0.25, title, va="center", weight="bold")
        axes.text(left + 1, y + 0.5, what, va="center", fontsize=8, **{"family": "DejaVu Sans Mono"})
        if inside:
            axes.annotate("", (22, y + 0.4), (12, y + 1.5), arrowprops={"arrowstyle": "-|>", "color": INK})
            axes.text(15, y + 1.55, "norm", fontsize=8, color=FAINT, ha="left", va="center")
            axes.annotate("", (12.6, y - 1.2), (22, y - 0.1), arrowprops={"arrowstyle": "-|>", "color": INK})
            axes.add_patch(
                matplotlib.patches.Ellipse((12, y - 1.25), 2.2, 0.9, facecolor="white", edgecolor=INK, zorder=3)
            )
            axes.text(12, y - 1.25, "+", ha="center", va="center", zorder=4)
    axes.text(13, 13.9, "T tokens", va="center")
    axes.text(13, 10.0, f"the stream: T vectors of {width}", va="center", color=FAINT)
    return figure


def stacks(models: Models) -> Figure:
    """What each layer would have said (logit lens)."""
    model = models.get("gpt")
    look = model.inspect(TEXT)
    lens = look.lens(top=1)
    ids, chances = np.asarray(lens.ids)[:, :, 0].astype(int), np.asarray(lens.probabilities)[:, :, 0]
    names = [tame(piece.text) for piece in look.pieces]
    figure, axes = plt.subplots(figsize=(10.6, 2.5), layout="constrained")
    axes.imshow(chances[::-1], cmap="Blues", vmin=0, vmax=2.6, aspect="auto")
    for (row, column), token in np.ndenumerate(ids[::-1]):
        hit = column + 1 < len(names) and int(token) == look.pieces[column + 1].id
        axes.text(column, row, tame(look.token_text(int(token))), ha="center", va="center", family="DejaVu Sans Mono",
                  fontsize=6.5, color=GREEN if hit else INK, weight="bold" if hit else "normal")  # fmt: skip
    axes.set_yticks(range(len(ids)), [*(f"block {n}" for n in range(len(ids) - 1, 0, -1)), "embedding"])
    axes.set_xticks(range(len(names)), names, family="DejaVu Sans Mono", fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def feed_forward(models: Models) -> Figure:
    """GELU beside others, over what it is really given, and what comes of it."""
    model = models.get("gpt")
    up = model.model.stack.blocks[1].feed_forward.inner.up
    given: list[torch.Tensor] = []
    hook = up.register_forward_hook(lambda module, args, result: given.append(result.detach()))
    logits_of(model, model.tokenizer.encode(TEXT))
    hook.remove()
    before = given[0].flatten()
    x = torch.linspace(-4, 4, 400)
    functional = torch.nn.functional
    figure, (first, second) = plt.subplots(1, 2, figsize=(8.8, 3.0), layout="constrained")
    first.hist(before, bins=80, range=(-4, 4), weights=np.full(len(before), 40 / len(before)), color=HUES[0])
    for name, function, colour, style in (
        ("ReLU", functional.relu, FAINT, "--"),
        ("SiLU", functional.silu, ORANGE, ":"),
        ("GELU", functional.gelu, BLUE, "-"),
    ):  # fmt: skip
        first.plot(x, function(x), style, color=colour, label=name)
    first.set(xlim=(-4, 4), ylim=(-0.4, 3.0), xlabel="what comes out of the first matrix")
    first.set_title(f"the bend; behind it {len(before):,} real numbers")
    first.legend(frameon=False)
    after = functional.gelu(before, approximate="tanh").abs().sort(descending=True).values
    share = after.square().cumsum(0) / after.square().sum()
    second.plot(torch.arange(1, len(after) + 1) / len(after), share, color=BLUE)
    second.set(
        xlabel="share of the neurons, strongest first", ylabel="share of the squares", xlim=(0, 1), ylim=(0, 1.01)
    )
    place = int((share < 0.9).sum()) / len(after)
    second.plot([place, place, 0], [0, 0.9, 0.9], ":", color=FAINT)
    second.text(place + 0.02, 0.45, f"{place * 100:.0f} % of the neurons\nhave 90 % of it")
    second.set_title("what comes out of GELU")
    return figure


def residual(models: Models) -> Figure:
    """The stream's length from block to block, and gradients with the skip and without."""
    look = models.get("gpt").inspect(TEXT)
    lengths = np.linalg.norm(np.asarray(look.stream()), axis=-1)[:, 1:].mean(1)
    added = np.asarray(look.added())[:, :, 1:].mean(-1)
    figure, (first, second) = plt.subplots(1, 2, figsize=(8.8, 3.0), layout="constrained")
    places = np.arange(len(lengths))
    first.plot(places, lengths, "o-", color=INK, label="the stream")
    for part, (name, colour) in enumerate((("attention adds", BLUE), ("feed-forward adds", ORANGE))):
        first.bar(places[1:] - 0.15 + 0.3 * part, added[:, part], 0.28, color=colour, alpha=0.7, label=name)
    first.set_xticks(places, ["embedding", *(f"block {n}" for n in places[1:])], fontsize=7.5)
    first.set(ylim=(0, None))
    first.set_title("mean length of the vectors, trained model")
    first.legend(frameon=False, fontsize=8)
    for name, skip, colour in (("with the skip", True, BLUE), ("without", False, RED)):
        second.plot(learning(skip), color=colour, label=name)
    second.set(xlabel="step", ylabel="nats per byte", ylim=(2, None))
    second.set_title("loss of 12 blocks that learn from bytes")
    second.legend(frameon=False)
    return figure


def learning(skip: bool, steps: int = 500) -> np.ndarray:
    """The loss, a mean of ten steps, of a small deep model that learns; without the skip a part gives what it made."""
    data = torch.tensor(list("".join(open_corpus("python-docs").documents).encode()[:200_000]))
    model = build(gpt2.spec(vocab=256, context=32, width=64, depth=12, heads=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    random, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        starts = torch.randint(0, len(data) - 33, (12, 1), generator=random)
        rows = data[starts + torch.arange(33)]
        x = model.embed(rows[:, :-1])
        for block in model.stack.blocks:
            for part, context in ((block.self_attention, (Place(causal=True), None)), (block.feed_forward, ())):
                x = (x if skip else 0) + part.branch(x, *context)
        logits = model.head(model.stack.norm(x))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.convolve(losses, np.ones(10) / 10, "valid")


# --- writing --------------------------------------------------------------------------------------------------------


def grown(
    axes: Axes,
    tree: dict[tuple[int, ...], object],
    label: Callable[[tuple[int, ...]], str],
    colour: Callable[[tuple[int, ...]], object],
    step: float,
) -> None:
    """A tree of beginnings from left to right: each token in a box behind the one before it."""  # fmt: skip
    rows: dict[tuple[int, ...], float] = {}

    def place(node: tuple[int, ...]) -> float:
        under = [other for other in tree if len(other) == len(node) + 1 and other[: len(node)] == node]
        found = [place(other) for other in under]
        rows[node] = sum(found) / len(found) if found else sum(1 for each in rows if each in leaves)
        if not found:
            leaves.add(node)
        return rows[node]

    leaves: set[tuple[int, ...]] = set()
    place(())
    for node, y in rows.items():
        if node:
            x, before = (len(node) - 1) * step, rows[node[:-1]]
            axes.plot([x - 2.4, x], [before, y], color=FAINT, linewidth=0.8, zorder=0)
            boxes(axes, [label(node)], x, y, [colour(node)])
            width = len(label(node).replace("\\", "")) + 0.5
            if any(other[:-1] == node for other in rows if other):
                axes.plot([x + width, x + step - 2.4], [y, y], color=FAINT, linewidth=0.8, zorder=0)
    axes.set_ylim(max(rows.values()) + 0.9, -1.0)


def completion(models: Models) -> Figure:
    """What is drawn again and again after one beginning, and what greedy takes."""
    model = models.get("gpt")
    prompt = "If the object is"
    drawn = model.generate(prompt, max_tokens=5, temperature=1.0, n=14, seed=3, details=True)
    greedy = tuple(model.generate(prompt, max_tokens=5, temperature=0.0, details=True).tokens)
    paths = [*(tuple(each.tokens) for each in drawn), greedy]
    tree = {path[:end]: None for path in sorted(paths) for end in range(1, len(path) + 1)}
    figure, axes = canvas(80, 16, line=0.24)
    grown(axes, {(): None, **tree}, lambda node: pieces(model, node[-1:])[0],
          lambda node: HUES[2] if greedy[: len(node)] == node else "#f3f4f6", step=15)  # fmt: skip
    axes.set_xlim(-3, 77)
    return figure


def beam_search(models: Models) -> Figure:
    """The tree of a real search."""
    look = models.get("gpt").inspect("If the object is")
    found = look.beam(width=3, max_tokens=5)
    nodes = {node.id: node for turn in found.rounds for node in turn if node.kept}
    paths: dict[int, tuple[int, ...]] = {}
    for node in nodes.values():
        before = () if node.parent is None else paths[node.parent]
        paths[node.id] = (*before, node.token)
    by_path = {paths[number]: node for number, node in nodes.items()}
    best = tuple(found.texts[0].ids)
    figure, axes = canvas(92, 7, line=0.27)
    grown(axes, {(): None, **by_path}, lambda node: f"{tame(by_path[node].text)} {by_path[node].logprob:.1f}",
          lambda node: HUES[2] if best[: len(node)] == node else "#f3f4f6", step=18)  # fmt: skip
    axes.set_xlim(-3, 89)
    return figure


def prompt(models: Models) -> Figure:
    """The same last words after three beginnings."""
    model = models.get("gpt")
    beginnings = (
        "A class has attributes. Return the",
        "A sequence has items. Return the",
        "An exception is raised. Return the",
    )
    figure, grid = plt.subplots(1, 3, figsize=(9.4, 2.5), layout="constrained")
    for axes, text in zip(grid, beginnings, strict=True):
        best = model.inspect(text).next(top=8)
        axes.barh(range(8), [chance for *_, chance in best], color=BLUE, height=0.75, alpha=0.7)
        axes.set_yticks(range(8), [tame(name) for _, name, _ in best], **MONO)
        axes.set_ylim(7.6, -0.6)
        axes.set_title(f"“{text}”", fontsize=8.5)
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    return figure


# --- pictures -------------------------------------------------------------------------------------------------------


def digit(number: int) -> np.ndarray:
    """One of scikit-learn's, uint8 (8, 8)."""
    from sklearn.datasets import load_digits

    return (load_digits().images[number] * 255 / 16).round().astype(np.uint8)


def as_png(pixels: np.ndarray) -> bytes:
    """The bytes of a file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def vision_transformer(models: Models) -> Figure:
    """Digits in patches, where the summary looks, and the classes."""
    model = models.get("vit")
    figure, grid = plt.subplots(3, 7, figsize=(9.4, 4.1), layout="constrained", width_ratios=(1, 1, 1, 1, 1, 1, 1.6))
    for row, number in zip(grid, (1777, 1779, 1785), strict=True):
        look = model.inspect(as_png(digit(number)))
        pixels = look.picture[..., 0]
        row[0].imshow(pixels, cmap="gray")
        row[1].imshow(pixels, cmap="gray")
        for edge in range(1, 4):
            row[1].axhline(2 * edge - 0.5, color="#60a5fa", linewidth=1)
            row[1].axvline(2 * edge - 0.5, color="#60a5fa", linewidth=1)
        for layer in range(4):
            row[2 + layer].imshow(look.attended(0, layer=layer), cmap="Blues", vmin=0)
        best = look.classes[:4]
        row[6].barh(range(4), [chance for _, chance in best], color=GREEN, alpha=0.6)
        row[6].set_yticks(range(4), [name for name, _ in best])
        row[6].set(xlim=(0, 1), ylim=(3.6, -0.6), xticks=[])
        for axes in row[:6]:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], ("picture", "16 patches", *(f"layer {n}" for n in range(4)), "class"), strict=True):
        axes.set_title(title)
    return figure


def image_gpt(models: Models) -> Figure:
    """Halves of digits, completed."""
    model = models.get("painter")
    figure, grid = plt.subplots(4, 8, figsize=(7.6, 4.0), layout="constrained")
    for row, number in zip(grid, (1777, 1785, 1778, 1783), strict=True):
        pixels = digit(number)
        upper = np.full((8, 8), 250, np.uint8)
        upper[:4] = pixels[:4]
        row[0].imshow(pixels, cmap="gray", vmin=0, vmax=255)
        given = np.ma.masked_array(pixels, np.arange(8)[:, None].repeat(8, 1) >= 4)
        row[1].set_facecolor("#e5e7eb")
        row[1].imshow(given, cmap="gray", vmin=0, vmax=255)
        for axes, painted in zip(row[2:], model.paint(6, start=as_png(pixels), seed=1), strict=True):
            axes.imshow(painted[..., 0], cmap="gray", vmin=0, vmax=255)
            axes.axhline(3.5, color="#60a5fa", linewidth=1)
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], ("picture", "given", *("painted",) * 6), strict=True):
        axes.set_title(title, fontsize=8.5)
    return figure


PICTURES: dict[str, Callable[[Models], Figure | bytes]] = {
    function.__name__: function
    for function in (
        language_model, self_supervision, word_embeddings, model_embeddings, tokenization, byte_pair_encoding,
        embedding, transformer, attention, masked_attention, multi_head, cross_attention, stacks, positions,
        feed_forward, residual, softmax, completion, beam_search, prompt, vision_transformer, image_gpt,
    )
}  # fmt: skip


def main() -> None:
    """Make those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PICTURE", help=f"of {', '.join(PICTURES)}; all when none is named")
    parser.add_argument("--models", type=Path, default=Path("runs/lecture"), help="folder of trained models")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PICTURES):
        parser.error(f"there is no picture {sorted(unknown)[0]}: it is one of {', '.join(PICTURES)}")
    models = Models(given.models)
    plt.rcParams.update(STYLE)
    for name in given.names or PICTURES:
        print(f"{name}.png {written(PICTURES[name](models), name):,} bytes", flush=True)


if __name__ == "__main__":
    main()
