"""Exercises: a solution is right, an empty one says what is to do, a plausible mistake is found and named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

HOUSE = Path(__file__).parents[1]
EXERCISES = HOUSE / "exercises"
NAMES = sorted(path.stem for path in EXERCISES.glob("*.py") if path.stem != "checking")


@pytest.fixture(autouse=True)
def found_by_their_folder(monkeypatch) -> Iterator[None]:
    """As `python exercises/NAME.py` has it."""
    monkeypatch.syspath_prepend(str(EXERCISES))
    yield
    sys.modules.pop("checking", None)


def module(path: Path) -> ModuleType:
    """A file as a module that no other test has."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def functions(name: str) -> dict[str, object]:
    """The solution's."""
    solution = module(HOUSE / "tests" / "solutions" / f"{name}.py")
    return {
        name: made for name, made in vars(solution).items() if callable(made) and made.__module__ == solution.__name__
    }


def verdict(name: str, **given: object) -> tuple[int, str]:
    """What an exercise says of these functions."""
    from checking import verdict

    exercise = module(EXERCISES / f"{name}.py")
    for function, made in given.items():
        assert hasattr(exercise, function), f"{name} asks for no {function}"
        setattr(exercise, function, made)
    return verdict(exercise.check)


@pytest.mark.parametrize("name", NAMES)
def test_a_solution_is_right(name):
    assert verdict(name, **functions(name)) == (0, "right")


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_one_says_what_is_to_do(name):
    status, line = verdict(name)
    assert status == 1
    assert line.startswith("to do: complete `")
    assert f"exercises/{name}.py" in line


# --- mistakes -------------------------------------------------------------------------------------------------------


def rows(x: torch.Tensor) -> torch.Tensor:
    """Each number over the sum of its row."""
    return x / x.sum(-1, keepdim=True)


def attention(scale: float = 1.0, axis: int = -1):
    """Attention with another scale, or a softmax over another axis."""

    def of(q, k, v):
        weights = (q @ k.mT * scale * q.shape[-1] ** -0.5).softmax(axis)
        return weights @ v, weights

    return of


def careless(q, k, v):
    """Attention whose softmax overflows."""
    weights = rows((q @ k.mT * q.shape[-1] ** -0.5).exp())
    return weights @ v, weights


def in_place(scores):
    """The right mask, in the given tensor."""
    return scores.masked_fill_(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)


