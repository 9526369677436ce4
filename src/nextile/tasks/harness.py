"""Tasks of lm_eval asked of a language model: which answer is likelier, how likely a text is, what it writes.

Shapes: B batch, T time, D width, N tokens asked, V vocabulary.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextile.base.config import resolve
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.pretrained import Pretrained
from nextile.generation.complete import Text
from nextile.generation.decode import check_ids, decode, evaluating, log_probabilities, padded
from nextile.generation.sample import Sampling
from nextile.tasks.report import Bar, Report, one_line
from nextile.tasks.tokens import BATCH_TOKENS

HEAD_TOKENS = 1024  # whose logits are held at a time
TOGETHER = 16  # texts that are written in one batch
SEED = 1234  # of draws, and of the examples shown before a question; lm_eval's own
DRAWS = 1000  # of a measure whose standard error has no formula

Tokens = Sequence[int]
Pair = tuple[Tokens, Tokens]  # what is given, one token at least, and what is asked after it
Answer = tuple[float, bool]  # the log-probability of what is asked, in nats, and whether it is what greedy would write


# --- how likely -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihoods(model: Any, pairs: Sequence[Pair], told: Callable[[int], object] = lambda n: None) -> list[Answer]:
    """The answer to each pair, the same whatever is asked beside it; `told` hears how many more are done.

    Pairs that read the same share a row, rows of like length a batch; padding stands on the right, where no token
    before it looks. Of what is given the beginning is left out where the model cannot read it all.
    Errors: NextileError for more asked tokens than the model reads, for unknown ids, and where it predicts NaN.
    """
    check_ids([(*given, *asked) for given, asked in pairs], model.spec.embed.vocab, "request")
    readers: dict[tuple[int, ...], list[int]] = {}  # what is read -> which pairs ask after it
    for number, (given, asked) in enumerate(pairs):
        readers.setdefault(_read(given, asked, model.spec.context), []).append(number)
    found: list[Answer] = [(0.0, True)] * len(pairs)
    with evaluating(model):
        for rows in _batches(sorted(readers, key=len, reverse=True)):
            numbers = [(row, number) for row, read in enumerate(rows) for number in readers[read]]
            asked = [(row, list(pairs[number][1])) for row, number in numbers]
            for (_, number), answer in zip(numbers, _answers(model, rows, asked), strict=True):
                found[number] = answer
            told(len(numbers))
    return found


def _read(given: Tokens, asked: Tokens, context: int) -> tuple[int, ...]:
    """What the model reads: all but the last token, whose successor nobody asks; the end of it where it is too long."""
    if len(asked) > context:
        raise NextileError(
            f"an answer has {len(asked)} tokens and the model reads {context} at a time: "
            "leave its task out, or take a model of a longer context"
        )
    return (*given, *asked)[-context - 1 : -1] if asked else tuple(given[-context:])


def _batches(rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """The rows, longest first, in batches of some BATCH_TOKENS tokens."""
    start = 0
    while start < len(rows):
        count = max(1, BATCH_TOKENS // len(rows[start]))
        yield rows[start : start + count]
        start += count


def _answers(model: Any, rows: list[tuple[int, ...]], asked: list[tuple[int, list[int]]]) -> list[Answer]:
    """The answers to what is asked at the ends of these rows: (row, tokens) each."""
    device = next(model.parameters()).device
    ids, _ = padded([list(row) for row in rows])  # (B, T)
    x = model.features(ids.to(device))  # (B, T, D)
    states = torch.cat([x[row, len(rows[row]) - len(tokens) : len(rows[row])] for row, tokens in asked])  # (N, D)
    targets = torch.tensor([token for _, tokens in asked for token in tokens], dtype=torch.long, device=device)  # (N,)
    parts = zip(states.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    pieces = [_of_tokens(model.head(part[None])[0], wanted) for part, wanted in parts]
    lengths = [len(tokens) for _, tokens in asked]
    nats, greedy = (torch.cat(each).cpu().split(lengths) for each in zip(*pieces, strict=True))
    return [(some.sum().item(), bool(all_.all())) for some, all_ in zip(nats, greedy, strict=True)]


def _of_tokens(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of each target (N,) under logits (N, V), float64, and whether it is the most probable one."""
    logprobs = log_probabilities(logits.float())
    return logprobs.gather(-1, targets[:, None])[:, 0].double(), logprobs.argmax(-1) == targets


