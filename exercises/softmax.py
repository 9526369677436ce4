"""Exercise: from logits to probabilities.

    p(i) = e^(z_i / τ) / Σ_j e^(z_j / τ)

The temperature τ says how soft it is. Two ways cut off what is unlikely before a token is drawn: top-k keeps the k
likeliest, top-p the fewest likeliest whose probabilities sum to p at least (Holtzman et al. 2020). What is cut gets the
logit minus infinity.

Complete the three functions, the first without torch's own softmax. Then run this file:

    python exercises/softmax.py
"""

import torch
from checking import case, main, require, same
from torch import Tensor

from nextile.generation import sample


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(B, V) -> (B, V); the temperature is above 0. Logits of 1,000 must not overflow."""
    raise NotImplementedError("complete `softmax` in exercises/softmax.py")


def top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) -> (B, V): all but the k highest of each row are minus infinity."""
    raise NotImplementedError("complete `top_k` in exercises/softmax.py")


def top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) -> (B, V): all but the fewest likeliest that have the mass p are minus infinity; one stays at least."""
    raise NotImplementedError("complete `top_p` in exercises/softmax.py")


def check() -> None:
    """Compare with the library, whose rules are those of transformers."""
    logits = torch.randn(3, 10)
    for degree in (1.0, 0.1, 5.0):
        with case(f"softmax of 3 rows of 10, temperature {degree}"):
            same(softmax(logits, degree), sample.temperature(logits, degree).softmax(-1))
    with case("softmax of 1,000 and 998"):
        same(softmax(torch.tensor([[1000.0, 998.0]])), torch.tensor([[2.0, 0.0]]).softmax(-1))
    with case("softmax where one logit is minus infinity"):
        same(softmax(torch.tensor([[0.0, -torch.inf, 0.0]])), torch.tensor([[0.5, 0.0, 0.5]]))
    for k in (1, 3, 10, 99):
        with case(f"top_k of 3 rows of 10, k {k}"):
            same(top_k(logits, k), sample.top_k(logits, k))
    for p in (0.9, 0.5, 0.01, 1.0):
        with case(f"top_p of 3 rows of 10, p {p}"):
            same(top_p(logits, p), sample.top_p(logits, p))
    with case("top_p of probabilities 0.4, 0.3, 0.2, 0.1, p 0.6: two have it together"):
        found = top_p(torch.tensor([[0.2, 0.4, 0.1, 0.3]]).log(), 0.6)
        require(
            found.isfinite().tolist() == [[False, True, False, True]],
            f"{found.isfinite().sum()} are kept: {found.tolist()}",
        )
    with case("your own logits"):
        kept = logits.clone()
        softmax(logits), top_k(logits, 2), top_p(logits, 0.5)
        require(torch.equal(logits, kept), "they were changed in place: give back a new tensor")


if __name__ == "__main__":
    main(check)
