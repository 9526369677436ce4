"""A solution of exercises/beam_search.py."""


def beam_search(ask, prompt, width, most, end):
    going, whole = [([], 0.0)], []
    for turn in range(most):
        candidates = [
            ([*tokens, token], total + more)
            for tokens, total in going
            for token, more in enumerate(ask(prompt + tokens).tolist())
        ]
        candidates.sort(key=lambda each: -each[1])
        last = turn == most - 1
        whole += [each for each in candidates[:width] if last or each[0][-1] == end]
        going = [each for each in candidates if each[0][-1] != end][:width]
    tokens, total = max(whole, key=lambda each: each[1])
    return [token for token in tokens if token != end], total
