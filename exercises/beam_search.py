"""Exercise: beam search.

The likeliest next token need not begin the likeliest text. Beam search goes on from the `width` likeliest beginnings at
once. A round:

1. each beginning, with each token after it, is a candidate; its log-probability is the sum of those of its tokens;
2. of the `width` likeliest candidates, those whose last token is `end` are whole texts, which are put aside;
3. the `width` likeliest candidates that do not end are the beginnings of the next round.

After `most` rounds the `width` likeliest candidates of the last one are whole too, ended or not. The likeliest whole
text wins (no reward for length here).

Complete `beam_search`. Then run this file:

    python exercises/beam_search.py
"""

from collections.abc import Callable
from math import log

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.generation import beam
from nextile.generation.decode import EagerReader
from nextile.models.build import build
from nextile.models.families import gpt2

Ask = Callable[[list[int]], Tensor]  # the tokens so far -> log-probabilities (V,) of the next


def beam_search(ask: Ask, prompt: list[int], width: int, most: int, end: int) -> tuple[list[int], float]:
    """The tokens of the best text, without prompt and `end`, and its log-probability, the end's included."""
    raise NotImplementedError("complete `beam_search` in exercises/beam_search.py")


TREE = {(): [0.0, 0.6, 0.4], (1,): [0.4, 0.3, 0.3], (2,): [0.95, 0.05, 0.0]}  # 0 ends a text


def from_tree(tokens: list[int]) -> Tensor:
    """Of a language of three tokens; what is not in the tree ends."""
    return torch.tensor(TREE.get(tuple(tokens[1:]), [1.0, 0.0, 0.0])).log()


def check() -> None:
    """A tree that is searched by hand, and the library's search by a small model."""
    for width, tokens, chance in ((1, [1], 0.24), (2, [2], 0.38)):
        with case(f"a tree where 2 is less likely than 1, but then likelier to end; width {width}"):
            found = beam_search(from_tree, [9], width, 3, 0)
            require(isinstance(found, tuple), "give back the tokens and their log-probability")
            same(list(found[0]), tokens)
            same(float(found[1]), log(chance))
    model = build(gpt2.spec(vocab=12, context=32, width=16, depth=2, heads=2), seed=5).eval()
    for parameter in model.parameters():
        parameter.data *= 4

    @torch.no_grad()
    def ask(tokens: list[int]) -> Tensor:
        return model(torch.tensor([tokens]))[0, -1].log_softmax(-1)

    for width in (1, 3, 6):
        for most in (1, 5):
            with case(f"a small model, width {width}, {most} round{'s' * (most > 1)}"):
                beams = beam.Beams(width=width, length_penalty=0.0, patience="certain")
                want = beam.beam_search(EagerReader(model, 32), [[1, 2]], beams, limits=[most], end_ids=[0])[0][0]
                tokens, logprob = beam_search(ask, [1, 2], width, most, 0)
                same(list(tokens), want.tokens)
                same(float(logprob), want.logprob, within=1e-4)


if __name__ == "__main__":
    main(check)
