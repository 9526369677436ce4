"""A stream that forgets what is out gives the pieces of one that decodes everything anew, at the price of the last."""

from __future__ import annotations

import random
import re

import pytest
import tokenizers
from tokenizers import Regex, decoders, models

from nextile.text.tokenizer import Tokenizer

PIECES = [
    "</s>", "<pad>", "a", "b", "ab", "\u2581", "\u2581\u2581", "\u2581a", "\u2581b\u2581", " ", "  ", " a", "a ", "##a",
    "##", "##b c", ",", " ,", "'", "n't", " n't", "a</w>", "</w>", "\u00e9", "\u6f22", "\ufffd", "x\ufffd", "\n", "do",
    " not", "\u0120", "\u0120a", "\u00c3", "\u00a9", "\u00e2", "\u0124", "\u00ac", "\u00e2\u0124", "<0x41>", "<0xC3>",
    "<0xA9>", "<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "<0x0A>",
]  # fmt: skip
SENTENCEPIECE = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
HIDDEN = [decoders.Replace(Regex(r"\A "), ""), *SENTENCEPIECE]
NEARBY = {
    "none": None,
    "WordPiece": decoders.WordPiece(),
    "WordPiece as it is": decoders.WordPiece(cleanup=False),
    "Metaspace": decoders.Metaspace(),
    "SentencePiece": decoders.Sequence([*SENTENCEPIECE, decoders.Strip(" ", 1, 0)]),
    "SentencePiece, all spaces before it gone": decoders.Sequence([*HIDDEN, decoders.Strip(" ", 1 << 31, 0)]),
    "Metaspace, bytes": decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]),
    "end of word": decoders.BPEDecoder(),
    "ByteLevel": decoders.Sequence([decoders.ByteLevel()]),
    "strip each": decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]),
}
FAR = {
    "a pattern of the whole": decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("ab+a"), "-")]),
    "two at a time": decoders.Sequence([decoders.ByteLevel(), decoders.Replace("aa", "b")]),
    "CTC": decoders.CTC(),
}
BYTE = re.compile("<0x[0-9A-F]{2}>")


def made(decoder) -> Tokenizer:
    core = tokenizers.Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(PIECES)}, "a"))
    core.decoder = decoder
    return Tokenizer(core, {"eos_token": "</s>", "pad_token": "<pad>"})


def all_anew(tokenizer, ids):
    """The pieces of a stream that decodes all ids at each of them."""
    shown, pieces = "", []
    for count in range(1, len(ids) + 2):
        token = tokenizer.core.id_to_token(ids[min(count, len(ids)) - 1]) if ids else None
        last = count > len(ids)
        is_open = token is None or ids[count - 1 - last] in tokenizer.special_ids or BYTE.fullmatch(token)
        if is_open and not last:
            pieces.append("")
            continue
        text = tokenizer.decode(ids[:count])
        text = text if last else text.rstrip("\ufffd")
        pieces.append(text.removeprefix(shown) if text.startswith(shown) else "")
        shown += pieces[-1]
    return pieces


def streamed(tokenizer, ids):
    stream = tokenizer.decode_stream()
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("name", [*NEARBY, *FAR])
def test_a_stream_gives_the_pieces_of_one_that_decodes_all_anew(name):
    tokenizer, chance = made((NEARBY | FAR)[name]), random.Random(name)
    assert tokenizer.kind == "other"
    for _ in range(300):
        some = chance.sample(range(len(PIECES) + 1), chance.randint(2, 12))  # few, so that they come together often
        ids = chance.choices(some, k=chance.randint(0, 40))
        assert streamed(tokenizer, ids) == all_anew(tokenizer, ids)


@pytest.mark.parametrize("name", [*NEARBY, *FAR])
def test_which_decoders_look_no_further_than_the_neighbours(name):
    assert made((NEARBY | FAR)[name]).decodes_nearby is (name in NEARBY)


@pytest.mark.parametrize("name", NEARBY)
def test_a_long_text_is_not_decoded_again_and_again(name, monkeypatch):
    tokenizer, read = made(NEARBY[name]), []
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids, **how: read.append(len(ids)) or decode(self, ids, **how))
    chance = random.Random(0)
    ids = chance.choices([PIECES.index(piece) for piece in ("a", "b", "ab", "\u2581a", "##a", ",")], k=2000)
    streamed(tokenizer, ids)
    assert max(read) < 20
    assert sum(read) < 5 * len(ids)
