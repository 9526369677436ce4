"""Conversations: what was said is the prompt, answers are remembered, the oldest is forgotten when there is no room."""

import pytest

from nextile.base.errors import NextileError
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.sample import Sampling
from nextile.generation.talk import Talk
from nextile.models.build import build
from nextile.models.families import qwen3
from nextile.text.characters import train_characters

GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def pretrained():
    tokens = train_characters(["System: User: Assistant: abcdefghij?\n\n"])
    model = build(qwen3.spec(vocab=tokens.vocab_size, context=120, width=16, depth=1, heads=2), seed=1)
    return Pretrained(model, tokens, model.spec, "qwen3")


def said(talk):
    return [(message.role, message.content) for message in talk.messages]


def test_the_pieces_are_the_answer_and_it_is_remembered(pretrained):
    talk = Talk(pretrained, GREEDY, max_tokens=6, system="be a")
    answer = "".join(talk.ask("ab?"))
    assert said(talk) == [("system", "be a"), ("user", "ab?"), ("assistant", answer.strip())]
    ids = talk.chat.prompt(talk.messages[:2])
    assert "ab?" in pretrained.tokenizer.decode(ids)


def test_what_was_said_before_counts(pretrained):
    first, second = Talk(pretrained, GREEDY, max_tokens=6), Talk(pretrained, GREEDY, max_tokens=6)
    list(first.ask("a?"))
    list(second.ask("jjj?"))
    prompts = [talk.chat.prompt(talk.messages) for talk in (first, second)]
    assert prompts[0] != prompts[1]


def test_the_last_question_can_be_taken_back(pretrained):
    talk = Talk(pretrained, GREEDY, max_tokens=4, system="a")
    assert not talk.back()
    list(talk.ask("a?"))
    list(talk.ask("b?"))
    assert talk.back()
    assert [content for role, content in said(talk) if role == "user"] == ["a?"]
    assert talk.back()
    assert said(talk) == [("system", "a")]


def test_the_oldest_is_forgotten_and_the_system_never(pretrained):
    talk = Talk(pretrained, GREEDY, max_tokens=30, system="abc")
    for question in ("aaaaaaaaaa?", "bbbbbbbbbb?", "cccccccccc?"):
        list(talk.ask(question))
    asked = [content for role, content in said(talk) if role == "user"]
    assert asked[-1] == "cccccccccc?"
    assert "aaaaaaaaaa?" not in asked
    assert said(talk)[0] == ("system", "abc")


def test_a_question_longer_than_the_context_is_an_error_and_was_not_said(pretrained):
    talk = Talk(pretrained, GREEDY, max_tokens=4)
    with pytest.raises(NextileError, match="the model reads 120: shorten it"):
        list(talk.ask("a" * 200))
    assert talk.messages == []


def test_an_answer_that_is_left_is_remembered_so_far(pretrained):
    talk = Talk(pretrained, GREEDY, max_tokens=20)
    pieces = talk.ask("a?")
    begun = next(pieces)
    pieces.close()
    assert said(talk) == [("user", "a?"), ("assistant", begun.strip())]