# --- what is written ------------------------------------------------------------------------------------------------

MOST = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one and the same
DEFAULT_MOST = 256  # tokens, where a task does not say; lm_eval's own
DRAWING = ("top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Wish:
    """How a task wants its texts written."""

    sampling: Sampling
    most: int  # tokens
    stop: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Wish:
        """A task's generation_kwargs. Errors: NextileError for one that cannot be done here."""
        rest = {name: value for name, value in settings.items() if value is not None}
        until, most = rest.pop("until", []), [int(rest.pop(name)) for name in MOST if name in rest]
        degree = float(rest.pop("temperature", 0.0))
        drawn = {"temperature": degree if rest.pop("do_sample", degree > 0) else 0.0, "seed": SEED}
        drawn |= {name: rest.pop(name) for name in DRAWING if name in rest}
        if rest.pop("num_beams", 1) != 1 or rest:
            name = next(iter(rest), "num_beams")
            raise NextileError(f"a task wants texts written with '{name}', which is not done here: leave it out")
        stop = [until] if isinstance(until, str) else list(until)
        return cls(resolve(Sampling, drawn), most[0] if most else DEFAULT_MOST, tuple(filter(None, stop)))


def written(pretrained: Pretrained, prompts: list[list[int]], wish: Wish, streams: Sequence[int]) -> list[str]:
    """What the model writes after each prompt, up to its end token or a stop string; the i-th draws from its stream.

    Of a prompt the end is read that leaves room for all that may be written; where there is none, half of the context.
    """
    model: Any = pretrained.model
    context: int = model.spec.context
    room = context - wish.most if wish.most < context else max(1, context // 2)
    texts, found = [Text(pretrained.tokenizer.decode_stream(), wish.stop) for _ in prompts], [""] * len(prompts)

    def stopped(row: int, token: int) -> bool:
        found[row] += texts[row].push(token)
        return texts[row].stopped

    events = decode(
        model, [prompt[-room:] for prompt in prompts], wish.sampling,
        max_tokens=wish.most, end_ids={pretrained.tokenizer.end_id}, stop=stopped, streams=streams,
    )  # fmt: skip
    for _ in events:
        pass
    return [text + rest.flush() for text, rest in zip(found, texts, strict=True)]


# --- the model as lm_eval asks it -----------------------------------------------------------------------------------


class Answering:
    """What lm_eval's TemplateLM leaves to a model; `language_model` puts the two together.

    Texts are tokens and nothing else: a "</s>" in a question is four characters, not the end of it.
    """

    def __init__(self, pretrained: Pretrained, report: Report):
        super().__init__()
        self.pretrained, self.report = pretrained, report

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return self.pretrained.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which all is asked."""
        begin = self.pretrained.tokenizer.begin_id
        return self.eot_token_id if begin is None else begin

    @cached_property
    def _lead(self) -> list[int]:
        """The special tokens that the tokenizer's own file puts before every text."""
        core = self.pretrained.tokenizer.core
        whole, plain = (core.encode("a", add_special_tokens=special).ids for special in (True, False))
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        return whole[:at]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text, after those that its model is used to see before one unless that is False."""
        return ([] if add_special_tokens is False else self._lead) + self.pretrained.tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, Tokens, Tokens]], **_: Any) -> list[Answer]:
        pairs = [(list(given) or [self.prefix_token_id], asked) for _, given, asked in requests]
        with self.report.bar("answering", len(pairs), "requests") as bar:
            return log_likelihoods(self.pretrained.model, pairs, bar.advance)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, in nats, in windows as long as the model reads."""
        windows = [self._rolled(*request.args) for request in requests]
        answers = iter(self._loglikelihood_tokens([(None, *pair) for pairs in windows for pair in pairs]))
        return [sum(next(answers)[0] for _ in pairs) for pairs in windows]

    def _rolled(self, text: str) -> list[tuple[list[int], list[int]]]:
        """Pairs that ask every token of a text once, the last with as much before it as the model reads."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        model: Any = self.pretrained.model
        tokens = self.tok_encode(text)
        found = get_rolling_token_windows(tokens, self.prefix_token_id, model.spec.context, context_len=1)
        return [make_disjoint_window(pair) for pair in found]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt."""
        found = [""] * len(requests)
        with self.report.bar("writing", len(requests), "texts") as bar:
            for numbers, wish in self._alike(requests):
                self._write(requests, numbers, wish, found, bar)
        return found

    def _alike(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], Wish]]:
        """The numbers of the requests that want their texts written in the same way."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        yield from ((numbers, Wish.of(requests[numbers[0]].args[1])) for numbers in groups.values())

    def _write(self, requests: Sequence[Any], numbers: list[int], wish: Wish, found: list[str], bar: Bar) -> None:
        prompts = {number: self.tok_encode(requests[number].args[0]) or [self.prefix_token_id] for number in numbers}
        order = sorted(numbers, key=lambda number: -len(prompts[number]))
        for start in range(0, len(order), TOGETHER):
            some = order[start : start + TOGETHER]
            texts = written(self.pretrained, [prompts[number] for number in some], wish, streams=some)
            for number, text in zip(some, texts, strict=True):
                found[number] = text
            bar.advance(len(some))


def language_model(pretrained: Pretrained, report: Report) -> Any:
    """The model as a TemplateLM of lm_eval's, for whoever calls that library himself.

    Errors: UsageError for a model that does not predict text from left to right; NextileError without lm_eval.
    """
    _require()
    from lm_eval.api.model import TemplateLM

    class LanguageModelOfOurs(Answering, TemplateLM):
        """A model of nextile's."""

    if pretrained.task != "lm":
        raise UsageError(f"{pretrained.called} is not a language model, and tasks ask what follows a text: name one")
    return LanguageModelOfOurs(pretrained, report)


