"""Perplexity by a sliding window: which tokens are asked, after how many, and that transformers gives the same."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint import convert
from nextile.cli.main import run
from nextile.data.batches import IGNORE, sliding_batches, validation_batches
from nextile.data.shards import TokenStore, write_store
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.tasks import language
from nextile.tasks.report import Silent
from nextile.text.build import train_tokenizer

CONTEXT = 16


def store_of(folder, tokens: np.ndarray) -> TokenStore:
    """A store of these tokens, the last of which ends the document, in small shards."""
    vocab, meta = int(tokens.max()) + 1, {"text_bytes": 2 * len(tokens)}
    return write_store(
        folder,
        [tokens[:-1]],
        vocab_size=vocab,
        end_id=int(tokens[-1]),
        meta=meta,
        shard_tokens=max(1, len(tokens) // 3),
    )


# --- which tokens are asked -------------------------------------------------------------------------------------------


@given(st.integers(2, 70), st.integers(1, 20), st.data())
@settings(max_examples=200, deadline=None)
def test_every_token_is_asked_once_after_enough_and_never_the_future(size, context, data):
    stride, batch = data.draw(st.integers(1, context)), data.draw(st.integers(1, 4))
    asked = []
    store: Any = np.arange(size)  # tokens are their own places
    for each in sliding_batches(store, context=context, stride=stride, batch=batch):
        assert each.inputs.shape == each.targets.shape == (batch, context)
        assert each.weight == (each.targets != IGNORE).sum() > 0
        for row, place in (each.targets != IGNORE).nonzero().tolist():
            target, before = int(each.targets[row, place]), each.inputs[row, : place + 1].tolist()
            assert before == list(range(target - len(before), target))
            assert len(before) > min(context - stride, target - 1)
            asked.append(target)
    assert asked == list(range(1, size))


@pytest.mark.parametrize("size", [2, 5, 17, 33, 64, 65])
@pytest.mark.parametrize("batch", [1, 3])
def test_end_to_end_is_a_stride_of_the_context(tmp_path, size, batch):
    store = store_of(tmp_path / "s", np.arange(size)[::-1].copy())
    pairs = zip(
        sliding_batches(store, context=16, stride=16, batch=batch),
        validation_batches(store, context=16, batch=batch),
        strict=True,
    )
    for ours, plain in pairs:
        assert torch.equal(ours.inputs, plain.inputs)
        assert torch.equal(ours.targets, plain.targets)
        assert ours.weight == plain.weight


def test_only_the_tokens_of_a_batch_are_read(tmp_path, monkeypatch):
    store, spans = store_of(tmp_path / "s", np.arange(1000)), []
    read = TokenStore.__getitem__
    monkeypatch.setattr(TokenStore, "__getitem__", lambda self, span: [spans.append(span), read(self, span)][1])
    list(sliding_batches(store, context=16, stride=4, batch=8))
    assert max(span.stop - span.start for span in spans) == 7 * 4 + 16 + 1


def test_bad_windows(tmp_path):
    store = store_of(tmp_path / "s", np.arange(30))
    for stride in (0, -1, 9):
        with pytest.raises(UsageError, match=f"stride {stride} does not fit windows of 8 tokens: choose 1 to 8"):
            next(sliding_batches(store, context=8, stride=stride, batch=1))
    with pytest.raises(NextileError, match="1 tokens are too few"):
        next(sliding_batches(store_of(tmp_path / "t", np.arange(1)), context=8, stride=1, batch=1))


# --- the same nats as transformers ------------------------------------------------------------------------------------


@pytest.fixture
def twins(text, tmp_path):
    """A tiny GPT-2 with random weights, ours in a folder and transformers' own."""
    tokenizer = train_tokenizer("char", 0, [text.read_text()])
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=tokenizer.vocab_size, n_positions=CONTEXT
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    spec = gpt2.from_config(config.to_dict())
    state = {name: value for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    ours = build(spec)
    ours.load_state_dict(convert.read(gpt2.key_map(spec), state))
    nextile.Model(ours, tokenizer, spec, "gpt2").save(tmp_path / "m")
    return nextile.load(tmp_path / "m", device="cpu"), theirs


@torch.no_grad()
def by_hand(theirs, ids: list[int], stride: int) -> float:
    """The nats of all tokens but the first, window by window, as anybody would write it."""
    nats, asked = 0.0, 0
    for start in range(0, len(ids), stride):
        window = torch.tensor(ids[start : start + CONTEXT + 1])
        logprobs = theirs(window[None, :-1]).logits[0].double().log_softmax(-1)
        new = len(window) - 1 - (asked - start)  # those that no window asked before
        if new > 0:
            nats -= logprobs[-new:].gather(-1, window[-new:, None]).sum().item()
            asked += new
        if start + CONTEXT + 1 >= len(ids):
            break
    assert asked == len(ids) - 1
    return nats


@pytest.fixture(autouse=True)
def exactly(monkeypatch):
    """In full precision wherever the tests run."""
    monkeypatch.setattr(language, "choose_precision", lambda name, device: torch.float32)


@pytest.mark.parametrize("stride", [1, 5, CONTEXT])
def test_nats_are_those_of_transformers(twins, tmp_path, stride):
    model, theirs = twins
    (tmp_path / "x.txt").write_text("12 green bottles hanging on the wall, and if 12 should fall" * 3)
    ids = [*model.tokenizer.encode((tmp_path / "x.txt").read_text()), model.tokenizer.end_id]
    found = model.evaluate(tmp_path / "x.txt", stride=stride, report=Silent())
    nats = by_hand(theirs, ids, stride)
    assert found["loss"] * (len(ids) - 1) == pytest.approx(nats, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / (tmp_path / "x.txt").stat().st_size, rel=1e-5)
    assert by_hand(theirs, ids, stride % CONTEXT + 1) != pytest.approx(nats, rel=1e-4)


def test_without_a_stride_it_is_the_context(twins, text):
    model, _ = twins
    plain, whole, half = (model.evaluate(text, stride=n, report=Silent()) for n in (None, CONTEXT, CONTEXT // 2))
    assert plain == whole
    assert (plain["windows"], plain["context"], plain["stride"]) == ("end to end", CONTEXT, CONTEXT)
    assert (half["windows"], half["context"], half["stride"]) == ("sliding", CONTEXT, CONTEXT // 2)
    assert half["loss"] != plain["loss"]


def test_a_text_shorter_than_the_window_is_one_window(twins, tmp_path):
    (tmp_path / "x.txt").write_text("12 green")
    found = twins[0].evaluate(tmp_path / "x.txt", stride=CONTEXT, report=Silent())
    assert (found["windows"], found["context"], found["stride"]) == ("end to end", 8, 8)


@pytest.mark.parametrize("stride", [0, -1, CONTEXT + 1])
def test_a_stride_that_does_not_fit_is_an_error_in_one_line(twins, text, stride):
    with pytest.raises(UsageError, match=f"stride is {stride} and the model reads 16 tokens at a time: choose 1 to 16"):
        twins[0].evaluate(text, stride=stride, report=Silent())


def test_the_command_says_which_windows(twins, text, capsys):
    folder = str(twins[0].folder)
    assert run(["evaluate", folder, str(text), "--stride", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stride"] == 8
    assert run(["evaluate", folder, str(text), "--stride", "8"]) == 0
    assert "  windows        sliding\n  context        16\n  stride         8\n" in capsys.readouterr().err
    assert run(["evaluate", folder, str(text), "--stride", "0"]) == 2
    assert "0 is too small: it is at least 1" in capsys.readouterr().err
    assert run(["evaluate", folder, str(text), "--stride", "17"]) == 2
    assert "choose 1 to 16" in capsys.readouterr().err
    assert run(["evaluate", folder, str(text), "--probe", "--stride", "4"]) == 2
