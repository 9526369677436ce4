"""Frozen typed specs: a model described as data, one small class per part.

Variation is a type in a union (`position: Rotary | RelativeBias | Alibi | None`) or a presence (`cross`). The same
tree is the JSON in the model folder and the `--set model.stack.depth=6` of the command line. Every number has a bound,
so that a hostile configuration is refused before anything is allocated.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nextile.base.config import Settings

Width = Annotated[int, Field(ge=1, le=1 << 17)]
Depth = Annotated[int, Field(ge=1, le=1024)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Length = Annotated[int, Field(ge=1, le=1 << 24)]
Vocabulary = Annotated[int, Field(ge=1, le=1 << 24)]
Side = Annotated[int, Field(ge=1, le=1 << 12)]  # of a square picture, in pixels
Channels = Literal[1, 3]  # grey, or red, green and blue
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]

# in no tree that lacks it: older ones stay as they are
Later = Field(default=None, exclude_if=lambda part: part is None)

Activation = Literal["relu", "relu_squared", "gelu", "gelu_tanh", "quick_gelu", "silu"]


class LayerNorm(Settings):
    """Mean and variance per position (Ba et al. 2016)."""

    type: Literal["layer_norm"] = "layer_norm"
    eps: Positive = 1e-5


class RMSNorm(Settings):
    """Root mean square per position, no mean, no bias (Zhang and Sennrich 2019)."""

    type: Literal["rms_norm"] = "rms_norm"
    eps: Positive = 1e-6


class OffsetRMSNorm(Settings):
    """RMS norm whose gain is stored as what it is beyond one, so that weight decay draws it to one (Gemma)."""

    type: Literal["offset_rms_norm"] = "offset_rms_norm"
    eps: Positive = 1e-6


class GainlessRMSNorm(Settings):
    """RMS norm without a gain: nothing is learned (as of OLMo's layer norm, Groeneveld et al. 2024)."""

    type: Literal["gainless_rms_norm"] = "gainless_rms_norm"
    eps: Positive = 1e-6


Norm = Annotated[LayerNorm | RMSNorm | OffsetRMSNorm | GainlessRMSNorm, Field(discriminator="type")]


class Learned(Settings):
    """A trained vector per position, added to the embedding (Gehring et al. 2017)."""

    type: Literal["learned"] = "learned"
    length: Length
    unused: Annotated[int, Field(ge=0, le=16)] = 0  # rows before the first position's: RoBERTa and BART have two


class Sinusoidal(Settings):
    """Sine and cosine of pos / 10000^(2i/D), added to the embedding (Vaswani et al. 2017)."""

    type: Literal["sinusoidal"] = "sinusoidal"
    length: Length


class LinearScaling(Settings):
    """All angles divided, so that a longer text turns no further than those before (Chen et al. 2023)."""

    type: Literal["linear"] = "linear"
    factor: Annotated[float, Field(ge=1.0)]


class Llama3Scaling(Settings):
    """Slow turns divided, fast ones left as they are, those between blended (Dubey et al. 2024, Llama 3.1)."""

    type: Literal["llama3"] = "llama3"
    factor: Annotated[float, Field(ge=1.0)]
    low: Positive = 1.0  # turns within the original context: fewer are divided,
    high: Positive = 4.0  # more stay
    original: Length = 8192  # the context before

    @model_validator(mode="after")
    def _in_order(self):
        if self.high <= self.low:
            raise ValueError(f"high {self.high} must exceed low {self.low}")
        return self


class YarnScaling(Settings):
    """As Llama 3's, blended by the number of a pair and not by its turns, and scores sharpened (Peng et al. 2023)."""

    type: Literal["yarn"] = "yarn"
    factor: Annotated[float, Field(ge=1.0)]
    fast: Positive = 32.0  # turns within the original context: more stay,
    slow: Positive = 1.0  # fewer are divided
    original: Length = 8192  # the context before
    gain: Positive | None = None  # of queries and keys; None: 0.1 ln(factor) + 1
    whole: bool = True  # the pairs between which is blended are whole numbers


class DynamicScaling(Settings):
    """A base that grows with a text that is longer than the context (Liu et al. 2023, dynamic NTK)."""

    type: Literal["dynamic"] = "dynamic"
    factor: Annotated[float, Field(ge=1.0)]
    original: Length  # the context


Divisors = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1 << 12)]


