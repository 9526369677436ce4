"""What a model costs before it is built: parameters, FLOPs and memory from its spec; asserted to sum.

Conventions: a multiply-add is 2 FLOPs; training costs three forward passes (one forward, two backward); causal
attention is counted at half of its square, since a kernel may skip the other half (PaLM's convention counts it all).
An encoder-decoder is counted per token of the target, beside a source of the same length.
"""

from dataclasses import dataclass
from math import prod

from nextile.models.build import skeleton
from nextile.nn import specs

BYTES = {"fp32": 4, "bf16": 2}


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


def norm_parameters(norm: specs.LayerNorm | specs.RMSNorm | None, width: int) -> int:
    """Gain, and for layer norm a bias."""
    return 0 if norm is None else width * (2 if isinstance(norm, specs.LayerNorm) else 1)


def attention_parameters(spec: specs.Attention, width: int) -> int:
    """The four matrices and their biases, without QK-norm."""
    inner = spec.heads * spec.head_width(width)
    outer = (spec.kv_heads or spec.heads) * spec.head_width(width)
    weights = width * (2 * inner + 2 * outer)
    biases = {"none": 0, "qkv": inner + 2 * outer, "all": inner + 2 * outer + width}
    return weights + biases[spec.bias]


def feed_forward_parameters(spec: specs.MLP | specs.GatedMLP, width: int) -> int:
    """Two matrices, or three with a gate."""
    ups = 2 if isinstance(spec, specs.GatedMLP) else 1
    return (ups + 1) * width * spec.hidden + (ups * spec.hidden + width if spec.bias else 0)


def stacks_of(spec: specs.Transformer | specs.EncoderDecoder) -> list[specs.Stack]:
    """All of a model's, the one that predicts last."""
    return [spec.stack] if isinstance(spec, specs.Transformer) else [spec.encoder, spec.decoder]


def embeddings_of(spec: specs.Transformer | specs.EncoderDecoder) -> list[specs.TokenEmbedding]:
    """All of a model's, that of what is predicted last."""
    embeds = [spec.embed] if isinstance(spec, specs.Transformer) else [spec.source, spec.target]
    return [embed for embed in embeds if embed]


def attentions_of(stack: specs.Stack) -> list[specs.Attention]:
    """Those of a block: to itself, and to a memory where there is one."""
    return [part for part in (stack.attention, stack.cross) if part]


def stack_parameters(stack: specs.Stack) -> tuple[int, int, int]:
    """Attention, feed-forward and norm."""
    width, parts = stack.width, attentions_of(stack)
    attention = sum(attention_parameters(part, width) for part in parts) * stack.depth
    if isinstance(stack.position, specs.RelativeBias):
        attention += stack.position.buckets * stack.attention.heads
    feed_forward = feed_forward_parameters(stack.feed_forward, width) * stack.depth
    norm = (len(parts) + 1) * norm_parameters(stack.norm, width) * stack.depth
    norm += sum(2 * norm_parameters(part.qk_norm, part.head_width(width)) for part in parts) * stack.depth
    norm += norm_parameters(stack.norm, width) if stack.norm_place == "before" else 0
    return attention, feed_forward, norm


def embedding_parameters(embed: specs.TokenEmbedding, width: int) -> int:
    """Tokens and learned positions."""
    learned = embed.position.length if isinstance(embed.position, specs.Learned) else 0
    return (embed.vocab + learned) * width


def head_parameters(head: specs.TiedHead | specs.LinearHead, vocab: int, width: int) -> int:
    """Its own matrix if it has one, and its bias."""
    return (vocab * width if isinstance(head, specs.LinearHead) else 0) + (vocab if head.bias else 0)


def parameters(spec: specs.Transformer | specs.EncoderDecoder) -> Parameters:
    """Counted from the spec. Errors: AssertionError if the built model disagrees."""
    stacks, embeds = stacks_of(spec), embeddings_of(spec)
    width, vocab = stacks[-1].width, embeds[-1].vocab
    attention, feed_forward, norm = (sum(part) for part in zip(*map(stack_parameters, stacks), strict=True))
    counted = Parameters(
        embedding=sum(embedding_parameters(embed, width) for embed in embeds),
        attention=attention,
        feed_forward=feed_forward,
        norm=norm + sum(norm_parameters(embed.norm, width) for embed in embeds),
        head=head_parameters(spec.head, vocab, width),
    )
    built = sum(prod(parameter.shape) for parameter in skeleton(spec).parameters())
    assert counted.total == built, f"counted {counted.total} parameters, built {built}"
    return counted


def score_flops(stack: specs.Stack, length: int) -> float:
    """FLOPs per token of Q Kᵀ and of the weighted average of V, in a row, and beside a memory, of `length` tokens."""
    seen = [length / 2 if stack.causal else length, length]  # of its own row, of the memory
    pairs = sum(
        part.heads * part.head_width(stack.width) * keys for part, keys in zip(attentions_of(stack), seen, strict=False)
    )
    return stack.depth * 2 * 2 * pairs


def forward_flops(spec: specs.Transformer | specs.EncoderDecoder, length: int) -> float:
    """FLOPs per token of one forward pass over `length` tokens."""
    scores = sum(score_flops(stack, length) for stack in stacks_of(spec))
    head = 2 * stacks_of(spec)[-1].width * embeddings_of(spec)[-1].vocab
    return 2 * parameters(spec).matrices + scores + head


def training_flops(spec: specs.Transformer | specs.EncoderDecoder, length: int) -> float:
    """FLOPs per token of one training step."""
    return 3 * forward_flops(spec, length)


def kept_memory(stack: specs.Stack, length: int, number: int) -> int:
    """Bytes per token that a stack keeps for its backward pass; a number of the matrix products has `number` bytes."""
    parts = attentions_of(stack)
    gates = 3 if isinstance(stack.feed_forward, specs.GatedMLP) else 2
    inner = sum(part.heads * part.head_width(stack.width) for part in parts)
    kept = number * (4 * inner + gates * stack.feed_forward.hidden) + 4 * 2 * stack.width * (len(parts) + 1)
    kept += 2 * number * length * sum(part.heads for part in parts)  # scores and weights, where attention is explicit
    return stack.depth * kept


def training_memory(
    spec: specs.Transformer | specs.EncoderDecoder, *, rows: int, length: int, precision: str = "fp32", states: int = 2
) -> int:
    """Bytes that a training step needs at its peak, estimated.

    Masters, gradients (as they come, and gathered for the update) and `states` optimizer moments in fp32; what each
    block keeps for its backward pass; the logits three times (themselves, their softmax, their gradient). `rows` are
    those of one micro-batch.
    """
    fixed = parameters(spec).total * 4 * (3 + states)
    kept = sum(kept_memory(stack, length, BYTES[precision]) for stack in stacks_of(spec))
    return fixed + rows * length * (kept + 3 * 4 * embeddings_of(spec)[-1].vocab)


def cache_memory(
    spec: specs.Transformer | specs.EncoderDecoder, *, rows: int, length: int, precision: str = "fp32"
) -> int:
    """Bytes of the keys and values of `rows` texts of `length` tokens in the stack that predicts."""
    stack = stacks_of(spec)[-1]
    kept = (stack.attention.kv_heads or stack.attention.heads) * stack.attention.head_width(stack.width)
    return 2 * stack.depth * rows * length * kept * BYTES[precision]
