"""A solution of exercises/feed_forward.py."""


def gelu(x):
    return x * (1 + (x / 2**0.5).erf()) / 2


def feed_forward(x, up, up_bias, down, down_bias):
    return gelu(x @ up + up_bias) @ down + down_bias
