"""What a training on many GPUs costs on paper, held against the papers' own formulas and published runs."""

import math

import pytest

from nextile.base.errors import NextileError, UsageError
from nextile.models import count
from nextile.models.families import gpt2, llama, t5
from nextile.models.scale import (
    Cluster,
    CorpusSize,
    Outlook,
    Scale,
    best_interval,
    between_failures,
    kept,
    lost,
    memory,
    traffic,
)
from nextile.tasks.scaling import outlook

SMALL, BIG = (llama.spec(context=8192, **llama.SIZES[f"llama-3-{size}"]) for size in ("8b", "70b"))


def scale(gpus=1024, *, cluster=None, **changes) -> Scale:
    return Scale(cluster=Cluster(gpus=gpus, **(cluster or {})), **{"tokens": 15e12, "batch": 256, **changes})


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [1, 4])
def test_kept_bytes_are_those_of_korthikanti_without_dropout(tensor):
    stack, width = gpt2.spec(width=768).stack, 768
    assert kept(stack, tensor, "split") == (34 - 2) * width / tensor
    assert kept(stack, tensor, "whole") == (8 + 24 / tensor) * width


def test_state_is_sixteen_bytes_a_parameter_over_all_gpus():
    held = memory(BIG, scale(1024, tensor=8))
    state = held["parameters"] + held["gradients"] + held["optimizer"]
    assert state * 1024 == pytest.approx(16 * count.deep_parameters(BIG).total)


def test_replicas_hold_more_each():
    parts = {shard: memory(BIG, scale(1024, tensor=8, shard=shard))["optimizer"] for shard in (16, 128)}
    assert parts[16] == pytest.approx(8 * parts[128])


def test_parts_of_a_step_keep_less_of_the_text_and_whole_gradients():
    one, four = (memory(BIG, scale(batch=512, accumulate=parts)) for parts in (1, 4))
    assert four["activations"] == pytest.approx(one["activations"] / 4)
    assert four["gradients"] == pytest.approx(one["gradients"] * 128)


def test_memory_of_torchtitans_70b_on_256_gpus_comes_within_a_quarter():
    """Published in its benchmarks of December 2024, table 4: 67.6 to 71.9 GiB; its logits are whole."""
    there = scale(256, batch=512, tensor=8, recompute="blocks", logits=1 << 20)
    assert 67.6 / 1.25 < sum(memory(BIG, there).values()) / 2**30 < 67.6


def test_what_sharding_saves_is_what_torchtitan_measured():
    """Tables 1 and 3: 8B on 8 and on 128 GPUs, 82.4 and 67.0 GiB, 77.0 and 62.0 compiled."""
    few, many = (sum(memory(SMALL, scale(n, batch=2 * n, tensor=1)).values()) / 2**30 for n in (8, 128))
    assert few - many == pytest.approx(15.2, rel=0.1)


# --- traffic and time ----------------------------------------------------------------------------------------------


def test_traffic_by_hand():
    moved = traffic(BIG, scale(1024, tensor=8, batch=256))
    numbers = count.deep_parameters(BIG).total / 8
    assert moved["gather"] == pytest.approx(2 * 2 * numbers * 127 / 128)
    assert moved["scatter"] == pytest.approx(4 * numbers * 127 / 128)
    assert moved["replicas"] == 0
    assert moved["tensor"] == pytest.approx(80 * 4 * (2 * 2 * 8192 * 8192) * 2 * 7 / 8)


def test_one_gpu_sends_nothing():
    assert set(traffic(SMALL, scale(1, batch=1, tensor=1)).values()) == {0}


def test_a_step_waits_for_the_slower_of_computing_and_sharding():
    fast, slow = (Outlook(BIG, scale(cluster={"network": speed})) for speed in (50e9, 5e9))
    assert fast.step == pytest.approx(fast.computing + fast.splitting)
    assert slow.step == pytest.approx(slow.sharding + slow.splitting)
    assert slow.sharding == pytest.approx(10 * fast.sharding)


def test_utilisation_is_the_efficiency_where_nobody_waits():
    alone = Outlook(SMALL, scale(1, batch=1, tensor=1))
    assert alone.mfu == pytest.approx(0.5)
    again = Outlook(SMALL, scale(1, batch=1, tensor=1, recompute="blocks"))
    assert again.mfu == pytest.approx(0.5 * 3 / 4)


