"""The Tokenizer: text <-> token ids for every kind, kept in one tokenizer.json."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tokenizers

from nextile.base.errors import NextileError
from nextile.base.files import atomic_write, inside, open_regular
from nextile.text import bulk, legacy
from nextile.text.bytelevel import BYTE, raw, utf8

Kind = Literal["char", "word", "lexicon", "byte", "bpe", "other"]

END = "<|endoftext|>"  # GPT-2's token between documents: ours for every kind but bytes
UNKNOWN = "<unk>"
EACH_CHARACTER = r"[\s\S]"
EACH_WORD = r"\w+|\s+|[^\w\s]"  # a word, a run of white space, a sign
LOWER_WORD = r"\w(?:[\w']*\w)?"  # a word of lower-cased text; what stands between is no token

_FILE, _CONFIG, _MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE = "chat_template.jinja"
_LONGEST = 2**27  # bytes; tokenizer.json of a vocabulary of 260,000 has a quarter of that
_LONGEST_TEMPLATE = 2**20  # bytes; the longest in use have some 20,000
_MOST = 2**24  # ids: libraries make tables as long as the highest, and a hostile file would have them fill the memory
_CHUNK = 4 * 2**20  # bytes of text encoded at a time: enough to keep all cores busy, little to hold

# Which entries of a Hugging Face folder name a part, the first that is there: BERT ends a text with its separator.
_ROLES = {
    "end": ("eos_token", "sep_token"),
    "begin": ("bos_token", "cls_token"),
    "pad": ("pad_token",),
    "unknown": ("unk_token",),
    "mask": ("mask_token",),
}
# How a folder without such entries usually calls its end of text.
_USUAL_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")


class DecodeStream(Protocol):
    """Text from ids that arrive one by one; the pieces together are `decode` of all the ids."""

    def push(self, index: int) -> str:
        """The text that has become certain with this id: often a word, sometimes nothing."""
        ...

    def flush(self) -> str:
        """What is left when no more ids come."""
        ...


class Tokenizer:
    """Text <-> token ids, around one `tokenizers.Tokenizer`, which it owns and configures.

    `config` is the folder's tokenizer_config.json: it names the special tokens ("eos_token", "pad_token", ...).

    core: the wrapped tokenizer.  kind: what a token is; "other" for those that we do not train.
    vocab_size: the highest id + 1.  special_ids: the tokens that no text encodes to.
    end_id: the end of a text.  begin_id, pad_id, unknown_id, mask_id: None where there is no such token; the last
    stands for a token that is hidden.  chat_template: how conversations are written (chat.py), None where unknown.
    """

    def __init__(self, core: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
        core.no_truncation()
        core.no_padding()
        core.encode_special_tokens = True  # the *text* "<|endoftext|>" is text
        self.core = core
        self._config = dict(config)
        self.chat_template: str | None = _default_template(self._config.pop("chat_template", None))
        self.vocab_size = max(core.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        ids = {role: self._find(names) for role, names in _ROLES.items()}
        self.end_id: int = self._usual_end() if ids["end"] is None else ids["end"]
        self.begin_id, self.pad_id, self.unknown_id = ids["begin"], ids["pad"], ids["unknown"]
        self.mask_id = ids["mask"]
        self._mark_special(self.end_id, *ids.values())
        self.special_ids = frozenset(index for index, token in core.get_added_tokens_decoder().items() if token.special)
        self._spec: dict[str, Any] = json.loads(core.to_str())
        self.kind: Kind = _kind(self._spec)

    @property
    def config(self) -> dict[str, Any]:
        """The tokenizer_config.json as it is written."""
        return dict(self._config)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size})"

    # --- one text -------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of `text` and nothing but text: no special token is read from it or added to it.

        Errors: NextileError for a lone surrogate, which is not Unicode.
        """
        return bulk.encode(self.core, text)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return self.core.decode([int(index) for index in ids], skip_special_tokens=skip_special)

    def decode_stream(self) -> DecodeStream:
        """Text as ids arrive, special tokens left out."""
        return _TextStream(self) if self.kind in _JOINED else _ByteStream(self)

    @cached_property
    def decodes_nearby(self) -> bool:
        """Whether a token's text depends on no tokens but those beside it."""
        return _is_nearby(self._spec["decoder"])

    def token(self, index: int) -> str:
        """How the vocabulary writes an id: "Ġthe", "<|endoftext|>"."""
        token = self.core.id_to_token(index) if 0 <= index < self.vocab_size else None
        if token is None:
            raise NextileError(f"token id {index} is not in the vocabulary: the ids go from 0 to {self.vocab_size - 1}")
        return token

    def bytes_of(self, index: int) -> bytes | None:
        """The bytes that an id adds to the text; None where it adds none or they depend on its neighbours."""
        token = self.core.id_to_token(index)
        if token is None or index in self.special_ids or self.kind in _JOINED:
            return None
        return raw(token) if self._is_byte_level else token.encode()

    # --- many texts -----------------------------------------------------------------------------------------------

    def encode_documents(
        self, documents: Iterable[str], progress: Callable[[int], object] | None = None
    ) -> Iterator[np.ndarray]:
        """The ids of each document, uint32 (tokens,), as `encode` gives them but many times faster; no end tokens.

        progress is told how many bytes of text are done, after every chunk.
        """
        done = 0
        for chunk, size in _chunks(documents):
            yield from self._encoder(chunk)
            done += size
            if progress:
                progress(done)

    @cached_property
    def _encoder(self) -> bulk.Encoder:
        return bulk.encoder(self.core, self.kind, self._spec)

    # --- on disk --------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads them."""
        atomic_write(Path(folder, _FILE), self.core.to_str(pretty=True))
        config = json.dumps(self._config, ensure_ascii=False, indent=2, sort_keys=True)
        atomic_write(Path(folder, _CONFIG), config + "\n")
        if self.chat_template is None:
            Path(folder, _TEMPLATE).unlink(missing_ok=True)  # that of another, which stood here
        else:
            atomic_write(Path(folder, _TEMPLATE), self.chat_template)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder, ours or Hugging Face's; without a tokenizer.json from what else is there.

        Errors: NextileError where a file is missing or broken, or no token ends a text.
        """
        folder = Path(folder)
        try:
            config = _read_json(folder / _MAP) | _read_json(folder / _CONFIG) | _read_template(folder)
            if not (folder / _FILE).exists() and (found := legacy.read(folder, config)):
                _check_ids(found[0])
                return cls(*found)
            return cls(_read_core(folder / _FILE), config)
        except _Unusable as error:
            raise NextileError(f"the tokenizer in {str(folder)!r} cannot be used: {error}") from None

    def fingerprint(self) -> str:
        """The SHA-256 of the canonical tokenizer.json: equal exactly where all ids are."""
        return hashlib.sha256(self.core.to_str().encode()).hexdigest()

    # --- special tokens -------------------------------------------------------------------------------------------

    def _find(self, names: Iterable[str]) -> int | None:
        """The id of the first special token that the config has under one of `names`."""
        for name in names:
            token = self._config.get(name)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str) and (index := self.core.token_to_id(content)) is not None:
                return index
        return None

    def _usual_end(self) -> int:
        found = (self.core.token_to_id(token) for token in _USUAL_ENDS)
        index = next((index for index in found if index is not None), None)
        if index is None:
            raise _Unusable(f'no token ends a text; name one of its tokens as "eos_token" in {_CONFIG}')
        return index

    def _mark_special(self, *ids: int | None) -> None:
        """Make special what the config calls so, as transformers does."""
        tokens = [self.core.id_to_token(index) for index in dict.fromkeys(ids) if index is not None]
        known = {token.content for token in self.core.get_added_tokens_decoder().values() if token.special}
        self.core.add_special_tokens(
            [tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens if token not in known]
        )

    @property
    def _is_byte_level(self) -> bool:
        return self.kind in ("byte", "bpe")


_JOINED = ("lexicon", "other")  # kinds whose text depends on a token's neighbours
_WHOLE_WORDS: dict[str, Kind] = {EACH_CHARACTER: "char", EACH_WORD: "word"}


def _kind(spec: dict[str, Any]) -> Kind:
    """What a token is, from the parts of a tokenizer.json."""
    model, splitter, decoder = spec["model"], spec["pre_tokenizer"] or {}, spec["decoder"] or {}
    if model["type"] == "BPE" and decoder.get("type") == "ByteLevel":
        bytes_only = not model["merges"] and splitter.get("use_regex") is False and BYTE.keys() <= model["vocab"].keys()
        return "byte" if bytes_only else "bpe"
    if model["type"] == "WordLevel" and decoder.get("type") == "Fuse" and model["unk_token"] in model["vocab"]:
        pattern = splitter.get("pattern", {}).get("Regex")
        return _WHOLE_WORDS.get(pattern, "other")
    return "lexicon" if _is_lexicon(spec, model, splitter) else "other"


def _is_lexicon(spec: dict[str, Any], model: dict[str, Any], splitter: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is one of words in small letters, exactly as it is made here."""
    return (
        model["type"] == "WordLevel"
        and model["unk_token"] in model["vocab"]
        and spec["normalizer"] == {"type": "Lowercase"}
        and splitter.get("pattern") == {"Regex": LOWER_WORD}
        and (splitter.get("behavior"), splitter.get("invert")) == ("Removed", True)
        and all(token["special"] for token in spec["added_tokens"])
    )


