"""Arrays with names: axes are asked for by name, and what is not there is said in one line."""

import numpy as np
import pytest
import torch

from nextile.base.errors import UsageError
from nextile.inspection.named import NamedArray, named

NUMBERS = np.arange(24.0).reshape(2, 3, 4)


@pytest.fixture
def array():
    return NamedArray(NUMBERS, ("layer", "head", "query"))


def test_axes_have_names_and_sizes(array):
    assert array.dims == ("layer", "head", "query")
    assert array.sizes == {"layer": 2, "head": 3, "query": 4}
    assert array.shape == (2, 3, 4)
    assert repr(array) == "NamedArray(layer: 2, head: 3, query: 4) float64"


def test_a_place_takes_its_axis_away_and_a_slice_leaves_it(array):
    one = array.isel(head=1, layer=-1)
    assert (one.dims, np.asarray(one).tolist()) == (("query",), NUMBERS[-1, 1].tolist())
    some = array.isel(query=slice(1, 3))
    assert (some.dims, np.asarray(some).tolist()) == (array.dims, NUMBERS[..., 1:3].tolist())
    assert array.isel(layer=0, head=0, query=3).item() == 3.0


def test_the_mean_goes_over_named_axes(array):
    assert array.mean("layer", "head").dims == ("query",)
    np.testing.assert_array_equal(array.mean("layer", "head").values, NUMBERS.mean((0, 1)))
    assert array.mean().dims == array.dims


def test_numpy_reads_it_and_copies_when_asked(array):
    np.testing.assert_array_equal(np.asarray(array), NUMBERS)
    assert np.asarray(array, dtype=np.float32).dtype == np.float32
    assert np.array(array, copy=True).flags.writeable
    assert float(np.sum(array)) == NUMBERS.sum()


def test_what_is_looked_at_cannot_be_written_to_and_the_source_still_can(array):
    source = NUMBERS.copy()
    with pytest.raises(ValueError, match="read-only"):
        NamedArray(source, ("a", "b", "c")).values[0, 0, 0] = 1.0
    source[0, 0, 0] = 5.0


@pytest.mark.parametrize("dims", [("layer", "head"), ("layer", "layer", "query"), ("a", "b", "c", "d")])
def test_names_that_do_not_fit_are_an_error(dims):
    with pytest.raises(UsageError, match="3 axes need as many different names"):
        NamedArray(NUMBERS, dims)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"key": 0}, "there is no axis 'key' here: the axes are layer, head, query"),
        ({"head": 3}, "head is 3, and there are 3: from 0 to 2"),
        ({"head": -4}, "head is -4, and there are 3: from 0 to 2"),
    ],
)
def test_places_that_are_not_there_are_an_error_in_one_line(array, asked, said):
    with pytest.raises(UsageError) as caught:
        array.isel(**asked)
    assert str(caught.value) == said


def test_a_mean_over_no_axis_of_it_is_an_error_in_one_line(array):
    with pytest.raises(UsageError, match="there is no axis 'key' here: the axes are layer, head, query"):
        array.mean("layer", "key")


def test_narrow_numbers_become_float32_and_wide_ones_stay():
    tensor = torch.tensor([1.0, 1 / 3])
    assert named(tensor.bfloat16(), "x").values.dtype == np.float32
    assert named(tensor.double(), "x").values.dtype == np.float64
    assert named(tensor > 0.5, "x").values.dtype == np.bool_
