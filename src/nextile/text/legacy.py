"""Folders without a tokenizer.json: a SentencePiece model, vocab.json and merges.txt, vocab.txt, or bytes alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from nextile.base.errors import NextileError
from nextile.text import sentencepieces
from nextile.text.bytelevel import CHARACTER
from nextile.text.sentencepieces import read_bounded, read_vocabulary, sorted_by_id

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
FILES = (
    "tokenizer.json",
    *SENTENCEPIECE,
    "source.spm",
    "vocab.json",
    "vocab.txt",
)  # one of them is in a folder of text

Specials = dict[str, str]
Read = tuple[Tokenizer, Specials]

# The class of a folder that names none, by the model_type of its config.json.
_CLASSES = {
    "t5": "T5Tokenizer", "byt5": "ByT5Tokenizer", "xlm-roberta": "XLMRobertaTokenizer", "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer", "mixtral": "LlamaTokenizer", "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer", "marian": "MarianTokenizer", "gpt2": "GPT2Tokenizer", "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer", "bart": "BartTokenizer", "distilbert": "BertTokenizer",
}  # fmt: skip
_GENERIC = ("", "PreTrainedTokenizer", "TokenizersBackend")  # says nothing of how ids are given
_OF_PIECES = (*_GENERIC, "T5Tokenizer", "LlamaTokenizer", "GemmaTokenizer", "CodeLlamaTokenizer", "XLMRobertaTokenizer")
_OF_MERGES = (*_GENERIC, "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer")
_OF_WORDPIECES = (*_GENERIC, "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")

BYTE_SPECIALS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_BERT = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
_ROBERTA = {
    "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
    "unk_token": "<unk>", "mask_token": "<mask>",
}  # fmt: skip
_MOST_SENTINELS = 10_000


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object beside the tokens; empty where there is none."""
    if not (folder / name).exists():
        return {}
    try:
        found = json.loads(read_bounded(folder, name).decode())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NextileError(f"'{folder / name}' holds no JSON object: get a sound copy of it")
    return found


def has_text(folder: Path) -> bool:
    """Whether a folder has a file of tokens, or says that its tokens are bytes, which need none."""
    if any((folder / name).exists() for name in FILES):
        return True
    return str(_json(folder, "tokenizer_config.json").get("tokenizer_class")) == "ByT5Tokenizer"


