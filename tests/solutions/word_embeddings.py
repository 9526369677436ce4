"""A solution of exercises/word_embeddings.py."""

import torch
from torch.nn import functional as F


def hidden(x, ids, place, window):
    around = torch.cat((ids[max(0, place - window) : place], ids[place + 1 : place + 1 + window]))
    return x[around].mean(0) if len(around) else torch.zeros(x.shape[1])


def loss(h, right, wrong):
    return -F.logsigmoid(h @ right) - F.logsigmoid(-(wrong @ h)).sum()
