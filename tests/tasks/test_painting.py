"""Painters end to end: they learn, paint with a cache what they would without, complete halves, refuse in one line."""

import json

import numpy as np
import pytest
import torch
import transformers
from tests.conftest import TINY_PICTURES

import nextile
from nextile.base.errors import UsageError
from nextile.generation.beam import Beams
from nextile.generation.paint import paint, paint_by_beams
from nextile.generation.sample import Sampling, draw, random_stream, warp
from nextile.tasks.painting import complete_halves
from nextile.tasks.report import Silent

SETTINGS = {**TINY_PICTURES, "images.size": 4, "images.colours": 8}


def train(photos, folder, *, steps=30, **settings):
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return nextile.train(photos, task="paint", out=folder, steps=steps, settings={**SETTINGS, **named}, report=Silent())


@pytest.fixture
def painter(photos, tmp_path):
    return train(photos, tmp_path / "painter", steps=40)


def test_pictures_become_a_painter(painter, photos, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "painter" / "metrics.jsonl").read_text().splitlines()]
    bits = [row["val_bits_per_dim"] for row in rows if "val_bits_per_dim" in row]
    assert bits[-1] < bits[0] <= 1.1 * np.log2(8) / 3
    found = painter.evaluate(report=Silent())
    assert found["bits_per_dim"] == pytest.approx(min(bits), rel=0.02)
    assert found["bits_per_dim"] == pytest.approx(found["loss"] / (3 * np.log(2)))
    assert painter.evaluate(photos, report=Silent())["loss"] == pytest.approx(found["loss"], rel=0.3)
    for name in ("samples.png", "completions.png"):
        assert (tmp_path / "painter" / name).exists()


def test_painting_with_a_cache_is_painting_without(painter):
    seed, palette = 5, painter.images
    painted = paint(painter, [[], []], Sampling(temperature=1.0, seed=seed))
    streams = [random_stream(seed, number) for number in range(2)]
    ids = torch.full((2, 1), palette.start_id)
    with torch.no_grad():
        for _ in range(16):
            logits = painter.model(ids)[:, -1].float()
            ids = torch.cat((ids, draw(warp(logits, Sampling(temperature=1.0)), streams)[:, None]), dim=1)
    assert np.array_equal(painted, palette.pixels(ids[:, 1:]))
    assert painted.dtype == np.uint8
    assert painted.shape == (2, 4, 4, 3)


def test_a_picture_does_not_depend_on_those_beside_it(painter):
    sampling = Sampling(temperature=1.0, seed=3)
    together = paint(painter, [[], [1, 2], [], [1, 2, 3, 4, 5]], sampling, batch=2)
    alone = paint(painter, [[1, 2]], sampling, streams=[1])
    assert np.array_equal(together[1], alone[0])
    assert not np.array_equal(together[0], together[2])


def test_the_upper_half_stays(painter, photos):
    given = painter.images.open(photos / "left" / "1.png")[None]
    kept = painter.images.pixels(painter.images.inputs(given))
    found = complete_halves(painter, given, Sampling(temperature=1.0, seed=1), 3)
    assert found.shape == (1, 3, 4, 4, 3)
    for one in found[0]:
        assert np.array_equal(one[:2], kept[0, :2])
    assert np.array_equal(
        painter.paint(1, start=photos / "left" / "1.png", seed=1, report=Silent())[0, :2], kept[0, :2]
    )


def test_beams_find_what_is_at_least_as_probable(painter):
    def logprob(pixels):
        ids = painter.images.inputs(pixels)
        given = torch.cat((torch.full((len(ids), 1), painter.images.start_id), ids[:, :-1]), dim=1)
        with torch.no_grad():
            return painter.model(given).log_softmax(-1).gather(-1, ids[..., None]).sum((1, 2))

    greedy = paint(painter, [[]], Sampling(temperature=0.0))
    found = paint_by_beams(painter, [[]], Beams(width=4), n=2)
    assert found.shape == (2, 4, 4, 3)
    scores = logprob(found)
    assert scores[0] >= scores[1]
    assert scores[0] >= logprob(greedy)[0] - 1e-4


def test_a_painter_is_a_folder_that_transformers_loads(painter, tmp_path):
    assert painter.family == "imagegpt"
    theirs = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "painter").eval()
    ids = torch.randint(0, painter.images.start_id, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(painter.model(ids), theirs(ids).logits, rtol=0, atol=1e-5)


def test_a_painter_goes_on_and_is_begun_from(painter, photos, tmp_path):
    again = nextile.train(photos, task="paint", init=tmp_path / "painter", out=tmp_path / "again", steps=1,
                          settings={"compile": False, "batch": 8, "lr": 1e-9}, report=Silent())  # fmt: skip
    assert again.images == painter.images
    with pytest.raises(UsageError, match=r"paints 4: leave it out"):
        nextile.train(photos, task="paint", init=tmp_path / "painter", out=tmp_path / "no", steps=1,
                      settings={"images.size": 8}, report=Silent())  # fmt: skip


def test_a_probe_tells_classes_from_features(painter, photos):
    found = painter.probe(photos, report=Silent())
    assert set(found["layers"]) == {"embedding", "layer 1"}
    assert all(0.0 <= share <= 1.0 for share in found["layers"].values())
    assert 0.0 <= found["pixels"] <= 1.0
    assert 0.0 <= found["untrained"] <= 1.0
    assert max(found["layers"].values()) > 0.5  # the classes differ in where it is bright


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_what_would_be_painted_is_not_learned_from(photos, tmp_path):
    with pytest.raises(UsageError, match=r"'augment.mixup' does nothing in the task 'paint'"):
        train(photos, tmp_path / "run", augment__mixup=0.2)
    with pytest.raises(UsageError, match=r"'context' does nothing in the task 'paint'"):
        train(photos, tmp_path / "run", context=8)


def test_wrong_use_is_one_line(painter, photos):
    with pytest.raises(UsageError, match="ask for at least 1 picture"):
        painter.paint(0)
    with pytest.raises(UsageError, match="a beginning has 16 pixels and a picture 16"):
        paint(painter, [[0] * 16])
    with pytest.raises(UsageError, match="reads pictures, not text: use nextile paint"):
        painter.generate("a")
    with pytest.raises(UsageError, match="use nextile paint"):
        painter.classify(photos / "left" / "1.png")
    with pytest.raises(UsageError, match="beams seek the likeliest"):
        painter.paint(1, beams=2, seed=1)
