"""The reading of one more token as a compiled graph that is called with its tensors, and asks about nothing else.

Shapes: B rows, V vocabulary, S keys that are looked at, C capacity, N blocks of the vocabulary.

A compiled function of torch's asks at each call whether everything is still as it was, and gathers a model's weights
anew; for a small model both take longer than the model. Here the graph is kept together with the tensors that it was
compiled for, and asked once for a whole text whether the weights are still the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from nextile.nn.cache import StaticCache
from nextile.nn.linear import lay_in_rows
from nextile.nn.lora import LoraLinear

BLOCK = 64  # tokens whose mass is summed before one of them is sought
SMALL = 64  # keys of a cache that is always looked at whole
# Less is asked of the graph at each call; a multiplication and an addition are one instruction where there is one.
BARE = {
    "size_asserts": False,
    "alignment_asserts": False,
    "cpp.enable_floating_point_contract_flag": "fast",
}


class Told(NamedTuple):
    """What a step says of a row beside its logits; logprobs in nats, at temperature 1."""

    best: int  # the most probable token
    best_logprob: float
    drawn: int  # the token at the row's point of the distribution at its temperature
    drawn_logprob: float
    total: float  # what the logits are above their log-probabilities


# --- the choice -------------------------------------------------------------------------------------------------------


def told(logits: Tensor, degree: Tensor, point: Tensor) -> Tensor:
    """Logits (B, V), temperature (1,), points in 0..1 (B, 1) -> `Told` of each row, (B, 5) float64."""
    total = logits.logsumexp(-1, keepdim=True)
    best = logits.argmax(-1, keepdim=True)
    token = drawn(logits, degree, point)
    found = (best, logits.gather(-1, best) - total, token, logits.gather(-1, token) - total, total)
    return torch.cat([each.double() for each in found], -1)


def drawn(logits: Tensor, degree: Tensor, point: Tensor) -> Tensor:
    """The tokens (B, 1) that `sample.draw` takes from logits (B, V) at a temperature, found in two steps.

    First the block, by the blocks' masses, then the token in it: no running sum over the vocabulary.
    """
    least = torch.finfo(logits.dtype).tiny
    moved = (logits - logits.amax(-1, keepdim=True)) / degree.clamp_min(least)
    mass = F.pad(moved.double().exp(), (0, -logits.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))  # (B, N, BLOCK)
    before = mass.sum(-1).cumsum(-1)  # (B, N)
    target = point * before[:, -1:]  # (B, 1)
    block = (before <= target).sum(-1, keepdim=True).clamp_max(before.shape[-1] - 1)  # (B, 1)
    rest = target - torch.where(block > 0, before.gather(-1, (block - 1).clamp_min(0)), 0.0)
    inside = mass.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0]  # (B, BLOCK)
    place = (inside.cumsum(-1) <= rest).sum(-1, keepdim=True)
    last = (inside > 0) * torch.arange(BLOCK, device=logits.device)  # sums that round elsewhere never end in nothing
    return block * BLOCK + torch.minimum(place, last.amax(-1, keepdim=True))


# --- the graph --------------------------------------------------------------------------------------------------------


def _caught(function: Callable[..., Any], *inputs: Tensor) -> tuple[Callable[..., Any], list[Any]]:
    """The compiled function as it is called at last, and all that it is called with: the weights too, sizes too."""
    from torch._dynamo import lookup_backend

    found: list[tuple[Callable[..., Any], list[Any]]] = []

    def backend(graph: Any, examples: Any) -> Callable[..., Any]:
        with torch._inductor.config.patch(BARE):
            compiled = lookup_backend("inductor")(graph, examples)

        def run(*values: Any) -> Any:
            found.append((compiled, list(values)))
            return compiled(*values)

        return run

    import torch._inductor.config

    torch.compile(function, fullgraph=True, dynamic=False, backend=backend)(*inputs)
    return found[0]


class Inputs:
    """The tensors of one use of a step that change: a cache, and what is asked."""

    def __init__(self, cache: StaticCache):
        device, batch = cache.lengths.device, len(cache.lengths)
        self.cache, self.capacity = cache, cache.capacity
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.degree = torch.ones(1, device=device)
        self.point = torch.zeros(batch, 1, dtype=torch.float64, device=device)
        self.stand = torch.arange(self.capacity, device=device)

    @property
    def bounded(self) -> bool:
        """Whether only the keys that are there are looked at; a CUDA graph has one shape."""
        return self.cache.lengths.device.type == "cpu" and self.capacity > SMALL

    def used(self, span: int) -> Tensor:
        """(S,): a tensor whose size says how many keys are looked at."""
        return self.stand[:span] if self.bounded else self.stand

    def tensors(self) -> list[Tensor]:
        """All of them but `used`, in a fixed order."""
        layers = [kept for layer in self.cache.layers for kept in (layer.keys, layer.values, layer.inputs)]
        return [self.ids, self.degree, self.point, self.cache.lengths, *(kept for kept in layers if kept is not None)]


class Step:
    """A model's graph for rows and a capacity: (ids, cache) -> logits (B, V) and `told` (B, 5)."""

    def __init__(self, model: Any, batch: int, capacity: int):
        own = Inputs(model.new_cache(batch, capacity, static=True))
        used = own.used(max(2, capacity // 2))
        if own.bounded:
            torch._dynamo.mark_dynamic(used, 0)

        def step(ids: Tensor, degree: Tensor, point: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
            cache = StaticCache(own.cache.layers, own.cache.lengths, span=used.shape[0])
            logits = model.head(model.features(ids, cache=cache))[:, 0].float()
            return logits, told(logits, degree, point)

        self.graph, self.values = _caught(step, own.ids, own.degree, own.point, used)
        mine = [*own.tensors(), used]
        order = {id(tensor): number for number, tensor in enumerate(mine)}
        self.places = [(i, order[id(value)]) for i, value in enumerate(self.values) if id(value) in order]
        self.spans = [i for i, value in enumerate(self.values) if not isinstance(value, Tensor)]
        for i, _ in self.places:
            self.values[i] = None  # the cache that it was compiled with is forgotten

    def on(self, inputs: Inputs) -> Callable[[int], Sequence[Tensor]]:
        """The step on these inputs: called with how many keys to look at."""
        values, tensors = list(self.values), [*inputs.tensors(), inputs.stand]
        for i, number in self.places:
            values[i] = tensors[number]
        if inputs.cache.lengths.device.type == "cuda":
            return _replayed(self.graph, values)
        used = [i for i, number in self.places if number == len(tensors) - 1]

        def call(span: int) -> Sequence[Tensor]:
            for i in self.spans:
                values[i] = span
            for i in used:
                values[i] = inputs.used(span)
            return self.graph(*values)

        return call


def _replayed(graph: Callable[..., Any], values: list[Any]) -> Callable[[int], Sequence[Tensor]]:
    """The same as a CUDA graph: its kernels are started at once, and what it says stands where it stood before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        graph(*values)  # so that whatever is made at a first call is made
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        results = graph(*values)

    def call(span: int) -> Sequence[Tensor]:
        recorded.replay()
        return results

    return call


# --- steps that are kept ----------------------------------------------------------------------------------------------


class _Kept:
    """The steps of a model, and the weights that they were compiled for."""

    def __init__(self, weights: tuple[Any, ...]):
        self.weights, self.steps = weights, dict[tuple[int, int, int], Step]()


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


def _weights(model: Any) -> tuple[Any, ...]:
    """Which tensors a model is made of, how they lie, and what is computed with them; their numbers may change."""
    own = [*model.parameters(), *model.buffers()]
    layers = tuple((type(each), each.active if isinstance(each, LoraLinear) else None) for each in model.modules())
    return layers, tuple((id(each), each.dtype, each.shape, each.stride(), each.device) for each in own)


def _steps(model: Any) -> dict[tuple[int, int, int], Step]:
    lay_in_rows(model.parameters())
    weights = _weights(model)
    if model not in _kept or _kept[model].weights != weights:
        _kept[model] = _Kept(weights)
    return _kept[model].steps


def is_compiled(model: Any, batch: int, capacity: int) -> bool:
    """Whether `compiled_step` has it already."""
    return (batch, capacity, torch.get_num_threads()) in _steps(model)


@torch.no_grad()
def compiled_step(model: Any, batch: int, capacity: int) -> Step:
    """The model's step for so many rows and tokens, compiled at the first call and kept as long as the model is."""
    steps, key = _steps(model), (batch, capacity, torch.get_num_threads())
    if key not in steps:
        steps[key] = Step(model, batch, capacity)
    return steps[key]


def compile_beside(model: Any, batch: int, capacity: int) -> Callable[[], bool]:
    """Have `compiled_step` compile in a thread of its own: tells whether it is done. A failure is never done.

    The model must not be trained before that, or moved to another device.
    """
    done = threading.Event()
    threads = torch.get_num_threads()
    _steps(model)  # lays the weights out before anyone else reads them

    def work() -> None:
        torch.set_num_threads(threads)  # a thread begins with as many as there are processors
        with suppress(Exception):  # nobody waits for it: what cannot be compiled is read as before
            compiled_step(model, batch, capacity)
            done.set()

    threading.Thread(target=work, daemon=True, name="nextile-compile").start()
    return done.is_set