def read(folder: Path, config: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, Any]] | None:
    """The tokenizer that a folder's other files make, and its config with what those files say; None where none is.

    config: its tokenizer_config.json.
    Errors: NextileError for a broken file, or a tokenizer class of which it is not known how it gives ids.
    """
    name = _class(folder, config)
    found = _read(folder, name, config)
    if found is None:
        return None
    core, specials = found
    _add(core, folder, config)
    whole = {**specials, **config, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _frame(core, whole, name)
    return core, whole


def _class(folder: Path, config: Mapping[str, Any]) -> str:
    """The tokenizer class by name, as its slow form is called; empty where nothing names one."""
    whole = _json(folder, "config.json")
    roberta = "XLMRobertaTokenizer" if (folder / "sentencepiece.bpe.model").exists() else ""
    usual = _CLASSES.get(str(whole.get("model_type")), roberta)
    named = config.get("tokenizer_class") or whole.get("tokenizer_class") or usual
    name = str(named).removesuffix("Fast")
    return usual if name in _GENERIC else name


def _read(folder: Path, name: str, config: Mapping[str, Any]) -> Read | None:
    """By the files that there are, the most telling first."""
    there = [file for file in (*SENTENCEPIECE, "source.spm", "merges.txt", "vocab.txt") if (folder / file).exists()]
    if name == "ByT5Tokenizer":
        return _bytes(_sentinels(config, 125))
    if "source.spm" in there:
        _expect(folder, name, (*_GENERIC, "MarianTokenizer"))
        model = sentencepieces.read_marian(folder)
        return sentencepieces.build(model), model.specials
    if there and there[0] in SENTENCEPIECE:
        _expect(folder, name, _OF_PIECES)
        return _pieces(folder, there[0], name, config)
    if "merges.txt" in there and (folder / "vocab.json").exists():
        _expect(folder, name, _OF_MERGES)
        return _merged(folder, name, config)
    if "vocab.txt" in there:
        _expect(folder, name, _OF_WORDPIECES)
        return _wordpieces(folder, config)
    return None


def _expect(folder: Path, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise NextileError(
            f"how {name[:80]!r} gives ids is not known from the files in '{folder}': write a tokenizer.json with "
            "transformers, AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )


# --- pieces and bytes ----------------------------------------------------------------------------------------------


def _pieces(folder: Path, file: str, name: str, config: Mapping[str, Any]) -> Read:
    model = sentencepieces.read_model(folder, file)
    if name == "XLMRobertaTokenizer":
        model = sentencepieces.as_roberta(model)
    core = sentencepieces.build(model)
    if name == "T5Tokenizer":
        sentencepieces.with_sentinels(core, _sentinels(config, 100))
    return core, model.specials


def _sentinels(config: Mapping[str, Any], usual: int) -> int:
    count = config.get("extra_ids", usual)
    if type(count) is not int or not 0 <= count <= _MOST_SENTINELS:
        raise NextileError(
            f'"extra_ids" is {ascii(count)[:80]} in tokenizer_config.json: a number to {_MOST_SENTINELS} is'
        )
    return count


def _bytes(sentinels: int) -> Read:
    """ByT5 (Xue et al. 2021): three specials, the bytes, and sentinels, whose ids go up here."""
    core = byte_core()
    _add_special(core, (f"<extra_id_{i}>" for i in range(sentinels)))
    return core, BYTE_SPECIALS


def byte_core() -> Tokenizer:
    """Padding 0, end 1, unknown 2, byte b is b + 3: byte-level BPE that has learned no merge."""
    names = (*BYTE_SPECIALS.values(), *(CHARACTER[byte] for byte in range(256)))
    core = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return core


def _add_special(core: Tokenizer, names: Iterable[str]) -> None:
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])


# --- merges and words ----------------------------------------------------------------------------------------------


def _merged(folder: Path, name: str, config: Mapping[str, Any]) -> Read:
    """GPT-2's byte-level BPE (Radford et al. 2019), which RoBERTa and BART have with other specials."""
    vocabulary = read_vocabulary(folder)
    sorted_by_id(vocabulary, folder / "vocab.json")
    merges = _merges(folder, vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(config, "add_prefix_space", False))
    core.decoder = decoders.ByteLevel()
    like_roberta = name not in (*_GENERIC, "GPT2Tokenizer") or "<|endoftext|>" not in vocabulary
    usual = _ROBERTA if like_roberta else {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return core, {role: token for role, token in usual.items() if token in vocabulary}


def _merges(folder: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The lines of a merges.txt, two tokens each. `tokenizers` 0.23 ends the process over some that make no token."""
    lines = _lines(folder, "merges.txt")
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            place = f"line {number} of '{folder / 'merges.txt'}'"
            raise NextileError(f"{place} merges no two tokens into one: get a sound copy of it")
        merges.append((left, right))
    return merges


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a text; only "\\n" and "\\r\\n" end one."""
    try:
        text = read_bounded(folder, name).decode()
    except UnicodeDecodeError as error:
        raise NextileError(f"'{folder / name}' is not UTF-8 (byte {error.start}): get a sound copy of it") from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _wordpieces(folder: Path, config: Mapping[str, Any]) -> Read:
    """BERT's WordPiece (Devlin et al. 2019); the line of a token is its id."""
    lines = _lines(folder, "vocab.txt")
    tokens = lines[:-1] if lines[-1] == "" else lines
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = str(_content(config.get("unk_token", "[UNK]")))
    if len(vocabulary) < len(tokens) or unknown not in vocabulary:
        raise NextileError(f"'{folder / 'vocab.txt'}' has a token twice, or no unknown one: get a sound copy of it")
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token=unknown))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=_flag(config, "tokenize_chinese_chars", True),
        strip_accents=_flag(config, "strip_accents", None),
        lowercase=_flag(config, "do_lower_case", True),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##")
    return core, {role: token for role, token in _BERT.items() if token in vocabulary}


def _flag(config: Mapping[str, Any], name: str, usual: bool | None) -> Any:
    value = config.get(name, usual)
    if value is not None and type(value) is not bool:
        raise NextileError(f'"{name}" is {ascii(value)[:80]} in tokenizer_config.json: write true or false')
    return usual if value is None else value


# --- what the configs add ------------------------------------------------------------------------------------------


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _add(core: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """The tokens that were added to a vocabulary, for a chat for one: they must stand behind it, one after the other.

    Errors: NextileError for ids with gaps or that another token has.
    """
    for index, token in sorted(_added(folder, config).items()):
        size = core.get_vocab_size(with_added_tokens=True)
        known = core.token_to_id(token.content)
        if known is None and index == size:
            known = size
        if known != index:
            raise NextileError(
                f"the added token {token.content[:80]!r} of '{folder}' cannot have the id {index}: get a sound copy"
            )
        (core.add_special_tokens if token.special else core.add_tokens)([token])


def _added(folder: Path, config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """By their ids, from added_tokens.json, and from the config, which says more."""
    plain = {index: {"content": text} for text, index in _json(folder, "added_tokens.json").items()}
    detailed = config.get("added_tokens_decoder", {})
    found: dict[int, AddedToken] = {}
    try:
        for index, token in [*plain.items(), *detailed.items()]:
            flags = {name: token.get(name, False) for name in ("single_word", "lstrip", "rstrip", "normalized")}
            special = token.get("special", False) or token["content"] in _named(config)
            found[int(index)] = AddedToken(token["content"], special=special, **flags)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise NextileError(f"the added tokens of '{folder}' are none: get a sound copy of it") from None
    return found


def _named(config: Mapping[str, Any]) -> list[str]:
    """The special tokens of a config, by whatever role."""
    more = config.get("additional_special_tokens", [])
    tokens = [value for key, value in config.items() if key.endswith("_token")]
    return [_content(token) for token in [*tokens, *(more if isinstance(more, list) else [])]]


def _frame(core: Tokenizer, config: Mapping[str, Any], name: str) -> None:
    """Say for other programs what stands before and after a text; our own `encode` adds nothing."""
    before = {"bos_token": _flag(config, "add_bos_token", name in ("LlamaTokenizer", "GemmaTokenizer"))}
    after = {"eos_token": _flag(config, "add_eos_token", name in ("T5Tokenizer", "ByT5Tokenizer", "MarianTokenizer"))}
    if name in (*_OF_WORDPIECES[3:], "XLMRobertaTokenizer", "RobertaTokenizer", "BartTokenizer"):
        before, after = {"cls_token": True}, {"sep_token": True}
    first, last = (
        [
            token
            for role, wanted in roles.items()
            if wanted and core.token_to_id(token := str(_content(config.get(role)))) is not None
        ]
        for roles in (before, after)
    )
    specials = [(token, core.token_to_id(token)) for token in dict.fromkeys(first + last)]
    if specials:
        core.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last], pair=[*first, "$A", *last, "$B", *last], special_tokens=specials
        )
