"""Conversations and preferences: every way to write one, every broken line, and a split that keeps questions apart."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from nextile.base.errors import NextileError, UsageError
from nextile.data import pairs
from nextile.data.conversations import (
    are_conversations,
    are_preferences,
    messages_of,
    open_conversations,
    open_preferences,
    question_of,
    spelled,
    split_records,
)

HELLO = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]}
BETTER = {"prompt": "Hello?", "chosen": "Hi.", "rejected": "No."}


@pytest.fixture
def file(tmp_path):
    """Writes a .jsonl of these lines, and names it."""

    def write(*lines, name="chats.jsonl"):
        path = tmp_path / name
        data = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


def said(conversation):
    return [(message.role, message.content) for message in conversation]


# --- what a line says ----------------------------------------------------------------------------------------------


def test_messages_and_a_prompt_with_its_completion_are_the_same(file):
    first, second = open_conversations(file(HELLO, "", {"prompt": "Hello?", "completion": "Hi."}))
    assert said(first) == said(second) == [("user", "Hello?"), ("assistant", "Hi.")]
    assert question_of(first) == first[:1]


def test_a_prompt_may_be_messages(file):
    prompt = [{"role": "system", "content": "Be brief."}, *HELLO["messages"], {"role": "user", "content": "And?"}]
    [found] = open_conversations(file({"prompt": prompt, "completion": "Bye."}))
    assert said(found)[0] == ("system", "Be brief.")
    assert said(found)[-2:] == [("user", "And?"), ("assistant", "Bye.")]


def test_a_preference_is_written_in_four_ways(file):
    user, good, bad = ({"role": role, "content": text} for role, text in
                       (("user", "Hello?"), ("assistant", "Hi."), ("assistant", "No.")))  # fmt: skip
    ways = [
        BETTER,
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": "Hello?", "chosen": [user, good], "rejected": [user, bad]},  # the prompt is not said twice
    ]
    found = list(open_preferences(file(*ways)))
    assert len(found) == 4
    assert all(each == found[0] for each in found)
    assert said(found[0].rejected) == [("user", "Hello?"), ("assistant", "No.")]
    [alone] = open_preferences(file({"chosen": "Hi.", "rejected": "No.", "prompt": None}))
    assert said(alone.chosen) == [("assistant", "Hi.")]


def test_the_first_line_tells_the_kinds_apart(file, tmp_path, monkeypatch):
    assert are_conversations([file("", HELLO)])
    assert are_conversations([file({"prompt": "a", "completion": "b"}, name="x.jsonl.gz")])
    assert are_preferences([file(BETTER)])
    for line in ({"text": "a"}, {"prompt": "a"}, {"chosen": "a"}, "[1]", "{", "\0", ""):
        assert not are_conversations([file(line)])
        assert not are_preferences([file(line)])
    assert not are_conversations([file(HELLO, name="chats.txt")])
    assert not are_conversations([file(HELLO), file(HELLO)])
    assert not are_conversations([str(tmp_path / "absent.jsonl")])
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert not are_conversations([str(tmp_path / "pipe.jsonl")])  # and does not wait for a writer
    assert are_conversations(["sums-chat"])
    assert are_preferences(["sums-preferences"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sums-chat").write_text("a file wins")
    assert not are_conversations(["sums-chat"])


# --- what is broken ------------------------------------------------------------------------------------------------

NO_ANSWER = {"messages": [{"role": "user", "content": "Hello?"}]}
BROKEN = [
    ("{", "is not valid JSON"),
    ("[" * 100_000, "is not valid JSON"),
    ("1" * 5000, "is not valid JSON"),
    ("[]", "is no conversation"),
    ('{"text": "a"}', "is no conversation"),
    ('{"messages": "Hello"}', "is no list of 1 to 1,000 messages"),
    ('{"messages": []}', "is no list of 1 to 1,000 messages"),
    ('{"messages": [1]}', 'message 1 of line 2 of .* has no text as its "role" or "content"'),
    ('{"messages": [{"content": "a"}]}', 'has no text as its "role"'),
    ('{"messages": [{"role": "user", "content": null}]}', 'has no text as its "role" or "content"'),
    ('{"messages": [{"role": "a b", "content": "a"}]}', "use one word, as user or assistant"),
    (json.dumps(NO_ANSWER), "has no answer"),
    ('{"messages": [{"role": "assistant", "content": " "}]}', "has no answer"),
    ('{"prompt": 1, "completion": "a"}', '"prompt" is a number, not a string'),
    ('{"prompt": "a", "completion": {}}', '"completion" is an object, not a string'),
    ('{"prompt": "a", "completion": ""}', "has no answer"),
    ('{"prompt": "\\ud800", "completion": "a"}', "half of a surrogate pair"),
    ('{"prompt": "a", "completion": [{"role": "assistant", "content": "\\ud800"}]}', "lone surrogate"),
    ('{"prompt": "a\0", "completion": "a"}', "is binary"),
]


@pytest.mark.parametrize(("line", "problem"), BROKEN)
def test_a_broken_line_is_an_error_in_one_line_that_names_it(file, line, problem):
    with pytest.raises(NextileError, match=problem) as caught:
        open_conversations(file(HELLO, line))
    assert "\n" not in str(caught.value)
    assert "binary" in problem or "line 2 of '" in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (HELLO, "line 1 of .* is no preference"),
        ({**BETTER, "rejected": "Hi."}, "say the same"),
        ({**BETTER, "chosen": "\n"}, 'line 1 of .* has no answer in "chosen"'),
        ({**BETTER, "rejected": None}, '"rejected" is null, not a string'),
        ({**BETTER, "chosen": []}, '"chosen" in line 1 of .* is no list of 1 to 1,000 messages'),
        ({**BETTER, "prompt": 3}, '"prompt" is a number'),
    ],
)
def test_a_broken_preference_is_an_error_in_one_line(file, record, problem):
    with pytest.raises(NextileError, match=problem) as caught:
        open_preferences(file(record))
    assert "\n" not in str(caught.value)


def test_a_huge_line_is_not_held(file, monkeypatch):
    monkeypatch.setattr(pairs, "LONGEST", 100)
    with pytest.raises(NextileError, match=r"line 2 of .* is longer than 100 bytes: give one conversation a line"):
        open_conversations(file({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b" * 100}))


def test_what_is_no_file_of_lines_is_refused_with_the_remedy(file, tmp_path):
    with pytest.raises(NextileError, match=r"does not exist: did you mean '.*chats.jsonl'"):
        open_conversations(file(HELLO).replace("chats", "chat"))
    with pytest.raises(NextileError, match="did you mean 'sums-chat'"):
        open_conversations("sum-chat")
    with pytest.raises(NextileError, match=r"is not a regular file: give a \.jsonl"):
        open_conversations(str(tmp_path))
    with pytest.raises(NextileError, match="no file of JSON lines by its name"):
        open_conversations(file(HELLO, name="chats.txt"))
    with pytest.raises(NextileError, match="is empty"):
        open_conversations(file("", " "))


def test_a_file_that_changes_meanwhile_is_an_error(file):
    records = open_conversations(file(HELLO, HELLO))
    file(HELLO)
    with pytest.raises(NextileError, match="changed while it was being read"):
        list(records)


# --- holding out ---------------------------------------------------------------------------------------------------


def test_a_question_never_stands_on_both_sides(file):
    lines = [{"prompt": f"Question {i % 20}?", "completion": f"Answer {i}."} for i in range(100)]
    records = open_conversations(file(*lines))
    train, held_out = split_records(records, 0.2, seed=1)
    questions = [{question_of(each)[0].content for each in part} for part in (train, held_out)]
    assert (len(questions[0]), len(questions[1])) == (16, 4)
    assert not questions[0] & questions[1]
    assert len(train) + len(held_out) == len(list(train)) + len(list(held_out)) == 100
    assert train.bytes + held_out.bytes == records.bytes
    assert list(split_records(records, 0.2, seed=1)[1]) == list(held_out)
    assert list(split_records(records, 0.2, seed=2)[1]) != list(held_out)


def test_what_cannot_be_split_is_refused(file):
    records = open_conversations(file(HELLO, HELLO))
    with pytest.raises(NextileError, match="one question alone"):
        split_records(records)
    with pytest.raises(UsageError, match="validation fraction 1 is not between 0 and 1"):
        split_records(records, 1)


# --- built in ------------------------------------------------------------------------------------------------------


def test_the_built_in_sums_are_right_and_the_rejected_ones_wrong():
    chats, preferences = list(open_conversations("sums-chat")), list(open_preferences("sums-preferences"))
    assert len(chats) == len(preferences) == 2500
    assert len({said(chat)[0] for chat in chats}) == 2500
    for chat in chats:
        a, b, result = (int(word.strip(".?")) for word in chat[1].content.split() if word.strip(".?").isdigit())
        assert a + b == result
        assert len(chat) == 2 or chat[3].content == spelled(result)
    assert sum(len(chat) == 4 for chat in chats) == 834
    for chosen, rejected in preferences:
        right, wrong = (int(way[-1].content.split()[-1].strip(".")) for way in (chosen, rejected))
        assert 0 < abs(right - wrong) < 10
        assert wrong >= 0
    assert [spelled(number) for number in (0, 19, 20, 42, 98)] == [
        "zero", "nineteen", "twenty", "forty-two", "ninety-eight",
    ]  # fmt: skip
    assert len(list(messages_of(preferences[0]))) == 4
