"""A solution of exercises/implementations.py."""


def three(weight, bias):
    weights, biases = weight.T.chunk(3), bias.chunk(3)
    return dict(zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True))


def name_here(theirs):
    _, _, block, *parts, kind = theirs.split(".")
    here = {
        ("mlp", "c_fc"): "feed_forward.inner.up",
        ("mlp", "c_proj"): "feed_forward.inner.down",
        ("ln_1",): "self_attention.norm",
        ("ln_2",): "feed_forward.norm",
    }[tuple(parts)]
    return f"stack.blocks.{block}.{here}.{kind}"