def forgetful_beams(ask, prompt, width, most, end):
    """Greedy, whatever the width."""
    tokens, total = [], 0.0
    for _ in range(most):
        found = ask(prompt + tokens)
        total, token = total + float(found.max()), int(found.argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens, total


def of_nothing(*_args):
    """As where a return is forgotten."""


# exercise, its functions, of which some are wrong and the others the solution's, and words of what is said
MISTAKES = {
    "attention without the root": (
        "attention",
        {"attention": attention(scale=8**0.5)},
        "5 tokens of width 8: the weights: at",
    ),
    "attention over queries": ("attention", {"attention": attention(axis=-2)}, "the weights: at"),
    "attention that overflows": (
        "attention",
        {"attention": careless},
        "overflow a softmax that is not careful: the weights: there is NaN",
    ),
    "attention in float32": (
        "attention",
        {"attention": lambda q, k, v: attention()(q.float(), k.float(), v.float())},
        "float64, which must stay so: the weights: its dtype is torch.float32",
    ),
    "attention that returns nothing": ("attention", {"attention": of_nothing}, "TypeError"),
    "a mask by zero": (
        "masked_attention",
        {"masked": lambda scores: scores.tril()},
        "2 heads, 5 tokens: at [0, 0, 0, 0]",
    ),
    "a mask of oneself": (
        "masked_attention",
        {"masked": lambda s: s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(0), -torch.inf)},
        "there is NaN at [0, 0, 0, 0]",
    ),
    "a mask by a large number": (
        "masked_attention",
        {"masked": lambda s: s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -1e6)},
        "must be minus infinity",
    ),
    "a mask in place": ("masked_attention", {"masked": in_place}, "changed in place"),
    "a mask that returns nothing": ("masked_attention", {"masked": of_nothing}, "AttributeError"),
    "heads by a view": (
        "multi_head",
        {"split": lambda x, heads: x.reshape(len(x), heads, x.shape[1], -1)},
        "split of 6 numbers",
    ),
    "heads that are not joined back": (
        "multi_head",
        {"join": lambda x: x.flatten(2)},
        "join after split: its shape is",
    ),
    "merges that overlap": (
        "byte_pair_encoding",
        {
            "join": lambda word, pair: (
                "".join(word).replace("".join(pair), "|" + "".join(pair) + "|").strip("|").split("|")
            )
        },
        "join a + a in aaabaa",
    ),
    "pairs of words counted once": (
        "byte_pair_encoding",
        {"most_frequent": lambda words: min(tuple(word[:2]) for word in words)},
        "most_frequent of aab",
    ),
    "targets that are inputs": (
        "language_model",
        {"pairs": lambda ids: (ids[:-1], ids[:-1])},
        "pairs of 5, 6, 7: at [0] it is 5, not 6",
    ),
    "perplexity of a mean of probabilities": (
        "language_model",
        {"perplexity": lambda z, y: 1 / z.softmax(-1).gather(-1, y[:, None]).mean().item()},
        "geometric mean",
    ),
    "perplexity in nats": (
        "language_model",
        {"perplexity": lambda z, y: torch.nn.functional.cross_entropy(z, y).item()},
        "it is 1.94591, not 7",
    ),
    "masks that ask everything": (
        "self_supervision",
        {"masks": lambda tokens, hidden: ([90 if i in hidden else t for i, t in enumerate(tokens)], tokens)},
        "masks of 5, 6, 7 at place 1",
    ),
    "neighbours with oneself": (
        "word_embeddings",
        {"hidden": lambda x, ids, place, w: x[ids[max(0, place - w) : place + w + 1]].mean(0)},
        "hidden of [3, 1, 4, 1, 5, 9, 2, 6], the fourth word",
    ),
    "a loss that overflows": (
        "word_embeddings",
        {"loss": lambda h, right, wrong: -(h @ right).sigmoid().log() - (-(wrong @ h)).sigmoid().log().sum()},
        "a log σ that is careful",
    ),
    "products for cosines": (
        "model_embeddings",
        {
            "near": lambda words, x, word, n: [
                words[i] for i in (-(x @ x[words.index(word)])).argsort() if words[i] != word
            ][:n]
        },
        "near of the words east",
    ),
    "characters for bytes": (
        "tokenization",
        {"encode": lambda text: [ord(sign) + 3 for sign in text]},
        "encode 'naïve'",
    ),
    "a row for a vector": (
        "embedding",
        {"one_hot": lambda ids, vocab: torch.eye(vocab, dtype=torch.long)[ids]},
        "its dtype is torch.int64",
    ),
    "a block without biases": (
        "transformer",
        {"of_block": lambda width: 12 * width * width},
        "a block of width 1: it is 12, not",
    ),
    "padding that is seen": (
        "cross_attention",
        {
            "cross_attention": lambda x, memory, q, k, v, there: (
                ((x @ q) @ (memory @ k).mT / 8**0.5).softmax(-1) @ (memory @ v),
                ((x @ q) @ (memory @ k).mT / 8**0.5).softmax(-1),
            )
        },
        "padding of the second text has a weight",
    ),
    "a stack of the first block": (
        "stacks",
        {"stream": lambda blocks, x: [x, *(block(x) for block in blocks)]},
        "two blocks, + 1 and × 2",
    ),
    "a lens without the norm": (
        "stacks",
        {"lens": lambda blocks, norm, head, x: torch.stack([head(x).argmax(-1)] * (len(blocks) + 1))},
        "lens of a GPT-2 of three blocks",
    ),
    "sinusoids of interleaved numbers": (
        "positions",
        {
            "sinusoids": lambda time, width: (
                functions("positions")["sinusoids"](time, width).view(time, 2, -1).mT.reshape(time, width)
            )
        },
        "sinusoids of 10 positions",
    ),
    "a turn of neighbours": (
        "positions",
        {"rotate": lambda x, positions, base=10_000.0: x * torch.cos(positions[:, None].float())},
        "rotate of 2 texts",
    ),
    "another GELU": (
        "feed_forward",
        {"gelu": lambda x: x * torch.sigmoid(1.702 * x)},
        "gelu of -3, -1, 0, 1, 3: at [0]",
    ),
    "a bend too late": (
        "feed_forward",
        {"feed_forward": lambda x, up, b, down, c: torch.nn.functional.gelu((x @ up + b) @ down + c)},
        "2 texts of 5 tokens",
    ),
    "a variance over n - 1": (
        "residual",
        {
            "layer_norm": lambda x, gain, bias, eps=1e-5: (
                (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * gain + bias
            )
        },
        "layer_norm of 2 texts of 3 tokens",
    ),
    "no skip": ("residual", {"pre_norm": lambda x, f, norm: f(norm(x))}, "pre_norm of 2 texts"),
    "a norm at the wrong place": ("residual", {"post_norm": lambda x, f, norm: x + f(norm(x))}, "post_norm of 2 texts"),
    "a softmax that overflows": (
        "softmax",
        {"softmax": lambda z, t=1.0: rows((z / t).exp())},
        "softmax of 1,000 and 998: there is NaN",
    ),
    "top-p without the one that crosses": (
        "softmax",
        {"top_p": lambda z, p: z.masked_fill(z.softmax(-1) < 1 - p, -torch.inf)},
        "top_p of",
    ),
    "an end that is given back": (
        "completion",
        {"greedy": lambda ask, prompt, most, end: functions("completion")["greedy"](ask, prompt, most, -1)},
        "ends a text",
    ),
    "a draw of the likeliest": (
        "completion",
        {"pick": lambda logits, point: int(logits.argmax())},
        "0, 0.5 at 0.0: it is 3, not 0",
    ),
    "beams that are greedy": ("beam_search", {"beam_search": forgetful_beams}, "width 2: it is [1], not [2]"),
    "a prompt that counts": (
        "prompt",
        {
            "log_probability": lambda ask, prompt, answer: functions("prompt")["log_probability"](
                ask, prompt[:1], prompt[1:] + answer
            )
        },
        "log_probability of [4, 5] after [1, 2, 3]",
    ),
    "an answer that is short": (
        "prompt",
        {
            "choose": lambda ask, prompt, answers: max(
                range(len(answers)), key=lambda i: functions("prompt")["log_probability"](ask, prompt, answers[i])
            )
        },
        "choose among",
    ),
    "patches by a view": (
        "vision_transformer",
        {"patches": lambda x, side: x.reshape(len(x), -1, x.shape[1] * side * side)},
        "a grey picture of 2 x 4 pixels",
    ),
    "colours by columns": (
        "image_gpt",
        {"tokens": lambda pixels, colours: functions("image_gpt")["tokens"](pixels.transpose(1, 0, 2), colours)},
        "tokens of 0, 100, 200, 255",
    ),
    "colours that are cut": (
        "image_gpt",
        {
            "picture": lambda ids, colours, width: (
                ((colours[ids] + 1) * 127.5).astype("uint8").reshape(-1, width, colours.shape[1])
            )
        },
        "picture of",
    ),
    "a checkpoint that is not turned": (
        "implementations",
        {
            "three": lambda w, b: dict(
                zip(("query", "key", "value"), zip(w.chunk(3, -1), b.chunk(3), strict=True), strict=True)
            )
        },
        "three of block 0, width 8: query: at",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_and_named(name):
    exercise, wrong, said = MISTAKES[name]
    status, line = verdict(exercise, **{**functions(exercise), **wrong})
    assert status == 1
    assert line.startswith("not yet: ")
    assert said in line


def test_every_exercise_has_a_mistake():
    assert sorted({exercise for exercise, *_ in MISTAKES.values()}) == NAMES


def test_an_exercise_knows_nothing_of_what_was_given_before():
    assert verdict("attention", attention=attention(scale=2.0))[0] == 1
    assert verdict("attention", **functions("attention")) == (0, "right")


def test_the_answers_in_the_list_of_exercises_are_real():
    text = (EXERCISES / "README.md").read_text(encoding="utf-8")
    answers = [verdict("attention"), verdict("attention", attention=attention(scale=8**0.5))]
    assert [line for _, line in answers if line not in text] == []


def test_every_exercise_is_in_the_list_of_them():
    text = (EXERCISES / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"({name}.py)" not in text] == []


# --- as a program ---------------------------------------------------------------------------------------------------


def run(path: Path) -> tuple[int, str, str]:
    """What `python PATH` does."""
    result = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=path.parent, timeout=120)
    return result.returncode, result.stdout, result.stderr


def test_as_a_program_an_empty_exercise_says_what_is_to_do():
    assert run(EXERCISES / "attention.py") == (1, "to do: complete `attention` in exercises/attention.py\n", "")


def test_as_a_program_a_completed_exercise_is_right(tmp_path):
    (tmp_path / "checking.py").write_text((EXERCISES / "checking.py").read_text(encoding="utf-8"), encoding="utf-8")
    text = (EXERCISES / "attention.py").read_text(encoding="utf-8")
    todo = '    raise NotImplementedError("complete `attention` in exercises/attention.py")\n'
    assert todo in text
    done = "    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)\n    return weights @ v, weights\n"
    (tmp_path / "attention.py").write_text(text.replace(todo, done), encoding="utf-8")
    assert run(tmp_path / "attention.py") == (0, "right\n", "")
