"""What is compiled is counted, and found again on disk."""

import torch

from nextile.training.graph import compilations, one_graph


def work(x):
    return (x * 3).sin().sum()


def test_graphs_are_counted_and_found_again_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.ones(5)
    start = compilations()
    wanted = one_graph(work)(x)
    first = compilations().since(start)
    assert (first.made, first.found) == (1, 0)
    assert first.seconds > 0
    torch.compiler.reset()  # what this process remembers, not what lies on disk
    assert torch.equal(one_graph(work)(x), wanted)
    both = compilations().since(start)
    assert (both.made, both.found) == (1, 1)
    assert compilations().since(compilations()).made == 0
