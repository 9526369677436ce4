"""A solution of exercises/image_gpt.py."""

import numpy as np


def tokens(pixels, colours):
    points = pixels.reshape(-1, pixels.shape[-1]) / 127.5 - 1
    apart = ((points[:, None] - colours[None]) ** 2).sum(-1)
    return apart.argmin(1)


def picture(ids, colours, width):
    return np.rint((colours[ids] + 1) * 127.5).astype(np.uint8).reshape(-1, width, colours.shape[1])


def half(ids, width):
    return ids[: len(ids) // width // 2 * width]
