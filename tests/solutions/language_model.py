"""A solution of exercises/language_model.py."""


def pairs(ids):
    return ids[:-1], ids[1:]


def perplexity(logits, targets):
    right = logits.log_softmax(-1).gather(-1, targets[:, None])
    return (-right.mean()).exp().item()
