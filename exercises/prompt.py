"""Exercise: ask a model by its prompt.

A language model can be asked without being trained for the question: put it into the prompt, and look which of some
answers it thinks likeliest to follow. The log-probability of an answer is the sum over its tokens, each after the
prompt and the answer's tokens before it; the prompt's own tokens do not count. Longer answers have more tokens to be
wrong in, so they are often compared by the mean per token.

Complete both functions. Then run this file:

    python exercises/prompt.py
"""

from collections.abc import Callable, Sequence

import torch
from checking import case, main, same
from torch import Tensor

from nextile.data.batches import IGNORE, Batch
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.objectives import next_token

Ask = Callable[[Tensor], Tensor]  # tokens (T,) -> logits (T, V): at each place, of the token after it


def log_probability(ask: Ask, prompt: list[int], answer: list[int]) -> float:
    """Of an answer of one token or more after a prompt of one token or more, in nats; one call of the model."""
    raise NotImplementedError("complete `log_probability` in exercises/prompt.py")


def choose(ask: Ask, prompt: list[int], answers: Sequence[list[int]]) -> int:
    """The number of the answer with the highest mean log-probability per token."""
    raise NotImplementedError("complete `choose` in exercises/prompt.py")


def check() -> None:
    """Compare with the library's objective, which is asked for the answer's places alone."""
    model = build(gpt2.spec(vocab=20, context=32, width=16, depth=2, heads=2), seed=1).eval()
    for parameter in model.parameters():
        parameter.data *= 3

    @torch.no_grad()
    def ask(tokens: Tensor) -> Tensor:
        return model(tokens[None])[0]

    @torch.no_grad()
    def wanted(prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([prompt + answer])
        targets = ids[:, 1:].clone()
        targets[:, : len(prompt) - 1] = IGNORE
        return -next_token(model, Batch.of(ids[:, :-1], targets)).item()

    for prompt, answer in (([1, 2, 3], [4, 5]), ([1, 2, 3], [4]), ([7], [8, 9, 10, 11])):
        with case(f"log_probability of {answer} after {prompt}"):
            same(log_probability(ask, prompt, answer), wanted(prompt, answer), within=1e-4)
    answers = [[9, 15, 11], [18], [6, 16], [4]]  # of which the sums would choose others than the means
    for prompt in ([1, 2, 3], [5], [6, 6, 6]):
        with case(f"choose among {answers} after {prompt}"):
            means = [wanted(prompt, answer) / len(answer) for answer in answers]
            same(int(choose(ask, prompt, answers)), max(range(4), key=means.__getitem__))


if __name__ == "__main__":
    main(check)
