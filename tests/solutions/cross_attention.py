"""A solution of exercises/cross_attention.py."""

import torch


def cross_attention(x, memory, query, key, value, there):
    q, k, v = x @ query, memory @ key, memory @ value
    scores = q @ k.mT * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~there[:, None, :], -torch.inf).softmax(-1)
    return weights @ v, weights
