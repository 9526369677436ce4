"""What the command says of large runs and large corpora: `plan --gpus`, `tokenize --corpus`."""

import json

import pytest

from nextile.data.shards import open_store

ON_PAPER = ("plan", "--preset", "llama-3-70b", "--gpus", "1024", "--tokens", "15e12", "--set", "batch=256")


def test_a_plan_on_paper_as_a_table_and_as_json(nextile_):
    answer = nextile_(*ON_PAPER)
    assert (answer.code, answer.out) == (0, "")
    assert "llama-3-70b on 1,024 GPUs, on paper" in answer.err
    assert "184.1 days" in answer.err
    found = json.loads(nextile_(*ON_PAPER, "--json").out)
    assert round(found["days"], 1) == 184.1
    assert found["scale"]["cluster"]["gpus"] == 1024


def test_a_recipe_is_laid_below_what_is_set(nextile_, tmp_path):
    (tmp_path / "slow.toml").write_text("cluster.network = 10e9\nbatch = 128\n")
    found = json.loads(nextile_(*ON_PAPER, "--recipe", str(tmp_path / "slow.toml"), "--json").out)
    assert (found["scale"]["cluster"]["network"], found["scale"]["batch"]) == (10e9, 256)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--set", "tensr=8"), 2, "did you mean 'tensor'"),
        (("--set", "tensor=3"), 2, "tensor=3 does not divide 1024 GPUs"),
        (("--set", "batch=1024"), 1, "--set accumulate="),
        (("--steps", "5"), 2, "--gpus goes without --steps"),
        (("book.txt",), 2, "--gpus goes without DATA"),
    ],
)
def test_what_a_plan_on_paper_refuses(nextile_, more, code, said):
    answer = nextile_(*ON_PAPER, *more)
    assert answer.code == code
    assert said in answer.err
    assert answer.err.count("\n") == 1


def test_a_plan_on_paper_wants_all_of_its_numbers(nextile_):
    answer = nextile_("plan", "--gpus", "8")
    assert (answer.code, "needs --preset, --gpus and --tokens" in answer.err) == (2, True)


# --- a corpus on disk ------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(nextile_, text, tmp_path):
    folder = str(tmp_path / "tokens")
    assert nextile_("tokenize", str(text), "--kind", "byte", "--out", folder).code == 0
    return folder


def test_a_corpus_is_written_as_tokens(nextile_, tokens, text, tmp_path):
    answer = nextile_("tokenize", tokens, "--corpus", str(text), "--out", str(tmp_path / "ids"), "--json")
    assert answer.code == 0
    found, store = json.loads(answer.out), open_store(tmp_path / "ids", verify=True)
    assert (found["tokens"], found["documents"]) == (len(store), 1)
    assert found["text_bytes"] == len(text.read_bytes()) == len(store) - 1
    assert "text bytes" in nextile_("tokenize", tokens, "--corpus", str(text), "--out", str(tmp_path / "two")).err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--corpus", "{text}"), 2, "--corpus writes tokens: name a folder for them by --out"),
        (("--cluster", "auto"), 2, "--cluster belongs to --corpus"),
        (("some words", "--corpus", "{text}", "--out", "{ids}"), 2, "--corpus goes without TEXT"),
        (("--corpus", "gone", "--out", "{ids}"), 1, "'{cwd}gone' does not exist"),
        (("--corpus", "{text}", "--out", "{tokens}"), 1, "is there already"),
    ],
)
def test_what_writing_a_corpus_refuses(nextile_, tokens, text, tmp_path, monkeypatch, more, code, said):
    monkeypatch.chdir(tmp_path)
    names = {"text": text, "ids": tmp_path / "ids", "tokens": tokens, "cwd": f"{tmp_path}/"}
    answer = nextile_("tokenize", tokens, *(word.format(**names) for word in more))
    assert answer.code == code
    assert said.format(**names) in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "ids").exists()