class LongScaling(Settings):
    """Each pair's own divisor, found by a search, one for short texts and one for long ones (Ding et al. 2024)."""

    type: Literal["longrope"] = "longrope"
    short: Divisors
    long: Divisors  # of texts that are longer than
    original: Length  # the context before
    gain: Positive = 1.0  # of queries and keys


RotaryScaling = Annotated[
    LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongScaling, Field(discriminator="type")
]


class Rotary(Settings):
    """Queries and keys turned by an angle that grows with the position (Su et al. 2021)."""

    type: Literal["rotary"] = "rotary"
    base: Positive = 10_000.0
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the head width, from its beginning; the rest stays
    scaling: RotaryScaling | None = None

    @model_validator(mode="after")
    def _can_be_blended(self):
        if isinstance(self.scaling, YarnScaling) and self.base <= 1.0:
            raise ValueError(f"base {self.base} must exceed 1 where turns are scaled by yarn")
        return self

    def turned(self, head_width: int) -> int:
        """How many numbers of a head are turned."""
        return int(head_width * self.share)


class RelativeBias(Settings):
    """A trained bias on the scores per head and bucket of distance (Raffel et al. 2019, T5)."""

    type: Literal["relative_bias"] = "relative_bias"
    buckets: Annotated[int, Field(ge=4, le=1 << 16, multiple_of=2)] = 32
    max_distance: Length = 128

    @model_validator(mode="after")
    def _far_enough(self):
        if self.max_distance <= self.buckets:
            raise ValueError(f"max_distance {self.max_distance} must exceed the {self.buckets} buckets")
        return self


class Alibi(Settings):
    """A fixed penalty on the scores, linear in the distance, its slope by head (Press et al. 2022)."""

    type: Literal["alibi"] = "alibi"


EmbeddedPosition = Annotated[Learned | Sinusoidal, Field(discriminator="type")]
AttendedPosition = Annotated[Rotary | RelativeBias | Alibi, Field(discriminator="type")]


class ShortConvolution(Settings):
    """Each number that attention reads also hears itself a few tokens before (Allen-Zhu 2025, Canon layers).

    Causal and depthwise; Primer has it after the projections (So et al. 2021).
    """

    taps: Annotated[int, Field(ge=1, le=16)] = 2  # how many tokens back


class Attention(Settings):
    """Multi-head attention; fewer kv_heads than heads is grouped-query, one is multi-query (Shazeer 2019)."""

    heads: Heads
    kv_heads: Heads | None = None  # None: one per head
    head_dim: Width | None = None  # None: width / heads
    bias: Literal["all", "qkv", "none"] = "all"
    scale: Positive | None = None  # None: head_dim ** -0.5; T5 has 1.0
    qk_norm: Norm | None = None  # of queries and keys (Henry et al. 2020),
    qk_norm_over: Literal["head", "heads"] = "head"  # each head by itself, or all of them as one vector (OLMo 2)
    soft_cap: Positive | None = None  # scores c become cap * tanh(c / cap): Gemma 2
    dropout: Probability = 0.0
    convolution: ShortConvolution | None = Later  # of what is read, before the projections

    @model_validator(mode="after")
    def _divides(self):
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} kv_heads: choose a divisor")
        return self

    def head_width(self, width: int) -> int:
        """E: what each head sees of a stack of this width."""
        return self.head_dim or width // self.heads


class MLP(Settings):
    """Expand, bend, contract; the same at each position."""

    type: Literal["mlp"] = "mlp"
    hidden: Width
    activation: Activation = "gelu"
    bias: bool = True


