"""A corpus that lies there as tokens is trained on where it lies, and evaluated on."""

from __future__ import annotations

import json
import shutil

import pytest

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.data.shards import open_store
from nextile.tasks.cluster import store_corpus
from nextile.tasks.report import Silent
from nextile.text.build import train_tokenizer

SMALL = {"model.stack.depth": 1, "model.stack.width": 16, "context": 16, "batch": 2, "compile": False, "threads": 1}


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = [f"Document {i} says été {i * i} times. " * (1 + i % 4) for i in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def ids(corpus, tmp_path):
    store_corpus(corpus, train_tokenizer("byte", 259, []), tmp_path / "ids", Silent())
    return tmp_path / "ids"


def trained(source, out, **settings):
    return nextile.train(source, out=out, steps=2, settings={**SMALL, **settings}, report=Silent())


def test_a_run_on_tokens_copies_none_and_knows_its_texts(corpus, ids, tmp_path):
    model = trained(ids, tmp_path / "run")
    train, held_out = (open_store(tmp_path / "run" / "data" / name) for name in ("train", "validation"))
    assert not list((tmp_path / "run" / "data").rglob("*.bin"))
    assert len(train) + len(held_out) == len(open_store(ids))
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    assert held_out.text_bytes == sum(len(text.encode()) for text in texts[-held_out.documents :])
    assert train.text_bytes + held_out.text_bytes == sum(len(text.encode()) for text in texts)
    assert model.tokenizer.decode(held_out[:9].tolist()) == texts[-held_out.documents][:9]
    assert model.evaluate(ids, report=Silent()) == model.evaluate(corpus, report=Silent())
    assert model.evaluate(report=Silent())["loss"] > 0


def test_another_folder_is_held_out(ids, tmp_path):
    shutil.copytree(ids, tmp_path / "other")
    trained(ids, tmp_path / "run", **{"validation.data": str(tmp_path / "other")})
    for name in ("train", "validation"):
        assert len(open_store(tmp_path / "run" / "data" / name)) == len(open_store(ids))


def test_a_run_goes_on_only_where_its_tokens_are(ids, tmp_path):
    trained(ids, tmp_path / "run")
    assert nextile.train(resume=tmp_path / "run", report=Silent()).task == "lm"
    ids.rename(tmp_path / "moved")
    with pytest.raises(NextileError, match=r"are not where they were: .*is not a folder of tokens"):
        nextile.train(resume=tmp_path / "run", report=Silent())


def test_what_tokens_cannot_be_is_refused(corpus, ids, tmp_path):
    with pytest.raises(UsageError, match="holds tokens, not text: leave out the settings of a tokenizer"):
        trained(ids, tmp_path / "run", **{"tokenizer.kind": "char"})
    with pytest.raises(UsageError, match="name one folder of tokens, as the corpus is one"):
        trained(ids, tmp_path / "run", **{"validation.data": str(corpus)})
    base = trained(corpus, tmp_path / "base", **{"tokenizer.kind": "char"})
    with pytest.raises(UsageError, match="holds tokens of another tokenizer than the model to begin from"):
        nextile.train(ids, init=base.folder, out=tmp_path / "run", steps=1, report=Silent())
    with pytest.raises(NextileError, match="was written with another tokenizer"):
        base.evaluate(ids, report=Silent())
