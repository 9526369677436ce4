"""What tests of looks share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small models are quickest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