def _require() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise NextileError("tasks need lm_eval: pip install 'nextile[eval]'") from error


# --- which tasks ----------------------------------------------------------------------------------------------------

SUFFIXES = (".yaml", ".yml")


def _kind(name: str) -> str:
    """What a task is named by: "folder", "file" or "name". Errors: UsageError for a path to nothing."""
    if os.path.isdir(name):
        return "folder"
    if os.path.isfile(name):
        return "file"
    if name.lower().endswith(SUFFIXES) or "/" in name or os.sep in name:
        raise UsageError(f"'{name}' is not there: name a task file, a folder of them, or a task of lm_eval's")
    return "name"


def _load(names: Sequence[str]) -> Any:
    """lm_eval's tasks of these names, files and folders. Their files are code, and this runs it."""
    from lm_eval.tasks import TaskManager

    kinds = {name: _kind(name) for name in names}
    folders: list[Any] = [name for name in names if kinds[name] == "folder"]
    manager = TaskManager(include_path=folders, include_defaults="name" in kinds.values())
    for name in names:
        if kinds[name] == "name" and name not in manager.all_tasks:
            raise UsageError(f"there is no task '{name}': {_nearest(name, manager.all_tasks)}")
    wanted = [each for name in names for each in ([name] if kinds[name] != "folder" else _within(name))]
    return manager.load(list(dict.fromkeys(wanted)))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else "name one of lm_eval's, or the path of a task file"


