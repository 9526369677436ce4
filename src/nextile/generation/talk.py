"""A conversation with a model: what was said so far is its prompt, what it answers is streamed and remembered."""

from __future__ import annotations

from collections.abc import Iterator

from nextile.base.errors import NextileError
from nextile.generation.complete import Pretrained, stream
from nextile.generation.sample import Sampling
from nextile.text.chat import ASSISTANT, Chat, Message

SYSTEM, USER = "system", "user"


class Talk:
    """Who said what, and the model that answers.

    When all that was said leaves no room for an answer in the model's context, the oldest questions and answers are
    forgotten, what the system said never.
    """

    def __init__(self, pretrained: Pretrained, sampling: Sampling, *, max_tokens: int = 512, system: str | None = None):
        self.pretrained, self.sampling, self.max_tokens = pretrained, sampling, max_tokens
        self.chat = Chat(pretrained.tokenizer)
        self.messages = [] if system is None else [Message(SYSTEM, system)]

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece; it is remembered as far as it was taken, also when nobody takes the rest.

        Errors: NextileError when the question alone is longer than the model's context.
        """
        self.messages.append(Message(USER, text))
        said: list[str] = []
        try:
            for piece in self._answer():
                said.append(piece)
                yield piece
        except NextileError:
            self.messages.pop()  # what cannot be asked was not said
            raise
        except BaseException:  # interrupted, or left: what was read of the answer was said
            self.messages.append(Message(ASSISTANT, "".join(said).strip()))
            raise
        self.messages.append(Message(ASSISTANT, "".join(said).strip()))

    def back(self) -> bool:
        """Forget the last question and its answer; whether there was one."""
        questions = [index for index, message in enumerate(self.messages) if message.role == USER]
        if questions:
            del self.messages[questions[-1] :]
        return bool(questions)

    def _answer(self) -> Iterator[str]:
        tokens = min(self.max_tokens, max(1, self.pretrained.model.spec.context // 2))
        return stream(
            self.pretrained, self._prompt(tokens), self.sampling, max_tokens=tokens, end_ids=self.chat.ends
        )  # fmt: skip

    def _prompt(self, room: int) -> list[int]:
        """As much of the conversation as leaves room for so many tokens."""
        context = self.pretrained.model.spec.context
        while True:
            ids = self.chat.prompt(self.messages)
            if len(ids) + room <= context:
                return ids
            if not self._forget():
                break
        if len(ids) > context:
            raise NextileError(f"the question has {len(ids)} tokens and the model reads {context}: shorten it")
        return ids

    def _forget(self) -> bool:
        """Drop the oldest question and its answer; whether there was one before the last."""
        questions = [index for index, message in enumerate(self.messages) if message.role == USER]
        if len(questions) < 2:
            return False
        del self.messages[questions[0] : questions[1]]
        return True
