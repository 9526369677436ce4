"""Resuming: stopping in the middle and going on in fresh objects is not stopping, bit for bit."""

import json
from itertools import islice

import pytest
import torch

from nextile.base.errors import NextileError
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.loop import train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Muon, Optimizer
from nextile.training.schedule import Linear
from nextile.training.state import restore, snapshot


def fresh(settings, seed=0):
    spec = gpt2.spec(vocab=11, context=8, width=16, depth=2, heads=2)
    spec = spec.model_copy(update={"stack": spec.stack.model_copy(update={"dropout": 0.2})})
    model = build(spec, seed=seed)
    return model, Optimizer(model, settings)


def steps(model, optimizer, batch, start, stop):
    """Steps start..stop-1 of a run of ten."""
    run = train(model, lambda step: [batch(step)], next_token, optimizer, Linear(), steps=10, start=start, seed=3)
    return [step.loss for step in islice(run, stop - start)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("settings", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_ten_steps_are_five_and_five_in_fresh_objects(settings, batch):
    whole = fresh(settings)
    losses = steps(*whole, batch, 0, 10)

    first = fresh(settings)
    before = steps(*first, batch, 0, 5)
    tensors, document = snapshot(*first, {"step": 5, "losses": before})
    steps(*first, batch, 5, 10)  # what goes on must not touch the snapshot

    second = fresh(settings, seed=99)
    progress = restore(*second, tensors, json.loads(json.dumps(document)))
    after = steps(*second, batch, progress["step"], 10)

    assert progress["losses"] + after == losses
    assert same(snapshot(*second, {})[0], snapshot(*whole, {})[0])


def test_the_test_of_resuming_can_fail(batch):
    """Without the optimizer's state, the same weights go elsewhere."""
    whole, half = fresh(Muon()), fresh(Muon())
    steps(*whole, batch, 0, 10)
    steps(*half, batch, 0, 5)
    forgetful = fresh(Muon())
    forgetful[0].load_state_dict(half[0].state_dict())
    steps(*forgetful, batch, 5, 10)
    assert not same(dict(forgetful[0].named_parameters()), dict(whole[0].named_parameters()))


def test_tied_weights_are_kept_once():
    tensors, _ = snapshot(*fresh(AdamW()), {})
    assert "model.embed.token.weight" in tensors
    assert "model.head.weight" not in tensors
    assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)


def test_what_does_not_fit_is_refused_and_nothing_changes():
    tensors, document = snapshot(*fresh(AdamW(), seed=1), {})
    model, optimizer = fresh(AdamW())
    before = snapshot(model, optimizer, {})[0]
    lacking = {name: tensor for name, tensor in tensors.items() if name != "optimizer.count"}
    with pytest.raises(NextileError, match=r"lacks 'optimizer\.count'"):
        restore(model, optimizer, lacking, document)
    with pytest.raises(NextileError, match="format 2, not 1"):
        restore(model, optimizer, tensors, document | {"format": 2})
    with pytest.raises(NextileError, match="optimizer 'muon', not 'adamw': resume with optimizer=muon"):
        restore(model, optimizer, tensors, document | {"optimizer": "muon"})
    assert same(snapshot(model, optimizer, {})[0], before)
