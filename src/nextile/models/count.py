"""What a model costs before it is built: parameters, FLOPs and memory from its spec; asserted to sum.

Conventions: a multiply-add is 2 FLOPs; training costs three forward passes (one forward, two backward); causal
attention is counted at half of its square, since a kernel may skip the other half (PaLM's convention counts it all).
An encoder-decoder is counted per token of the target, beside a source of the same length; a picture's embedding and
its classes are spread over its vectors.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from operator import mul
from typing import Literal

from nextile.base.config import Settings
from nextile.models.build import AnySpec, DeepSpec, skeleton
from nextile.nn import specs
from nextile.nn.head_loss import LARGE_PIECE, PIECE

BYTES = {"fp32": 4, "bf16": 2, "fp8": 2}  # fp8 as bf16, to be safe: its products keep one


@dataclass(frozen=True)
class Parameters:
    """Numbers that are trained, by what they do."""

    embedding: int
    attention: int
    feed_forward: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.attention + self.feed_forward + self.norm + self.head

    @property
    def matrices(self) -> int:
        """Those of the blocks' matrices and biases."""
        return self.attention + self.feed_forward


def norm_parameters(norm: specs.Norm | None, width: int) -> int:
    """Gain, and for layer norm a bias."""
    if norm is None or isinstance(norm, specs.GainlessRMSNorm):
        return 0
    return width * (2 if isinstance(norm, specs.LayerNorm) else 1)


def attention_parameters(spec: specs.Attention, width: int) -> int:
    """The four matrices and their biases, without QK-norm."""
    inner = spec.heads * spec.head_width(width)
    outer = (spec.kv_heads or spec.heads) * spec.head_width(width)
    weights = width * (2 * inner + 2 * outer)
    biases = {"none": 0, "qkv": inner + 2 * outer, "all": inner + 2 * outer + width}
    return weights + biases[spec.bias]


def feed_forward_parameters(spec: specs.FeedForward, width: int) -> int:
    """Two matrices, or three with a gate; of experts all, and what chooses among them."""
    if isinstance(spec, specs.Experts):
        return spec.experts * (3 * width * spec.hidden + width)
    ups = 2 if isinstance(spec, specs.GatedMLP) else 1
    return (ups + 1) * width * spec.hidden + (ups * spec.hidden + width if spec.bias else 0)


Embedding = specs.TokenEmbedding | specs.SharedTokens | specs.PatchEmbedding | specs.ConvEmbedding


def stacks_of(spec: AnySpec) -> list[specs.Stack]:
    """All of a model's, the one that predicts last; word vectors have none."""
    if isinstance(spec, specs.WordModel):
        return []
    return [spec.encoder, spec.decoder] if isinstance(spec, specs.EncoderDecoder) else [spec.stack]


def embeddings_of(spec: DeepSpec) -> list[Embedding]:
    """All of a model's."""
    embeds = [spec.source, spec.target] if isinstance(spec, specs.EncoderDecoder) else [spec.embed]
    return [embed for embed in embeds if embed]


def idle_parameters(stack: specs.Stack) -> int:
    """Those of the experts that a token does not choose."""
    if not isinstance(stack.feed_forward, specs.Experts):
        return 0
    unchosen = stack.feed_forward.experts - stack.feed_forward.chosen
    return unchosen * 3 * stack.width * stack.feed_forward.hidden * stack.depth


def outputs_of(spec: AnySpec) -> int:
    """How many scores the head gives: tokens of the vocabulary, or classes."""
    if isinstance(spec, specs.WordModel):
        return spec.vocab
    if isinstance(spec, specs.VisionTransformer | specs.TextClassifier):
        return len(spec.head.classes)
    if isinstance(spec.head, specs.LinearHead) and spec.head.vocab:
        return spec.head.vocab
    return spec.target_vocab if isinstance(spec, specs.EncoderDecoder) else spec.embed.vocab


