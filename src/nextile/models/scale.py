"""What a training costs on many GPUs, on paper: memory, traffic, time and failures, from formulas of published work.

The engine that is counted is PyTorch's: parameters, gradients and moments sharded by FSDP2 (ZeRO stage 3, Rajbhandari
et al. 2020), the products of a block split by tensor parallelism whose vectors between blocks are split along the text
(Megatron, Narayanan et al. 2021, Korthikanti et al. 2022). FLOPs are those of count.py. Failures stop everybody; how
often to save then is Young's (1974) and Daly's (2006) question. docs/scale.md compares with published runs.

Bytes and seconds are those of one GPU and of one step unless a name says otherwise. B rows of T tokens make a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Literal

from pydantic import Field

from nextile.base.config import Settings
from nextile.base.errors import NextileError, UsageError
from nextile.models import count
from nextile.nn import specs

MASTER, MOMENT, PRODUCT = 4, 4, count.BYTES["bf16"]  # bytes of a number: of fp32 masters and moments, and of products
DAY = 86_400.0
PARTS = tuple(2**power for power in range(12))  # of a step, when one has to be found that fits


class Cluster(Settings):
    """Machines as their makers state them: by default nodes of eight H100, each with 400 Gbit/s to other nodes."""

    gpus: int = Field(default=8, ge=1)
    per_node: int = Field(default=8, ge=1)
    memory: float = Field(default=80e9, gt=0)  # bytes
    peak: float = Field(default=989e12, gt=0)  # FLOP/s in bf16, without sparsity
    efficiency: float = Field(default=0.5, gt=0, le=1)  # the share of the peak that a step reaches before it waits
    inside: float = Field(default=450e9, gt=0)  # bytes/s to the others of the node
    network: float = Field(default=50e9, gt=0)  # bytes/s to other nodes
    storage: float = Field(default=100e9, gt=0)  # bytes/s that all together write
    failures: float = Field(default=4.74e-4, gt=0)  # a GPU and day, whatever the cause: 419 in 54 days of 16,384
    restart: float = Field(default=600.0, ge=0)  # seconds from a failure to the next step


class Scale(Settings):
    """A training of so many tokens on a cluster."""

    cluster: Cluster = Cluster()
    tokens: float = Field(gt=0)
    batch: int = Field(default=512, ge=1)  # rows of a step, of all GPUs together
    context: int = Field(default=8192, ge=1)
    accumulate: int = Field(default=1, ge=1)  # parts that a step is worked on in
    tensor: int = Field(default=8, ge=1)  # GPUs that split each product
    shard: int | None = Field(default=None, ge=1)  # that split the state; None: all that are left. Others: replicas
    gather: Literal["fp32", "bf16"] = "bf16"  # how parameters travel
    between: Literal["whole", "split"] = "split"  # vectors between products: of all the text, or of a GPU's part of it
    recompute: Literal["nothing", "blocks"] = "nothing"  # "blocks": only a block's input is kept, the rest comes again
    logits: int = Field(default=2048, ge=1)  # tokens whose scores are held at a time
    states: int = Field(default=2, ge=0)  # moments of the optimizer for each parameter

    @property
    def lanes(self) -> int:
        """Groups of GPUs that read different rows."""
        return self.cluster.gpus // self.tensor

    @property
    def share(self) -> int:
        """GPUs that split the state among them, in each rank of a group."""
        return self.shard or self.lanes

    @property
    def rows(self) -> int:
        """Of a group, in one part of a step."""
        return self.batch // (self.lanes * self.accumulate)

    def check(self) -> None:
        """Errors: UsageError where the mesh does not divide the GPUs, or the batch the groups."""
        gpus, parts = self.cluster.gpus, self.lanes * self.accumulate
        if gpus % self.tensor:
            raise UsageError(f"tensor={self.tensor} does not divide {gpus} GPUs: choose a divisor of {gpus}")
        if self.lanes % self.share:
            raise UsageError(f"shard={self.share} does not divide {gpus} / {self.tensor} = {self.lanes} groups: "
                             f"choose a divisor of {self.lanes}")  # fmt: skip
        if self.batch % parts:
            below, above = self.batch // parts * parts, (self.batch // parts + 1) * parts
            near = f"{below} or {above}" if below else f"{above}"
            raise UsageError(f"batch {self.batch} does not divide into {self.lanes} groups x {self.accumulate} parts: "
                             f"set batch={near}")  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------------


def kept(stack: specs.Stack, tensor: int, between: Literal["whole", "split"]) -> float:
    """Bytes per token that each GPU of a group keeps of a block for its backward pass: bf16, no scores are stored.

    Between the products the inputs of two norms, of attention and of the feed-forward; within them queries, keys,
    values and what they give, and a tensor for each product of the feed-forward and for what becomes of them. Of GPT's
    shape this is Korthikanti et al. (2022), s b h (10 + 24 / t) or s b h 34 / t, without two bytes of dropout's masks.
    """
    attention, nets = stack.attention, 1
    inner = attention.heads * attention.head_width(stack.width)
    outer = (attention.kv_heads or attention.heads) * attention.head_width(stack.width)
    if isinstance(stack.feed_forward, specs.Experts):
        nets = stack.feed_forward.chosen
    wide = 2 if isinstance(stack.feed_forward, specs.MLP) else 3
    outside = 4 * stack.width / (tensor if between == "split" else 1)
    return PRODUCT * (outside + (2 * inner + 2 * outer + nets * wide * stack.feed_forward.hidden) / tensor)


def activations(stack: specs.Stack, scale: Scale) -> float:
    """Bytes of a GPU for all blocks at the end of the forward pass, and for the gradient of the last."""
    each = kept(stack, scale.tensor, scale.between)
    if scale.recompute == "nothing":
        return scale.rows * scale.context * (stack.depth + 1) * each
    given = PRODUCT * stack.width / (scale.tensor if scale.between == "split" else 1)
    return scale.rows * scale.context * (stack.depth * given + 2 * each)  # a block is there again


def memory(spec: specs.Transformer, scale: Scale) -> dict[str, float]:
    """Bytes of a GPU at the peak of a step, by what holds them.

    Where a step has several parts their gradients are added up whole, before they are scattered once.
    """
    counted, stack = count.deep_parameters(spec), spec.stack
    whole = counted.total / scale.tensor
    block = sum(count.stack_parameters(stack)) / stack.depth / scale.tensor
    ends = (counted.embedding + counted.head) / scale.tensor
    scored = min(scale.logits, scale.rows * scale.context) / scale.tensor
    return {
        "parameters": MASTER * whole / scale.share,
        "gradients": MASTER * whole / (scale.share if scale.accumulate == 1 else 1),
        "optimizer": MOMENT * scale.states * whole / scale.share,
        "gathered": count.BYTES[scale.gather] * (2 * block + ends) + MASTER * block,  # two blocks, a block's gradient
        "activations": activations(stack, scale),
        "logits": 3 * 4 * scored * count.outputs_of(spec),  # themselves, their softmax, their gradient
    }


# --- traffic -------------------------------------------------------------------------------------------------------


def traffic(spec: specs.Transformer, scale: Scale) -> dict[str, float]:
    """Bytes that a GPU receives in a step, by rings (Patarasuk and Yuan 2009): an all-reduce moves 2 (n - 1) / n.

    FSDP2 gathers the parameters for the forward pass and again for the backward pass, in every part of the step, and
    scatters fp32 gradients in the last. Tensor parallelism sums vectors twice a block in the forward pass and twice in
    the backward pass (Shoeybi et al. 2019), and twice more where the block is computed again.
    """
    numbers = count.deep_parameters(spec).total / scale.tensor
    others = (scale.share - 1) / scale.share
    replicas = scale.lanes // scale.share
    rings = 2 * (scale.tensor - 1) / scale.tensor
    sums = 4 if scale.recompute == "nothing" else 6
    vectors = PRODUCT * scale.rows * scale.context * spec.stack.width
    return {
        "gather": scale.accumulate * 2 * count.BYTES[scale.gather] * numbers * others,
        "scatter": MASTER * numbers * others,
        "replicas": MASTER * numbers / scale.share * 2 * (replicas - 1) / replicas,
        "tensor": scale.accumulate * spec.stack.depth * sums * vectors * rings,
    }


# --- failures ------------------------------------------------------------------------------------------------------


def between_failures(cluster: Cluster) -> float:
    """Seconds between failures of any of the GPUs, on average: failures are independent and stop everybody."""
    return DAY / (cluster.gpus * cluster.failures)


def best_interval(save: float, between: float) -> float:
    """Seconds of work between saves of `save` seconds that lose the least (Daly 2006, its equation 37).

    Its first term is Young's sqrt(2 save between).
    """
    if save >= 2 * between:
        return between
    part = save / (2 * between)
    return sqrt(2 * save * between) * (1 + sqrt(part) / 3 + part / 9) - save


def lost(save: float, between: float, restart: float) -> float:
    """The share of the time that goes into saving, into work done twice, and into restarting; at most 1."""
    interval = best_interval(save, between)
    return min(1.0, save / (interval + save) + (interval / 2 + restart) / between)


# --- all of it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outlook:
    """What a training on many GPUs will be. Errors: UsageError for a mesh or a batch that does not divide."""

    spec: specs.Transformer
    scale: Scale

    def __post_init__(self) -> None:
        self.scale.check()

    @cached_property
    def parameters(self) -> int:
        """How many there are, by count: a model of this size is not built to be asked."""
        return count.deep_parameters(self.spec).total

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes of a GPU at the peak, by what holds them."""
        return memory(self.spec, self.scale)

    @cached_property
    def traffic(self) -> dict[str, float]:
        """Bytes that a GPU receives in a step, by what for."""
        return traffic(self.spec, self.scale)

    @cached_property
    def flops(self) -> float:
        """Of a token, in training."""
        return count.training_flops(self.spec, self.scale.context)

    @property
    def tokens_per_step(self) -> int:
        """Of all GPUs together."""
        return self.scale.batch * self.scale.context

    @property
    def computing(self) -> float:
        """Seconds of a step, were nobody to wait; a block that is computed again costs a third more."""
        cluster, again = self.scale.cluster, 1.0 if self.scale.recompute == "nothing" else 4 / 3
        return again * self.flops * self.tokens_per_step / (cluster.gpus * cluster.peak * cluster.efficiency)

    @property
    def sharding(self) -> float:
        """Seconds of a step in which parameters and gradients travel; behind the computing, while that lasts."""
        cluster = self.scale.cluster
        spread = self.scale.share * self.scale.tensor > cluster.per_node
        moved = self.traffic["gather"] + self.traffic["scatter"]
        apart = self.traffic["replicas"] / cluster.network
        return moved / (cluster.network if spread else cluster.inside) + apart

    @property
    def splitting(self) -> float:
        """Seconds of a step in which a group sums its vectors, and computes nothing."""
        cluster = self.scale.cluster
        return self.traffic["tensor"] / (cluster.inside if self.scale.tensor <= cluster.per_node else cluster.network)

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return max(self.computing, self.sharding) + self.splitting

    @property
    def mfu(self) -> float:
        """The share of the peak that the model's own FLOPs reach (Chowdhery et al. 2022), recomputing not counted."""
        cluster = self.scale.cluster
        return self.flops * self.tokens_per_step / (self.step * cluster.gpus * cluster.peak)

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs together, while nothing fails."""
        return self.tokens_per_step / self.step

    @property
    def saving(self) -> float:
        """Seconds to write the state: parameters and moments."""
        state = self.parameters * (MASTER + MOMENT * self.scale.states)
        return state / self.scale.cluster.storage

    @property
    def lost(self) -> float:
        """The share of the time that failures and saving take."""
        return lost(self.saving, between_failures(self.scale.cluster), self.scale.cluster.restart)

    @property
    def days(self) -> float:
        """From the first step to the last. Errors: NextileError where failures leave no time to work."""
        if self.lost >= 1:
            raise NextileError(f"{self.scale.cluster.gpus:,} GPUs fail faster than they restart: "
                               "use fewer, or lower cluster.restart")  # fmt: skip
        return self.scale.tokens / self.tokens_per_second / (1 - self.lost) / DAY

    def fit(self) -> None:
        """Errors: NextileError where a GPU's memory is too small, with a setting that fits, if one does."""
        free, need = self.scale.cluster.memory, sum(self.memory.values())
        if need <= free:
            return
        said = f"a GPU would need {need / 1e9:.0f} GB and has {free / 1e9:.0f}"
        raise NextileError(f"{said}: {_remedy(self.spec, self.scale)}")

    def rows(self) -> list[tuple[str, str]]:
        """What the user is told of it."""
        scale = self.scale
        between = between_failures(scale.cluster)
        held = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.memory.items())
        moved = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in self.traffic.items() if size)
        return [
            ("parameters", f"{self.parameters / 1e9:,.1f} billion; {self.flops:.3g} FLOPs a token"),
            ("mesh", f"{scale.lanes // scale.share} replicas x {scale.share} shards x {scale.tensor} for each product"),
            ("memory", f"{sum(self.memory.values()) / 1e9:.1f} GB of {scale.cluster.memory / 1e9:.0f}: {held}"),
            ("traffic", f"{sum(self.traffic.values()) / 1e9:.1f} GB a GPU and step: {moved}"),
            ("step", f"{self.tokens_per_step:,} tokens in {self.step:.2f} s: computing {self.computing:.2f} beside "
                     f"sharding {self.sharding:.2f}, then splitting {self.splitting:.2f}"),
            ("speed", f"{self.tokens_per_second:,.0f} tokens/s, MFU {self.mfu:.0%}"),
            ("failures", f"one in {between / 3600:.1f} h; a save of {self.saving:.1f} s every "
                         f"{best_interval(self.saving, between) / 60:.0f} minutes; {self.lost:.1%} of the time lost"),
            ("run", f"{scale.tokens / self.tokens_per_step:,.0f} steps, {self.days:.1f} days, "
                    f"{self.days * 24 * scale.cluster.gpus / 1e6:.2f} million GPU hours"),
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = ("memory", "traffic", "flops", "tokens_per_step", "computing", "sharding", "splitting", "step", "mfu",
                 "tokens_per_second", "saving", "lost", "days")  # fmt: skip
        figures = {name: getattr(self, name) for name in names}
        between = between_failures(self.scale.cluster)
        chances = {"between_failures": between, "save_every": best_interval(self.saving, between)}
        return {"parameters": self.parameters, **figures, **chances, "scale": self.scale.model_dump()}


def _remedy(spec: specs.Transformer, scale: Scale) -> str:
    """A setting that fits, the one that computes nothing twice first."""
    for recompute in dict.fromkeys((scale.recompute, "blocks")):
        for parts in PARTS:
            other = scale.model_copy(update={"accumulate": parts, "recompute": recompute})
            divides = other.rows > 0 and other.batch % (other.lanes * parts) == 0
            if divides and sum(memory(spec, other).values()) <= scale.cluster.memory:
                return f"--set accumulate={parts} --set recompute={recompute} fits"
    return "use more GPUs, or a smaller model"


# --- the corpus ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusSize:
    """A corpus of so many tokens, of so many bytes of text each."""

    tokens: float
    bytes_per_token: float
    vocab: int

    @property
    def text(self) -> float:
        """Bytes of it as text."""
        return self.tokens * self.bytes_per_token

    @property
    def stored(self) -> float:
        """Bytes of it as tokens: two of each where the vocabulary allows it."""
        return self.tokens * (2 if self.vocab <= 2**16 else 4)

    def seconds(self, cores: int, rate: float) -> float:
        """To make the tokens on so many cores, each of `rate` bytes of text a second."""
        return self.text / (cores * rate)
