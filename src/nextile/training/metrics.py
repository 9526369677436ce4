"""What a loss means: perplexity, bits per byte or dimension; what a translation is worth: BLEU, chrF, exactness.

Pure functions of totals and counts, or of texts. BLEU and chrF are sacrebleu's, so that others' figures compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nextile.base.errors import NextileError, UsageError

TOKENIZERS = ("13a", "intl", "zh", "char", "none")  # sacrebleu's that need no network and nothing else installed


def perplexity(nats: float) -> float:
    """e to the mean loss in nats per token: among how many equally likely tokens the model still hesitates."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def bits_per_byte(total_nats: float, text_bytes: int) -> float:
    """Total nats over the UTF-8 bytes of the text they were asked on, in bits: comparable across tokenizers."""
    return total_nats / (text_bytes * math.log(2))


def text_measures(nats: float, asked: int, size: int) -> dict[str, float]:
    """Nats per token, perplexity, bits per byte of a text of `size` bytes."""
    loss = nats / asked
    return {"loss": loss, "perplexity": perplexity(loss), "bits_per_byte": bits_per_byte(nats, size)}


def class_measures(nats: float, right: int, asked: int) -> dict[str, float]:
    """Nats per picture, and the share of pictures, 0 to 1, whose class is the most probable."""
    return {"loss": nats / asked, "accuracy": right / asked}


def pixel_measures(nats: float, asked: int, channels: int) -> dict[str, float]:
    """Nats per pixel, perplexity, and bits per dimension: of a pixel's nats those of each of its channels, in bits."""
    loss = nats / asked
    return {"loss": loss, "perplexity": perplexity(loss), "bits_per_dim": loss / (channels * math.log(2))}


def word_measures(nats: float, right: float, asked: int) -> dict[str, float]:
    """Nats per word, and how often, 0 to 1, a word that is there seems likelier than one that is not."""
    return {"loss": nats / asked, "told_apart": right / asked}


def masked_measures(nats: float, right: int, asked: int) -> dict[str, float]:
    """Nats per hidden token, perplexity, and the share, 0 to 1, where the most probable token is what was hidden."""
    loss = nats / asked
    return {"loss": loss, "perplexity": perplexity(loss), "filled": right / asked}


def preference_measures(nats: float, right: int, margin: float, asked: int) -> dict[str, float]:
    """Nats per pair, the share of pairs, 0 to 1, whose chosen answer wins, and by how many nats in the mean."""
    return {"loss": nats / asked, "accuracy": right / asked, "margin": margin / asked}


class Kind(NamedTuple):
    """What is told of a run besides its loss."""

    unit: str  # of the loss
    name: str  # of the measure
    form: str


KINDS = {
    "filled": Kind("nats per hidden token", "filled in right", "{:.2%}"),
    "told_apart": Kind("nats per word", "told from others", "{:.2%}"),
    "margin": Kind("nats per pair", "margin", "{:.4f}"),
    "accuracy": Kind("nats each", "right", "{:.2%}"),
    "bits_per_dim": Kind("nats per pixel", "bits per dimension", "{:.4f}"),
    "bits_per_byte": Kind("nats per token", "bits per byte", "{:.4f}"),
}


def kind_of(measures: Iterable[str]) -> str:
    """Which of KINDS these measures are; that of text when they are none."""
    return next((kind for kind in KINDS if kind in set(measures)), "bits_per_byte")


def told(measures: Mapping[str, float], kind: str | None = None) -> str:
    """A loss with its unit, and what it means: "1.2345 nats per token, 0.4567 bits per byte"."""
    kind = kind or kind_of(measures)
    unit, name, form = KINDS[kind]
    beside = f", {form.format(measures[kind])} {name}" if kind in measures else ""
    return f"{measures['loss']:.4f} {unit}{beside}"


@dataclass(frozen=True)
class Score:
    """A measure of a translation, 0 to 100, and the signature that says how exactly it was measured."""

    value: float
    signature: str


def check_tokenizer(tokenize: str) -> None:
    """Errors: UsageError for a way to split words that BLEU does not have here."""
    if tokenize not in TOKENIZERS:
        raise UsageError(
            f"'{tokenize}' is no way to tokenize for BLEU that needs no network and no further package: "
            f"use one of {', '.join(TOKENIZERS)}"
        )


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Score:
    """Corpus BLEU (Papineni et al. 2002, Post 2018) of one hypothesis for each reference.

    Both are split into words by "13a" or "intl" where they are plain text, by "none" where words stand between spaces
    already, by "char" or "zh" where a language has no spaces.
    Errors: UsageError for another way to split; NextileError without sacrebleu, and for texts that do not match.
    """
    check_tokenizer(tokenize)
    return _score(_sacrebleu().BLEU(tokenize=tokenize, force=tokenize == "none"), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    """Corpus chrF (Popovic 2015): how well runs of up to 6 characters agree; for words of many forms, and any script.

    Errors: NextileError without sacrebleu, and for texts that do not match.
    """
    return _score(_sacrebleu().CHRF(), hypotheses, references)


def exact(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """The share of hypotheses, 0 to 1, that are their reference, white space around them aside.

    Errors: NextileError for texts that do not match.
    """
    _refuse_unmatched(hypotheses, references)
    pairs = zip(hypotheses, references, strict=True)
    return sum(hypothesis.strip() == reference.strip() for hypothesis, reference in pairs) / len(references)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise NextileError("BLEU and chrF need sacrebleu: pip install 'nextile[mt]'") from error
    return metrics


def _score(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> Score:
    _refuse_unmatched(hypotheses, references)
    value = metric.corpus_score(hypotheses, [references]).score
    return Score(value, str(metric.get_signature()))


def _refuse_unmatched(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise NextileError(
            f"{len(hypotheses):,} hypotheses do not match {len(references):,} references: give one for each"
        )
    if not references:
        raise NextileError("there is nothing to compare: give at least one hypothesis and its reference")