def attentions_of(stack: specs.Stack) -> list[specs.Attention]:
    """Those of a block: to itself, and to a memory where there is one."""
    return [part for part in (stack.attention, stack.cross) if part]


def stack_parameters(stack: specs.Stack) -> tuple[int, int, int]:
    """Attention, feed-forward and norm."""
    width, parts = stack.width, attentions_of(stack)
    attention = sum(attention_parameters(part, width) for part in parts) * stack.depth
    attention += stack.depth * stack.attention.convolution.taps * width if stack.attention.convolution else 0
    if isinstance(stack.position, specs.RelativeBias):
        attention += stack.position.buckets * stack.attention.heads
    feed_forward = feed_forward_parameters(stack.feed_forward, width) * stack.depth
    each = 2 if stack.norm_place == "around" else 1
    norm = each * (len(parts) + 1) * norm_parameters(stack.norm, width) * stack.depth
    norm += sum(qk_norm_parameters(part, width) for part in parts) * stack.depth
    norm += 0 if stack.norm_place == "after" else norm_parameters(stack.norm, width)
    norm += 2 * stack.depth if stack.residual_scalars else 0
    return attention, feed_forward, norm


def qk_norm_parameters(spec: specs.Attention, width: int) -> int:
    """Of one head, which all share, or of each."""
    heads = (1, 1) if spec.qk_norm_over == "head" else (spec.heads, spec.kv_heads or spec.heads)
    return sum(norm_parameters(spec.qk_norm, number * spec.head_width(width)) for number in heads)