class GatedMLP(Settings):
    """Two expansions, one the gate of the other (Shazeer 2020, SwiGLU)."""

    type: Literal["gated_mlp"] = "gated_mlp"
    hidden: Width
    activation: Activation = "silu"
    bias: bool = False


class Experts(Settings):
    """Several gated nets, of which a router chooses a few for each token (Shazeer et al. 2017; Mixtral)."""

    type: Literal["experts"] = "experts"
    hidden: Width
    experts: Annotated[int, Field(ge=1, le=1 << 12)]
    chosen: Annotated[int, Field(ge=1, le=1 << 12)]
    activation: Activation = "silu"

    @model_validator(mode="after")
    def _enough(self):
        if self.chosen > self.experts:
            raise ValueError(f"{self.chosen} of {self.experts} experts cannot be chosen")
        return self


FeedForward = Annotated[MLP | GatedMLP | Experts, Field(discriminator="type")]


class Local(Settings):
    """Blocks that see a window of tokens, themselves included, and nothing before (Beltagy et al. 2020)."""

    window: Length
    pattern: Annotated[tuple[bool, ...], Field(min_length=1, max_length=1024)] = (True,)  # which blocks; it repeats
    position: Rotary | None = None  # None: as in the other blocks

    def holds(self, index: int) -> bool:
        """Whether the block of this number is one of them."""
        return self.pattern[index % len(self.pattern)]


Pattern = Annotated[tuple[bool, ...], Field(min_length=1, max_length=1024)]  # which blocks; it repeats


class ValueEmbedding(Settings):
    """A table of each block's own: the token's vector is added to its values (Jordan et al. 2024, modded-nanogpt)."""

    pattern: Pattern = (True,)

    def holds(self, index: int) -> bool:
        """Whether the block of this number has one."""
        return self.pattern[index % len(self.pattern)]


class ResidualScalars(Settings):
    """Each block reads a x + b x0, of the stream and of what came into the stack (Jordan et al. 2024, modded-nanogpt).

    It learns the two numbers, and begins with x alone.
    """