def _default_template(value: Any) -> str | None:
    """The chat template of a config: a text, or the one called default in a list of {"name", "template"}."""
    if isinstance(value, list):
        found = [each.get("template") for each in value if isinstance(each, dict) and each.get("name") == "default"]
        value = found[0] if found else value
    if not isinstance(value, str | None):
        raise _Unusable(f"its chat_template is no text and has none named default; write one as {_TEMPLATE}")
    if value is not None and any("\ud800" <= character <= "\udfff" for character in value):
        raise _Unusable("its chat template is not Unicode, it has a lone surrogate; fetch it again")
    if value is not None and len(value.encode()) > _LONGEST_TEMPLATE:
        raise _Unusable(f"its chat template is longer than {_LONGEST_TEMPLATE:,} bytes; write a shorter one")
    return value


def assemble(core: tokenizers.Tokenizer, **specials: str) -> Tokenizer:
    """A Tokenizer of ours around `core`, with the config that makes transformers load it as it is."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return Tokenizer(core, config | specials)


def _chunks(documents: Iterable[str]) -> Iterator[tuple[list[str], int]]:
    """The documents in lists of about `_CHUNK` bytes, with the bytes of each list."""
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(utf8(document))
        if size >= _CHUNK:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


# --- reading ------------------------------------------------------------------------------------------------------


class _Unusable(Exception):
    """Why a tokenizer's files do not make a tokenizer; `load` adds where they lie."""


