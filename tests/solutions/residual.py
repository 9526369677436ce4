"""A solution of exercises/residual.py."""


def layer_norm(x, gain, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + eps) ** 0.5 * gain + bias


def pre_norm(x, f, norm):
    return x + f(norm(x))


def post_norm(x, f, norm):
    return norm(x + f(x))
