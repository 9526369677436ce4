"""How a model lies over the mesh of processes: tensor parallelism, FSDP2, and the whole model from them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from nextile.base.errors import UsageError
from nextile.models.build import AnyModel, skeleton
from nextile.nn.attention import MultiHeadAttention, OverHeads
from nextile.nn.block import Block
from nextile.nn.feedforward import MLP, GatedMLP
from nextile.nn.stack import TransformerStack
from nextile.training.parallel import World
from nextile.training.pieces import whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def spread(model: AnyModel, world: World) -> None:
    """Divide the model's parameters over the mesh, in place, as far as it has the axes for it.

    Errors: UsageError for a model whose heads or hidden units do not divide.
    """
    if world.mesh is None or world.whole:
        return
    replicate, shard, tensor = world.shape
    if tensor > 1:
        _divide_matrices(model, world.mesh["tensor"])
    if replicate > 1:
        _shard(model, world.mesh["replicate", "shard"])
    elif shard > 1:
        _shard(model, world.mesh["shard"])


# --- tensor parallelism (Shoeybi et al. 2019, Megatron-LM) ------------------------------------------------------------


def _divide_matrices(model: nn.Module, mesh: DeviceMesh) -> None:
    """Heads and hidden units are divided, so that each block needs two sums over the processes."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

    for stack in (part for part in model.modules() if isinstance(part, TransformerStack)):
        _refuse_position_bias(stack)
    for part in model.modules():
        if isinstance(part, MultiHeadAttention):
            _check_heads(part, mesh.size())
            plan = {"query": ColwiseParallel(), "key": ColwiseParallel(), "value": ColwiseParallel()}
            norms = ("query_norm", "key_norm")  # each process norms its own heads: their gradients are partial sums
            of_heads = {n: SequenceParallel(sequence_dim=1, use_local_output=True) for n in norms if _has(part, n)}
            parallelize_module(part, mesh, {**plan, **of_heads, "out": RowwiseParallel()})
            part.heads, part.kv_heads = part.heads // mesh.size(), part.kv_heads // mesh.size()  # of this process
        elif isinstance(part, (MLP, GatedMLP)):
            _check_hidden(part, mesh.size())
            names = ("up", "gate") if isinstance(part, GatedMLP) else ("up",)
            wide = {name: ColwiseParallel() for name in names}
            parallelize_module(part, mesh, {**wide, "down": RowwiseParallel()})


def _has(part: nn.Module, name: str) -> bool:
    return any(True for _ in getattr(part, name).parameters())


def _refuse_position_bias(stack: TransformerStack) -> None:
    if stack.position_bias is not None:
        raise UsageError("parallel.tensor knows no positions that are biases of scores: use parallel.shard instead")


def _check_heads(part: MultiHeadAttention, size: int) -> None:
    if part.heads % size or part.kv_heads % size:
        heads = f"{part.heads} heads" + (f" and {part.kv_heads} kv-heads" if part.kv_heads != part.heads else "")
        raise UsageError(f"{heads} do not divide over parallel.tensor={size}: choose a divisor, or parallel.shard")
    if isinstance(part.query_norm, OverHeads):
        raise UsageError("parallel.tensor knows no norm over all heads as one vector: use parallel.shard instead")
    if getattr(part, "value_embedding", None) is not None:
        raise UsageError("parallel.tensor knows no embeddings among the values: use parallel.shard instead")


def _check_hidden(part: MLP | GatedMLP, size: int) -> None:
    if part.down.in_features % size:
        raise UsageError(f"{part.down.in_features} hidden units do not divide over parallel.tensor={size}: choose a "
                         "divisor, or parallel.shard")  # fmt: skip


# --- FSDP2 (Zhao et al. 2023) -----------------------------------------------------------------------------------------


def _shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Each block, and what is left, gathers its parameters when it is needed and sums gradients where they live."""
    from torch.distributed.fsdp import fully_shard

    for block in (part for part in model.modules() if isinstance(part, Block)):
        if block.cross_attention is None:  # else the memory's keys are computed before the block is called
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def reshard(model: nn.Module) -> None:
    """Let go of gathered parameters, which the last forward without a backward may have kept."""
    for part in model.modules():
        if callable(let_go := getattr(part, "reshard", None)):
            let_go()


# --- and back ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gathered(model: AnyModel, world: World) -> AnyModel | None:
    """The first process's whole model, its parameters on the CPU; None on the others, which must ask as well."""
    reshard(model)
    tensors = {}
    for name, parameter in model.named_parameters():
        found = whole(parameter)
        if world.first:
            tensors[name] = found.cpu()
    if not world.first:
        return None
    result = skeleton(model.spec)
    result.load_state_dict(tensors, assign=True, strict=False)
    return result
