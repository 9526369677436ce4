"""Exercise: count a Transformer.

A GPT-2 is an embedding of V tokens and one of T positions, L equal blocks, and a last layer norm; its head is the
embedding read backwards and costs nothing more. A block has two layer norms, the four matrices of attention, and two
matrices of the feed-forward net, which is four times as wide as the stream. Every matrix has a bias, every layer norm
a gain and a bias.

Complete both functions; the smallest GPT-2 (V 50,257, T 1,024, width 768, depth 12) has 124,439,808. Then run this
file:

    python exercises/transformer.py
"""

from checking import case, main, same

from nextile.models.count import parameters
from nextile.models.families import gpt2


def of_block(width: int) -> int:
    """How many numbers a block learns."""
    raise NotImplementedError("complete `of_block` in exercises/transformer.py")


def of_model(vocab: int, context: int, width: int, depth: int) -> int:
    """How many the whole model learns."""
    raise NotImplementedError("complete `of_model` in exercises/transformer.py")


def check() -> None:
    """Compare with what the library counts."""

    def counted(vocab: int, context: int, width: int, depth: int) -> int:
        return parameters(gpt2.spec(vocab=vocab, context=context, width=width, depth=depth, heads=1)).total

    for width in (1, 8, 768):
        with case(f"a block of width {width}"):
            same(of_block(width), counted(1, 1, width, 2) - counted(1, 1, width, 1))
    for sizes in ((10, 4, 8, 1), (100, 32, 16, 3), (50_257, 1024, 768, 12)):
        with case("a model of {} tokens, {} positions, width {}, depth {}".format(*sizes)):
            same(of_model(*sizes), counted(*sizes))


if __name__ == "__main__":
    main(check)
