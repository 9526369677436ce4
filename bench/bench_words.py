"""Word vectors beside gensim: speed and what the vectors know, in one run; and what those of other models know.

    python bench/bench_words.py --data TRAIN.jsonl --tests FOLDER [--seeds 1 2 3] [--torch] [--cold]
    python bench/bench_words.py --data TRAIN.jsonl --tests FOLDER --models RUN ...

FOLDER holds wordsim353.tsv, simlex999.txt and questions-words.txt. CBOW of 100 numbers, window 5, 5 negatives,
5 epochs, words that occur 5 times, two threads on either side. The two take turns, seed by seed, after each has run
once on little text. End to end: from opening the file to vectors in memory; gensim is given what its user would write,
Python's regex of the same words and documents cut at the 10,000 words at which gensim cuts them anyway. Words a second:
those of the text, rare ones too, times epochs, through the seconds of training alone. `--torch`: without numba as well;
`--cold`: a process that has nothing compiled yet as well.

With models: their word vectors, and a classifier of passages by them, is this from a film review or not. Reviews are
the documents without a capital; passages are 25 words in small letters. Test passages are from documents of their own,
though vectors that were learned on this corpus have seen their text, never what they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

import nextile
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.word2vec import WordTable
from nextile.data.corpora import open_corpus
from nextile.inspection.vectors import Lookup, word_vectors
from nextile.inspection.wordtests import score
from nextile.nn import specs
from nextile.tasks.report import Silent

WORD = re.compile(r"\w(?:[\w']*\w)?")
DIM, WINDOW, NEGATIVES, EPOCHS, LEAST, THREADS = 100, 5, 5, 5, 5, 2
SENTENCE = 10_000  # words: gensim learns nothing from those behind
TESTS = ("wordsim353.tsv", "simlex999.txt", "questions-words.txt")
PASSAGE, SIZES, TEST, DRAWS = 25, (16, 64, 256, 1024), 2000, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a .jsonl with the texts")
    parser.add_argument("--held-out", type=Path, help="the text to validate on (default: val.jsonl beside the data)")
    parser.add_argument("--tests", type=Path, required=True, help="the folder of the three tests")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--torch", action="store_true", help="also without numba")
    parser.add_argument("--cold", action="store_true", help="also in a process that compiles first")
    parser.add_argument("--models", nargs="+", help="runs whose word vectors are compared, instead")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-words"))
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)  # what --cold starts
    asked = parser.parse_args()
    asked.held_out = asked.held_out or asked.data.with_name("val.jsonl")
    if asked.alone:
        print(json.dumps(asdict(ours(asked, asked.seeds[0]))))
    elif asked.models:
        vectors = {name: lookup for run in asked.models for name, lookup in sides(run)}
        print_scores(vectors, asked.tests)
        print_classifiers(vectors, asked.data)
    else:
        print_race(asked)


# --- beside gensim --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What came of a training."""

    millions_per_second: float
    seconds: float
    words: int
    wordsim: float
    simlex: float
    analogies: float


def print_race(asked: argparse.Namespace) -> None:
    sides: dict[str, Callable[[int], Result]] = {
        "gensim": lambda seed: theirs(asked, seed),
        "nextile": lambda seed: ours(asked, seed),
    }
    if asked.torch:
        sides["nextile by torch"] = lambda seed: by_torch(asked, seed)
    warm_up(asked)
    columns = ("", "seed", "M words/s", "seconds", "words", "WordSim-353", "SimLex-999", "analogies")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for seed in asked.seeds:
        for name, side in sides.items():
            found[name].append(side(seed))
            print_result(name, str(seed), found[name][-1])
    means = {name: mean_of(results) for name, results in found.items()}
    for name, result in means.items():
        print_result(name, "mean", result)
    if asked.cold:
        print_result("nextile, compiling first", str(asked.seeds[0]), cold(asked, asked.seeds[0]))
    base = means.pop("gensim")
    for name, result in means.items():
        faster = result.millions_per_second / base.millions_per_second
        whole = base.seconds / result.seconds
        print(f"\n{name}: {faster:.2f} times gensim's words a second, {whole:.2f} times as fast from end to end")


def print_result(name: str, seed: str, r: Result) -> None:
    known = f"{r.wordsim:.3f} | {r.simlex:.3f} | {r.analogies:.1%}"
    print(f"| {name} | {seed} | {r.millions_per_second:.2f} | {r.seconds:.1f} | {r.words:,} | {known} |", flush=True)


