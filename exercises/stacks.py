"""Exercise: run a stack, and ask every layer what it would say.

A stack is equal blocks, one after the other: what one gives, the next takes. The vectors between them, the stream, all
have the same width and nearly the same meaning. So the last norm and the head can read any of them, as if the stack
ended there (the logit lens: nostalgebraist 2020).

Complete both functions. Then run this file:

    python exercises/stacks.py
"""

from collections.abc import Callable, Sequence

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.attention import Place
from nextile.nn.tap import record

Layer = Callable[[Tensor], Tensor]


def stream(blocks: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """What comes into the stack, and what each of L blocks gives: L + 1 tensors (B, T, D)."""
    raise NotImplementedError("complete `stream` in exercises/stacks.py")


def lens(blocks: Sequence[Layer], norm: Layer, head: Layer, x: Tensor) -> Tensor:
    """The likeliest token by each layer: (L + 1, B, T), int64. The head gives scores (B, T, V)."""
    raise NotImplementedError("complete `lens` in exercises/stacks.py")


def check() -> None:
    """Compare with a GPT-2 of three blocks, and with what its parts tell while it runs."""
    with case("no block"):
        x = torch.randn(1, 2, 4)
        found = stream([], x)
        require(len(found) == 1, f"there are {len(found)} tensors, and one comes in")
        same(found[0], x)
    with case("two blocks, + 1 and × 2"):
        found = stream([lambda x: x + 1, lambda x: x * 2], torch.zeros(1, 1, 1))
        same([each.item() for each in found], [0.0, 1.0, 2.0])
    model = build(gpt2.spec(vocab=30, context=8, width=16, depth=3, heads=2)).eval()
    ids = torch.randint(0, 30, (2, 6))
    blocks = [lambda x, block=block: block(x, Place(causal=True)) for block in model.stack.blocks]
    with torch.no_grad(), record(model, "*.stream") as seen:
        logits, x = model(ids), model.embed(ids)
        with case("stream of a GPT-2 of three blocks"):
            for layer, found in enumerate(stream(blocks, x)[1:]):
                same(found, seen[f"stack.blocks.{layer}.stream"])
        with case("lens of a GPT-2 of three blocks"):
            found = lens(blocks, model.stack.norm, model.head, x)
            require(
                tuple(found.shape) == (4, 2, 6), f"its shape is {tuple(found.shape)}, not (4, 2, 6): layer, text, token"
            )
            same(found[-1], logits.argmax(-1))
            same(found[1], model.head(model.stack.norm(seen["stack.blocks.0.stream"])).argmax(-1))


if __name__ == "__main__":
    main(check)
