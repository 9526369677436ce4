"""SentencePiece models (Kudo & Richardson 2018), read without their library, as tokenizers with the same ids.

A model is a protobuf message. Its few fields that matter are read here: the library's own interface does not tell how
text is normalised, and no native code sees a file before its bounds are checked.

What can differ from the library, all of it rare: marks stacked in an order that Unicode would change; a mark on a
character that is replaced by others, a ligature for one, is lost; sums of scores that are equal but for rounding (the
library adds in 32 bits over a whole text, `tokenizers` in 64 over a word); in BPE the place of a merge where one piece
has two. An unknown token decodes to nothing, not to " ⁇ ". A model of user-defined symbols has no prefix before a text
that begins with one, or with spaces that are kept.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from nextile.base.errors import NextileError
from nextile.base.files import inside

SPACE = "▁"  # U+2581, how a piece writes a space
LARGEST = 2**24  # bytes of a file: the largest vocabularies, of 260,000 pieces, take 5 million
LONGEST_PIECE = 2**8  # characters
MOST_PIECES, MOST_CONTROLS = 2**21, 2**11

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # what a piece is for
_SIZES = {1: 8, 5: 4}  # bytes of the numbers of two wire types
_KINDS = {1: "Unigram", 2: "BPE", 3: "WORD", 4: "CHAR"}
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class Piece:
    """A token: its text, its log-probability or its negated rank, and what it is for."""

    text: str
    score: float = 0.0
    use: int = NORMAL


@dataclass(frozen=True)
class Model:
    """A SentencePiece model: its pieces in the order of their ids, and how a text is made ready for them.

    kind: "Unigram", "BPE" or "CHAR".  charsmap: replacements of characters, as the file packs them.
    prefix: whether a text begins with a space that it has not.  squeeze: whether spaces at its ends and all but one
    of several go.  byte_fallback: whether a character that is no piece becomes bytes.
    specials: {"bos_token": "<s>", ...}, those that there are.
    """

    pieces: tuple[Piece, ...]
    kind: str = "Unigram"
    charsmap: bytes = b""
    prefix: bool = True
    squeeze: bool = True
    byte_fallback: bool = False
    specials: dict[str, str] = field(default_factory=dict)


# --- protobuf ------------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    value = data[at]  # IndexError where the file ends
    if value < 128:
        return value, at + 1
    value &= 127
    for place in range(1, 10):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value & (2**64 - 1), at + place + 1
    raise ValueError("a number has no end")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message: their number, and an int or the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if key & 7 == 2 else (_SIZES.get(key & 7, len(data)), at)
            if size > len(data) - at:
                raise ValueError("it ends too early")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _message(data: bytes) -> dict[int, Any]:
    """A message by its fields; the last of two that are the same wins."""
    if not isinstance(data, bytes):
        raise ValueError("a number stands for a message")
    return {number: value for number, value in _fields(data) if number < 64}  # of which there are no more


def _bytes(message: dict[int, Any], number: int, usual: bytes = b"") -> bytes:
    value = message.get(number, usual)
    if not isinstance(value, bytes):
        raise ValueError("a number stands for a text")
    return value


def _number(message: dict[int, Any], number: int, usual: int) -> int:
    value = message.get(number, usual)
    if not isinstance(value, int):
        raise ValueError("a text stands for a number")
    return value


def _piece(data: bytes) -> Piece:
    found = _message(data)
    text = _bytes(found, 1).decode()
    (score,) = struct.unpack("<f", _bytes(found, 2, bytes(4)))
    if not text or len(text) > LONGEST_PIECE:
        raise ValueError(f"a piece has {len(text):,} characters")
    if not math.isfinite(score):
        raise ValueError(f"the score of a piece is {score}")
    # Nine digits tell 32-bit numbers apart, and are read from a tokenizer.json as they were written.
    return Piece(text, float(f"{score:.9g}"), _number(found, 3, NORMAL))


def _parse(data: bytes) -> Model:
    pieces, trainer, normalizer, denormalizer = [], {}, {}, {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
        elif number in (2, 3, 5):
            (trainer, normalizer, denormalizer)[(2, 3, 5).index(number)].update(_message(value))
        if len(pieces) > MOST_PIECES:
            raise ValueError(f"it has more than {MOST_PIECES:,} pieces")
    kind = _KINDS.get(_number(trainer, 3, 1), "of an unknown kind")
    if kind not in ("Unigram", "BPE", "CHAR") or trainer.get(24) or not normalizer.get(5, 1) or denormalizer.get(2):
        raise ValueError(f"a model of this kind ({kind}, or spaces written otherwise) is not read here")
    return Model(
        tuple(pieces),
        kind,
        charsmap=_bytes(normalizer, 2),
        prefix=bool(_number(normalizer, 3, 1)),
        squeeze=bool(_number(normalizer, 4, 1)),
        byte_fallback=bool(_number(trainer, 35, 0)),
        specials=_specials(pieces, trainer),
    )


def _specials(pieces: Iterable[Piece], trainer: dict[int, Any]) -> dict[str, str]:
    """The special tokens that the model names and has."""
    controls = {piece.text for piece in pieces if piece.use == CONTROL}
    roles = {"bos_token": (46, b"<s>"), "eos_token": (47, b"</s>"), "pad_token": (48, b"<pad>")}
    named = {role: _bytes(trainer, number, usual).decode() for role, (number, usual) in roles.items()}
    found = {role: text for role, text in named.items() if text in controls}
    unknown = next((piece.text for piece in pieces if piece.use == UNKNOWN), None)
    return found if unknown is None else found | {"unk_token": unknown}


def _check(model: Model) -> None:
    """Refuse what `tokenizers` would take without a word, or end the process over."""
    texts = {piece.text for piece in model.pieces}
    if len(texts) < len(model.pieces):
        raise ValueError("two pieces are the same")
    if sum(piece.use == UNKNOWN for piece in model.pieces) != 1:
        raise ValueError("it has not one unknown piece")
    if sum(piece.use == CONTROL for piece in model.pieces) > MOST_CONTROLS:
        raise ValueError(f"it has more than {MOST_CONTROLS:,} control pieces")
    if model.byte_fallback and {piece.text for piece in model.pieces if piece.use == BYTE} != set(_BYTES):
        raise ValueError("it has not the 256 bytes that it falls back on")
    if model.charsmap:
        _check_charsmap(model.charsmap)


def _check_charsmap(charsmap: bytes) -> None:
    """Refuse a map of characters that leads out of itself.

    It is the size of a trie, the trie, and the texts that it points to, a zero after each. The trie is a double array
    (Aoe 1989): of each unit bit 31 says that it is a leaf, whose other bits are a place in the texts; in other units
    bit 8 says that a leaf is among the children, which lie where the unit's own place and its offset differ.
    """
    size = int.from_bytes(charsmap[:4], "little")
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    units = np.frombuffer(charsmap, "<u4", count=size // 4, offset=4).astype(np.int64)
    charsmap[4 + size :].decode()
    if size % 1024 or not size or not len(texts) or texts[-1]:
        raise ValueError("its map of characters is cut")
    inner = np.flatnonzero(units < 2**31)
    offsets = (units[inner] >> 10) << ((units[inner] & 512) >> 6)
    children = inner ^ offsets
    if children.max(initial=0) >= len(units):  # a child's place differs in the lowest 8 bits alone, and 256 divides it
        raise ValueError("its map of characters leads out of itself")
    leaves = units[children[units[inner] & 256 > 0]] & (2**31 - 1)
    if leaves.max(initial=0) >= len(texts) or (texts[leaves] & 0xC0 == 0x80).any():
        raise ValueError("its map of characters points to no text")


# --- reading -------------------------------------------------------------------------------------------------------


def read_bounded(folder: Path, name: str) -> bytes:
    """A file of a folder, whole. Errors: NextileError for one that is no regular file there, or too large."""
    path = inside(folder, name)
    size = path.stat().st_size
    if size > LARGEST:
        raise NextileError(f"'{path}' has {size:,} bytes, more than any vocabulary's ({LARGEST:,}): get a sound copy")
    return path.read_bytes()


def read_model(folder: Path, name: str) -> Model:
    """The SentencePiece model in a file of a folder.

    Errors: NextileError for a file that is missing, too large, or no model that can be read.
    """
    try:
        model = _parse(read_bounded(folder, name))
        _check(model)
    except (ValueError, IndexError, struct.error) as error:
        why = "it ends too early" if isinstance(error, IndexError) else ascii(str(error))[1:-1][:200]
        raise NextileError(f"'{folder / name}' is no SentencePiece model ({why}): get a sound copy of it") from None
    return model


# --- other ids -----------------------------------------------------------------------------------------------------


def with_sentinels(core: Tokenizer, count: int) -> None:
    """Append T5's <extra_id_N>, whose ids go down; what is there already stays."""
    names = (f"<extra_id_{i}>" for i in reversed(range(count)))
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


