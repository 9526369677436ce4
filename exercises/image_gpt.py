"""Exercise: a picture as a text of colours.

Image-GPT reads a picture pixel by pixel, row by row, and predicts the next. A token is a colour of a palette, so that
256^3 colours become a few hundred: each pixel becomes the nearest colour, by the squared distance of its channels
(Chen et al. 2020).

Complete the three functions, with NumPy. Then run this file:

    python exercises/image_gpt.py
"""

import numpy as np
from checking import case, main, same

from nextile.images import palette


def tokens(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Pixels uint8 (H, W, C), colours float (K, C) from -1 to 1 -> numbers of colours, int64 (H * W,), row by row.

    0 is -1 there, and 255 is 1. Of two colours that are equally near the first is taken.
    """
    raise NotImplementedError("complete `tokens` in exercises/image_gpt.py")


def picture(ids: np.ndarray, colours: np.ndarray, width: int) -> np.ndarray:
    """The picture again: numbers (H * W,) -> pixels uint8 (H, W, C), rounded to the nearest whole number."""
    raise NotImplementedError("complete `picture` in exercises/image_gpt.py")


def half(ids: np.ndarray, width: int) -> np.ndarray:
    """What is given where the lower half is to be painted: the tokens of the first H // 2 rows."""
    raise NotImplementedError("complete `half` in exercises/image_gpt.py")


def check() -> None:
    """Compare with the library's palette."""
    generator = np.random.default_rng(0)
    grey = np.array([[-1.0], [0.1], [1.0]], np.float32)
    with case("tokens of 0, 100, 200, 255 by black, grey, white"):
        same(tokens(np.array([[[0], [100]], [[200], [255]]], np.uint8), grey), np.array([0, 1, 2, 2]))
    with case("picture of black, grey, white, white, two wide"):
        same(picture(np.array([0, 1, 2, 2]), grey, 2), np.array([[[0], [140]], [[255], [255]]], np.uint8))
    pixels = generator.integers(0, 256, (6, 4, 3), dtype=np.uint8)
    colours = generator.uniform(-1, 1, (16, 3)).astype(np.float32)
    want = palette.nearest(pixels, colours)
    with case("tokens of 6 x 4 random pixels by 16 colours"):
        same(tokens(pixels, colours), want.reshape(-1))
    with case("picture of 6 x 4 random pixels by 16 colours"):
        same(picture(want.reshape(-1), colours, 4), palette.colours_of(want, colours))
    for rows in (6, 5):
        with case(f"half of {rows} rows of 4"):
            same(half(np.arange(rows * 4), 4), np.arange(rows // 2 * 4))


if __name__ == "__main__":
    main(check)
