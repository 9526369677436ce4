"""A corpus as tokens by many workers, of this machine or of a Ray cluster: the store that one alone would write.

The corpus is cut into parts between documents. Each part becomes a store of its own, by whichever worker is free; one
whose worker or machine dies is given to another. The stores are then copied into the shards of the whole, a shard a
worker, so that no machine holds or moves more than its share. All of them see the same folders.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nextile.base.errors import NextileError
from nextile.base.files import atomic_folder
from nextile.data.corpora import Part, file_parts
from nextile.data.shards import (
    SHARD_TOKENS,
    Shard,
    TokenStore,
    copy_shard,
    open_store,
    side_by_side,
    write_index,
    write_store,
)
from nextile.tasks.report import Report
from nextile.text.tokenizer import Tokenizer

RETRIES = 10  # of a part whose worker died
PATIENCE = 10.0  # seconds for the head of a cluster to answer

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers(Protocol):
    """Who does the work: the results of all jobs, in their order."""

    def __call__(self, work: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterator[Result]: ...


def alone(work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """This process, one job after the other."""
    return map(work, jobs)


# --- the work ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encode:
    """A part of the corpus, the folder that its tokens go to, and the folder of the tokenizer."""

    part: Part
    folder: Path
    tokenizer: Path


@dataclass(frozen=True)
class Copy:
    """A shard of the whole: its number, the store that it is cut from, and the folder that it goes to."""

    store: TokenStore
    folder: Path
    number: int
    tokens: int


def encode_part(job: Encode) -> int:
    """Write a part's tokens, unless they are there; how many bytes of the corpus that were."""
    tokenizer = Tokenizer.load(job.tokenizer)
    made = _made_of(job.part, tokenizer)
    if not _is_made(job.folder, made):
        shutil.rmtree(job.folder, ignore_errors=True)
        _encode(job, tokenizer, made)
    return job.part.bytes


def _encode(job: Encode, tokenizer: Tokenizer, made: dict[str, Any]) -> None:
    meta = {**made, "text_bytes": 0}

    def counted(texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            meta["text_bytes"] += len(text.encode())
            yield text

    arrays = tokenizer.encode_documents(counted(job.part.documents()))
    first = next(arrays, None)
    if first is not None:  # a part may be white space from end to end
        size, end = tokenizer.vocab_size, tokenizer.end_id
        write_store(job.folder, chain([first], arrays), vocab_size=size, end_id=end, meta=meta)


def _made_of(part: Part, tokenizer: Tokenizer) -> dict[str, Any]:
    """What tells a part's tokens from those of another part, or of one that was changed since."""
    status = part.path.stat()
    place = [str(part.path), part.start, part.stop, status.st_size, status.st_mtime_ns]
    return {"part": place, "tokenizer": tokenizer.fingerprint()}


def _is_made(folder: Path, made: dict[str, Any]) -> bool:
    try:
        return folder.exists() and made.items() <= open_store(folder).meta.items()
    except NextileError:  # half of one
        return False


def copy_part(job: Copy) -> Shard:
    """Write a shard of the whole."""
    return copy_shard(job.store, job.folder, job.number, job.tokens)


# --- all of it -----------------------------------------------------------------------------------------------------


def store_corpus(
    source: str | Path, tokenizer: Tokenizer, out: str | Path, report: Report, workers: Workers = alone, *,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenStore:  # fmt: skip
    """The tokens of a corpus in a folder that appears whole or never, with the tokenizer beside them.

    What an interrupted call had done lies beside `out` and is not done again.
    Errors: NextileError for a corpus that is none or has no text, for a place that is taken, and for a full disk.
    """
    out = Path(out).absolute()
    if out.exists():
        raise NextileError(f"'{out}' is there already: choose another place, or remove it")
    parts, beside = file_parts(Path(source).absolute()), out.with_name(f".{out.name}.parts")
    tokenizer.save(beside)
    jobs = [Encode(part, beside / f"part-{number:06d}", beside) for number, part in enumerate(parts)]
    with report.bar("tokenizing", sum(part.bytes for part in parts), "B") as bar:
        for size in workers(encode_part, jobs):
            bar.advance(size)
    whole = _whole([open_store(job.folder) for job in jobs if job.folder.exists()], tokenizer, source)
    _join(whole, tokenizer, out, workers, shard_tokens)
    shutil.rmtree(beside)
    return open_store(out)


def _whole(stores: Sequence[TokenStore], tokenizer: Tokenizer, source: str | Path) -> TokenStore:
    if not stores:
        raise NextileError(f"'{source}' holds nothing but white space: give some text")
    meta = {"text_bytes": sum(store.text_bytes for store in stores), "tokenizer": tokenizer.fingerprint()}
    return side_by_side(stores, meta)


def _join(whole: TokenStore, tokenizer: Tokenizer, out: Path, workers: Workers, shard_tokens: int) -> None:
    with atomic_folder(out) as temporary:
        numbers = range(-(-len(whole) // shard_tokens))
        shards = list(workers(copy_part, [Copy(whole, temporary, number, shard_tokens) for number in numbers]))
        write_index(whole, temporary, shards)
        tokenizer.save(temporary)


# --- Ray -----------------------------------------------------------------------------------------------------------


@contextmanager
def on_ray(address: str) -> Iterator[Workers]:
    """The workers of a Ray cluster: "auto" for that of this machine, or HOST:PORT of its head.

    Errors: NextileError where ray is not installed or no cluster answers.
    """
    try:
        import ray
    except ImportError as error:
        raise NextileError("a cluster needs ray: pip install 'nextile[cluster]'") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        raise NextileError(f"no Ray cluster answers at '{address}': start one by 'ray start --head'") from error
    try:
        yield partial(_each_on, ray)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Errors: OSError or ValueError where nobody listens at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _each_on(ray: Any, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
    """A few jobs wait at each core, so that none is idle and the head need not hold all of them."""
    run = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for job in jobs:
        waiting.append(run.remote(job))
        if len(waiting) >= most:
            yield _result(ray, waiting.popleft())
    while waiting:
        yield _result(ray, waiting.popleft())


def _result(ray: Any, reference: Any) -> Any:
    """Errors: NextileError as the work raised it, and where workers died again and again."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NextileError):
            raise NextileError(str(error.cause)) from error
        raise
    except ray.exceptions.RayError as error:
        said = str(error).splitlines()[0]
        raise NextileError(f"workers of the cluster died {RETRIES + 1} times ({said}): see 'ray status'") from error
