"""A solution of exercises/stacks.py."""

import torch


def stream(blocks, x):
    found = [x]
    for block in blocks:
        found.append(block(found[-1]))
    return found


def lens(blocks, norm, head, x):
    return torch.stack([head(norm(layer)).argmax(-1) for layer in stream(blocks, x)])
