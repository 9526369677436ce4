"""A solution of exercises/embedding.py."""

import torch


def one_hot(ids, vocab):
    return (ids[..., None] == torch.arange(vocab)).float()


def embed_by_product(ids, weight):
    return one_hot(ids, len(weight)) @ weight


def embed_by_row(ids, weight):
    return weight[ids]
