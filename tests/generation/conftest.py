"""Small models are quickest on one thread, whatever else the machine does."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread for each test, and the number there was after it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
