"""The tree of beams: which beginnings were looked at in each round, and which of them went on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from nextile.generation.beam import Hypothesis, Looked


@dataclass(frozen=True)
class BeamNode:
    """A beginning that was looked at: one token more than its parent's."""

    id: int
    parent: int | None  # None: the token is the first
    token: int
    text: str
    logprob: float  # nats, of the whole path
    kept: bool  # it went on, or ended among the best


@dataclass(frozen=True)
class BeamText:
    """A whole text that beams found."""

    text: str
    score: float  # logprob / length ** length_penalty
    ids: list[int]


@dataclass(frozen=True)
class BeamTree:
    """Round by round what was looked at, likeliest first, and the best texts, best first."""

    rounds: list[list[BeamNode]]
    texts: list[BeamText]


class Tree:
    """A tree as it grows; `text` says how a token is shown."""

    def __init__(self, text: Callable[[int], str]):
        self._text = text
        self.rounds: list[list[BeamNode]] = []
        self._going: list[int | None] = [None]  # the numbers of those that go on, in their order
        self._count = 0

    def grow(self, looked: Sequence[Looked]) -> None:
        """Take a round."""
        nodes = [self._node(each) for each in looked]
        self._going = [node.id for node, each in zip(nodes, looked, strict=True) if each.fate == "on"]
        self.rounds.append(nodes)

    def _node(self, looked: Looked) -> BeamNode:
        self._count += 1
        return BeamNode(
            id=self._count - 1, parent=self._going[looked.row], token=looked.token,
            text=self._text(looked.token), logprob=looked.logprob, kept=looked.fate != "left",
        )  # fmt: skip


def growing(
    tree: Tree, rounds: Generator[list[list[Looked]], None, list[list[Hypothesis]]], decode: Callable[[list[int]], str]
) -> Generator[None, None, BeamTree]:
    """The rounds of one source, told to its tree one by one; returns the tree with the texts that they end in."""
    while True:
        try:
            (looked,) = next(rounds)
        except StopIteration as end:
            (texts,) = end.value
            return BeamTree(tree.rounds, [BeamText(decode(each.tokens), each.score, each.tokens) for each in texts])
        tree.grow(looked)
        yield
