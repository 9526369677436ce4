"""Exercise: read another program's checkpoint.

GPT-2's published weights have one matrix for queries, keys and values together, and every projection the other way
round than torch's linear layers: x @ W + b, with W (in, out), where a layer here has x @ weight.T + bias, with weight
(out, in). nanoGPT keeps the three together too, but turned. To load either is to rename, to cut and to turn.

Complete both functions. Then run this file:

    python exercises/implementations.py
"""

import tempfile
from pathlib import Path

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.checkpoint.store import save_model
from nextile.checkpoint.weights import load_folder
from nextile.models.build import build
from nextile.models.families import gpt2


def three(weight: Tensor, bias: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """GPT-2's c_attn, weight (D, 3 D) and bias (3 D,): side by side are those of queries, keys and values.

    Returns the weight (D, D) and the bias (D,) of a layer here, under "query", "key" and "value".
    """
    raise NotImplementedError("complete `three` in exercises/implementations.py")


def name_here(theirs: str) -> str:
    """GPT-2's name of a tensor -> the name here, of those in a block's feed-forward net and its norms.

    transformer.h.2.mlp.c_fc.weight  is  stack.blocks.2.feed_forward.inner.up.weight
    transformer.h.2.mlp.c_proj.bias  is  stack.blocks.2.feed_forward.inner.down.bias
    transformer.h.2.ln_1.weight      is  stack.blocks.2.self_attention.norm.weight
    transformer.h.2.ln_2.bias        is  stack.blocks.2.feed_forward.norm.bias
    """
    raise NotImplementedError("complete `name_here` in exercises/implementations.py")


def check() -> None:
    """Compare with a model that is written as GPT-2's files are, and read again."""
    model = build(gpt2.spec(vocab=20, context=8, width=8, depth=12, heads=2), seed=2)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    here = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model)
        theirs = {name: tensor.clone() for name, tensor in load_folder(Path(folder)).items()}
    for block in (0, 11):
        with case(f"three of block {block}, width 8"):
            names = [f"transformer.h.{block}.attn.c_attn.{part}" for part in ("weight", "bias")]
            found = three(*(theirs[name] for name in names))
            require(set(found) == {"query", "key", "value"}, f"it has {sorted(found)}")
            for part, (weight, bias) in found.items():
                with case(part):
                    same(weight, here[f"stack.blocks.{block}.self_attention.inner.{part}.weight"])
                    same(bias, here[f"stack.blocks.{block}.self_attention.inner.{part}.bias"])
    for name, tensor in theirs.items():
        if ".mlp." in name or ".ln_1." in name or ".ln_2." in name:
            with case(f"name_here of {name}"):
                found = name_here(name)
                require(found in here, f"'{found}' is no name here")
                ours = here[found]
                turned = ours.T if ".mlp." in name and ours.dim() == 2 else ours
                require(turned.shape == tensor.shape and torch.equal(turned, tensor), f"'{found}' holds something else")


if __name__ == "__main__":
    main(check)
