"""Tasks of lm_eval: answers as lm_eval's own model over transformers gives them, and whole tasks without a network."""

import ast
import json
import os
import random
import socket
import sys
import textwrap
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.cli.main import run
from nextile.tasks import harness
from nextile.tasks.harness import DEFAULT_MOST, Wish, language_model, log_likelihoods
from nextile.tasks.report import Plain, Silent
from nextile.text.tokenizer import Tokenizer

CONTEXT = 48
LINES = [f"{i} green bottles hanging on the wall, and if {i} should fall: hügelig!" for i in range(60)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny GPT-2 of transformers' with random weights, and a byte-level tokenizer learned here."""
    path = tmp_path_factory.mktemp("gpt2")
    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator(LINES, vocab_size=330, special_tokens=["<|endoftext|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core._tokenizer, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=4, vocab_size=len(tokenizer), n_positions=CONTEXT, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3 if parameter.dim() == 1 else 0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder) -> nextile.Model:
    """The folder as it is read here."""
    return nextile.load(folder, device="cpu")


@pytest.fixture(scope="module")
def theirs(folder) -> HFLM:
    """The folder as lm_eval reads it."""
    network = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=network, tokenizer=tokenizer, batch_size=3, device="cpu")


@pytest.fixture
def ours(model):
    """The same, asked in the same words."""
    return language_model(model, Silent())


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    """What lm_eval hands to a model."""
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def furthest(found, wanted) -> float:
    """The largest distance of log-probabilities."""
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True))


# --- the same answers as lm_eval's own model --------------------------------------------------------------------------

CONTINUATIONS = [
    ("3 green bottles", " hanging on the wall"),
    ("3 green bottles", " h"),
    ("3 green bottles ", "should fall"),  # the space goes to the answer
    ("", "7 green bottles"),
    (" ".join(LINES[:5]), " hügelig"),  # more than the model reads: the beginning is left out
    ("on the", " wall, and if 5 should fall"),
    ("wall", "x" * 20),
]


def test_likelihoods_are_those_of_lm_eval(ours, theirs, capsys):
    asked = requests("loglikelihood", CONTINUATIONS)
    found, wanted = ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True)
    assert furthest([nats for nats, _ in found], [nats for nats, _ in wanted]) <= 1e-5


def test_what_greedy_would_write_is_known_as_lm_eval_knows_it(model, ours, theirs, capsys):
    given = model.tokenizer.encode("on the wall")
    [own] = model.generate(["on the wall"], temperature=0, max_tokens=3, details=True)
    asked = [(("a", "b"), given, tokens) for tokens in (own.tokens, own.tokens[:1], [*own.tokens[:2], 7], [7])]
    found, wanted = ours._loglikelihood_tokens(asked), theirs._loglikelihood_tokens(asked, disable_tqdm=True)
    assert [right for _, right in found] == [right for _, right in wanted] == [True, True, False, False]


def test_rolling_likelihoods_are_those_of_lm_eval(ours, theirs, capsys):
    asked = requests("loglikelihood_rolling", [(" ".join(LINES[:n]),) for n in (1, 2, 9)] + [("a",)])
    found, wanted = ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert max(abs(a / b - 1) for a, b in zip(found, wanted, strict=True)) <= 1e-6
    assert len(ours.tok_encode(asked[2].args[0])) > 3 * CONTEXT


def test_greedy_texts_are_those_of_lm_eval(ours, theirs, capsys):
    plain, stopped = {"max_gen_toks": 12, "until": []}, {"until": [" ", "n"], "max_gen_toks": 20, "do_sample": False}
    asked = requests(
        "generate_until",
        [(LINES[0], plain), ("on the", plain), ("if", stopped), (" ".join(LINES[:4]), plain), ("and", stopped)],
    )
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)
    assert len(set(found)) > 3


def test_another_model_answers_otherwise(folder, theirs, capsys):
    other = nextile.load(folder, device="cpu")
    with torch.no_grad():
        next(other.model.stack.parameters()).mul_(1.01)
    ours, asked = language_model(other, Silent()), requests("loglikelihood", CONTINUATIONS)
    found, wanted = ours.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True)
    assert furthest([nats for nats, _ in found], [nats for nats, _ in wanted]) > 1e-4


# --- how it is asked --------------------------------------------------------------------------------------------------


