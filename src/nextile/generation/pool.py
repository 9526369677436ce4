"""Texts in, vectors out: what a model makes of a text, as the mean of what it makes of its tokens.

Shapes: N texts, B of them at a time, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextile.base.errors import NextileError, UsageError
from nextile.generation.decode import check_ids, evaluating, padded
from nextile.generation.translate import Translator
from nextile.models.encoder_decoder import EncoderDecoder
from nextile.models.text_classifier import TextClassifier
from nextile.models.transformer import Transformer
from nextile.models.words import WordVectors
from nextile.nn import specs
from nextile.nn.stack import places
from nextile.text.tokenizer import Tokenizer

Features = Callable[[Tensor, Tensor], Tensor]


def features_of(model: object) -> Features:
    """What makes features (B, T, D) of ids (B, T) and of where there are tokens, (B, T) int64.

    Of an encoder-decoder the encoder's; of word vectors the words' own. Errors: UsageError for a model of pictures.
    """
    if isinstance(model, Transformer | TextClassifier):
        return lambda ids, there: model.features(ids, segments=there)
    if isinstance(model, EncoderDecoder):
        return lambda ids, there: model.encoder(model.source(ids, places(ids, there)), segments=there)
    if isinstance(model, WordVectors):
        return lambda ids, there: model.words_in.weight[ids]
    raise UsageError("this model reads pictures, not text: it has no vectors of texts")


def vocab_of(spec: Any) -> int:
    """How many tokens a model of text reads."""
    if isinstance(spec, specs.WordModel):
        return spec.vocab
    return (spec.source if isinstance(spec, specs.EncoderDecoder) else spec.embed).vocab


def pooled(features: Tensor, there: Tensor) -> Tensor:
    """The mean of each row's features (B, T, D) over its tokens, there (B, T): (B, D) float32."""
    weight = there[..., None].float()
    return (features.float() * weight).sum(1) / weight.sum(1)


def bounded(ids: list[int], tokenizer: Tokenizer, context: int) -> list[int]:
    """The tokens between those that begin and end a text, where the model has been taught such.

    Errors: NextileError where they are more than the model reads.
    """
    if tokenizer.begin_id is not None:
        ids = [tokenizer.begin_id, *ids, tokenizer.end_id]
    refuse_longer(ids, context)
    return ids


def refuse_longer(ids: Sequence[int], context: int) -> None:
    """Errors: NextileError for a text of more tokens than the model reads."""
    if len(ids) > context:
        raise NextileError(f"the text has {len(ids)} tokens and the model reads {context}: shorten it")


def embed(pretrained: Translator, texts: Sequence[str], *, batch: int = 32) -> np.ndarray:
    """A vector for each text, float32 (N, D): texts that mean the same lie near each other (Reimers et al. 2019).

    A text does not depend on those beside it. Errors: NextileError for a text without a token that the model knows,
    for one longer than it reads, and for a tokenizer of another model; UsageError for a model of pictures.
    """
    rows = [text_ids(pretrained, text) for text in texts]
    found = [embed_rows(pretrained, rows[start : start + batch]) for start in range(0, len(rows), batch)]
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


@torch.no_grad()
def embed_rows(pretrained: Translator, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """A vector for each text of tokens, at least one each, float32 (B, D). Errors: as in `embed`."""
    check_ids(rows, vocab_of(pretrained.spec), "text")
    for row in rows:
        refuse_longer(row, pretrained.spec.context)
    features, device = features_of(pretrained.model), next(pretrained.model.parameters()).device
    ids, counts = padded([list(row) for row in rows])
    there = (torch.arange(ids.shape[1]) < counts[:, None]).long().to(device)
    with evaluating(pretrained.model):
        return pooled(features(ids.to(device), there), there).cpu().numpy()


def text_ids(pretrained: Translator, text: str) -> list[int]:
    """The tokens of a text that the model knows, between those that begin and end one where it has been taught such.

    Errors: NextileError for a text without such a token, and for one longer than the model reads.
    """
    tokenizer, spec = pretrained.tokenizer, pretrained.spec
    ids = [token for token in tokenizer.encode(text) if token != tokenizer.unknown_id or tokenizer.kind == "other"]
    if not ids:
        raise NextileError(f"{text!r} has no token that the model knows: give another text")
    return bounded(ids, tokenizer, spec.context)
