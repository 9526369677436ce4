"""A solution of exercises/completion.py."""


def greedy(ask, prompt, most, end):
    tokens = list(prompt)
    for _ in range(most):
        token = int(ask(tokens).argmax())
        if token == end:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


def pick(logits, point):
    edges = logits.double().softmax(-1).cumsum(-1)
    return int((edges <= point * edges[-1]).sum())
