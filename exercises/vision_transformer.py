"""Exercise: cut a picture into patches.

To a Transformer a picture is a sequence of squares: each is laid out flat, one channel after the other and each channel
row by row, and the squares follow each other row by row from the top left (Dosovitskiy et al. 2021).

Complete both functions, without a loop over pixels. Then run this file:

    python exercises/vision_transformer.py
"""

import torch
from checking import case, main, same
from torch import Tensor

from nextile.nn import embed


def patches(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, T, C * P * P): squares of P = side pixels; H and W are multiples of it."""
    raise NotImplementedError("complete `patches` in exercises/vision_transformer.py")


def picture(squares: Tensor, side: int, height: int, width: int) -> Tensor:
    """What `patches` took apart: (B, T, C * P * P) -> (B, C, height, width)."""
    raise NotImplementedError("complete `picture` in exercises/vision_transformer.py")


def check() -> None:
    """Compare with the library, also where the picture is no square."""
    with case("a grey picture of 2 x 4 pixels, 0 to 7, side 2"):
        same(patches(torch.arange(8.0).view(1, 1, 2, 4), 2), torch.tensor([[[0.0, 1, 4, 5], [2, 3, 6, 7]]]))
    for shape, side in (((2, 3, 8, 8), 4), ((1, 1, 6, 4), 2), ((2, 3, 4, 8), 4), ((1, 3, 5, 5), 1), ((1, 3, 5, 5), 5)):
        batch, channels, height, width = shape
        images = torch.randn(shape)
        with case(f"patches of {batch} x {channels} channels, {height} x {width} pixels, side {side}"):
            same(patches(images, side), embed.patches(images, side))
        with case(f"picture of {batch} x {channels} channels, {height} x {width} pixels, side {side}"):
            same(picture(embed.patches(images, side), side, height, width), images)


if __name__ == "__main__":
    main(check)
