"""What stands before and after a text that a model reads as a whole: [CLS] a text [SEP], or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers
from tokenizers import processors

from nextile.text.tokenizer import Tokenizer

LETTER = "a"  # any text will do


@dataclass(frozen=True)
class Frame:
    """Tokens before a text, and after it."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, ids: list[int], room: int) -> list[int]:
        """A text's tokens in it, in no more than `room`, for which the text is cut."""
        return [*self.before, *ids[: max(0, room - len(self))], *self.after][:room]


def usual_frame(tokenizer: Tokenizer) -> Frame:
    """The token that begins a text, if there is one, and the one that ends it: how models are trained here."""
    return Frame(() if tokenizer.begin_id is None else (tokenizer.begin_id,), (tokenizer.end_id,))


def own_frame(tokenizer: Tokenizer) -> Frame:
    """What its tokenizer.json says for other programs, which add it to each text."""
    found = tokenizer.core.encode(LETTER, add_special_tokens=True)
    text = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    return Frame(tuple(found.ids[: text[0]]), tuple(found.ids[text[-1] + 1 :])) if text else Frame()


def framed(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer whose tokenizer.json says the usual frame; one that says it is returned as it is."""
    frame = usual_frame(tokenizer)
    if own_frame(tokenizer) == frame:
        return tokenizer
    core = tokenizers.Tokenizer.from_str(tokenizer.core.to_str())
    before, after = ([tokenizer.token(index) for index in side] for side in (frame.before, frame.after))
    ids = zip([*before, *after], [*frame.before, *frame.after], strict=True)
    core.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, "$B", *after],
        special_tokens=list(dict(ids).items()),
    )
    return Tokenizer(core, {**tokenizer.config, "chat_template": tokenizer.chat_template})
