"""A solution of exercises/softmax.py."""

import torch


def softmax(logits, temperature=1.0):
    powers = ((logits - logits.amax(-1, keepdim=True)) / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def top_k(logits, k):
    least = logits.sort(descending=True).values[:, : min(k, logits.shape[-1])][:, -1:]
    return logits.masked_fill(logits < least, -torch.inf)


def top_p(logits, p):
    falling, ids = logits.sort(descending=True)
    chances = softmax(falling)
    cut = chances.cumsum(-1) - chances >= p
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, falling.masked_fill(cut, -torch.inf))
