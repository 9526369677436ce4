"""Exercise: questions and answers out of a text, and how good a model's answers are.

A language model is asked for every token from those before it. A text is its own teacher: read it once as the
questions, once moved by one as the answers. The loss is the mean of -log p(answer), in nats; the perplexity is e to
the power of it: among how many equally likely tokens the model seems to choose.

Complete both functions. Then run this file:

    python exercises/language_model.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.data.batches import Batch
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.objectives import next_token


def pairs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens (T,) of a text -> inputs and targets, (T - 1,) each: after inputs[t] comes targets[t]."""
    raise NotImplementedError("complete `pairs` in exercises/language_model.py")


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """Of logits (T, V), which are no probabilities yet, and targets (T,): a number from 1 on."""
    raise NotImplementedError("complete `perplexity` in exercises/language_model.py")


def check() -> None:
    """Compare with the library's objective, on a model that has learned nothing."""
    with case("pairs of 5, 6, 7"):
        found = pairs(torch.tensor([5, 6, 7]))
        require(isinstance(found, tuple) and len(found) == 2, "give back two tensors, inputs and targets")
        same(found[0], torch.tensor([5, 6]))
        same(found[1], torch.tensor([6, 7]))
    with case("perplexity where all 7 tokens are equally likely"):
        same(perplexity(torch.zeros(4, 7), torch.tensor([0, 3, 6, 2])), 7.0)
    with case("perplexity of answers that are certain"):
        same(perplexity(torch.eye(3) * 1000, torch.arange(3)), 1.0)
    with case("perplexity of logits of 1,000, whose powers overflow"):
        same(perplexity(torch.tensor([[1000.0, 1000.0]]), torch.tensor([1])), 2.0)
    with case("perplexity of probabilities 1/2 and 1/8: of their geometric mean, not of their mean"):
        same(perplexity(torch.tensor([[0.5, 0.5], [0.125, 0.875]]).log(), torch.tensor([0, 0])), 4.0)
    with case("a GPT-2 of two blocks, 20 tokens"), torch.no_grad():
        ids = torch.randint(0, 50, (21,))
        model = build(gpt2.spec(vocab=50, context=20, width=16, depth=2, heads=2))
        inputs, targets = pairs(ids)
        nats = next_token(model, Batch.of(ids[None, :-1], ids[None, 1:])) / 20
        same(perplexity(model(inputs[None])[0], targets), nats.exp().item())


if __name__ == "__main__":
    main(check)