class Stack(Settings):
    """`depth` equal blocks: self-attention, cross-attention where there is a memory, feed-forward.

    Where the norm stands in x -> x + f(x): before f; after the sum (post-norm, the 2017 shape); inside, on what f gives
    (OLMo 2); around f, before and after it (Gemma 2).
    """

    width: Width
    depth: Depth
    attention: Attention
    feed_forward: FeedForward
    norm: Norm = LayerNorm()
    norm_place: Literal["before", "after", "inside", "around"] = "before"
    order: Literal["serial", "parallel"] = "serial"  # parallel: attention and feed-forward both read x (GPT-J, NeoX)
    causal: bool = False
    cross: Attention | None = None  # present: every block also attends to a memory
    position: AttendedPosition | None = None  # None: positions, if any, are in the embedding
    local: Local | None = None  # present: some or all blocks see a window
    dropout: Probability = 0.0
    stochastic_depth: Probability = 0.0  # how often training leaves out a part of the last block; of the first: never
    value_embedding: ValueEmbedding | None = Later
    residual_scalars: ResidualScalars | None = Later

    @model_validator(mode="after")
    def _heads_fit(self):
        for part in filter(None, (self.attention, self.cross)):
            if part.head_dim is None and self.width % part.heads:
                raise ValueError(
                    f"width {self.width} is not a multiple of {part.heads} heads: change one or set head_dim"
                )
        return self

    @model_validator(mode="after")
    def _turns_pairs(self):
        head_width = self.attention.head_width(self.width)
        for position in (self.position, self.local and self.local.position):
            turned = position.turned(head_width) if isinstance(position, Rotary) else 2
            if turned % 2 or not turned:
                raise ValueError(f"rotary positions turn pairs: {turned} of the head width {head_width} must be even")
            self._check_scaling(position, turned // 2)
        return self

    @staticmethod
    def _check_scaling(position: object, pairs: int) -> None:
        scaling = position.scaling if isinstance(position, Rotary) else None
        if isinstance(scaling, DynamicScaling) and pairs < 2:
            raise ValueError("a base that grows with the text needs two pairs that are turned, or more")
        if isinstance(scaling, LongScaling) and {len(scaling.short), len(scaling.long)} != {pairs}:
            raise ValueError(f"longrope has {len(scaling.short)} and {len(scaling.long)} divisors for {pairs} pairs")

    @model_validator(mode="after")
    def _says_what_can_be(self):
        if self.order == "parallel" and (self.norm_place != "before" or self.cross is not None):
            raise ValueError("parallel parts have their norms before them, and no memory: norm_place=before, no cross")
        if self.local is not None and not self.causal:
            raise ValueError("a window looks back: local blocks are those of a causal stack")
        if self.attention.convolution is not None and not self.causal:
            raise ValueError("a short convolution looks back: attention.convolution is that of a causal stack")
        if self.cross is not None and self.cross.convolution is not None:
            raise ValueError("a memory is read as it is: leave out cross.convolution")
        return self


class TokenEmbedding(Settings):
    """Token ids -> vectors, with what is added to them before the lowest block."""

    type: Literal["tokens"] = "tokens"
    vocab: Vocabulary
    position: EmbeddedPosition | None = None
    scale: Positive = 1.0  # sqrt(width) in the 2017 shape
    norm: Norm | None = None
    dropout: Probability = 0.0
    types: Annotated[int, Field(ge=1, le=1 << 10)] | None = None  # present: which text of its row a token is from, BERT


class SharedTokens(Settings):
    """The source's tokens, with positions and a norm of the target's own (BART)."""

    type: Literal["shared_tokens"] = "shared_tokens"
    position: EmbeddedPosition | None = None
    norm: Norm | None = None
    dropout: Probability = 0.0


TargetEmbedding = Annotated[TokenEmbedding | SharedTokens, Field(discriminator="type")]


class TiedHead(Settings):
    """The embedding read backwards (Press and Wolf 2017)."""

    type: Literal["tied"] = "tied"
    scale: Positive = 1.0  # T5: width ** -0.5
    bias: bool = False
    soft_cap: Positive | None = None  # as of attention's scores: Gemma 2


class LinearHead(Settings):
    """A de-embedding matrix of its own."""

    type: Literal["linear"] = "linear"
    bias: bool = False
    vocab: Vocabulary | None = None  # None: all that the embedding has; image-GPT never predicts its first token
    soft_cap: Positive | None = Later  # as of the tied head


class MaskedHead(Settings):
    """A matrix, an activation and a norm, then the embedding read backwards, and a bias (Devlin et al. 2019, BERT)."""

    type: Literal["masked"] = "masked"
    activation: Activation = "gelu"
    norm: Norm = LayerNorm()


Head = Annotated[TiedHead | LinearHead | MaskedHead, Field(discriminator="type")]


class Transformer(Settings):
    """embed -> stack -> head: one stream of tokens in, predictions out."""

    type: Literal["transformer"] = "transformer"
    context: Length  # the longest input it was made for
    embed: TokenEmbedding
    stack: Stack
    head: Head = TiedHead()

    @model_validator(mode="after")
    def _positions_reach(self):
        position = self.embed.position
        if position is not None and position.length < self.context:
            raise ValueError(f"context {self.context} is longer than the {position.length} positions of the embedding")
        return self


class EncoderDecoder(Settings):
    """encode -> decode: a source becomes a memory, the target attends to it."""

    type: Literal["encoder_decoder"] = "encoder_decoder"
    context: Length  # the longest source, and the longest target
    start: Annotated[int, Field(ge=0, lt=1 << 24)] = 0  # the token that every target begins with
    source: TokenEmbedding
    encoder: Stack
    target: TargetEmbedding | None = None  # None: the source's embedding serves both
    decoder: Stack
    head: Head = TiedHead()

    @model_validator(mode="after")
    def _fits_together(self):
        if self.decoder.cross is None:
            raise ValueError("the decoder has no cross-attention: give decoder.cross")
        if self.encoder.value_embedding or self.decoder.value_embedding:
            raise ValueError("value embeddings are those of one stack of tokens: leave out value_embedding")
        if self.encoder.width != self.decoder.width:
            raise ValueError(f"encoder width {self.encoder.width} and decoder width {self.decoder.width} differ")
        if self.start >= self.target_vocab:
            raise ValueError(f"start {self.start} is no token of {self.target_vocab}")
        for embed in filter(None, (self.source, self.target)):
            if embed.position is not None and embed.position.length < self.context:
                raise ValueError(
                    f"context {self.context} is longer than the {embed.position.length} positions of the embedding"
                )
        return self

    @property
    def target_vocab(self) -> int:
        """How many tokens the target is made of."""
        return self.target.vocab if isinstance(self.target, TokenEmbedding) else self.source.vocab


# --- pictures -------------------------------------------------------------------------------------------------------


class PatchEmbedding(Settings):
    """Squares of a picture -> vectors by one matrix, and learned places (Dosovitskiy et al. 2021, ViT)."""

    type: Literal["patches"] = "patches"
    image: Side
    patch: Side
    channels: Channels = 3
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _divides(self):
        if self.image % self.patch:
            raise ValueError(f"pictures of {self.image} pixels do not divide into patches of {self.patch}")
        return self

    @property
    def tokens(self) -> int:
        """How many vectors a picture becomes."""
        return (self.image // self.patch) ** 2


class ConvEmbedding(Settings):
    """Convolutions, each halving the picture, -> vectors, and learned places (Hassani et al. 2021, CCT)."""

    type: Literal["convolutions"] = "convolutions"
    image: Side
    channels: Channels = 3
    hidden: Annotated[tuple[Width, ...], Field(max_length=8)] = ()  # channels of those before the last
    kernel: Annotated[int, Field(ge=1, le=31)] = 3
    dropout: Probability = 0.0

    @model_validator(mode="after")
    def _odd(self):
        if self.kernel % 2 == 0:
            raise ValueError(f"a kernel of {self.kernel} has no middle: take an odd one")
        return self

    @property
    def tokens(self) -> int:
        """How many vectors a picture becomes."""
        return (-(-self.image // 2 ** (len(self.hidden) + 1))) ** 2


ImageEmbedding = Annotated[PatchEmbedding | ConvEmbedding | TokenEmbedding, Field(discriminator="type")]

Classes = Annotated[
    tuple[Annotated[str, Field(max_length=1000)], ...], Field(min_length=1, max_length=1 << 20)
]  # their names


class SummaryHead(Settings):
    """Classes from a trained vector that stands before the patches and has looked at all of them (ViT)."""

    type: Literal["summary"] = "summary"
    classes: Classes
    bias: bool = True


class DistilledHead(Settings):
    """The mean of classes from two summaries, of which one has learned from a teacher (Touvron et al. 2021, DeiT)."""

    type: Literal["distilled"] = "distilled"
    classes: Classes
    bias: bool = True


class MeanHead(Settings):
    """Classes from the mean of all vectors (image-GPT)."""

    type: Literal["mean"] = "mean"
    classes: Classes
    bias: bool = True


class WeightedHead(Settings):
    """Classes from a mean of all vectors whose weights are learned (Hassani et al. 2021, sequence pooling)."""

    type: Literal["weighted"] = "weighted"
    classes: Classes
    bias: bool = True


ClassHead = Annotated[SummaryHead | DistilledHead | MeanHead | WeightedHead, Field(discriminator="type")]


class VisionTransformer(Settings):
    """embed -> stack -> head: a picture in, a class out."""

    type: Literal["vision"] = "vision"
    embed: ImageEmbedding
    stack: Stack
    head: ClassHead

    @model_validator(mode="after")
    def _places_fit(self):
        if isinstance(self.embed, TokenEmbedding):
            if self.embed.position is None:
                raise ValueError("tokens of a picture need embed.position, whose length is their number")
            if self.summaries:
                raise ValueError("tokens of a picture have no summary before them: head.type is mean or weighted")
        return self

    @model_validator(mode="after")
    def _sees_all(self):
        if self.stack.value_embedding is not None:
            raise ValueError("a picture has no tokens with value embeddings: leave out stack.value_embedding")
        if self.stack.cross is not None:
            raise ValueError("a picture has no memory to attend to: leave out stack.cross")
        if self.stack.causal and self.summaries:
            raise ValueError("in a causal stack the summary, which comes first, sees nothing: head.type is mean")
        return self

    @property
    def summaries(self) -> int:
        """How many vectors stand before those of the picture."""
        return {SummaryHead: 1, DistilledHead: 2}.get(type(self.head), 0)

    @property
    def context(self) -> int:
        """The vectors of a picture, with the summary."""
        if isinstance(self.embed, TokenEmbedding):
            assert self.embed.position is not None
            return self.embed.position.length
        return self.embed.tokens + self.summaries


# --- classes of texts -----------------------------------------------------------------------------------------------


class LastHead(Settings):
    """Classes from the last token, which alone has seen all of a text in a causal stack (Radford et al. 2018, GPT)."""

    type: Literal["last"] = "last"
    classes: Classes
    bias: bool = True
    padding: Annotated[int, Field(ge=0, lt=1 << 24)] | None = None  # the token by which other programs know padding


class PooledHead(Settings):
    """Classes from a dense layer and a tanh of the first token (Devlin et al. 2019, BERT)."""

    type: Literal["pooled"] = "pooled"
    classes: Classes
    bias: bool = True
    dropout: Probability = 0.0


TextHead = Annotated[SummaryHead | PooledHead | MeanHead | LastHead, Field(discriminator="type")]


class TextClassifier(Settings):
    """embed -> stack -> head: a text in, a class out; the summary is its first token (Devlin et al. 2019, BERT)."""

    type: Literal["text_classifier"] = "text_classifier"
    context: Length  # the longest text it was made for
    embed: TokenEmbedding
    stack: Stack
    head: TextHead

    @model_validator(mode="after")
    def _sees_all(self):
        position = self.embed.position
        if position is not None and position.length < self.context:
            raise ValueError(f"context {self.context} is longer than the {position.length} positions of the embedding")
        if self.stack.cross is not None:
            raise ValueError("a text that is classified has no memory to attend to: leave out stack.cross")
        if self.stack.causal and isinstance(self.head, SummaryHead | PooledHead):
            raise ValueError("in a causal stack the first token sees nothing else: head.type is last or mean")
        return self


# --- words ----------------------------------------------------------------------------------------------------------


class WordModel(Settings):
    """Two vectors for every word, one where it is seen and one where it is predicted (Mikolov et al. 2013)."""

    vocab: Vocabulary
    width: Width = 100
    window: Annotated[int, Field(ge=1, le=1 << 10)] = 5  # the furthest neighbour; each word draws its own, up to this
    negatives: Annotated[int, Field(ge=1, le=1 << 10)] = 5  # wrong words that a right one is told from

    @property
    def context(self) -> int:
        """Any number of words: a word sees its neighbours alone."""
        return 1 << 24


class CBOW(WordModel):
    """A word from the mean of its neighbours, in whichever order they stand: a continuous bag of words."""

    type: Literal["cbow"] = "cbow"


class SkipGram(WordModel):
    """Each of its neighbours from a word."""

    type: Literal["skip_gram"] = "skip_gram"


Model = Annotated[
    Transformer | EncoderDecoder | VisionTransformer | TextClassifier | CBOW | SkipGram, Field(discriminator="type")
]