def mean_of(results: Sequence[Result]) -> Result:
    means = {field.name: mean(getattr(result, field.name) for result in results) for field in fields(Result)}
    return Result(**{**means, "words": round(means["words"])})


def result_of(lookup: Lookup, rate: float, seconds: float, tests: Path) -> Result:
    return Result(rate / 1e6, seconds, len(lookup.table), *(score(lookup, tests / name).value for name in TESTS))


def words_in(path: Path) -> list[list[str]]:
    """The words of each text."""
    with open(path, encoding="utf-8") as file:
        return [WORD.findall(json.loads(line)["text"].lower()) for line in file if line.strip()]


def theirs(asked: argparse.Namespace, seed: int) -> Result:
    from gensim.models import Word2Vec

    began = time.perf_counter()
    texts = words_in(asked.data)
    sentences = [text[at : at + SENTENCE] for text in texts for at in range(0, len(text), SENTENCE)]
    model = Word2Vec(
        vector_size=DIM, window=WINDOW, negative=NEGATIVES, min_count=LEAST, workers=THREADS, epochs=EPOCHS, seed=seed
    )
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=model.corpus_count, epochs=EPOCHS)
    end = time.perf_counter()
    table = WordTable(tuple(map(str, model.wv.index_to_key)), model.wv.vectors)
    return result_of(Lookup(table), sum(map(len, texts)) * EPOCHS / (end - start), end - began, asked.tests)


def ours(asked: argparse.Namespace, seed: int) -> Result:
    chosen = {"dim": DIM, "window": WINDOW, "negatives": NEGATIVES, "epochs": EPOCHS, "min_count": LEAST}
    settings = {"seed": seed, "threads": THREADS, "device": "cpu", "validation.data": str(asked.held_out)}
    asked.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=asked.out) as folder:
        began = time.perf_counter()
        model = nextile.train(
            asked.data, task="words", out=folder, settings={**settings, "words": chosen}, report=Silent()
        )
        seconds = time.perf_counter() - began
        trained = training_seconds(Path(folder))
    words = sum(map(len, words_in(asked.data)))
    return result_of(word_vectors(model), words * EPOCHS / trained, seconds, asked.tests)


def training_seconds(folder: Path) -> float:
    """What the steps of a run took, with their data, without validations and saves."""
    plan = json.loads((folder / "run.json").read_text())["plan"]
    rows = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    steps = np.diff([0, *(row["step"] for row in rows)])
    per_second = np.array([row["tokens_per_second"] for row in rows])
    return float((steps * plan["batch"] * plan["context"] / per_second).sum())


def by_torch(asked: argparse.Namespace, seed: int) -> Result:
    """As where numba is not installed."""
    with patch("nextile.training.words.has_kernel", lambda: False):
        return ours(asked, seed)


def cold(asked: argparse.Namespace, seed: int) -> Result:
    """In a process of its own, which finds no machine code on the disk."""
    command = [sys.executable, __file__, "--alone", "--seeds", str(seed), "--out", str(asked.out)]
    command += ["--data", str(asked.data), "--held-out", str(asked.held_out), "--tests", str(asked.tests)]
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, stdout=subprocess.PIPE, check=True, text=True
        )
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def warm_up(asked: argparse.Namespace) -> None:
    """Import and compile what both need."""
    little = argparse.Namespace(**{**vars(asked), "data": asked.held_out})
    theirs(little, 0)
    ours(little, 0)


# --- other models ---------------------------------------------------------------------------------------------------


def sides(run: str) -> list[tuple[str, Lookup]]:
    """The vectors of a model by what they are called; those of its output where they are others."""
    model, name = load(run, device="cpu"), Path(run).name
    inputs, outputs = word_vectors(model), word_vectors(model, "output")
    if isinstance(model.spec, specs.WordModel) or np.array_equal(inputs.table.vectors, outputs.table.vectors):
        return [(name, inputs)]
    return [(f"{name}, input", inputs), (f"{name}, output", outputs)]


