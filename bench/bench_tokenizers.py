"""Training and encoding byte-level BPE beside `tokenizers`: one corpus, one process, in turn, medians.

    python bench/bench_tokenizers.py [--data TEXT] [--size 32768] [--rounds 5]

Both sides start from the texts in memory and end with what is used next: a tokenizer, arrays of ids. Before a time
counts, the two results have been found equal.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from nextile.data.corpora import open_corpus
from nextile.text.bpe import to_tokenizer, train, train_bpe
from nextile.text.tokenizer import END, Tokenizer

READABLE_SIZE = 4096

Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="python-stdlib", help="a text, a .jsonl, a built-in (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32_768, help="tokens in the vocabulary (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times each side runs (default: %(default)s)")
    asked = parser.parse_args()
    texts = list(open_corpus(asked.data).documents)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{Path(asked.data).name}: {len(texts):,} documents, {megabytes:.1f} MB; medians of {asked.rounds} in turn\n")
    print("| work | tokenizers | nextile | ratio |\n|---|---|---|---|")
    print_training(texts, asked.size, asked.rounds)
    print_encoding(texts, asked.size, asked.rounds, megabytes)


def print_training(texts: list[str], size: int, rounds: int) -> None:
    assert train_bpe(texts, size).core.get_vocab() == trained_by_tokenizers(texts, size).get_vocab()
    theirs, ours = in_turn(rounds, lambda: trained_by_tokenizers(texts, size), lambda: train_bpe(texts, size))
    print_row(f"train BPE, {size:,} tokens", f"{theirs:.2f} s", f"{ours:.2f} s", theirs / ours)
    work = (lambda: trained_by_tokenizers(texts, READABLE_SIZE), lambda: to_tokenizer(train(texts, READABLE_SIZE)))
    theirs, ours = in_turn(min(rounds, 3), *work)
    name = f"train BPE, {READABLE_SIZE:,} tokens, with the readable `bpe.train`"
    print_row(name, f"{theirs:.2f} s", f"{ours:.2f} s", theirs / ours)


def print_encoding(texts: list[str], size: int, rounds: int, megabytes: float) -> None:
    with TemporaryDirectory() as folder:
        train_bpe(texts, size).save(folder)
        core = Tokenizer.load(folder).core
        warm = Tokenizer.load(folder)
        assert all(map(np.array_equal, encoded_by_tokenizers(core, texts), warm.encode_documents(texts)))

        def first_pass() -> object:
            return list(Tokenizer.load(folder).encode_documents(texts))

        theirs, cold, hot = in_turn(
            rounds,
            lambda: encoded_by_tokenizers(core, texts),
            first_pass,
            lambda: list(warm.encode_documents(texts)),
        )
    speed = f"{megabytes / theirs:.1f} MB/s"
    print_row("encode, first pass (loading counted)", speed, f"{megabytes / cold:.1f} MB/s", theirs / cold)
    print_row("encode, words met before", speed, f"{megabytes / hot:.1f} MB/s", theirs / hot)


def trained_by_tokenizers(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False),
    )
    return core


def encoded_by_tokenizers(core: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    return [np.array(encoding.ids, np.uint32) for encoding in core.encode_batch(texts, add_special_tokens=False)]


def in_turn(rounds: int, *works: Work) -> list[float]:
    """The median seconds of each work, run A-B-A-B so that a drifting machine is fair to all."""
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for times, work in zip(seconds, works, strict=True):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def print_row(work: str, theirs: str, ours: str, ratio: float) -> None:
    print(f"| {work} | {theirs} | {ours} | {ratio:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
