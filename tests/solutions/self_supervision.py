"""A solution of exercises/self_supervision.py."""

MASK, END, SENTINELS = 90, 1, (99, 98, 97, 96)


def masks(tokens, hidden):
    inputs = [MASK if place in hidden else token for place, token in enumerate(tokens)]
    targets = [token if place in hidden else -100 for place, token in enumerate(tokens)]
    return inputs, targets


def spans(tokens, cut):
    source, target, done = [], [], 0
    for sentinel, (start, stop) in zip(SENTINELS, cut, strict=False):
        source += [*tokens[done:start], sentinel]
        target += [sentinel, *tokens[start:stop]]
        done = stop
    return [*source, *tokens[done:], END], [*target, END]
