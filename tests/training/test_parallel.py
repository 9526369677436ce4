"""Meshes that fit or are refused in one line, rows that are divided, and what processes find in their environment."""

import re
import subprocess
import sys

import pytest
import torch

from nextile.base.errors import UsageError
from nextile.models.build import build
from nextile.nn import specs
from nextile.training.parallel import (
    ALONE,
    Parallel,
    Rows,
    World,
    fitted,
    joined,
    launched,
    may_speak,
    only_alone,
    rank_of,
    restarted,
    shape_of,
)
from nextile.training.spread import _divide_matrices

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


def world(rank: int, shape: tuple[int, int, int]) -> World:
    return World(rank, shape[0] * shape[1] * shape[2], shape=shape)


# --- the mesh --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "size", "shape"),
    [
        ({}, 1, (1, 1, 1)),
        ({}, 4, (4, 1, 1)),
        ({"shard": 2}, 4, (2, 2, 1)),
        ({"shard": 4}, 4, (1, 4, 1)),
        ({"tensor": 2}, 4, (2, 1, 2)),
        ({"replicate": 2, "shard": 2, "tensor": 2}, 8, (2, 2, 2)),
    ],
)
def test_what_is_left_open_is_replicated(asked, size, shape):
    assert shape_of(Parallel(**asked), size) == shape


@pytest.mark.parametrize(
    ("asked", "size", "said"),
    [
        ({"shard": 3}, 4, "shard=3 x tensor=1 does not divide 4 processes: choose parallel"),
        ({"replicate": 2, "tensor": 3}, 4, "shard=1 x tensor=3 needs 6 processes, not 4: choose parallel"),
        ({"shard": 8}, 4, "shard=8 x tensor=1 does not divide 4 processes"),
        ({"shard": 2}, 1, "needs 2 processes and this is one: start them by torchrun --nproc-per-node 2"),
    ],
)
def test_a_mesh_of_another_number_is_refused_with_both_numbers(asked, size, said):
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        shape_of(Parallel(**asked), size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "size", "shape"),
    [
        ({"shard": 2}, 2, (1, 2, 1)),
        ({"shard": 2}, 1, (1, 1, 1)),
        ({"shard": 2}, 4, (2, 2, 1)),
        ({"shard": 2, "tensor": 2}, 2, (1, 1, 2)),
        ({"replicate": 2}, 4, (4, 1, 1)),
        ({"tensor": 4}, 6, (3, 1, 2)),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(asked, size, shape):
    assert shape_of(fitted(Parallel(**asked), size), size) == shape


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 1, 2), (1, 2, 2)])
def test_readers_together_read_each_row_once_and_tensor_ranks_the_same_rows(batch, shape):
    whole = batch(0, rows=8, ignore=0.3)
    read = [world(rank, shape).rows(whole) for rank in range(shape[0] * shape[1] * shape[2])]
    assert torch.equal(torch.cat([part.inputs for part in read[:: shape[2]]]), whole.inputs)
    assert torch.equal(torch.cat([part.targets for part in read[:: shape[2]]]), whole.targets)
    assert all(torch.equal(read[i].inputs, read[i - i % shape[2]].inputs) for i in range(len(read)))
    assert {part.weight for part in read} == {whole.weight}  # the loss is divided by how many all ask


def test_rows_that_do_not_divide_are_refused_in_one_line(batch):
    with pytest.raises(UsageError, match="a batch of 6 rows does not divide over the 4 processes that read it: set"):
        world(1, (2, 2, 1)).rows(batch(0, rows=6))


def test_alone_a_batch_stays_the_very_one(batch):
    class Source:
        def __call__(self, step):
            return [batch(step)]

        def named(self, step):
            return f"step {step}"

    given = batch(0)
    assert ALONE.rows(given) is given
    rows = Rows(Source(), ALONE)
    assert torch.equal(rows(3)[0].inputs, batch(3).inputs)
    assert rows.named(3) == "step 3"


# --- the environment -------------------------------------------------------------------------------------------------


def test_a_process_knows_who_started_it():
    assert launched(TORCHRUN)
    assert not launched({})
    assert not launched({"RANK": "3"})  # some other program's
    assert rank_of(TORCHRUN) == 3
    assert rank_of({"RANK": "3"}) == 0
    assert restarted(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert not restarted(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "0"})
    assert not restarted({"TORCHELASTIC_RESTART_COUNT": "1"})


def test_one_process_agrees_with_itself_and_speaks():
    assert ALONE.most(3, 0) == (3, 0)
    assert ALONE.said({"a": float("inf")}) == {"a": float("inf")}
    assert ALONE.after_first("work", lambda: 5) == 5
    assert ALONE.first
    assert ALONE.whole
    assert may_speak({})
    only_alone(ALONE, "this is done")
    with joined() as found:
        assert found is ALONE


def test_what_one_process_does_is_refused_for_more():
    with pytest.raises(UsageError, match="word vectors are trained in one process: leave out torchrun"):
        only_alone(world(0, (2, 1, 1)), "word vectors are trained")


def test_without_torchrun_nothing_of_it_is_imported():
    code = """
import sys, torch
before = set(sys.modules)
import nextile.api
found = sorted(name for name in set(sys.modules) - before if name.startswith("torch.distributed"))
assert not found, found[:3]
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300).stderr == ""


# --- matrices that do not divide -------------------------------------------------------------------------------------


class Two:
    """All that is asked of a mesh before anything is divided."""

    def size(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"attention": specs.Attention(heads=3)}, "3 heads do not divide over parallel.tensor=2"),
        ({"attention": specs.Attention(heads=4, kv_heads=1)}, "4 heads and 1 kv-heads do not divide"),
        (
            {"attention": specs.Attention(heads=2, qk_norm=specs.RMSNorm(), qk_norm_over="heads")},
            "knows no norm over all heads",
        ),
        ({"value_embedding": specs.ValueEmbedding()}, "knows no embeddings among the values: use parallel.shard"),
        ({"position": specs.Alibi()}, "knows no positions that are biases of scores"),
    ],
)
def test_what_tensor_parallelism_does_not_know_is_refused(parts, said):
    stack = {"attention": specs.Attention(heads=2), "feed_forward": specs.MLP(hidden=8), "causal": True, **parts}
    embed = specs.TokenEmbedding(vocab=9)
    spec = specs.Transformer(context=8, embed=embed, stack=specs.Stack(width=12, depth=1, **stack))
    with pytest.raises(UsageError, match=said):
        _divide_matrices(build(spec), Two())