def as_roberta(model: Model) -> Model:
    """The ids that XLM-R (Conneau et al. 2020) has from fairseq: four specials, the pieces from the third, a mask."""
    first = (Piece("<s>", use=CONTROL), Piece("<pad>", use=CONTROL), Piece("</s>", use=CONTROL))
    kept = tuple(piece for piece in model.pieces[3:] if piece.text not in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    pieces = (*first, Piece("<unk>", use=UNKNOWN), *kept, Piece("<mask>", use=CONTROL))
    roles = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    return replace(model, pieces=pieces, specials={f"{role}_token": text for role, text in roles.items()})


def read_marian(folder: Path, side: str = "source") -> Model:
    """The tokens of a Marian folder: ids by vocab.json, pieces and scores by the model of one side.

    What only the other side knows keeps its id for decoding and is never chosen. A target is encoded with
    side="target": the same where both files are, as they are for a joint vocabulary. MarianTokenizer looks a run of
    characters that the side does not know up once more among all tokens; here it is unknown.
    Errors: NextileError for a broken file, or ids with gaps.
    """
    model = read_model(folder, f"{side}.spm")
    if (folder / "target_vocab.json").exists():
        raise NextileError(f"'{folder}' has other ids for its targets, which is not read here: take a joint vocabulary")
    known = {piece.text: piece for piece in model.pieces if piece.use in (NORMAL, USER_DEFINED)}
    texts = sorted_by_id(read_vocabulary(folder), folder / "vocab.json")
    if "<unk>" not in texts or max(map(len, texts)) > LONGEST_PIECE:
        raise NextileError(f"'{folder / 'vocab.json'}' has no <unk>, or an endless token: get a sound copy of it")
    specials = {"</s>": CONTROL, "<pad>": CONTROL, "<s>": CONTROL, "<unk>": UNKNOWN}
    lowest = min((piece.score for piece in known.values()), default=0.0)
    others = {text: Piece(text, lowest, CONTROL if is_language(text) else UNUSED) for text in texts}
    pieces = others | known | {text: Piece(text, use=use) for text, use in specials.items()}
    roles = {f"{role}_token": text for role, text in (("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>"))}
    return replace(model, pieces=tuple(pieces[text] for text in texts), byte_fallback=False, specials=roles)


def is_language(text: str) -> bool:
    """Whether a token of Marian's says into which language to translate: ">>fra<<"."""
    return text.startswith(">>") and text.endswith("<<")


def read_vocabulary(folder: Path) -> dict[str, int]:
    """A vocab.json: {token: id}. Errors: NextileError for a file that holds nothing like it."""
    try:
        found = json.loads(read_bounded(folder, "vocab.json").decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not found or not all(type(index) is int for index in found.values()):
        raise NextileError(f"'{folder / 'vocab.json'}' holds no ids of tokens: get a sound copy of it")
    return found


def sorted_by_id(vocabulary: dict[str, int], path: Path) -> list[str]:
    """The tokens in the order of their ids. Errors: NextileError where these are not 0, 1, 2, ..."""
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[text] for text in texts] != list(range(len(texts))):
        raise NextileError(f"the ids in '{path}' are not 0 to {len(texts) - 1}, each once: get a sound copy of it")
    return texts


# --- building ------------------------------------------------------------------------------------------------------


def build(model: Model) -> Tokenizer:
    """The tokenizer that gives the ids of a SentencePiece model."""
    core = Tokenizer(_unigram(model) if model.kind == "Unigram" else _merging(model))
    core.normalizer = _normalizer(model)
    splits = _splits(model)
    prefix = [pre_tokenizers.Metaspace(prepend_scheme="first", split=False)] if _late_prefix(model) else []
    split = [pre_tokenizers.Split(Regex("|".join(splits)), "isolated")] if splits else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*prefix, *split]) if prefix or split else None  # type: ignore
    core.decoder = _decoder(model)
    specials = [piece.text for piece in model.pieces if piece.use in (CONTROL, UNKNOWN) and not is_language(piece.text)]
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    core.add_tokens([AddedToken(piece.text, normalized=True) for piece in model.pieces if piece.use == USER_DEFINED])
    core.add_tokens([AddedToken(piece.text, normalized=False) for piece in model.pieces if is_language(piece.text)])
    return core