def _within(folder: str) -> list[str]:
    """The names of all tasks in a folder. Errors: UsageError when there are none."""
    from lm_eval.tasks import TaskManager

    found = TaskManager(include_path=folder, include_defaults=False).all_subtasks
    if not found:
        raise UsageError(f"there are no tasks in '{folder}': put task files there, their names ending in .yaml")
    return found


def _show(tasks: Mapping[str, Any], shots: int | None) -> None:
    """Let tasks show so many examples, but those of which their file says none, and choose them by our seed."""
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        if own != 0:
            task.set_config(key="num_fewshot", value=(own or 0) if shots is None else shots)
        task.set_fewshot_seed(seed=SEED)


# --- asking them ----------------------------------------------------------------------------------------------------


@contextmanager
def _hushed() -> Iterator[None]:
    """Without what lm_eval, its libraries and the code of tasks say of themselves, and without processes of theirs."""
    logged, alone = logging.root.manager.disable, os.environ.get("DISABLE_MULTIPROC")
    logging.disable(logging.WARNING)
    os.environ["DISABLE_MULTIPROC"] = "1"  # a fork of a process with threads may hang
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), _unwarned():
            yield
    finally:
        logging.disable(logged)
        os.environ.pop("DISABLE_MULTIPROC")
        os.environ |= {} if alone is None else {"DISABLE_MULTIPROC": alone}


@contextmanager
def _unwarned() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lm_eval|datasets|dill|evaluate|multiprocess)\b")
        yield


@contextmanager
def _seeded() -> Iterator[None]:
    """With Python's and numpy's random numbers as lm_eval begins them, for tasks that shuffle; then as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what goes wrong in a library or in a task's own code into one line."""
    try:
        yield
    except (NextileError, MemoryError):
        raise
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")[:300]
        raise NextileError(f"cannot {doing} ({said}): see that its file and its data are sound and at hand") from error


def _measures(results: Mapping[str, Any], counts: Mapping[str, Any], shots: Mapping[str, int]) -> dict[str, Any]:
    """Of each task its measures by name, how many questions were asked and how many examples shown before each."""
    found = {}
    for task, values in results.items():
        named = {name.removesuffix(",none"): value for name, value in values.items() if "," in name}
        numbers = {name: float(value) for name, value in named.items() if not isinstance(value, str)}
        count = {"questions": counts[task]["effective"]} if task in counts else {}
        found[task] = numbers | count | {"shots": shots.get(task, 0)}
    return found


def evaluate_tasks(
    pretrained: Pretrained, tasks: Sequence[str], report: Report, *, limit: int | None = None, shots: int | None = None
) -> dict[str, Any]:
    """How a language model does on tasks of lm_eval: {"tasks": {name: {measure: value}}, "lm_eval": its version}.

    tasks: names of lm_eval's, or paths of YAML files and folders of them. Such a file is code: it may name Python
    functions beside it, which are run. limit: the first so many questions of each. shots: examples shown before each.
    Errors: UsageError for another kind of model and for unknown tasks; NextileError without lm_eval, and for a task
    that cannot be read or asked.
    """
    model, said = language_model(pretrained, report), ", ".join(tasks)
    for name, value, least in (("limit", limit, 1), ("shots", shots, 0)):
        if value is not None and value < least:
            raise UsageError(f"{name} is {value}: it is at least {least}")
    if not tasks:
        raise UsageError("no task is named: name one of lm_eval's, or the path of a task file")
    import lm_eval
    from lm_eval.evaluator import evaluate

    with _hushed(), _seeded():
        with _explained(f"read {said}"):
            loaded = _load(tasks)
            _show(loaded["tasks"], shots)
        with _explained(f"ask {said}"):
            found: Any = evaluate(model, loaded, limit=limit, bootstrap_iters=DRAWS, log_samples=False)
    measures = _measures(found["results"] | found.get("groups", {}), found["n-samples"], found["n-shot"])
    return {"tasks": measures, "lm_eval": lm_eval.__version__}
