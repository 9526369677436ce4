"""Checkpoints of nanoGPT and of minGPT: GPT-2's tensors, its matrices stored (out, in).

What is read is told in transformers' words, a configuration and tensors, so that the family of GPT-2 does the rest.
Shapes: D width, V vocabulary, C context.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextile.base.errors import NextileError
from nextile.checkpoint.weights import read_json

Words = tuple[dict[str, Any], dict[str, Tensor]]  # a configuration and tensors as transformers has them

COMPILED = "_orig_mod."  # what torch.compile puts before the names
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers: who may see whom
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
BLOCK = ("ln_1", "ln_2", *MATRICES)
HEADS = {
    "openai-gpt": 12, "gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25,
    "gopher-44m": 16, "gpt-mini": 6, "gpt-micro": 4, "gpt-nano": 3,
}  # fmt: skip  # minGPT's model types: its config.json is written before they become numbers


def is_nanogpt(saved: Any) -> bool:
    """Whether this is what nanoGPT's training saves."""
    return (
        isinstance(saved, dict) and isinstance(saved.get("model_args"), dict) and isinstance(saved.get("model"), dict)
    )


def is_mingpt(saved: Any) -> bool:
    """Whether this is the state of a minGPT."""
    return isinstance(saved, dict) and "transformer.h.0.attn.c_attn.weight" in {_plain(str(name)) for name in saved}


def read_nanogpt(saved: Mapping[str, Any]) -> Words:
    """The words of a `ckpt.pt`; without biases it gets ones of zero, which is the same function.

    Its GELU is the exact one, nanoGPT's since May 2023: the file does not say which it is.
    """
    arguments = saved["model_args"]
    state = _state(saved["model"])
    if not arguments.get("bias", True):
        state |= _zero_biases(state)
    config = {
        "vocab_size": arguments["vocab_size"],
        "n_positions": arguments["block_size"],
        "n_embd": arguments["n_embd"],
        "n_layer": arguments["n_layer"],
        "n_head": arguments["n_head"],
        "activation_function": "gelu",
        "resid_pdrop": arguments.get("dropout", 0.0),
    }
    return _words(config, state)


def read_mingpt(saved: Mapping[str, Any], path: Path, heads: int | None) -> Words:
    """The words of a minGPT's state, its sizes from the shapes; heads None: from the config.json beside the file."""
    state = _state(saved)
    vocab, width = state["transformer.wte.weight"].shape
    config = {
        "vocab_size": vocab,
        "n_positions": len(state["transformer.wpe.weight"]),
        "n_embd": width,
        "n_layer": sum(name.endswith(".ln_1.weight") for name in state),
        "n_head": _heads(path) if heads is None else heads,
        "activation_function": "gelu_new",
    }
    return _words(config, state)


def _heads(path: Path) -> int:
    """Errors: NextileError, with the ways to say it, where nothing says how many heads there are."""
    beside = path.with_name("config.json")
    said = read_json(beside).get("model") if beside.is_file() else None
    if isinstance(said, dict):
        heads = said.get("n_head") or HEADS.get(str(said.get("model_type")))
        if isinstance(heads, int):
            return heads
    raise NextileError(
        f"'{path}' does not say how many heads the model has: put minGPT's config.json beside it, or use "
        f"nextile convert '{path}' FOLDER --heads N"
    )


def _words(config: dict[str, Any], state: dict[str, Tensor]) -> Words:
    """The same tensors with their matrices turned, as views, and the head left out where it is the embedding."""
    turned = tuple(f"{name}.weight" for name in MATRICES)
    tensors = {name: value.mT if name.endswith(turned) else value for name, value in state.items()}
    tied = is_tied(tensors, "transformer.wte.weight")
    return {"model_type": "gpt2", "tie_word_embeddings": tied, **config}, tensors


def is_tied(tensors: dict[str, Tensor], embedding: str) -> bool:
    """Whether the head is the embedding; a copy of it is taken out."""
    head = tensors.get("lm_head.weight")
    if head is None or torch.equal(head, tensors[embedding]):
        tensors.pop("lm_head.weight", None)
        return True
    return False


def _state(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters by their names, without what the compiler added and without masks. Errors: NextileError."""
    state = {_plain(str(name)): value for name, value in saved.items()}
    for name, value in state.items():
        if not isinstance(value, Tensor) or (name.endswith(".weight") and not 1 <= value.dim() <= 2):
            raise NextileError(f"{name[:80]!r} in the checkpoint is no vector or matrix: it is of another model")
    return {name: value.detach() for name, value in state.items() if not name.endswith(MASKS)}


def _plain(name: str) -> str:
    return name.removeprefix(COMPILED)


def _zero_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A bias of zeros for each norm and each matrix of the blocks."""
    owners = ("transformer.ln_f.weight", *(f".{name}.weight" for name in BLOCK))
    return {
        f"{name.removesuffix('weight')}bias": value.new_zeros(len(value))
        for name, value in state.items()
        if name.endswith(owners)
    }
