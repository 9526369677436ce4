"""A corpus tokenized in parts, here and by the workers of a Ray cluster: the store of one alone, to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from types import ModuleType

import pytest

from nextile.base.errors import NextileError
from nextile.data import corpora, shards
from nextile.data.corpora import file_parts, open_corpus
from nextile.tasks import cluster
from nextile.tasks.cluster import alone, encode_part, on_ray, store_corpus
from nextile.tasks.report import Silent
from nextile.tasks.tokens import store_tokens
from nextile.text.build import train_tokenizer

TOKENS = 50  # of a shard, so that there are many


@pytest.fixture
def corpus(tmp_path):
    """A folder with a long .jsonl, a .txt and one of white space."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [json.dumps({"text": f"Document {i}: {'é' * (i % 7)}" * (i % 5)}) for i in range(60)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:30], "", *lines[30:]]) + "\n", encoding="utf-8")
    (folder / "b.txt").write_text("one whole text\r\n" * 20, encoding="utf-8")
    (folder / "c.txt").write_text(" \n" * 20, encoding="utf-8")
    return folder


@pytest.fixture
def tokenizer():
    return train_tokenizer("byte", 259, [])


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("nextile.tasks.cluster.file_parts", lambda source: file_parts(source, 200))


def bytes_of(folder):
    """What makes a store: its tokens and its index."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("token") or
            path.suffix == ".bin"}  # fmt: skip


def by_one(corpus, tokenizer, folder, monkeypatch):
    """The store as a run writes it."""
    monkeypatch.setitem(shards.write_store.__kwdefaults__, "shard_tokens", TOKENS)
    store_tokens(open_corpus(corpus).documents, tokenizer, folder, "", Silent())
    return bytes_of(folder)


# --- parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 200, 1 << 20])
def test_parts_hold_the_documents_of_the_whole_in_order(corpus, size):
    parts = file_parts(corpus, size)
    assert [text for part in parts for text in part.documents()] == list(open_corpus(corpus).documents)
    assert sum(part.bytes for part in parts) == sum(path.stat().st_size for path in corpus.iterdir())
    assert len(parts) == 3 or size < 1 << 20


def test_a_bad_line_in_a_part_is_named(corpus):
    with (corpus / "a.jsonl").open("a") as file:
        file.write("{oops\n")
    parts = file_parts(corpus / "a.jsonl", 200)
    with pytest.raises(NextileError, match=rf"a\.jsonl' from byte {parts[-1].start}, line \d+ is not valid JSON"):
        list(parts[-1].documents())


@pytest.mark.parametrize(("name", "said"), [("gone", "does not exist"), ("x.pdf", "unsupported suffix")])
def test_what_is_no_text_is_refused(tmp_path, name, said):
    (tmp_path / "x.pdf").write_bytes(b"")
    with pytest.raises(NextileError, match=said):
        file_parts(tmp_path / name)


# --- here ----------------------------------------------------------------------------------------------------------


def test_the_store_is_that_of_one_alone_to_the_byte(corpus, tokenizer, small_parts, tmp_path, monkeypatch):
    store = store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), alone, shard_tokens=TOKENS)
    expected = by_one(corpus, tokenizer, tmp_path / "one", monkeypatch)
    assert len(expected) > 20
    assert bytes_of(store.folder) == expected
    assert type(tokenizer).load(store.folder).fingerprint() == tokenizer.fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "many", "one"]


def test_another_order_of_parts_would_be_seen(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("nextile.tasks.cluster.file_parts", lambda source: file_parts(source, 200)[::-1])
    store = store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), alone, shard_tokens=TOKENS)
    assert bytes_of(store.folder) != by_one(corpus, tokenizer, tmp_path / "one", monkeypatch)


def test_what_was_interrupted_goes_on(corpus, tokenizer, small_parts, tmp_path, monkeypatch):
    def tired(work, jobs):
        yield from map(work, jobs[:5])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), tired, shard_tokens=TOKENS)
    encoded = []
    monkeypatch.setattr("nextile.tasks.cluster._encode", counting(encoded))
    store = store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), alone, shard_tokens=TOKENS)
    assert len(encoded) == len(file_parts(corpus, 200)) - 5
    assert bytes_of(store.folder) == by_one(corpus, tokenizer, tmp_path / "one", monkeypatch)


def counting(seen):
    """The encoding of a part, noted down."""
    real = cluster._encode

    def encode(job, *rest):
        seen.append(job)
        return real(job, *rest)

    return encode


def test_a_part_that_changed_is_made_again(corpus, tokenizer, small_parts, tmp_path, monkeypatch):
    def tired(work, jobs):
        yield from map(work, jobs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), tired, shard_tokens=TOKENS)
    (corpus / "b.txt").write_text(" \n")  # nothing is left of it
    store = store_corpus(corpus, tokenizer, tmp_path / "many", Silent(), alone, shard_tokens=TOKENS)
    assert bytes_of(store.folder) == by_one(corpus, tokenizer, tmp_path / "one", monkeypatch)


def test_a_place_that_is_taken_and_a_corpus_of_white_space(corpus, tokenizer, tmp_path):
    with pytest.raises(NextileError, match="is there already"):
        store_corpus(corpus, tokenizer, corpus, Silent())
    with pytest.raises(NextileError, match="nothing but white space"):
        store_corpus(corpus / "c.txt", tokenizer, tmp_path / "many", Silent())
    assert not (tmp_path / "many").exists()


# --- on a cluster --------------------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'nextile[cluster]'")

SCRIPT = """
    import json, os, signal, sys
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from nextile.base.errors import NextileError
    from nextile.data.corpora import file_parts
    from nextile.tasks import cluster as ours
    from nextile.tasks.report import Silent
    from nextile.text.tokenizer import Tokenizer

    folder, corpus = Path(sys.argv[1]), Path(sys.argv[2])
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    ours.file_parts = lambda source: file_parts(source, 200)
    tokenizer = Tokenizer.load(folder / "tokenizer")

    def dying(workers):
        def each(work, jobs):
            def mortal(job):  # every third kills its process, once
                name = getattr(getattr(job, "folder", None), "name", "")
                mark = folder / f"died-{name}"
                if name.endswith(("0", "3", "6")) and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return work(job)
            return workers(mortal, jobs)
        return each

    with ours.on_ray(nodes.address) as workers:
        count = len([node for node in ray.nodes() if node["Alive"]])
        ours.store_corpus(corpus, tokenizer, folder / "plain", Silent(), workers, shard_tokens=50)
        ours.store_corpus(corpus, tokenizer, folder / "killed", Silent(), dying(workers), shard_tokens=50)
        with (corpus / "a.jsonl").open("a") as file:
            file.write("{oops\\n")
        try:
            ours.store_corpus(corpus, tokenizer, folder / "broken", Silent(), workers)
        except NextileError as error:
            said = str(error)
    nodes.shutdown()
    print(json.dumps({"nodes": count, "said": said}))
"""


@needs_ray
@pytest.mark.slow
def test_three_nodes_give_the_store_of_one_also_when_workers_are_killed(corpus, tokenizer, tmp_path, monkeypatch):
    expected = by_one(corpus, tokenizer, tmp_path / "one", monkeypatch)
    tokenizer.save(tmp_path / "tokenizer")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), str(corpus)]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["nodes"] == 3
    assert len(list(tmp_path.glob("died-*"))) >= 3
    assert bytes_of(tmp_path / "plain") == expected
    assert bytes_of(tmp_path / "killed") == expected
    assert "is not valid JSON" in found["said"]
    assert "\n" not in found["said"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port"])
def test_no_cluster_at_an_address_is_one_line(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))  # it is not asked
    with pytest.raises(NextileError, match=f"no Ray cluster answers at '{address}': start one"), on_ray(address):
        pass


def test_a_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NextileError, match=r"a cluster needs ray: pip install 'nextile\[cluster\]'"), on_ray("auto"):
        pass


def test_the_size_of_a_part_suits_a_shard_of_work():
    assert 2**24 <= corpora.PART <= 2**28
    assert encode_part.__module__ == "nextile.tasks.cluster"  # workers find it by its name
