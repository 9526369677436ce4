"""What each verb asks of the library, and what it writes where."""

import io
import json
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from nextile.cli.prompts import TOGETHER, arriving

HOSTILE = "\x1b[2J"


@pytest.fixture
def stdin(monkeypatch):
    """Puts bytes on standard input."""

    def put(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return put


@pytest.fixture
def terminal(monkeypatch):
    """Says that standard output is a terminal, or another stream."""

    def say(stream: str = "stdout") -> None:
        monkeypatch.setattr(getattr(sys, stream), "isatty", lambda: True)

    return say


# --- train and plan -----------------------------------------------------------------------------------------------


def test_train_passes_everything_on(nextile_, library):
    options = "--task lm --preset gpt2 --out o --minutes 1.5 --init i --lora 4 --recipe r"
    answer = nextile_("train", "book.txt", *options.split(), "--set", "lr=1e-3", "--set", "tokenizer.kind=bpe")
    assert answer == (0, "", "training\n")
    assert library.asked == {
        "data": ["book.txt"], "task": "lm", "preset": "gpt2", "out": "o", "minutes": 1.5, "steps": None, "resume": None,
        "init": "i", "lora": 4, "recipe": "r", "settings": {"lr": 1e-3, "tokenizer.kind": "bpe"},
    }  # fmt: skip


def test_train_needs_no_data_to_resume(nextile_, library):
    assert nextile_("train", "--resume", "runs/x").code == 0
    assert (library.asked["data"], library.asked["resume"], library.asked["settings"]) == (None, "runs/x", {})


def test_quiet_is_quiet(nextile_, library):
    assert nextile_("train", "-", "--steps", "3", "--quiet") == (0, "", "")
    assert (library.asked["data"], library.asked["steps"]) == (["-"], 3)


def test_train_json_has_the_best_validation(nextile_, library, tmp_path):
    library.folder = tmp_path
    losses = (2.0, 1.0, 3.0)
    rows = [{"step": step, "val_loss": loss, "val_bits_per_byte": loss} for step, loss in enumerate(losses)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = nextile_("train", "b", "--json")
    found = json.loads(answer.out)
    assert found["folder"] == str(tmp_path)
    assert (found["step"], found["loss"], found["bits_per_byte"]) == (1, 1.0, 1.0)
    assert found["family"] == "qwen3"
    assert answer.err == "training\n"


def test_plan(nextile_, library):
    assert nextile_("plan", "b", "--minutes", "3") == (0, "", "plan\n  steps  12\n")
    assert library.asked["minutes"] == 3.0
    answer = nextile_("plan", "b", "--json", "--out", "ignored")
    assert answer == (0, '{"steps": 12, "loss": null}\n', "")


# --- evaluate and info --------------------------------------------------------------------------------------------


def test_evaluate(nextile_, library):
    answer = nextile_("evaluate", "m")
    assert (answer.code, answer.out, library.asked["data"]) == (0, "", None)
    assert (
        answer.err
        == "m on what was held out\n  loss            1.2500\n  bits per byte   0.5000\n  bleu signature  nrefs:1\n"
    )
    found = json.loads(nextile_("evaluate", "m", "b", "c", "--json", "--beams", "3", "--bleu-tokens", "none").out)
    assert found == {"loss": 1.25, "bits_per_byte": 0.5, "bleu_signature": "nrefs:1"}
    assert library.asked == {
        "name": "m", "data": ["b", "c"], "beams": 3, "length_penalty": 1.0, "bleu_tokens": "none",
    }  # fmt: skip


def test_evaluate_without_parts(nextile_, library, monkeypatch):
    found = {"loss": 1.5, "windows": "end to end", "without": ["2.3", "4"], "whole": {"loss": 1.25}}
    monkeypatch.setattr(library, "evaluate", lambda data, *, without, **asked: found | {"without": without})
    assert nextile_("evaluate", "m", "--without", " 2.3, 4").err == (
        "m on what was held out\n  loss     1.5000   whole model 1.2500\n  windows  end to end\n  without  2.3, 4\n"
    )
    assert json.loads(nextile_("evaluate", "m", "--without", "2.3,4", "--json").out) == found


def test_evaluate_without_each(nextile_, library, monkeypatch):
    rises = {"0.0": 0.5, "0.1": -0.25, "1.0": 0.0, "1.1": float("nan")}
    heads = [{"part": part, "loss": 1.0 + rise, "rise": rise} for part, rise in rises.items()]
    monkeypatch.setattr(library, "evaluate", lambda *_, **asked: {"loss": 1.0, "heads": heads})
    assert nextile_("evaluate", "m", "--without", "each-head").err == (
        "m on what was held out\n  loss                1.0000\n"
        "  without heads of 0  +0.5000  -0.2500\n  without heads of 1  +0.0000  +nan\n"
    )
    layers = [{"part": "encoder.1", "loss": 1.5, "rise": 0.5}]
    monkeypatch.setattr(library, "evaluate", lambda *_, **asked: {"loss": 1.0, "layers": layers})
    assert "  without encoder.1  +0.5000\n" in nextile_("evaluate", "m", "--without", "each-layer").err
    assert json.loads(nextile_("evaluate", "m", "--without", "each-layer", "--json").out)["layers"] == layers


def test_info(nextile_, library):
    assert nextile_("info", "m").err == "m\n  family            qwen3\n  parameters.total  12,345\n"
    assert json.loads(nextile_("info", "m", "--json").out) == library.describe()


# --- translate ----------------------------------------------------------------------------------------------------


def test_translate_one_sentence(nextile_, library):
    assert nextile_("translate", "m", "hello") == (0, f"HELLO{HOSTILE}\n", "")
    assert library.asked == {
        "name": "m", "device": None, "dtype": None, "beams": 5, "length_penalty": 1.0, "max_tokens": None,
    }  # fmt: skip


def test_translate_lines_in_order(nextile_, library, stdin):
    stdin(b"a\n\nb\r\nc")
    options = "--beams 2 --length-penalty 1.4 --max-tokens 9 --device cpu --dtype float32"
    answer = nextile_("translate", "m", "-", *options.split())
    assert answer.out == "".join(f"{text}{HOSTILE}\n" for text in ("A", "", "B", "C"))
    assert library.asked == {
        "name": "m", "device": "cpu", "dtype": "float32", "beams": 2, "length_penalty": 1.4, "max_tokens": 9,
    }  # fmt: skip


def test_translate_the_best_with_their_scores(nextile_, library):
    assert nextile_("translate", "m", "a", "--n", "2").out == f"-0.5000\tA{HOSTILE}\n-1.5000\tA{HOSTILE}\n"
    rows = [json.loads(line) for line in nextile_("translate", "m", "a", "--n", "2", "--json").out.splitlines()]
    assert [(row["source"], row["score"], row["finish_reason"]) for row in rows] == [
        ("a", -0.5, "end"),
        ("a", -1.5, "end"),
    ]


def test_translate_says_what_the_user_should_know(nextile_, library):
    assert nextile_("translate", "m", "a" * 101).err == "warning: the source was cut\n"


# --- generate: one prompt -----------------------------------------------------------------------------------------


def test_generate_writes_the_text_exactly(nextile_, library):
    assert nextile_("generate", "m", "hello") == (0, "HELLO\x1b[2J\n0\n", "")
    assert library.asked["name"] == "m"
    assert (library.asked["device"], library.asked["dtype"]) == (None, None)
    assert library.asked["max_tokens"] == 200
    assert library.asked["temperature"] is None  # what suits the model


def test_generate_passes_everything_on(nextile_, library):
    options = (
        "--max-tokens 5 --temperature 0 --top-k 3 --top-p 0.5 --min-p 0.1 --repetition-penalty 1.5 --seed 7"
        " --stop a --stop b --device cpu --dtype float32"
    )
    assert nextile_("generate", "m", *options.split()).code == 0
    assert library.batches == [[""]]
    assert library.asked == {
        "name": "m", "device": "cpu", "dtype": "float32", "max_tokens": 5, "temperature": 0.0, "top_k": 3,
        "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 7, "stop": ["a", "b"], "beams": None,
    }  # fmt: skip


def test_generate_with_a_draft(nextile_, library):
    assert nextile_("generate", "m", "a", "--draft", "lookup").out == "A\x1b[2J\n0\n"
    assert library.asked["draft"] == "lookup"
    nextile_("generate", "m", "a", "--draft", "small")
    assert library.asked["draft"] is library
    nextile_("generate", "m", "a")
    assert "draft" not in library.asked


def test_generate_by_beams(nextile_, library, terminal):
    terminal()  # beams have nothing to stream
    assert nextile_("generate", "m", "a", "--beams", "4").out == "A[2J\n0\n"
    assert library.asked["beams"] == 4
    answer = nextile_("generate", "m", "a", "--beams", "4", "--temperature", "0.5")
    assert (answer.code, answer.out) == (2, "")
    assert "--beams and --temperature exclude each other" in answer.err


def test_what_the_user_should_know_is_beside_the_result(nextile_, library):
    assert nextile_("generate", "m", "a" * 101).err == "warning: the prompt was cut\n"


def test_several_texts_are_kept_apart(nextile_, library):
    assert nextile_("generate", "m", "a", "--n", "2").out == f"A{HOSTILE}\n0\n---\nA{HOSTILE}\n1\n"


def test_a_terminal_gets_the_stream_without_control_characters(nextile_, library, terminal):
    terminal()
    library.generate = None
    assert nextile_("generate", "m", "hi") == (0, "HI[2J\n0\n", "")
    terminal("stderr")
    assert nextile_("generate", "m", "hi\x1b[2J").err == "hi[2J"  # the prompt is shown, and is no result


def test_json_on_a_terminal_is_json(nextile_, library, terminal):
    terminal()
    assert json.loads(nextile_("generate", "m", "hi", "--json").out)["text"] == f"HI{HOSTILE}\n0"


def test_json_records(nextile_, library):
    out = nextile_("generate", "m", "é", "--json", "--n", "2").out
    records = [json.loads(line) for line in out.splitlines()]
    assert records[1] == {"prompt": "é", "text": f"É{HOSTILE}\n1", "tokens": [1, 2], "finish_reason": "length"}
    assert "É" in out
    assert json.loads(nextile_("generate", "m", "a", "--json", "--logprobs", "2").out)["logprobs"] == [None]


# --- generate: many prompts ---------------------------------------------------------------------------------------


def test_standard_input_gets_an_answer_a_line_in_order(nextile_, library, stdin):
    prompts = [f"p{number}" for number in range(200)]
    stdin("\n".join(prompts).encode())
    answer = nextile_("generate", "m", "-")
    assert answer.out.splitlines() == [f"{prompt.upper()}{HOSTILE}\\n0" for prompt in prompts]


def test_an_empty_line_is_a_prompt_and_windows_lines_are_lines(nextile_, library, stdin):
    stdin(b"a\r\n\r\nb\r\n")
    assert len(nextile_("generate", "m", "-").out.splitlines()) == 3
    assert library.batches == [["a", "", "b"]]


def test_a_carriage_return_does_not_break_the_line(nextile_, library, monkeypatch):
    monkeypatch.setattr(library, "completion", lambda *_: SimpleNamespace(text="a\r\nb\u2028c", note=None))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x")))
    assert nextile_("generate", "m", "-").out == "a\\r\\nb\u2028c\n"


def test_a_file_of_prompts_is_one_batch(nextile_, library, tmp_path):
    (tmp_path / "p").write_bytes("\ufeffa\nlonger one\n".encode())
    assert nextile_("generate", "m", "--prompts", str(tmp_path / "p"), "--n", "2").out.count("\n") == 4
    assert library.batches == [["a", "longer one"]]


def test_many_prompts_fit_in_memory(nextile_, library, tmp_path):
    (tmp_path / "p").write_text("x\n" * (TOGETHER + 1))
    nextile_("generate", "m", "--prompts", str(tmp_path / "p"), "--json")
    assert [len(batch) for batch in library.batches] == [TOGETHER, 1]


def test_prompts_that_cannot_be_read(nextile_, library, tmp_path, stdin):
    assert "cannot read the prompts in" in nextile_("generate", "m", "--prompts", str(tmp_path / "none")).err
    assert library.asked == {}  # said before the model is loaded
    stdin(b"fine\nna\xefve\n")
    answer = nextile_("generate", "m", "-")
    assert answer.code == 1
    assert "not valid UTF-8 (byte 2, near 'na\\xefve')" in answer.err


def test_a_slow_writer_is_answered_line_by_line():
    reader, writer = os.pipe()
    got: list[list[str]] = []
    with open(reader, "rb") as stream:
        batches = arriving(stream)
        for line in (b"one\n", b"two\nthr"):
            os.write(writer, line)
            got.append(next(batches))
        threading.Timer(0.05, lambda: (os.write(writer, b"ee"), os.close(writer))).start()
        got += batches
    assert got == [["one"], ["two"], ["three"]]


def test_text_that_the_output_cannot_encode(nextile_, library, monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    assert nextile_("generate", "m", "é").code == 0
    assert narrow.buffer.getvalue() == b"\\xc9\x1b[2J\n0\n"


# --- tokenize -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(nextile_, text, tmp_path):
    """A folder with a tokenizer of characters."""
    assert nextile_("tokenize", str(text), "--kind", "char", "--out", str(tmp_path / "tokens")).code == 0
    return str(tmp_path / "tokens")


def test_tokenize_learns_from_a_text(nextile_, text):
    found = json.loads(nextile_("tokenize", str(text), "--kind", "bpe", "--size", "300", "--json").out)
    assert found["kind"] == "bpe"
    assert 257 < found["vocab_size"] <= 300
    assert found["bytes"] == text.stat().st_size
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / found["tokens"])


def test_tokenize_follows_the_text(nextile_, text):
    answer = nextile_("tokenize", str(text))
    assert answer.code == 0
    assert answer.out == ""
    assert "kind             char" in answer.err


def test_tokenize_a_text(nextile_, tokens, stdin):
    answer = nextile_("tokenize", tokens, "an\n")
    ids = answer.out.split()
    assert len(ids) == 3
    assert answer.err == "3 tokens: 'a' 'n' '\\n'\n"
    found = json.loads(nextile_("tokenize", tokens, "an", "--json").out)
    assert found == {"text": "an", "tokens": [int(index) for index in ids[:2]], "pieces": ["a", "n"]}
    stdin(b"na")
    assert nextile_("tokenize", tokens, "-").out.split() == [ids[1], ids[0]]


def test_tokenize_shows_the_bytes_of_half_a_character(nextile_, text):
    found = json.loads(nextile_("tokenize", str(text), "é", "--kind", "byte", "--json").out)
    assert found["pieces"] == ["\\xc3", "\\xa9"]


def test_tokenize_refuses(nextile_, tokens, text):
    assert nextile_("tokenize", tokens, "--kind", "bpe").code == 2
    answer = nextile_("tokenize", str(text), "--kind", "letters")
    assert answer.code == 2
    assert "'char', 'word', 'byte', 'bpe'" in answer.err


def test_plan_refuses_a_folder_that_is_taken(nextile_, text, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    answer = nextile_("plan", str(text), "--out", str(tmp_path), "--steps", "2")
    assert answer.code == 1
    assert "holds a run already" in answer.err