def pairs(count: int) -> list[tuple[list[int], list[int]]]:
    """Random tokens, lengths of all kinds, some with the same beginning."""
    draw = random.Random(0)
    given = [[draw.randrange(1, 300) for _ in range(draw.randrange(1, 60))] for _ in range(count // 2)]
    return [(each, [draw.randrange(1, 300) for _ in range(draw.randrange(4))]) for each in given * 2]


def test_a_batch_is_each_alone(model, monkeypatch):
    asked = pairs(30)
    alone = [log_likelihoods(model.model, [each])[0] for each in asked]
    monkeypatch.setattr(harness, "BATCH_TOKENS", 300)
    monkeypatch.setattr(harness, "HEAD_TOKENS", 7)
    told = []
    together = log_likelihoods(model.model, asked, told.append)
    assert furthest([nats for nats, _ in together], [nats for nats, _ in alone]) <= 1e-5
    assert [right for _, right in together] == [right for _, right in alone]
    assert sum(told) == 30
    assert len(told) > 3


def test_answers_of_one_token_share_a_reading(model, monkeypatch):
    read = []
    features = model.model.features
    monkeypatch.setattr(model.model, "features", lambda ids: [read.append(len(ids)), features(ids)][1])
    found = log_likelihoods(model.model, [([5, 6, 7], [answer]) for answer in range(10, 20)])
    assert read == [1]
    assert len({nats for nats, _ in found}) == 10


def test_nothing_is_certain(model):
    assert log_likelihoods(model.model, [([1], []), ([1], [2])])[0] == (0.0, True)


def test_a_model_in_training_goes_on_training(folder):
    model = nextile.load(folder, device="cpu").model.train()
    log_likelihoods(model, [([1], [2])])
    assert model.training


def test_an_answer_longer_than_the_context_is_an_error(model):
    assert log_likelihoods(model.model, [([1], [2] * CONTEXT)])[0][0] < 0
    with pytest.raises(NextileError, match=f"an answer has {CONTEXT + 1} tokens and the model reads {CONTEXT} at a"):
        log_likelihoods(model.model, [([1], [2] * (CONTEXT + 1))])


def test_a_token_that_the_model_does_not_know_is_an_error(model):
    with pytest.raises(NextileError, match="its tokenizer is of another model"):
        log_likelihoods(model.model, [([1], [2, 999])])  # 999 is asked alone: the rest is read
    with pytest.raises(NextileError, match="its tokenizer is of another model"):
        log_likelihoods(model.model, [([999], [2])])


def test_what_the_tokenizer_puts_before_a_text_is_put_there(folder, tmp_path):
    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.add_special_tokens(["<s>"])
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A <|endoftext|>", special_tokens=[("<s>", core.token_to_id("<s>")), ("<|endoftext|>", 0)]
    )
    tokenizer = Tokenizer(core, {"eos_token": "<|endoftext|>", "bos_token": "<s>"})
    model = nextile.load(folder, device="cpu")
    ours = language_model(nextile.Model(model.model, tokenizer, model.spec, model.family), Silent())
    begin, plain = core.token_to_id("<s>"), tokenizer.encode("on the wall")
    assert ours.tok_encode("on the wall") == [begin, *plain]
    assert ours.tok_encode("on the wall", add_special_tokens=False) == plain
    assert ours.prefix_token_id == begin


# --- how texts are wanted ---------------------------------------------------------------------------------------------


def test_a_wish_is_greedy_unless_a_task_draws():
    assert Wish.of({}).sampling.temperature == 0.0
    assert Wish.of({"do_sample": False, "temperature": 0.7}).sampling.temperature == 0.0
    drawn = Wish.of({"temperature": 0.7, "top_p": 0.9, "num_beams": 1, "top_k": None})
    assert (drawn.sampling.temperature, drawn.sampling.top_p, drawn.sampling.top_k) == (0.7, 0.9, None)


def test_a_wish_has_its_lengths_and_ends():
    assert (Wish.of({}).most, Wish.of({}).stop) == (DEFAULT_MOST, ())
    assert Wish.of({"until": "\n", "max_tokens": 3}) == Wish.of({"until": ["\n", ""], "max_gen_toks": 3})


@pytest.mark.parametrize("settings", [{"num_beams": 4}, {"typical_p": 0.5}])
def test_a_wish_that_cannot_be_done_is_an_error(settings):
    with pytest.raises(NextileError, match=f"a task wants texts written with '{next(iter(settings))}', which is not"):
        Wish.of(settings)


def test_a_text_may_be_longer_than_the_model_reads(ours):
    [text] = ours.generate_until(requests("generate_until", [("on", {"max_gen_toks": CONTEXT + 5})]))
    assert text


def test_the_draws_of_one_prompt_differ_and_come_again(ours):
    asked = requests("generate_until", [("on the", {"temperature": 1.0, "max_gen_toks": 8})] * 2)
    first = ours.generate_until(asked)
    assert first[0] != first[1]
    assert ours.generate_until(asked) == first


# --- whole tasks ------------------------------------------------------------------------------------------------------

CHOICE = """
    task: bottles
    dataset_path: json
    dataset_kwargs: {{data_files: {{train: {data}, test: {data}}}, cache_dir: {cache}}}
    training_split: train
    test_split: test
    fewshot_split: train
    output_type: multiple_choice
    doc_to_text: "{{{{question}}}}"
    doc_to_choice: [" hanging", " falling", " green"]
    doc_to_target: gold
    metric_list:
      - metric: acc
"""
TEXT = """
    task: writing
    dataset_path: json
    dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
    test_split: test
    output_type: {kind}
    doc_to_text: "{{{{question}}}}"
    doc_to_target: "{{{{question}}}}"
    metric_list:
      - metric: {metric}
"""


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks for the network is refused."""

    def refuse(*arguments):
        raise AssertionError(f"the network was asked for: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def task(tmp_path, offline):
    """Write a task over eight questions; returns its path."""
    data = tmp_path / "questions.jsonl"
    rows = ({"question": f"{i} green bottles", "gold": i % 3} for i in range(8))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(template: str = CHOICE, name: str = "bottles.yaml", **fields: str) -> str:
        text = textwrap.dedent(template).format(data=data, cache=tmp_path / "cache", **fields)
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / name).write_text(text)
        return str(tmp_path / "tasks" / name)

    return write


def test_a_task_file_is_asked(model, task, ours):
    found = model.evaluate(tasks=task(), report=Silent())
    measures = found["tasks"]["bottles"]
    answers = [
        max(range(3), key=lambda k: nats[k][0])
        for nats in (
            ours.loglikelihood(
                requests(
                    "loglikelihood", [(f"{i} green bottles", f" {word}") for word in (" hanging", " falling", " green")]
                ),
                disable_tqdm=True,
            )
            for i in range(8)
        )
    ]
    assert measures["acc"] == sum(answer == i % 3 for i, answer in enumerate(answers)) / 8
    assert measures["acc_stderr"] >= 0
    assert (measures["questions"], measures["shots"]) == (8, 0)


def test_a_folder_limit_and_shots(model, task):
    folder = Path(task()).parent
    task(TEXT, "writing.yaml", kind="loglikelihood_rolling", metric="word_perplexity")
    found = model.evaluate(tasks=[str(folder)], limit=3, shots=2, report=Silent())["tasks"]
    assert {name: (each["questions"], each["shots"]) for name, each in found.items()} == {
        "bottles": (3, 2),
        "writing": (3, 2),
    }
    assert found["writing"]["word_perplexity"] > 1


def test_a_task_that_writes(model, task):
    path = task(
        TEXT + '\n    generation_kwargs: {{until: ["x"], max_gen_toks: 4}}', kind="generate_until", metric="bleu"
    )
    found = model.evaluate(tasks=path, report=Silent())["tasks"]["writing"]
    assert 0 <= found["bleu"] <= 100
    assert "bleu_stderr" in found  # drawn in this process


def test_the_command_prints_one_object_and_nothing_else(folder, task, capfd):
    loud = task(CHOICE + "\n    process_docs: !function loud.same")
    Path(loud).with_name("loud.py").write_text(
        "import sys\nprint('loud')\n\ndef same(docs):\n    print('louder', file=sys.stderr)\n    return docs\n"
    )
    state, disabled = random.getstate(), os.environ.get("DISABLE_MULTIPROC")
    assert run(["evaluate", str(folder), "--tasks", loud, "--limit", "2", "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["tasks"]["bottles"]["questions"] == 2
    assert said.err == ""
    assert (random.getstate(), os.environ.get("DISABLE_MULTIPROC")) == (state, disabled)


def test_the_command_shows_a_table(folder, task, capfd):
    assert run(["evaluate", str(folder), "--tasks", task(), "--shots", "1"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert " on tasks of lm_eval " in err
    assert "bottles acc        0." in err
    assert " ± 0." in err
    assert "bottles questions  8" in err


def test_how_far_it_is_is_said(model, task, capsys, monkeypatch):
    monkeypatch.setattr("nextile.tasks.report.DELAY", 0.0)
    model.evaluate(tasks=task(), report=Plain(sys.stderr))
    assert "answering: 100%  24 of 24 requests" in capsys.readouterr().err


# --- what is wrong ----------------------------------------------------------------------------------------------------


def problem(model: nextile.Model, kind: type[NextileError] = UsageError, **asked) -> str:
    """The one line that is said."""
    with pytest.raises(kind) as caught:
        model.evaluate(report=Silent(), **asked)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_arguments(model, task, tmp_path):
    path = task()
    assert problem(model, tasks=[]).startswith("no task is named: name one of lm_eval's")
    assert problem(model, tasks=path, limit=0) == "limit is 0: it is at least 1"
    assert problem(model, tasks=path, shots=-1) == "shots is -1: it is at least 0"
    assert problem(model, tasks=path, data="x.txt").startswith(
        "tasks bring their own texts and windows: leave out data"
    )
    assert problem(model, tasks=path, stride=3).endswith("leave out stride, or the tasks")
    assert problem(model, limit=3) == "only tasks have a limit: name tasks, or leave out limit"
    assert problem(model, tasks="gone.yaml").startswith("'gone.yaml' is not there: name a task file")
    assert problem(model, tasks="no/where").startswith("'no/where' is not there")
    (tmp_path / "empty").mkdir()
    assert problem(model, tasks=str(tmp_path / "empty")).startswith("there are no tasks in '")


def test_an_unknown_task_offers_the_nearest(model, monkeypatch):
    class Few:
        """A few of lm_eval's thousands, which take long to read."""

        all_tasks = ("hellaswag", "lambada")

        def __init__(self, include_path, include_defaults):
            assert include_defaults

    monkeypatch.setattr("lm_eval.tasks.TaskManager", Few)
    assert problem(model, tasks="helaswag") == "there is no task 'helaswag': did you mean 'hellaswag'?"
    assert problem(model, tasks="qqq").endswith("name one of lm_eval's, or the path of a task file")


@pytest.mark.parametrize(
    ("text", "doing"),
    [
        ("task: [", "read"),
        ("- a", "read"),
        ("nothing: 1", "read"),
        ("task: t\ndataset_path: json\ndataset_kwargs: {data_files: gone.jsonl}\ntest_split: test", "read"),
        ("task: t\nprocess_docs: !function gone.f", "read"),
    ],
)
def test_a_broken_task_is_an_error_in_one_line(model, tmp_path, offline, text, doing):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    assert problem(model, NextileError, tasks=str(path)).startswith(f"cannot {doing} {path} (")


def test_a_task_whose_own_code_fails_is_an_error_in_one_line(model, task):
    path = task(CHOICE + "\n    process_results: !function wrong.wrong")
    Path(path).with_name("wrong.py").write_text("def wrong(doc, results):\n    raise KeyError('one\\ntwo\x1b')\n")
    assert problem(model, NextileError, tasks=path).startswith(f"cannot ask {path} (KeyError: 'one\\ntwo\\x1b'): see")


def test_without_lm_eval(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert problem(model, NextileError, tasks="x") == "tasks need lm_eval: pip install 'nextile[eval]'"


def test_a_model_of_another_kind_is_refused(text, tmp_path):
    tiny = {"steps": 1, "out": tmp_path / "m", "report": Silent()}
    settings = {"compile": False, "precision": "fp32", "context": 16, "threads": 1, "model.stack.width": 16,
                "model.stack.depth": 1, "tokenizer.kind": "char"}  # fmt: skip
    masked = nextile.train(text, task="masked", settings=settings, **tiny)
    assert problem(masked, tasks="x").endswith("is not a language model, and tasks ask what follows a text: name one")
    assert "does not write from left to right" in problem(masked, stride=3)


def test_the_library_is_asked_for_only_when_it_is_used():
    tree = ast.parse(Path(harness.__file__).read_text(encoding="utf-8"))
    named = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any("lm_eval" in line for line in named)
    assert any("lm_eval" in ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
