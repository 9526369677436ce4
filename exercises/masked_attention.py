"""Exercise: hide the future.

A model that writes from left to right must not look ahead: the query at place t may see the keys at places 0 to t. The
scores of all later keys become minus infinity before the softmax, so that their weights are exactly 0
(Vaswani et al. 2017, section 3.2.3).

Complete `masked`. Then run this file:

    python exercises/masked_attention.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.nn.attention import explicit_attention


def masked(scores: Tensor) -> Tensor:
    """Scores (..., T, T), query by key, with minus infinity wherever a key comes after the query; a new tensor."""
    raise NotImplementedError("complete `masked` in exercises/masked_attention.py")


def check() -> None:
    """Compare with the library, and move the future to see whether the past notices."""

    def weights(q: Tensor, k: Tensor) -> Tensor:
        return masked(q @ k.mT).softmax(-1)

    for time in (5, 1, 2):
        with case(f"2 heads, {time} token{'s' * (time > 1)}"):
            q, k = torch.randn(2, 1, 2, time, 4)
            want = explicit_attention(q, k, k, bias=None, causal=True, scale=1.0)[2]
            same(weights(q, k), want)
    with case("3 equal scores in a row"):
        found = masked(torch.zeros(3, 3))
        require(found[2].isfinite().all(), "the last query sees everything, itself too")
        require(found[0, 0].isfinite(), "the first query sees itself")
        require(found[0, 1] == -torch.inf and found[1, 2] == -torch.inf, "a key that is to come must be minus infinity")
    with case("all scores below -1,000,000"):
        same(masked(torch.full((3, 3), -2e6)).softmax(-1), torch.ones(3, 3).tril() / torch.tensor([[1.0], [2], [3]]))
    with case("another last key"):
        q, k = torch.randn(2, 4, 4)
        before, k[3] = weights(q, k)[:3].clone(), 100.0
        require(torch.equal(weights(q, k)[:3], before), "earlier queries notice it")
    with case("your own scores"):
        scores = torch.randn(3, 3)
        kept = scores.clone()
        masked(scores)
        require(torch.equal(scores, kept), "they were changed in place: give back a new tensor")


if __name__ == "__main__":
    main(check)
