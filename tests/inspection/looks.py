"""Tiny models of every kind to look at, in which every number counts, and what is recomputed of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from nextile.api import Model
from nextile.images.processor import Normaliser, Palette
from nextile.models.build import build
from nextile.models.families import bert, gpt2, imagegpt, marian, t5, vit
from nextile.nn import specs
from nextile.text.build import train_tokenizer
from nextile.text.masks import for_masks, for_spans
from nextile.text.pairs import for_pairs, start_of
from nextile.text.tokenizer import Tokenizer

TEXTS = ["low lower lowest, the new and the newer of the old bottles hanging on the wall"] * 4
TEXT = "the lowest bottles hang"
CLASSES = ("good", "bad", "ugly")
DEPTH, HEADS, WIDTH = 3, 4, 32
SIZE: dict[str, Any] = {"context": 48, "width": WIDTH, "depth": DEPTH, "heads": HEADS}


def shaken(model: Any, seed: int = 0) -> Any:
    """The model in float64 with every number drawn anew, so that none is 0 and none is 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            small = 0.3 if parameter.dim() == 1 else 0.25
            parameter.normal_(0.0, small, generator=draw).add_(1.0 if parameter.dim() == 1 else 0.0)
    return model.eval()


def loaded(spec: Any, processor: Any, family: str = "nextile") -> Model:
    return Model(shaken(build(spec)), processor, spec, family)


@lru_cache
def tokens(kind: str = "bpe", size: int = 290) -> Tokenizer:
    return train_tokenizer(kind, size, TEXTS)


# --- stacks of one text, by what is special about them ----------------------------------------------------------------


def stack(**changed: Any) -> specs.Stack:
    usual = {
        "width": WIDTH,
        "depth": DEPTH,
        "attention": specs.Attention(heads=HEADS),
        "feed_forward": specs.MLP(hidden=48),
        "causal": True,
    }
    return specs.Stack.model_validate(usual | changed)


def causal(embed: dict[str, Any] | None = None, head: Any = None, **changed: Any) -> Model:
    tokenizer = tokens()
    spec = specs.Transformer(
        context=48, embed=specs.TokenEmbedding(vocab=tokenizer.vocab_size, **(embed or {})), stack=stack(**changed),
        head=head or specs.TiedHead(),
    )  # fmt: skip
    return loaded(spec, tokenizer)


LEARNED = {"position": specs.Learned(length=48)}
GROUPED = specs.Attention(heads=HEADS, kv_heads=2, bias="none", qk_norm=specs.RMSNorm())
SHAPES: dict[str, Any] = {
    "learned places": lambda: causal(LEARNED),
    "after, sines, scaled": lambda: causal(
        {"position": specs.Sinusoidal(length=48), "scale": 5.0, "norm": specs.LayerNorm()}, norm_place="after"
    ),
    "inside, groups, turned": lambda: causal(
        attention=GROUPED.model_copy(update={"qk_norm_over": "heads"}), position=specs.Rotary(), norm_place="inside",
        norm=specs.RMSNorm(), feed_forward=specs.GatedMLP(hidden=48),
    ),
    "around, capped, a window": lambda: causal(
        attention=GROUPED.model_copy(update={"soft_cap": 2.0}), position=specs.Rotary(), norm_place="around",
        local=specs.Local(window=4, pattern=(True, False), position=specs.Rotary(base=50.0)),
        head=specs.TiedHead(soft_cap=3.0),
    ),
    "parallel, partly turned": lambda: causal(position=specs.Rotary(share=0.5), order="parallel"),
    "relative biases": lambda: causal(position=specs.RelativeBias(buckets=8, max_distance=20)),
    "alibi and a window": lambda: causal(position=specs.Alibi(), local=specs.Local(window=5, pattern=(False, True))),
    "of a speedrun": lambda: causal(
        attention=GROUPED.model_copy(update={"convolution": specs.ShortConvolution()}), position=specs.Rotary(),
        value_embedding=specs.ValueEmbedding(pattern=(True, False)), residual_scalars=specs.ResidualScalars(),
    ),
    "experts": lambda: causal(LEARNED, feed_forward=specs.Experts(hidden=24, experts=4, chosen=2)),
}  # fmt: skip


# --- the other kinds --------------------------------------------------------------------------------------------------


def masked() -> Model:
    tokenizer = for_masks(tokens())
    return loaded(bert.spec(vocab=tokenizer.vocab_size, **SIZE), tokenizer)


def translator(family: Any = marian) -> Model:
    tokenizer = for_pairs(tokens())
    start = start_of(tokenizer)
    spec = family.spec(vocab=tokenizer.vocab_size, start=start, **SIZE)
    return loaded(spec, tokenizer)


def denoiser() -> Model:
    tokenizer = for_spans(tokens())
    return loaded(t5.spec(vocab=tokenizer.vocab_size, start=start_of(tokenizer), **SIZE), tokenizer)


def labeller(head: Any = None, is_causal: bool = False) -> Model:
    tokenizer = tokens()
    spec = specs.TextClassifier(
        context=48, embed=specs.TokenEmbedding(vocab=tokenizer.vocab_size, position=specs.Learned(length=48)),
        stack=stack(causal=is_causal), head=head or specs.PooledHead(classes=CLASSES),
    )  # fmt: skip
    return loaded(spec, tokenizer)


def classifier(head: Any = None) -> Model:
    spec = vit.spec(classes=CLASSES, image=8, patch=2, width=WIDTH, depth=DEPTH, heads=HEADS)
    if head is not None:
        spec = specs.VisionTransformer.model_validate({**spec.model_dump(), "head": head})
    return loaded(spec, Normaliser(size=8, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3))


def painter() -> Model:
    palette = Palette(size=6, channels=3, colours=tuple((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)))
    return loaded(imagegpt.spec(vocab=9, **SIZE | {"context": 36}), palette)


def speaker() -> Model:
    """GPT-2's shape."""
    tokenizer = tokens()
    return loaded(gpt2.spec(vocab=tokenizer.vocab_size, **SIZE), tokenizer)


def picture(side: int = 8) -> bytes:
    """A file of noise."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


# --- in NumPy ---------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    y = np.exp(x - x.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


# By kind: a model, and what it is given to be looked at.
KINDS: dict[str, tuple[Callable[[], Model], Any]] = {
    "lm": (speaker, TEXT),
    "masked": (masked, "the [MASK] bottles hang"),
    "translate": (translator, TEXT),
    "denoise": (denoiser, "the [MASK] bottles hang"),
    "classify-text": (labeller, TEXT),
    "classify": (classifier, picture(8)),
    "paint": (painter, picture(6)),
}