def test_llama_3_405b_as_published():
    """Grattafiori et al. 2024: 3.8e25 FLOPs, 41 % at 16,384 GPUs; 30.84 million GPU hours by the model's card."""
    spec = llama.spec(context=8192, **llama.SIZES["llama-3-405b"])
    flops = count.training_flops(spec, 8192) * 15.6e12
    assert count.deep_parameters(spec).total == pytest.approx(405e9, rel=0.01)
    assert flops == pytest.approx(3.8e25, rel=0.05)
    assert flops / 400e12 / 3600 / 0.9 == pytest.approx(30.84e6, rel=0.1)  # over 90 % of the time was effective


# --- failures ------------------------------------------------------------------------------------------------------


def test_failures_of_llama_3():
    """419 unexpected interruptions in 54 days."""
    between = between_failures(Cluster(gpus=16_384))
    assert 54 * 86_400 / between == pytest.approx(419, rel=0.01)
    assert lost(405e9 * 12 / 2e12, between, 600) < 0.1  # more than 90 % of the time was effective


def test_no_other_interval_loses_less():
    save, between = 60.0, 10_000.0

    def wasted(interval: float) -> float:
        """Exactly, for failures that come as a Poisson process (Daly 2006, equation 20, without restarts)."""
        return between * math.expm1((interval + save) / between) / interval

    best = best_interval(save, between)
    assert min(range(200, 5000), key=wasted) == pytest.approx(best, rel=0.01)
    assert math.sqrt(2 * save * between) != pytest.approx(best, rel=0.01)  # Young's alone is less exact


def test_a_save_that_takes_longer_than_the_machines_live():
    assert best_interval(100.0, 40.0) == 40.0
    assert lost(100.0, 40.0, 0.0) == 1.0
    with pytest.raises(NextileError, match="fail faster than they restart"):
        _ = Outlook(BIG, scale(cluster={"failures": 1e4})).days


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tensor": 3}, "tensor=3 does not divide 1024 GPUs"),
        ({"shard": 48}, "shard=48 does not divide 1024 / 8 = 128 groups"),
        ({"batch": 200}, "batch 200 does not divide into 128 groups x 1 parts: set batch=128 or 256"),
        ({"batch": 64, "accumulate": 2}, "set batch=256"),
    ],
)
def test_a_mesh_or_a_batch_that_does_not_divide(changes, said):
    with pytest.raises(UsageError, match=said):
        Outlook(BIG, scale(**changes))


def test_what_does_not_fit_is_refused_with_what_does():
    with pytest.raises(NextileError, match=r"would need 94 GB and has 80: --set accumulate=4 --set recompute=nothing"):
        outlook("llama-3-70b", {"cluster.gpus": 1024, "tokens": 15e12, "batch": 512})
    Outlook(BIG, scale(batch=512, accumulate=4)).fit()
    with pytest.raises(NextileError, match="use more GPUs"):
        outlook("llama-3-70b", {"cluster.gpus": 8, "tokens": 15e12, "batch": 8})


def test_a_preset_that_is_no_language_model():
    assert "t5-small" in t5.SIZES
    with pytest.raises(UsageError, match="'t5-small' is no language model"):
        outlook("t5-small", {"tokens": 1e9})


# --- what is said --------------------------------------------------------------------------------------------------


def test_what_is_said_and_its_json_agree():
    found = outlook("llama-3-70b", {"cluster.gpus": 1024, "tokens": 15e12, "batch": 256})
    said = dict(found.rows())
    assert said["mesh"] == "1 replicas x 128 shards x 8 for each product"
    assert f"{found.as_dict()['days']:.1f} days" in said["run"]
    assert f"MFU {found.as_dict()['mfu']:.0%}" in said["speed"]


def test_a_corpus_in_bytes_and_hours():
    corpus = CorpusSize(tokens=15e12, bytes_per_token=4.0, vocab=128_256)
    assert (corpus.text, corpus.stored) == (60e12, 60e12)
    assert CorpusSize(tokens=10, bytes_per_token=4.0, vocab=2**16).stored == 20
    assert corpus.seconds(cores=1000, rate=60e6) == pytest.approx(1000)