def _written(piece: Piece) -> str:
    """How the vocabulary has a piece; one that no text may give begins with a space, which no normalised text has."""
    return f" {piece.text}" if piece.use == UNUSED else piece.text


def _unigram(model: Model) -> models.Unigram:
    unknown = next(index for index, piece in enumerate(model.pieces) if piece.use == UNKNOWN)
    scores = [piece.score for piece in model.pieces if piece.use == NORMAL]
    lowest = min(scores, default=0.0)  # the unknown character's score hangs on the lowest of all
    vocab = [(_written(piece), piece.score if piece.use == NORMAL else lowest) for piece in model.pieces]
    return models.Unigram(vocab, unk_id=unknown, byte_fallback=model.byte_fallback)


def _merging(model: Model) -> models.BPE:
    """BPE; the library joins the neighbours whose piece has the highest score, so every way to make a piece counts."""
    vocab = {_written(piece): index for index, piece in enumerate(model.pieces)}
    unknown = next(piece.text for piece in model.pieces if piece.use == UNKNOWN)
    merges = _merges(model.pieces) if model.kind == "BPE" else []
    return models.BPE(
        vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=model.byte_fallback
    )  # fmt: skip


def _merges(pieces: Iterable[Piece]) -> list[tuple[str, str]]:
    joined = sorted((piece for piece in pieces if piece.use == NORMAL), key=lambda piece: -piece.score)
    texts = {piece.text for piece in joined}
    return [
        (text[:i], text[i:])
        for text in (piece.text for piece in joined)
        for i in range(1, len(text))
        if text[:i] in texts and text[i:] in texts
    ]


