"""A model and an input -> what there is to look at, by what the model is for."""

from __future__ import annotations

from collections.abc import Callable

from nextile.checkpoint.pretrained import Pretrained
from nextile.inspection.look import Draw, Inspection, refuse_target
from nextile.inspection.look_pairs import DenoiserLook, PairLook
from nextile.inspection.look_pictures import ClassifierLook, PainterLook
from nextile.inspection.look_texts import LabelledLook, LanguageLook, MaskedLook
from nextile.inspection.look_words import WordLook
from nextile.inspection.stack import positive

PAIRS: dict[str, type[PairLook]] = {"translate": PairLook, "denoise": DenoiserLook}
ALONE: dict[str, Callable[[Pretrained, object, Draw | None], Inspection]] = {
    "lm": LanguageLook,
    "masked": MaskedLook,
    "classify-text": LabelledLook,
    "classify": ClassifierLook,
    "paint": PainterLook,
    "words": WordLook,
}


def inspect(
    pretrained: Pretrained, what: object, target: object = None, *, max_tokens: int | None = None, beams: int = 4,
    draw: Draw | None = None,
) -> Inspection:  # fmt: skip
    """What a model makes of a text or its token ids, of a picture (a file or its bytes), or of words.

    target: of an encoder-decoder the target beside the source, as a text or ids; None: what the model itself writes by
    so many beams, of max_tokens at most (None: twice the source's and 16). draw: makes the page.
    Errors: UsageError for an empty text, for a picture where text is read and the other way round, and for a target
    beside what is no pair; NextileError for a text longer than the model reads.
    """
    if pretrained.task in PAIRS:
        if max_tokens is not None:
            positive(max_tokens, "max_tokens")
        return PAIRS[pretrained.task](pretrained, what, target, draw, max_tokens=max_tokens, beams=beams)
    refuse_target(pretrained, target)
    return ALONE[pretrained.task](pretrained, what, draw)