def print_scores(vectors: dict[str, Lookup], tests: Path) -> None:
    """Of each test the score, and how much of it was known."""
    print("| vectors | words | numbers | WordSim-353 | SimLex-999 | analogies |\n|---|---|---|---|---|---|")
    for name, lookup in vectors.items():
        found = [score(lookup, tests / test) for test in TESTS]
        shown = " | ".join(f"{each.value:.3f} ({each.known:,} of {each.total:,})" for each in found)
        print(f"| {name} | {len(lookup.table):,} | {lookup.table.dim} | {shown} |", flush=True)
    print()


@dataclass(frozen=True)
class Passages:
    """Passages to learn from and to be asked, as words, and whether each is of a review."""

    learned: list[list[str]]
    learned_labels: np.ndarray
    asked: list[list[str]]
    asked_labels: np.ndarray


def passages(data: Path, seed: int) -> Passages:
    """As many of each class; a third of the documents is for the test. Errors: where there are too few."""
    draws = np.random.default_rng(seed)
    documents = list(open_corpus(data).documents)
    learned, asked = [], []
    for is_review in (False, True):
        texts = [WORD.findall(text.lower()) for text in documents if (text == text.lower()) == is_review]
        order = [texts[index] for index in draws.permutation(len(texts))]
        third = len(order) // 3
        for found, part, number in ((asked, order[:third], TEST // 2), (learned, order[third:], max(SIZES) // 2)):
            cut = [text[at : at + PASSAGE] for text in part for at in range(0, len(text) - PASSAGE + 1, PASSAGE)]
            if len(cut) < number:
                raise SystemExit(f"{data}: {len(cut)} passages of a class, {number} are needed: give more text")
            found.append([cut[index] for index in draws.permutation(len(cut))[:number]])
    return Passages(*mixed(learned), *mixed(asked))


def mixed(classes: list[list[list[str]]]) -> tuple[list[list[str]], np.ndarray]:
    """Of either class in turn, so that the first N have as many of each."""
    pairs = list(zip(*classes, strict=True))
    return [passage for pair in pairs for passage in pair], np.tile([0, 1], len(pairs))


def print_classifiers(vectors: dict[str, Lookup], data: Path) -> None:
    """Accuracy on the test passages of each way to see them, by how many there are to learn from."""
    drawn = [passages(data, seed) for seed in range(DRAWS)]
    ways: dict[str, Callable[[Passages], tuple[Any, Any]]] = {
        name: lambda some, lookup=lookup: (means_of(lookup, some.learned), means_of(lookup, some.asked))
        for name, lookup in vectors.items()
    }
    known = sorted({word for some in drawn for passage in some.learned + some.asked for word in passage})
    numbers = np.random.default_rng(0).normal(size=(len(known), DIM)).astype(np.float32)
    random = Lookup(WordTable(tuple(known), numbers))
    ways[f"random, {DIM} numbers"] = lambda some: (means_of(random, some.learned), means_of(random, some.asked))
    ways["counts of words"] = counts_of
    print(f"| passages to learn from | {' | '.join(f'{size:,}' for size in SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for name, way in ways.items():
        found = np.array([accuracies(some, *way(some)) for some in drawn])  # (draws, sizes)
        cells = (f"{a:.1%} ± {s:.1%}" for a, s in zip(found.mean(0), found.std(0, ddof=1), strict=True))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def means_of(lookup: Lookup, texts: list[list[str]]) -> np.ndarray:
    """The mean of the vectors of the words that have one, (N, D); 0 where none has."""
    found = {word: lookup.find(word) for word in {word for text in texts for word in text}}
    nothing = np.zeros(lookup.table.dim, np.float32)
    rows = ([vector for word in text if (vector := found[word]) is not None] for text in texts)
    return np.stack([np.mean(row, axis=0) if row else nothing for row in rows])


def counts_of(some: Passages) -> tuple[Any, Any]:
    """How often each word of the passages to learn from occurs."""
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(token_pattern=r"\S+")
    learned, asked = ([" ".join(words) for words in part] for part in (some.learned, some.asked))
    return counter.fit_transform(learned), counter.transform(asked)


def accuracies(some: Passages, learned: Any, asked: Any) -> list[float]:
    """Of logistic regression on the first N passages, for each N."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = []
    for size in SIZES:
        parts = [StandardScaler()] if isinstance(learned, np.ndarray) else []  # counts stay counts
        model = make_pipeline(*parts, LogisticRegression(max_iter=5000))
        model.fit(learned[:size], some.learned_labels[:size])
        found.append(float(model.score(asked, some.asked_labels)))
    return found


if __name__ == "__main__":
    main()
