"""What Llama and the families after it share: a shape, the words of its configuration, the names of its tensors."""

from collections.abc import Mapping
from math import log, sqrt
from types import MappingProxyType
from typing import Any

from nextile.base.errors import NextileError
from nextile.models.families.keymap import Rule, activation_here, activation_there, same
from nextile.nn import specs

NORMS = MappingProxyType({"self_attention.norm": "input_layernorm", "feed_forward.norm": "post_attention_layernorm"})
MATRICES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
BIASED = {"all": tuple(MATRICES), "qkv": ("query", "key", "value"), "none": ()}
BESIDE = {"lm_head.weight": "model.embed_tokens.weight"}


def gated_width(width: int) -> int:
    """8/3 of the width, in multiples of 32: three matrices of it cost what two of 4 * width do (Shazeer 2020)."""
    return max(32, round(width * 8 / 3 / 32) * 32)


# --- the shape ------------------------------------------------------------------------------------------------------


def decoder(
    *, vocab: int, context: int, width: int, depth: int, heads: int, kv_heads: int | None, head_dim: int | None,
    feed_forward: specs.FeedForward, norm: specs.Norm, rotary: specs.Rotary, tied: bool, dropout: float,
    attention_dropout: float = 0.0, attention: Mapping[str, Any] | None = None, scale: float = 1.0,
    soft_cap: float | None = None, **stack: Any,
) -> specs.Transformer:  # fmt: skip
    """RMS norms, rotary positions, no bias; what a family has beyond goes into its attention and its stack."""
    return specs.Transformer(
        context=context,
        embed=specs.TokenEmbedding(vocab=vocab, scale=scale, dropout=dropout),
        stack=specs.Stack(
            width=width,
            depth=depth,
            attention=specs.Attention(
                heads=heads,
                kv_heads=kv_heads or heads,
                head_dim=head_dim or width // heads,
                dropout=attention_dropout,
                **{"bias": "none", **(attention or {})},
            ),
            feed_forward=feed_forward,
            norm=norm,
            causal=True,
            position=rotary,
            dropout=dropout,
            **stack,
        ),
        head=specs.TiedHead(soft_cap=soft_cap) if tied else specs.LinearHead(),
    )


# --- config.json ----------------------------------------------------------------------------------------------------


