"""nanoGPT's kind of training, by transformers' GPT-2 and torch's AdamW: the same weights and data, the same losses."""

import math

import pytest
import torch
import transformers

from nextile.checkpoint import convert
from nextile.data.batches import Batch
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.training.loop import train
from nextile.training.objectives import next_token
from nextile.training.optim import AdamW, Optimizer
from nextile.training.schedule import Cosine, Linear

VOCAB, ROWS, TIME = 65, 8, 32
LR, FLOOR, WARMUP, BETAS, DECAY, CLIP = 1e-3, 0.1, 10, (0.9, 0.99), 0.1, 1.0  # of its Shakespeare by characters


def batch(step: int) -> Batch:
    """Text that can be learned: each token says most of the next."""
    random = torch.Generator().manual_seed(step)
    ids = torch.randint(VOCAB, (ROWS, TIME + 1), generator=random)
    for place in range(1, TIME + 1):
        known = torch.rand(ROWS, generator=random) < 0.8
        ids[:, place] = torch.where(known, (3 * ids[:, place - 1] + 1) % VOCAB, ids[:, place])
    return Batch.of(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def rate(step: int, steps: int) -> float:
    """A linear rise, and half a cosine down to a tenth."""
    if step < WARMUP:
        return LR * (step + 1) / (WARMUP + 1)
    down = (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))) / 2
    return LR * (FLOOR + down * (1 - FLOOR))


def reference() -> transformers.GPT2LMHeadModel:
    torch.manual_seed(7)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2, n_head=2, n_embd=32, n_positions=TIME, vocab_size=VOCAB, activation_function="gelu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        )
    ).train()  # fmt: skip


def their_losses(model: transformers.GPT2LMHeadModel, steps: int) -> list[float]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        data = batch(step)
        logits = model(data.inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def our_losses(theirs: transformers.GPT2LMHeadModel, steps: int, schedule) -> list[float]:
    spec = gpt2.spec(vocab=VOCAB, context=TIME, width=32, depth=2, heads=2, activation="gelu")
    model = build(spec)
    weights = {name: tensor.detach().clone() for name, tensor in theirs.named_parameters()}
    model.load_state_dict(convert.read(gpt2.key_map(spec), weights))
    optimizer = Optimizer(model, AdamW(lr=LR, betas=BETAS, weight_decay=DECAY))
    run = train(model, lambda step: [batch(step)], next_token, optimizer, schedule, steps=steps, clip=CLIP)
    return [step.loss for step in run]


def difference(steps: int, schedule) -> tuple[float, list[float]]:
    theirs = reference()
    ours = our_losses(theirs, steps, schedule)
    wanted = their_losses(theirs, steps)
    return max(abs(a - b) for a, b in zip(ours, wanted, strict=True)), wanted


@pytest.mark.parametrize("steps", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_losses_are_those_of_nanogpt(steps):
    apart, losses = difference(steps, Cosine(warmup=WARMUP, floor=FLOOR))
    assert apart < 1e-4
    assert losses[-1] < losses[0] - 0.05  # it learns


def test_control_another_schedule_is_another_training():
    assert difference(20, Linear(warmup=WARMUP, floor=FLOOR))[0] > 1e-4
