"""The tokenizer in a GGUF file: byte-level BPE, whose split into words is one that llama.cpp has a name for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from nextile.base.errors import NextileError, UsageError
from nextile.text.tokenizer import Tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # kinds of tokens
ROLES = {"eos_token": "eos_token_id", "bos_token": "bos_token_id", "pad_token": "padding_token_id"}
KEY = "tokenizer.ggml."

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
NEWER_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


class Splitting(NamedTuple):
    """What happens to a text before merges: how it is normalised, split, and whether whole words need no merges."""

    normalizer: str | None
    words: str
    whole: bool


PRE = {
    "gpt-2": Splitting(None, GPT2_WORDS, False),
    "llama-bpe": Splitting(None, NEWER_WORDS.replace("DIGITS", "{1,3}"), True),
    "qwen2": Splitting("NFC", NEWER_WORDS.replace("DIGITS", ""), False),
}  # by llama.cpp's name


# --- to a file ------------------------------------------------------------------------------------------------------


def tokens_there(tokenizer: Tokenizer | None, rows: int) -> tuple[dict[str, Any], str | None]:
    """A header's values for `rows` tokens, and what the user should know where the file gets none.

    Errors: UsageError for a tokenizer of more tokens than the model has.
    """
    none = {f"{KEY}model": "none"}
    if tokenizer is None:
        return none, "the model has no tokenizer, so the file has none: give one by --tokenizer FOLDER"
    if tokenizer.vocab_size > rows:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model {rows:,}: they do not belong together"
        )
    spec = json.loads(tokenizer.core.to_str())
    pre = _name_of(spec)
    if pre is None:
        kind = (
            "byte-pair encoding with a split of its own"
            if tokenizer.kind == "bpe"
            else f"of the kind {tokenizer.kind!r}"
        )
        return none, f"the tokenizer is {kind}, for which GGUF has no word: the file is without tokens"
    tokens = [tokenizer.core.id_to_token(index) for index in range(tokenizer.vocab_size)]
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in spec["added_tokens"]}
    kinds = [UNUSED if token is None else added.get(index, NORMAL) for index, token in enumerate(tokens)]
    pad = range(len(tokens), rows)
    ids = {"eos_token_id": tokenizer.end_id, "bos_token_id": tokenizer.begin_id, "padding_token_id": tokenizer.pad_id}
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": [token or f"[UNUSED{index}]" for index, token in enumerate(tokens)]
        + [f"[PAD{index}]" for index in pad],
        "token_type": kinds + [UNUSED] * len(pad),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]],
        **{name: index for name, index in ids.items() if index is not None},
    }
    if pre != "llama-bpe":  # whose texts llama.cpp begins with a token, as Llama 3 wants it
        values["add_bos_token"] = bool(tokenizer.config.get("add_bos_token", False))
    template = {"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    return {f"{KEY}{name}": value for name, value in values.items()} | template, None


def _name_of(spec: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of how a tokenizer.json splits texts; None for what is no byte-level BPE with such a split."""
    model = spec["model"]
    strange = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback")
    if model["type"] != "BPE" or not model["merges"] or any(model.get(name) for name in strange):
        return None
    if (spec["decoder"] or {}).get("type") != "ByteLevel":
        return None
    normalizer, words = spec["normalizer"], _words(spec["pre_tokenizer"] or {})
    found = Splitting(normalizer["type"] if normalizer else None, words or "", bool(model.get("ignore_merges")))
    return next((name for name, known in PRE.items() if known == found), None)


def _words(splitter: Mapping[str, Any]) -> str | None:
    """The pattern of a split that is followed by bytes, as GPT-2's or as those after it are written."""
    if splitter.get("type") == "ByteLevel":
        return GPT2_WORDS if splitter.get("use_regex", True) and not splitter.get("add_prefix_space") else None
    parts = splitter.get("pretokenizers", [])
    if [part.get("type") for part in parts] != ["Split", "ByteLevel"]:
        return None
    split, level = parts
    plain = split.get("behavior") == "Isolated" and not split.get("invert")
    if not plain or level.get("use_regex", True) or level.get("add_prefix_space"):
        return None
    return split["pattern"].get("Regex")


# --- from a file ----------------------------------------------------------------------------------------------------


def tokenizer_here(values: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer of a header, None where it has none, or one that is not byte-level BPE with a split known here.

    Errors: NextileError for one that is damaged.
    """
    known = PRE.get(str(values.get(f"{KEY}pre")))
    if values.get(f"{KEY}model") != "gpt2" or known is None:
        return None
    tokens, merges = values.get(f"{KEY}tokens"), values.get(f"{KEY}merges")
    kinds = _listed(values.get(f"{KEY}token_type")) or [NORMAL] * len(tokens or ())
    if not _texts(tokens) or not _texts(merges) or len(kinds) != len(tokens or ()):
        raise NextileError(
            "the tokens, their kinds and merges in the file do not belong together: get a complete copy of it"
        )
    assert tokens is not None
    assert merges is not None
    return _loaded(_json_of(tokens, kinds, merges, known), _config_of(values, tokens))


def _listed(value: Any) -> list[int]:
    return [int(kind) for kind in value] if value is not None and not isinstance(value, str) else []


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _json_of(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], known: Splitting) -> dict[str, Any]:
    """The tokenizer.json; its merges are pairs of tokens without spaces, which bytes are never written as."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": index, "content": token, **flags, "special": kind == CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": known.words == GPT2_WORDS,
    }
    split = {"type": "Split", "pattern": {"Regex": known.words}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": known.normalizer} if known.normalizer else None,
        "pre_tokenizer": level if level["use_regex"] else {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": known.whole,
            "vocab": {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED},
            "merges": [merge.split(" ") for merge in merges],
        },
    }


def _config_of(values: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, Any]:
    """The tokenizer_config.json."""
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, name in ROLES.items():
        index = values.get(f"{KEY}{name}")
        if isinstance(index, int) and 0 <= index < len(tokens):
            config[role] = tokens[index]
    template = values.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _loaded(spec: dict[str, Any], config: dict[str, Any]) -> Tokenizer:
    """Through a folder, so that it is checked as any tokenizer of strangers is."""
    with TemporaryDirectory(prefix="nextile-gguf-") as folder:
        Path(folder, "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            return Tokenizer.load(folder)
        except NextileError as error:
            raise NextileError(str(error).replace(repr(folder), "the file")) from None