def convolutions(embed: specs.ConvEmbedding, width: int) -> list[tuple[int, int]]:
    """Of each convolution its weights, and the pixels of what it gives."""
    channels = (embed.channels, *embed.hidden, width)
    sides = [-(-embed.image // 2**i) for i in range(len(channels) - 1)]
    weights = [before * after * embed.kernel**2 for before, after in pairwise(channels)]
    return [(weight, side**2) for weight, side in zip(weights, sides, strict=True)]


def learned_positions(embed: specs.TokenEmbedding | specs.SharedTokens) -> int:
    """How many vectors of positions are trained."""
    position = embed.position
    return position.length + position.unused if isinstance(position, specs.Learned) else 0


def embedding_parameters(embed: Embedding, width: int, summaries: int = 0) -> int:
    """What tokens or pictures become vectors by, the summaries before them, learned positions, and types."""
    if isinstance(embed, specs.TokenEmbedding):
        return (embed.vocab + learned_positions(embed) + (embed.types or 0)) * width
    if isinstance(embed, specs.SharedTokens):
        return learned_positions(embed) * width
    placed = (embed.tokens + 2 * summaries) * width  # a summary has a place as well
    if isinstance(embed, specs.PatchEmbedding):
        return placed + (embed.channels * embed.patch**2 + 1) * width
    return placed + sum(weights for weights, _ in convolutions(embed, width))


def value_parameters(spec: DeepSpec) -> int:
    """The tables of embeddings that are added to values."""
    stack = stacks_of(spec)[-1]
    if stack.value_embedding is None or not isinstance(spec, specs.Transformer | specs.TextClassifier):
        return 0
    outer = (stack.attention.kv_heads or stack.attention.heads) * stack.attention.head_width(stack.width)
    return sum(map(stack.value_embedding.holds, range(stack.depth))) * spec.embed.vocab * outer


def embedding_flops(embed: Embedding, width: int) -> float:
    """FLOPs of a picture's embedding; a token's is looked up."""
    if isinstance(embed, specs.PatchEmbedding):
        return 2 * embed.tokens * embed.channels * embed.patch**2 * width
    if isinstance(embed, specs.ConvEmbedding):
        return 2 * sum(weights * pixels for weights, pixels in convolutions(embed, width))
    return 0.0


def head_parameters(spec: DeepSpec, width: int) -> int:
    """Its own matrix if it has one, its bias, and what transforms or weighs the vectors before."""
    if isinstance(spec.head, specs.MaskedHead):
        return (width + 1) * width + norm_parameters(spec.head.norm, width) + outputs_of(spec)
    outputs, bias = outputs_of(spec), outputs_of(spec) if spec.head.bias else 0
    if isinstance(spec.head, specs.DistilledHead):
        return 2 * (outputs * width + bias)
    before = {specs.WeightedHead: width + 1, specs.PooledHead: (width + 1) * width}.get(type(spec.head), 0)
    return (0 if isinstance(spec.head, specs.TiedHead) else outputs * width) + bias + before


def _norm_of(embed: Embedding) -> specs.Norm | None:
    return embed.norm if isinstance(embed, specs.TokenEmbedding | specs.SharedTokens) else None


def parameters(spec: AnySpec) -> Parameters:
    """Counted from the spec. Errors: AssertionError if the built model disagrees."""
    counted = word_parameters(spec) if isinstance(spec, specs.WordModel) else deep_parameters(spec)
    built = sum(prod(parameter.shape) for parameter in skeleton(spec).parameters())
    assert counted.total == built, f"counted {counted.total} parameters, built {built}"
    return counted


def word_parameters(spec: specs.WordModel) -> Parameters:
    """The two tables."""
    table = spec.vocab * spec.width
    return Parameters(embedding=table, attention=0, feed_forward=0, norm=0, head=table)


def deep_parameters(spec: DeepSpec) -> Parameters:
    """Those of embeddings, stacks and head."""
    stacks, embeds = stacks_of(spec), embeddings_of(spec)
    width, summaries = stacks[-1].width, spec.summaries if isinstance(spec, specs.VisionTransformer) else 0
    attention, feed_forward, norm = (sum(part) for part in zip(*map(stack_parameters, stacks), strict=True))
    return Parameters(
        embedding=sum(embedding_parameters(embed, width, summaries) for embed in embeds) + value_parameters(spec),
        attention=attention,
        feed_forward=feed_forward,
        norm=norm + sum(norm_parameters(_norm_of(embed), width) for embed in embeds),
        head=head_parameters(spec, width),
    )


def score_flops(stack: specs.Stack, length: int) -> float:
    """FLOPs per token of Q Kᵀ and of the weighted average of V, in a row, and beside a memory, of `length` tokens."""
    whole = length / 2 if stack.causal else length
    windows = [whole if window is None else seen_in(window, length) for window in windows_of(stack)]  # block by block
    inner = [part.heads * part.head_width(stack.width) for part in attentions_of(stack)]
    seen = [sum(windows), stack.depth * length]  # of its own row, of the memory
    return 2 * 2 * sum(map(mul, inner, seen))


def windows_of(stack: specs.Stack) -> list[int | None]:
    """How many tokens each block sees at most; None: all before."""
    local = stack.local
    return [local.window if local and local.holds(index) else None for index in range(stack.depth)]


def seen_in(window: int, length: int) -> float:
    """How many tokens one of `length` sees on average, none of them further back than the window; half of a square."""
    window = min(window, length)
    return window - window * window / (2 * length)


def forward_flops(spec: AnySpec, length: int) -> float:
    """FLOPs per token of one forward pass over `length` tokens."""
    if isinstance(spec, specs.SkipGram):  # of each neighbour, about so many, all that it is told from
        return 2.0 * spec.width * (spec.window + 1) * (1 + spec.negatives)
    if isinstance(spec, specs.WordModel):  # the mean of its neighbours, and all that it is told from
        return 2.0 * spec.width * (spec.window + 1 + spec.negatives)
    scores = sum(score_flops(stack, length) for stack in stacks_of(spec))
    width = stacks_of(spec)[-1].width
    ends = 2.0 * width * (outputs_of(spec) + (width if isinstance(spec.head, specs.MaskedHead) else 0))
    if isinstance(spec, specs.VisionTransformer):
        ends = (ends + embedding_flops(spec.embed, width)) / spec.context
    if isinstance(spec, specs.TextClassifier):
        ends /= length  # of a text, not of each of its tokens
    idle = sum(map(idle_parameters, stacks_of(spec)))
    return 2 * (deep_parameters(spec).matrices - idle) + scores + ends


def training_flops(spec: AnySpec, length: int) -> float:
    """FLOPs per token of one training step."""
    return 3 * forward_flops(spec, length)


Scores = Literal["stored", "fused"]


def kept_memory(stack: specs.Stack, length: int, number: int, scores: Scores = "stored") -> int:
    """Bytes per token that a stack keeps for its backward pass; a number of the matrix products has `number` bytes.

    Attention's scores and weights are "stored" where it is written out, in a compiled step of a CPU.
    """
    parts = attentions_of(stack)
    gates = 2 if isinstance(stack.feed_forward, specs.MLP) else 3
    inner = sum(part.heads * part.head_width(stack.width) for part in parts)
    nets = stack.feed_forward.chosen if isinstance(stack.feed_forward, specs.Experts) else 1
    kept = number * (4 * inner + nets * gates * stack.feed_forward.hidden) + 4 * 2 * stack.width * (len(parts) + 1)
    kept += 2 * number * length * sum(part.heads for part in parts) if scores == "stored" else 0
    return stack.depth * kept


def pictures_memory(spec: AnySpec, number: int) -> int:
    """Bytes that the embedding of one picture keeps for its backward pass, if it is one of pictures."""
    if not isinstance(spec, specs.VisionTransformer) or not isinstance(spec.embed, specs.ConvEmbedding):
        return 0
    channels = (*spec.embed.hidden, spec.stack.width)
    pixels = [pixels for _, pixels in convolutions(spec.embed, spec.stack.width)]
    return 3 * number * sum(map(mul, channels, pixels))  # of each: its result, what ReLU made of it, and the pooling's


class Tuned(Settings):
    """A model of which only a part may be trained."""

    trained: int  # parameters that are
    bytes: int  # of all that it holds


def scores_memory(rows: int, outputs: int, device: str) -> int:
    """Bytes of the head's scores, their softmax and their gradient: of all rows, or of a piece (nn/head_loss.py)."""
    return 3 * min(4 * rows * outputs, PIECE.get(device, LARGE_PIECE))


def training_memory(
    spec: AnySpec, *, rows: int, length: int, precision: str = "fp32", states: int = 2, tuned: Tuned | None = None,
    device: str = "cuda", scores: Scores = "stored",
) -> int:  # fmt: skip
    """Bytes that a training step needs at its peak, estimated.

    Masters, gradients (as they come, and gathered for the update) and `states` optimizer moments in fp32; what each
    block keeps for its backward pass; the scores of a piece of rows three times. `rows` are
    those of one micro-batch. What is frozen has no gradient and no moments. Word vectors change in place and keep
    nothing.
    """
    if isinstance(spec, specs.WordModel):
        return parameters(spec).total * 4 + rows * length * 8
    total = parameters(spec).total
    tuned = tuned or Tuned(trained=total, bytes=4 * total)
    fixed = tuned.bytes + tuned.trained * 4 * (2 + states)
    kept = sum(kept_memory(stack, length, BYTES[precision], scores) for stack in stacks_of(spec))
    ends = scores_memory(rows * length, outputs_of(spec), device) + rows * pictures_memory(spec, BYTES[precision])
    return fixed + rows * length * kept + ends


def cache_memory(spec: AnySpec, *, rows: int, length: int, precision: str = "fp32") -> int:
    """Bytes of what is kept of `rows` texts of `length` tokens in the stack that predicts.

    Keys and values, and before a convolution what it reads.
    """
    stack = stacks_of(spec)[-1]
    outer = (stack.attention.kv_heads or stack.attention.heads) * stack.attention.head_width(stack.width)
    kept = 2 * outer + (stack.width if stack.attention.convolution else 0)
    return stack.depth * rows * length * kept * BYTES[precision]