def _read_core(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise _Unusable(f"there is no {_FILE}; is it a model folder?")
    try:
        text = _text_of(path)
        _check_merges(json.loads(text))
        core = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise _Unusable(f"{_FILE} is broken ({_first_line(error)}); fetch or save it again") from None
    _check_ids(core)
    return core


def _check_ids(core: tokenizers.Tokenizer) -> None:
    highest = max(core.get_vocab(with_added_tokens=True).values(), default=None)
    ids = core.get_vocab(with_added_tokens=False).values()
    if highest is None:
        raise _Unusable(f"{_FILE} has no tokens; fetch or save it again")
    if highest >= _MOST:
        raise _Unusable(f"{_FILE} has the token id {highest}, more than any vocabulary's; fetch or save it again")
    if len(set(ids)) < len(ids):
        raise _Unusable(f"{_FILE} gives one id to two tokens; fetch or save it again")


def _check_merges(spec: Any) -> None:
    """Refuse merges that make no token: `tokenizers` 0.23 ends the process over some (its pull request 2398)."""
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or not model.get("merges"):
        return
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        whole = left + right[len(prefix) :]
        if not right.startswith(prefix) or not {left, right, whole} <= model["vocab"].keys():
            raise ValueError(f"the merge of {left!r} and {right!r} makes no token")


def _text_of(path: Path) -> str:
    """A file of the folder. Errors: NextileError for a link out of it, OSError for a pipe, ValueError for its size."""
    with open_regular(inside(path.parent, path.name)) as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise ValueError(f"it is larger than {_LONGEST >> 20} MiB")
    return data.decode()


def _read_json(path: Path) -> dict[str, Any]:
    """An optional JSON object; empty where the file is absent."""
    if not path.exists():
        return {}
    try:
        content = json.loads(_text_of(path))
    except (OSError, ValueError, RecursionError) as error:
        raise _Unusable(f"{path.name} is broken ({_first_line(error)}); fetch or save it again") from None
    if not isinstance(content, dict):
        raise _Unusable(f"{path.name} holds no JSON object; fetch or save it again")
    return {key: value for key, value in content.items() if value is not None}


def _read_template(folder: Path) -> dict[str, str]:
    """The chat template that has a file of its own, as tokenizer_config.json would have it; nothing where it is absent.

    Errors: NextileError where it is no regular file of the folder.
    """
    path = folder / _TEMPLATE
    if not path.exists() and not path.is_symlink():
        return {}
    with open_regular(inside(folder, _TEMPLATE)) as file:
        data = file.read(_LONGEST_TEMPLATE + 1)
    if len(data) > _LONGEST_TEMPLATE:
        raise _Unusable(f"{_TEMPLATE} is longer than {_LONGEST_TEMPLATE:,} bytes; write a shorter one")
    try:
        return {"chat_template": data.decode()}
    except UnicodeDecodeError as error:
        raise _Unusable(f"{_TEMPLATE} is not UTF-8 text (byte {error.start}); fetch or save it again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- streaming ----------------------------------------------------------------------------------------------------


class _ByteStream:
    """Bytes as they come; a character is let out when it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        return self._decoder.decode(self._tokenizer.bytes_of(index) or b"")

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class _TextStream:
    """Decoders that look at the neighbours (WordPiece, SentencePiece): decode them, let out what is new and whole.

    Where a decoder looks no further than the neighbours, all before the last token whose text is out is forgotten.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._forgets = tokenizer.decodes_nearby
        self._ids: list[int] = []  # that are decoded together
        self._shown = ""  # of their text

    def push(self, index: int) -> str:
        self._ids.append(index)
        if self._is_open(index):
            return ""
        text = self._tokenizer.decode(self._ids)
        new = self._release(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        if self._forgets and self._shown == text:
            self._forget()
        return new

    def _is_open(self, index: int) -> bool:
        """Whether what comes next may change the text so far: bytes of SentencePiece are judged as a whole run, which
        special tokens do not end."""
        token = self._tokenizer.core.id_to_token(index)
        return token is None or index in self._tokenizer.special_ids or _BYTE_PIECE.fullmatch(token) is not None

    def _forget(self) -> None:
        """Begin with the last token, if it has a text that no decoder takes away at a beginning."""
        text = self._tokenizer.decode(self._ids[-1:])
        if text.strip():
            self._ids, self._shown = self._ids[-1:], text

    def flush(self) -> str:
        return self._release(self._tokenizer.decode(self._ids))

    def _release(self, text: str) -> str:
        new = text.removeprefix(self._shown) if text.startswith(self._shown) else ""
        self._shown += new
        return new


# Decoders of which each token's text follows from it, the token beside it, and whether it is the first or the last.
_NEARBY = {"WordPiece", "Metaspace", "ByteFallback", "ByteLevel", "BPEDecoder", "Fuse", "Strip", "Replace"}


def _is_nearby(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a decoder, as a tokenizer.json has it, looks no further; None joins tokens by spaces."""
    steps = [decoder] if decoder else []
    if decoder and decoder["type"] == "Sequence":
        steps = decoder["decoders"]
    joined = False
    for step in steps:
        if step["type"] not in _NEARBY or (joined and step["type"] == "Replace"):
            return False  # a pattern in the joined text may match across many tokens
        joined |= step["type"] in ("Fuse", "ByteLevel")
    return True
