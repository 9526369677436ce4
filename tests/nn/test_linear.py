"""The product of several rows by oneDNN: the library's, and each row's its own."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nextile.nn.linear import Linear, linear

SHAPES = {
    "rows": lambda: (torch.randn(7, 64), torch.randn(96, 64), torch.randn(96)),
    "batches, no bias": lambda: (torch.randn(3, 5, 64), torch.randn(96, 64), None),
    "transposed": lambda: (torch.randn(64, 7).T, torch.randn(64, 96).T, torch.randn(96)),
    "strided": lambda: (torch.randn(7, 128)[:, ::2], torch.randn(96, 128)[:, ::2], None),
    "one row": lambda: (torch.randn(1, 64), torch.randn(96, 64), torch.randn(96)),
    "no row": lambda: (torch.randn(0, 64), torch.randn(96, 64), torch.randn(96)),
    "narrow": lambda: (torch.randn(7, 64).bfloat16(), torch.randn(96, 64).bfloat16(), None),
}


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_it_is_the_librarys_product(shape):
    torch.manual_seed(0)
    x, weight, bias = SHAPES[shape]()
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    if x.numel():
        assert not torch.allclose(linear(x, weight, bias), F.linear(x, weight.roll(1, 0), bias), atol=1e-2)


@torch.no_grad()
def test_a_row_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    x, weight = torch.randn(33, 256), torch.randn(300, 256)
    together = linear(x, weight)
    for rows in (2, 5, 32):
        torch.testing.assert_close(linear(x[:rows], weight), together[:rows], rtol=0, atol=1e-6)


def test_gradients_are_those_of_the_library():
    torch.manual_seed(0)
    module, x = Linear(16, 8), torch.randn(5, 16)
    theirs = nn.Linear(16, 8)
    theirs.load_state_dict(module.state_dict())
    for each in (module, theirs):
        each(x).square().sum().backward()
    torch.testing.assert_close(module.weight.grad, theirs.weight.grad)