def _normalizer(model: Model) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = _mapped(model.charsmap) if model.charsmap else []
    if model.squeeze:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z"), ""))
    steps.append(normalizers.Replace(" ", SPACE))
    if model.prefix and not _late_prefix(model):
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence(steps)


def _late_prefix(model: Model) -> bool:
    """Whether the prefix comes after user-defined symbols are found: they are normalised too, and would have one."""
    return model.prefix and any(piece.use == USER_DEFINED for piece in model.pieces)


def _mapped(charsmap: bytes) -> list[normalizers.Normalizer]:
    """The map of characters as `tokenizers` applies it, between two compositions where it composes itself.

    The library of SentencePiece takes the longest entry at each place; `tokenizers` takes one for each grapheme and
    leaves out the rest of it, so that an accent would be lost.
    """
    mapped = normalizers.Precompiled(charsmap)
    composes = mapped.normalize_str("e\u0301") == "é"
    return [normalizers.NFC(), mapped, normalizers.NFC()] if composes else [mapped]


def _splits(model: Model) -> list[str]:
    """Where a text may be cut without changing its ids: before words, for speed; within what looks like a special."""
    normal = [piece.text for piece in model.pieces if piece.use == NORMAL]
    words = SPACE in normal and not any(SPACE in text.lstrip(SPACE) for text in normal)
    hidden = [piece.text for piece in model.pieces if piece.use in (CONTROL, UNKNOWN, BYTE) and len(piece.text) > 1]
    return [rf"(?<=[^{SPACE}])(?={SPACE})"] * words + (_cuts(hidden, normal) if model.kind == "Unigram" else [])


def _cuts(hidden: list[str], normal: list[str]) -> list[str]:
    """Cuts within every hidden piece, so that Unigram, which knows it, never finds it in a text: at a place that no
    piece for text bridges, if there is one."""
    everything, single = "\n".join(normal), set(normal)
    rests: dict[str, list[str]] = {}
    for text in hidden:
        free = [i for i in range(1, len(text)) if text[i - 1 : i + 1] not in everything]
        known = [i for i in free if text[i - 1] in single or text[i] in single]  # unknown neighbours are one token
        at = (known or free or [len(text) - 1])[0]
        rests.setdefault(text[:at], []).append(text[at:])
    return [f"(?<={_escaped(left)})(?={'|'.join(map(_escaped, right))})" for left, right in rests.items()]


def _escaped(text: str) -> str:
    """A text as it is, in the expressions of `tokenizers`."""
    return re.sub(r"[^\w]", lambda sign: rf"\x{{{ord(sign[0]):x}}}", text)


def _decoder(model: Model) -> decoders.Decoder:
    hidden = any(piece.use == UNUSED for piece in model.pieces)
    steps: list[decoders.Decoder] = [decoders.Replace(Regex(r"\A "), "")] if hidden else []
    steps += [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.squeeze:
        steps.append(decoders.Strip(content=" ", left=LARGEST))
    elif model.prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)
