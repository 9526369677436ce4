"""Checkpoints of other programs, each in its own layout: nanoGPT, minGPT, LitGPT and GGUF, told apart and read."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.base.files import inside
from nextile.checkpoint import convert, litgpt, nanogpt
from nextile.checkpoint.gguf import read_gguf
from nextile.checkpoint.gguf_file import MAGIC
from nextile.checkpoint.nanogpt import Words
from nextile.checkpoint.pickled import load_pickled
from nextile.checkpoint.store import OURS
from nextile.checkpoint.weights import INDEX
from nextile.models.build import AnyModel, skeleton
from nextile.models.families.keymap import same
from nextile.models.families.table import family_named, family_of
from nextile.nn import specs
from nextile.text.legacy import has_text
from nextile.text.tokenizer import Tokenizer

OWN = ("model.safetensors", INDEX)  # a folder with one of these is Hugging Face's, whatever else lies in it
INSIDE = (litgpt.WEIGHTS, "ckpt.pt")  # what a folder of LitGPT or nanoGPT has
WRONG = (ValidationError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


class Foreign(NamedTuple):
    """A model that was read, the family that has its shape, and its tokenizer if there is one."""

    model: AnyModel
    family: str
    tokenizer: Tokenizer | None


def find_foreign(path: Path) -> Path | None:
    """The file of a checkpoint in another program's layout: the path itself, or what its folder has; else None."""
    if path.is_file():
        return path
    if not path.is_dir() or any((path / name).exists() for name in OWN):
        return None
    return next((inside(path, name) for name in INSIDE if (path / name).exists()), None)


def load_foreign(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, heads: int | None = None
) -> Foreign:
    """The model of such a file, ready to run; a tokenizer that lies beside it is its own.

    heads: how many a minGPT has, whose file does not say it. Errors: NextileError for what is unknown or not sound.
    """
    try:
        words, tokenizer = _read(path, heads)
        spec, tensors = _ours(*words)
    except WRONG as error:
        raise NextileError(f"'{path}': {_first_line(error)}: get a sound copy of it") from error
    model = skeleton(spec)
    _check_shapes(tensors, model, path)
    tensors = {name: value if dtype is None else value.to(dtype) for name, value in tensors.items()}
    model.load_state_dict(tensors, assign=True, strict=False)  # checked above
    _check_tokens(tokenizer, spec.embed.vocab, path)
    return Foreign(model.to(device).eval(), family_of(spec) or OURS, tokenizer)


def _read(path: Path, heads: int | None) -> tuple[Words, Tokenizer | None]:
    """A file in transformers' words. Errors: NextileError for a kind that is not read."""
    with open(path, "rb") as file:
        begin = file.read(len(MAGIC))
    if begin == MAGIC:
        return read_gguf(path)
    if not zipfile.is_zipfile(path):
        raise NextileError(
            f"'{path}' is no checkpoint that nextile reads: name a model folder, a .gguf, or what "
            "torch.save wrote for nanoGPT, minGPT or LitGPT"
        )
    saved = load_pickled(path)
    beside = Tokenizer.load(path.parent) if has_text(path.parent) else None
    if path.name == litgpt.WEIGHTS or (path.parent / litgpt.CONFIG).is_file():
        return litgpt.read_litgpt(litgpt.read_config(path.parent), saved), beside
    if nanogpt.is_nanogpt(saved):
        return nanogpt.read_nanogpt(saved), beside
    if nanogpt.is_mingpt(saved):
        return nanogpt.read_mingpt(saved, path, heads), beside
    raise NextileError(
        f"'{path}' holds no model of nanoGPT, minGPT or LitGPT, which are what nextile reads by torch.load"
    )


def _ours(config: dict, theirs: dict[str, Tensor]) -> tuple[specs.Transformer, dict[str, Tensor]]:
    """A spec, and our tensors. Our GPT-2 has a tied head, as the published ones; minGPT's has not."""
    family = family_named(config)
    untied = config["model_type"] == "gpt2" and not config["tie_word_embeddings"]
    spec = family.from_config({**config, "tie_word_embeddings": True} if untied else config)
    rules = family.key_map(spec)
    if untied:
        spec = spec.model_copy(update={"head": specs.LinearHead()})
        rules = [*rules, same("head.weight", "lm_head.weight")]
    return spec, convert.read(rules, theirs)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))} {first['msg'].removeprefix('Value error, ')}".strip()
    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return f"{said} is missing" if isinstance(error, KeyError) else said


def _check_shapes(tensors: dict[str, Tensor], model: AnyModel, path: Path) -> None:
    for name, value in model.named_parameters():
        if tensors[name].shape != value.shape:
            raise NextileError(
                f"'{path}' has {name} as {tuple(tensors[name].shape)} where its settings say {tuple(value.shape)}: "
                "get a sound copy of it"
            )


def _check_tokens(tokenizer: Tokenizer | None, rows: int, path: Path) -> None:
    """A model may have rows for more tokens than its tokenizer has (50,304 for GPT-2's 50,257), but not for fewer."""
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise NextileError(
            f"the tokenizer beside '{path}' has {tokenizer.vocab_size:,} tokens and the model {rows:,}: they do not "
            "belong together"
        )
