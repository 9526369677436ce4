"""A solution of exercises/transformer.py."""


def of_block(width):
    norms = 2 * 2 * width
    attention = 4 * (width * width + width)
    feed_forward = 2 * (width * 4 * width) + 4 * width + width
    return norms + attention + feed_forward


def of_model(vocab, context, width, depth):
    return (vocab + context) * width + depth * of_block(width) + 2 * width
