"""Pieces of tensors that several processes hold together: which box each has, and the whole from them.

A tensor that is divided is a DTensor; all else is whole, also where every process has it. No process group is needed to
ask of a whole tensor, and torch.distributed is imported by divided ones alone.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor

from nextile.training.parallel import World

# --- a part -----------------------------------------------------------------------------------------------------------


def is_divided(tensor: Tensor) -> bool:
    """Whether other processes hold the rest of it."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it, sharing its memory."""
    return tensor.detach().to_local() if is_divided(tensor) else tensor.detach()  # type: ignore[attr-defined]


class Box(NamedTuple):
    """Where a part lies in the whole."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    def of(self, whole: Tensor) -> Tensor:
        """That part of it."""
        for axis, (start, size) in enumerate(zip(self.start, self.size, strict=True)):
            whole = whole.narrow(axis, min(start, whole.shape[axis]), size)
        return whole


def box_of(tensor: Tensor) -> Box:
    """Where this process's part of it lies."""
    if not is_divided(tensor):
        return Box((0,) * tensor.ndim, tuple(tensor.shape))
    (found,) = tensor.__create_chunk_list__()  # type: ignore[attr-defined]  # what torch's own checkpoints ask
    return Box(tuple(found.offsets), tuple(found.sizes))


def mine(source: Tensor, target: Tensor) -> Tensor:
    """Of a source, whole or divided as the target is, what this process holds of the target."""
    return local(source) if is_divided(source) else box_of(target).of(source)


class Holders(NamedTuple):
    """The processes that hold the same part of a tensor."""

    number: int
    writes: bool  # whether this is the one of them that saves it


def holders(tensor: Tensor, world: World) -> Holders:
    """Those that hold what this process holds of it."""
    if not is_divided(tensor):
        return Holders(world.size, world.first)
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    divided = [name for name, placed in zip(mesh.mesh_dim_names, placements, strict=True) if not placed.is_replicate()]
    assert world.mesh is not None
    coordinate = world.mesh.get_coordinate() or ()
    others = [i for i, name in enumerate(world.mesh.mesh_dim_names or ()) if name not in divided]
    return Holders(prod(world.shape[i] for i in others), all(coordinate[i] == 0 for i in others))


# --- the whole --------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every process; they must ask together."""
    if not is_divided(tensor):
        return tensor.detach()
    from torch.distributed.tensor import Replicate

    found, placements = tensor.detach(), list(tensor.placements)  # type: ignore[attr-defined]
    for axis in range(len(placements)):  # FSDP has divided what the later axes had left: its pieces join first
        placements[axis] = Replicate()
        found = found.redistribute(placements=placements)  # type: ignore[attr-defined]
    return found.to_local()  # type: ignore[attr-defined]


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """`values`, which lie as this process's part of `tensor` does, as part of a whole of the tensor's shape."""
    if not is_divided(tensor):
        return values
    from torch.distributed.tensor import DTensor

    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return DTensor.from_local(values, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())
