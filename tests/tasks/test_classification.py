"""Classifiers end to end on real files: they learn, resume exactly, are fine-tuned, and refuse in one line."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.conftest import TINY, TINY_PICTURES

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.weights import load_tensors
from nextile.data.imageset import open_images
from nextile.data.pictures import open_pictures
from nextile.images.processor import ImageProcessor, normaliser_for, palette_for
from nextile.nn import specs
from nextile.tasks import plan as plans
from nextile.tasks import run
from nextile.tasks.classification import Classifying, reads_floats, usual_patch
from nextile.tasks.report import Silent
from nextile.tasks.settings import RunSettings


def train(photos, folder, *, steps=30, settings=None, **given):
    return nextile.train(
        photos, out=folder, steps=steps, settings={**TINY_PICTURES, **(settings or {})}, report=Silent(), **given
    )


def metrics(folder, field="loss"):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[field] for row in rows if field in row]


@pytest.fixture
def learned(photos, tmp_path):
    return train(photos, tmp_path / "run", steps=60, settings={"augment.flip": 0.0})


def test_pictures_become_a_classifier(learned, photos, tmp_path):
    assert metrics(tmp_path / "run", "val_accuracy")[-1] == 1.0
    assert learned.spec.head.classes == ("above", "below", "left")
    found = learned.classify(photos / "left" / "3.png", top=2)
    assert found[0][0] == "left"
    assert found[0][1] > 0.5 > found[1][1]
    assert learned.evaluate(report=Silent())["accuracy"] == 1.0
    assert learned.evaluate(photos, report=Silent())["accuracy"] > 0.95
    for name in ("confusion.png", "curve.html"):
        assert (tmp_path / "run" / name).exists()


def test_several_pictures_are_each_alone(learned, photos):
    several = [photos / "above" / "1.png", (photos / "left" / "2.png").read_bytes()]
    together = learned.classify(several)
    for picture, found in zip(several, together, strict=True):
        alone = learned.classify(picture)
        assert [name for name, _ in alone] == [name for name, _ in found]
        assert [share for _, share in alone] == pytest.approx([share for _, share in found], abs=1e-6)
    assert sum(share for _, share in together[0]) == pytest.approx(1.0)


def test_task_follows_from_the_data(photos, text):
    assert run.task_for([str(photos)], None).name == "classify"
    assert run.task_for(["digits"], None).name == "classify"
    assert run.task_for([str(photos)], "paint").name == "paint"
    assert run.task_for([str(text.parent)], None).name == "lm"  # text and pictures below it: the text counts


def test_a_run_that_was_cut_goes_on_bit_for_bit(photos, tmp_path):
    settings = {"checkpoint.every": 7, "dropout": 0.1, "augment.mixup": 0.2, "model.stack.stochastic_depth": 0.1,
                "model.stack.depth": 2}  # fmt: skip
    train(photos, tmp_path / "whole", steps=20, settings=settings)
    train(photos, tmp_path / "cut", steps=20, settings=settings)
    state = tmp_path / "cut" / "state"
    for saved in state.iterdir():
        if saved.is_dir() and not saved.name.endswith("7"):
            shutil.rmtree(saved)
    nextile.train(resume=tmp_path / "cut", report=Silent())
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for name in ("model.safetensors",):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (28, 4), (32, 4), (60, 6), (64, 8), (224, 16), (130, 13)])
def test_patches_divide_every_side(side, patch):
    assert usual_patch(side) == patch


def test_a_preset_with_a_size_fits_small_pictures(photos):
    found = nextile.plan(photos, preset="vit-tiny", steps=1, settings={"images.size": 8, "batch": 2}, report=Silent())
    assert found.model.stack.width == 192
    assert found.model.embed.patch == 1


def test_a_vit_is_a_folder_that_transformers_loads(photos, tmp_path):
    model = train(photos, tmp_path / "run", steps=3, preset="vit")
    assert model.family == "vit"
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run").eval()
    pixels = model.images.inputs(np.stack([model.images.open(photos / "left" / f"{i}.png") for i in range(3)]))
    with torch.no_grad():
        torch.testing.assert_close(model.model(pixels), theirs(pixels).logits, rtol=0, atol=1e-5)
    assert theirs.config.id2label == {0: "above", 1: "below", 2: "left"}


def test_fine_tuning_keeps_the_body_resizes_the_places_and_replaces_the_head(learned, photos, tmp_path):
    shutil.rmtree(photos / "below")
    model = train(photos, tmp_path / "other", steps=1, init=tmp_path / "run",
                  settings={"images.size": 16, "lr": 1e-9})  # fmt: skip
    before, after = (load_tensors(tmp_path / name / "model.safetensors") for name in ("run", "other"))
    assert model.spec.head.classes == ("above", "left")
    assert after["head.weight"].shape == (2, 16)
    block = "stack.blocks.0.self_attention.inner.query.weight"
    torch.testing.assert_close(after[block], before[block], rtol=0, atol=1e-6)
    assert len(after["embed.position.weight"]) == 4 * len(before["embed.position.weight"])
    torch.testing.assert_close(
        after["embed.position.weight"].mean(0), before["embed.position.weight"].mean(0), rtol=0, atol=0.01
    )


def test_fine_tuning_on_the_same_classes_keeps_the_head(learned, photos, tmp_path):
    train(photos, tmp_path / "again", steps=1, init=tmp_path / "run",
          settings={"lr": 1e-9, "optimizer.type": "muon", "augment.flip": 0.0})  # fmt: skip
    assert metrics(tmp_path / "again", "val_accuracy") == [1.0]


def test_a_painter_becomes_a_classifier(photos, tmp_path):
    painter = train(photos, tmp_path / "painter", steps=2, task="paint", settings={"images.colours": 16})
    model = train(photos, tmp_path / "classifier", steps=2, init=tmp_path / "painter", task="classify")
    assert isinstance(model.spec, specs.VisionTransformer)
    assert model.family == "imagegpt"
    assert model.images == painter.images
    assert transformers.ImageGPTForImageClassification.from_pretrained(tmp_path / "classifier").config.num_labels == 3


def test_validation_pictures_of_their_own(photos, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    shutil.rmtree(other / "above")
    model = train(photos, tmp_path / "run", steps=2, settings={"validation.data": str(other)})
    assert len(open_images(tmp_path / "run" / "data" / "validation")) == 40
    assert len(open_images(tmp_path / "run" / "data" / "train")) == 60
    assert model.evaluate(report=Silent())["loss"] > 0
    (other / "left").rename(other / "right")
    with pytest.raises(NextileError, match=r"class 'right', which is none of above, below, left"):
        train(photos, tmp_path / "wrong", settings={"validation.data": str(other)})


def test_training_reads_pictures_as_everybody_does(photos):
    processor = ImageProcessor(size=12)
    pixels = np.stack([processor.open(photos / "left" / f"{i}.png") for i in range(3)])
    changed = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()  # as augmentation gives them
    for reads in (normaliser_for(pixels), palette_for(pixels, 16, seed=0)):
        torch.testing.assert_close(reads_floats(reads)(changed), reads.inputs(pixels), rtol=0, atol=1e-5)


def test_fine_tuning_resizes_as_the_first_model_did(learned, photos, tmp_path):
    config = tmp_path / "run" / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"resample": 3}))
    again = train(photos, tmp_path / "again", steps=1, init=tmp_path / "run")
    assert again.images.resample == "bicubic"
    stored, corpus = open_images(tmp_path / "again" / "data" / "train"), open_pictures([str(photos)], labelled=True)
    first = corpus.source(int(stored.indices[0]))
    assert np.array_equal(stored.pixels[0], again.images.open(*first))
    assert not np.array_equal(stored.pixels[0], learned.images.open(*first))


def test_a_larger_model_waits_until_pictures_are_seen_often(photos, tmp_path, monkeypatch):
    train(photos, tmp_path / "run", steps=1)
    data = Classifying().open(tmp_path / "run" / "data", RunSettings(), nextile.load(tmp_path / "run").processor)
    assert not data.enough(10 * len(data.train) - 1)
    assert data.enough(10 * len(data.train))
    for name, value in (("PARAMETERS_PER_TOKEN", 1e9), ("TOKENS_PER_PARAMETER", 0.0)):
        monkeypatch.setattr(plans, name, value)
    monkeypatch.setattr(plans, "probe", lambda *given, **named: 1e-3)

    def width(minutes):
        settings = {"compile": False, "images.size": 8}
        return nextile.plan(photos, minutes=minutes, settings=settings, report=Silent()).model.stack.width

    enough = 10 * len(data.train) / 128 * 1e-3 / 60  # minutes of so many steps
    assert width(0.9 * enough) == plans.LADDER[0].width < width(1.1 * enough)


def test_the_mistakes_of_an_earlier_validation_do_not_stay(learned, tmp_path):
    data = Classifying().open(tmp_path / "run" / "data", RunSettings(), learned.processor)
    stale = tmp_path / "run" / "mistakes.png"
    stale.write_bytes(b"old")
    data.preview(learned, 0)
    assert not stale.exists()  # this model makes none


def test_digits_are_built_in(tmp_path):
    model = nextile.train("digits", out=tmp_path / "run", steps=2, settings=TINY_PICTURES, report=Silent())
    assert model.spec.head.classes == tuple("0123456789")
    assert model.images.channels == 1


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_broken_pictures_are_left_out_and_said(photos, tmp_path, capsys):
    (photos / "left" / "text.png").write_text("this is no picture")
    whole = (photos / "left" / "1.png").read_bytes()
    (photos / "left" / "cut.png").write_bytes(whole[: len(whole) // 2])
    nextile.train(photos, out=tmp_path / "run", steps=1, settings=TINY_PICTURES)
    said = capsys.readouterr().err
    assert "text.png" in said
    assert "cut.png" in said
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_one_class_is_an_error(photos, tmp_path):
    for name in ("above", "below"):
        shutil.rmtree(photos / name)
    with pytest.raises(NextileError, match="are of the class 'left': give some of another class"):
        train(photos, tmp_path / "run", task="classify")


def test_settings_of_other_tasks_are_refused(photos, text, tmp_path):
    with pytest.raises(UsageError, match=r"'tokenizer.kind' does nothing in the task 'classify'"):
        train(photos, tmp_path / "run", settings={"tokenizer.kind": "char"})
    with pytest.raises(UsageError, match=r"'attention' does nothing in the task 'classify'"):
        train(photos, tmp_path / "run", settings={"attention": "flex"})
    for named in ({"images.colours": 5}, {"images": {"colours": 5, "size": 8}}):
        with pytest.raises(UsageError, match=r"'images.colours' does nothing in the task 'classify'"):
            train(photos, tmp_path / "run", settings=named)
    with pytest.raises(UsageError, match=r"'augment.flip' does nothing in the task 'lm'"):
        nextile.train(text, out=tmp_path / "run", settings={**TINY, "augment.flip": 0.5}, report=Silent())


def test_models_of_other_kinds_are_refused(learned, photos, text, tmp_path):
    with pytest.raises(UsageError, match="reads pictures, not text: use nextile classify"):
        learned.generate("a")
    with pytest.raises(UsageError, match="is a classifier, not a painter"):
        learned.paint()
    with pytest.raises(UsageError, match="cannot begin from"):
        nextile.train(text, out=tmp_path / "lm", init=tmp_path / "run", steps=1, report=Silent())
    nextile.train(text, out=tmp_path / "writer", steps=1, settings=TINY, report=Silent())
    writer = nextile.load(tmp_path / "writer")
    with pytest.raises(UsageError, match="is no classifier of pictures: use nextile generate"):
        writer.classify(photos / "left" / "1.png")
    with pytest.raises(UsageError, match="cannot begin from"):
        train(photos, tmp_path / "wrong", init=tmp_path / "writer")


def test_a_picture_of_a_bomb_and_a_tiny_one(learned, tmp_path):
    Image.new("RGB", (1, 1), (200, 0, 0)).save(tmp_path / "one.png")
    assert len(learned.classify(tmp_path / "one.png")) == 3
    with pytest.raises(NextileError, match=r"nowhere\.png"):
        learned.classify(tmp_path / "nowhere.png")
