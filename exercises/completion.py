"""Exercise: write, one token at a time.

Ask the model, choose a token, append it to the text, ask again. Greedy takes the likeliest token. Drawing throws a
dart: let the tokens lie side by side on a line, each as wide as it is probable; a point from 0 to 1 falls on one.

Complete both functions. Then run this file:

    python exercises/completion.py
"""

from collections.abc import Callable

import torch
from checking import case, main, same
from torch import Tensor

from nextile.generation.decode import decode
from nextile.generation.sample import Sampling, draw, point, random_stream
from nextile.models.build import build
from nextile.models.families import gpt2

Ask = Callable[[list[int]], Tensor]  # the tokens so far -> logits (V,) of the next


def greedy(ask: Ask, prompt: list[int], most: int, end: int) -> list[int]:
    """Up to `most` new tokens, without the prompt; after the token `end`, which is not given back, nothing follows."""
    raise NotImplementedError("complete `greedy` in exercises/completion.py")


def pick(logits: Tensor, point: float) -> int:
    """The token of logits (V,) on which a point (at least 0, below 1) falls; they lie in the order of their numbers."""
    raise NotImplementedError("complete `pick` in exercises/completion.py")


def check() -> None:
    """Compare with what the library writes by a small model, and with its draws."""
    model = build(gpt2.spec(vocab=20, context=32, width=16, depth=2, heads=2), seed=3).eval()
    for parameter in model.parameters():
        parameter.data *= 4  # so that it says different things at different places

    @torch.no_grad()
    def ask(tokens: list[int]) -> Tensor:
        return model(torch.tensor([tokens]))[0, -1]

    def written(prompt: list[int], most: int, end: int) -> list[int]:
        settings = {"max_tokens": most, "end_ids": [end], "compiled": False}
        return [event.token for event in decode(model, [prompt], Sampling(temperature=0.0), **settings)]

    long = written([1, 2, 3], 8, end=99)
    with case("greedy, 8 tokens after 1, 2, 3"):
        same(greedy(ask, [1, 2, 3], 8, 99), long)
    with case(f"greedy, where {long[4]} ends a text"):
        same(greedy(ask, [1, 2, 3], 8, long[4]), long[: long.index(long[4])])
    with case("greedy, no token at most"):
        same(greedy(ask, [1, 2, 3], 0, 99), [])
    with case("your own prompt"):
        prompt = [4, 5]
        greedy(ask, prompt, 3, 99)
        same(prompt, [4, 5])
    logits = torch.tensor([0.2, 0.3, 0.0, 0.5]).log()
    for where, token in ((0.0, 0), (0.1, 0), (0.25, 1), (0.6, 3), (0.999, 3)):
        with case(f"pick from probabilities 0.2, 0.3, 0, 0.5 at {where}"):
            same(int(pick(logits, where)), token)
    for number in range(20):
        logits = torch.randn(50)
        with case(f"pick number {number} from 50 tokens"):
            where = point(random_stream(0, number))
            same(int(pick(logits, where)), draw(logits[None], [random_stream(0, number)]).item())


if __name__ == "__main__":
    main(check)