def sizes_here(config: Mapping[str, Any], *, context: int = 2048, eps: float = 1e-6) -> dict[str, Any]:
    """What a `config.json` says of the shape, in our words; context and eps: what this family leaves unsaid."""
    heads = config["num_attention_heads"]
    return {
        "vocab": config["vocab_size"],
        "context": _context_here(config, context),
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "hidden": config["intermediate_size"],
        "eps": config.get("rms_norm_eps", eps),
        "dropout": config.get("nextile_dropout", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def _context_here(config: Mapping[str, Any], usual: int) -> int:
    """Where turns slow down as a text grows, the model is made for so many times what it was trained on."""
    context, rotary = config.get("max_position_embeddings", usual), rotary_here(config)
    scaling = rotary.scaling
    return int(context * scaling.factor) if isinstance(scaling, specs.DynamicScaling) else context


def _context_there(model: specs.Transformer) -> int:
    scaling = getattr(model.stack.position, "scaling", None)
    return scaling.original if isinstance(scaling, specs.DynamicScaling) else model.context


def sizes_there(model: specs.Transformer) -> dict[str, Any]:
    """The words of a `config.json` that all these families have."""
    stack, attention = model.stack, model.stack.attention
    return {
        "vocab_size": model.embed.vocab,
        "max_position_embeddings": _context_there(model),
        "hidden_size": stack.width,
        "num_hidden_layers": stack.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": attention.head_width(stack.width),
        "intermediate_size": stack.feed_forward.hidden,
        "hidden_act": activation_there(stack.feed_forward.activation),
        "rms_norm_eps": stack.norm.eps,
        "attention_dropout": attention.dropout,
        "tie_word_embeddings": isinstance(model.head, specs.TiedHead),
        "nextile_dropout": stack.dropout,
    }


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding."""
    return config.get("tie_word_embeddings", False)


def gated_here(config: Mapping[str, Any]) -> specs.GatedMLP:
    """The feed-forward net of a `config.json`."""
    activation: Any = activation_here(config.get("hidden_act", "silu"))
    return specs.GatedMLP(hidden=config["intermediate_size"], activation=activation, bias=config.get("mlp_bias", False))


def rotary_here(config: Mapping[str, Any], *, base: float = 10_000.0, share: float = 1.0) -> specs.Rotary:
    """The rotary positions of a `config.json`, in the words of today or of those before transformers 5.

    Errors: NextileError for a way to scale them that nextile does not have.
    """
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    return specs.Rotary(
        base=given.get("rope_theta", config.get("rope_theta", base)),
        share=given.get("partial_rotary_factor", config.get("partial_rotary_factor", share)),
        scaling=_scaling_here(given, config.get("max_position_embeddings")),
    )


def _scaling_here(given: Mapping[str, Any], context: Any) -> specs.RotaryScaling | None:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return specs.LinearScaling(factor=given["factor"])
    if kind == "llama3":
        return specs.Llama3Scaling(
            factor=given["factor"],
            low=given["low_freq_factor"],
            high=given["high_freq_factor"],
            original=given.get("original_max_position_embeddings", context),
        )
    if kind == "dynamic":
        return specs.DynamicScaling(factor=given["factor"], original=context)
    original = given.get("original_max_position_embeddings", context)
    if kind == "yarn":
        return _yarn_here(given, given.get("factor") or context / original, original)
    if kind == "longrope":
        return _longrope_here(given, given.get("factor") or context / original, original)
    raise NextileError(
        f"rope_type is {kind!r} in config.json: nextile reads default, linear, llama3, yarn, dynamic and longrope"
    )


def _yarn_here(given: Mapping[str, Any], factor: float, original: int) -> specs.YarnScaling:
    """DeepSeek's two parts of the gain become one."""
    gain, above, below = (given.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if gain is None and above and below:
        gain = (0.1 * above * log(factor) + 1) / (0.1 * below * log(factor) + 1)
    return specs.YarnScaling(
        factor=factor,
        fast=given.get("beta_fast") or 32.0,
        slow=given.get("beta_slow") or 1.0,
        original=original,
        gain=gain,
        whole=given.get("truncate", True),
    )


def _longrope_here(given: Mapping[str, Any], factor: float, original: int) -> specs.LongScaling:
    gain = given.get("attention_factor")
    if gain is None:
        gain = sqrt(1 + log(factor) / log(original)) if factor > 1 else 1.0
    return specs.LongScaling(short=given["short_factor"], long=given["long_factor"], original=original, gain=gain)


def rotary_there(position: Any) -> dict[str, Any]:
    """The `rope_parameters` of a `config.json`."""
    assert isinstance(position, specs.Rotary)
    there: dict[str, Any] = {"rope_type": "default", "rope_theta": position.base}
    if position.share != 1.0:
        there["partial_rotary_factor"] = position.share
    match position.scaling:
        case specs.LinearScaling(factor=factor):
            there |= {"rope_type": "linear", "factor": factor}
        case specs.Llama3Scaling() as scaling:
            there |= {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original,
            }
        case specs.YarnScaling() as scaling:
            there |= {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
                "original_max_position_embeddings": scaling.original,
                "truncate": scaling.whole,
            }
            there |= {} if scaling.gain is None else {"attention_factor": scaling.gain}
        case specs.DynamicScaling(factor=factor):
            there |= {"rope_type": "dynamic", "factor": factor}
        case specs.LongScaling() as scaling:
            there |= {
                "rope_type": "longrope",
                "short_factor": list(scaling.short),
                "long_factor": list(scaling.long),
                "original_max_position_embeddings": scaling.original,
                "attention_factor": scaling.gain,
            }
    return there


def windowed(config: Mapping[str, Any], pattern: tuple[bool, ...]) -> specs.Local | None:
    """The blocks that see a window, where the configuration has any: `layer_types` first, else this pattern."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if kinds is not None:
        pattern = repeating(tuple(_is_local(kind) for kind in kinds))
    return specs.Local(window=window, pattern=pattern) if window is not None and any(pattern) else None


def late_windows(config: Mapping[str, Any]) -> specs.Local | None:
    """Qwen's: where they are used, the blocks from `max_window_layers` on, if `layer_types` says no others."""
    if not config.get("use_sliding_window", False):
        return None
    full = config.get("max_window_layers", 28)
    return windowed(config, tuple(i >= full for i in range(min(config["num_hidden_layers"], 1024))))


def late_windows_there(stack: specs.Stack) -> dict[str, Any]:
    """What `late_windows` reads."""
    return {
        "use_sliding_window": stack.local is not None,
        "sliding_window": None if stack.local is None else stack.local.window,
        "layer_types": layer_types(stack),
    }


def _is_local(kind: str) -> bool:
    if kind not in ("sliding_attention", "full_attention"):
        raise NextileError(f"layer_types in config.json has {kind!r}: nextile reads full_attention, sliding_attention")
    return kind == "sliding_attention"


def repeating(pattern: tuple[bool, ...]) -> tuple[bool, ...]:
    """The shortest beginning that, repeated, is the pattern."""
    length = len(pattern)
    for short in range(1, length):
        if all(pattern[i] == pattern[i % short] for i in range(length)):
            return pattern[:short]
    return pattern


def layer_types(stack: specs.Stack) -> list[str]:
    """What transformers calls each block."""
    local = stack.local
    return [
        "sliding_attention" if local is not None and local.holds(i) else "full_attention" for i in range(stack.depth)
    ]


# --- the tensors ----------------------------------------------------------------------------------------------------


def gain(norm: specs.Norm) -> str:
    """Our name of a norm's numbers."""
    return "offset" if isinstance(norm, specs.OffsetRMSNorm) else "weight"


def rules_of(model: specs.Transformer, norms: Mapping[str, str] = NORMS) -> list[Rule]:
    """Every tensor as it is, under another name; norms: those of a block, ours and theirs."""
    stack = model.stack
    rules = [
        same("embed.token.weight", "model.embed_tokens.weight"),
        same(f"stack.norm.{gain(stack.norm)}", "model.norm.weight"),
    ]
    if isinstance(model.head, specs.LinearHead):
        rules.append(same("head.weight", "lm_head.weight"))
    for i in range(stack.depth):
        ours, theirs = f"stack.blocks.{i}", f"model.layers.{i}"
        rules += [same(f"{ours}.{a}.{gain(stack.norm)}", f"{theirs}.{b}.weight") for a, b in norms.items()]
        rules += attention_rules(stack.attention, f"{ours}.self_attention.inner", f"{theirs}.self_attn")
        rules += gated_rules(stack.feed_forward, f"{ours}.feed_forward.inner", f"{theirs}.mlp")
    return rules


def attention_rules(spec: specs.Attention, ours: str, theirs: str) -> list[Rule]:
    """The four matrices, those biases that there are, and the norms of queries and keys."""
    rules = [same(f"{ours}.{a}.weight", f"{theirs}.{b}.weight") for a, b in MATRICES.items()]
    rules += [same(f"{ours}.{name}.bias", f"{theirs}.{MATRICES[name]}.bias") for name in BIASED[spec.bias]]
    if spec.qk_norm is not None:
        leaf = f"{'norm.' if spec.qk_norm_over == 'heads' else ''}{gain(spec.qk_norm)}"
        rules += [same(f"{ours}.{a}_norm.{leaf}", f"{theirs}.{a[0]}_norm.weight") for a in ("query", "key")]
    return rules


def gated_rules(spec: specs.FeedForward, ours: str, theirs: str) -> list[Rule]:
    """The three matrices of a gated net, and their biases where it has them; of experts nothing."""
    if not isinstance(spec, specs.GatedMLP):
        return []
    parts = ("weight", "bias") if spec.bias else ("weight",)
    return [
        same(f"{ours}.{name}.{part}", f"{theirs}.{name}_proj.{part}")
        for name in ("gate", "up", "down")
        for part in parts
    ]
