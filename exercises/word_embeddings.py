"""Exercise: a word from its neighbours (CBOW).

Every word has two vectors, one by which it is seen and one by which it is predicted. The mean of the first kind over
the neighbours of a place, a bag without order, is compared by a product with the second kind of a word: is it the one
in the middle? The right word should get a high product, a few wrong ones a low one:

    h = mean of x(c) over the neighbours c,     loss = -log σ(h · y(right)) - Σ log σ(-h · y(wrong))

(Mikolov et al. 2013, by negative sampling.) Complete both functions. Then run this file:

    python exercises/word_embeddings.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor
from torch.nn import functional as F

from nextile.models.words import CBOW
from nextile.nn import specs


def hidden(x: Tensor, ids: Tensor, place: int, window: int) -> Tensor:
    """x (V, D), the words ids (T,) of a text -> (D,): the mean vector of up to `window` words on either side.

    The word at the place is not its own neighbour. A word without neighbours has the hidden layer 0.
    """
    raise NotImplementedError("complete `hidden` in exercises/word_embeddings.py")


def loss(h: Tensor, right: Tensor, wrong: Tensor) -> Tensor:
    """h (D,), the vector of the right word (D,), those of N wrong ones (N, D) -> () nats."""
    raise NotImplementedError("complete `loss` in exercises/word_embeddings.py")


def check() -> None:
    """Compare with the library's model, and with torch's own loss of yes and no."""
    model = CBOW(specs.CBOW(vocab=20, width=4, window=2))
    x = torch.randn(20, 4)
    model.words_in.weight.data = x
    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    want = model.features(ids[None])[0].detach()
    for place, name in ((3, "fourth"), (0, "first"), (7, "last"), (1, "second")):
        with case(f"hidden of {ids.tolist()}, the {name} word, window 2"):
            same(hidden(x, ids, place, 2), want[place])
    with case("hidden of one word alone"):
        same(hidden(x, ids[:1], 0, 2), torch.zeros(4))
    with case("loss of a word and 5 wrong ones"):
        h, right, wrong = torch.randn(4), torch.randn(4), torch.randn(5, 4)
        answers = torch.tensor([1.0, 0, 0, 0, 0, 0])
        same(loss(h, right, wrong), F.binary_cross_entropy_with_logits(torch.cat((right[None], wrong)) @ h, answers,
                                                                       reduction="sum"))  # fmt: skip
    with case("loss of a product of -200, whose σ is 0 in float32"):
        found = loss(torch.ones(1), torch.tensor([-200.0]), torch.tensor([[-200.0]]))
        require(bool(torch.isfinite(found)), f"it is {found.item()}: torch.nn.functional has a log σ that is careful")
        same(found, torch.tensor(200.0))


if __name__ == "__main__":
    main(check)
