"""The loss without parts is that of the model without them, beside that of the whole."""

import numpy as np
import pytest
import torch
from tests.conftest import TINY, TINY_PAIRS, TINY_PICTURES

import nextile.api as api
from nextile.base.errors import UsageError
from nextile.nn.silence import silenced
from nextile.tasks.report import Silent


class Bars(Silent):
    """Remembers the bars that were shown."""

    def __init__(self):
        self.seen = []

    def bar(self, title, total, unit):
        """A bar that nobody sees."""
        self.seen.append((title, total, unit))
        return super().bar(title, total, unit)


def trained(data, folder, **settings):
    return api.train(data, steps=3, out=folder, report=Silent(), settings=settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny language model whose heads do something, and the text it is measured on."""
    folder = tmp_path_factory.mktemp("silencing")
    (folder / "text.txt").write_text("".join(f"{i} green bottles hang on the wall\n" for i in range(100)))
    sizes = {"model.stack.depth": 2, "model.stack.attention.heads": 2}
    model = trained(folder / "text.txt", folder / "run", **TINY | sizes)
    with torch.no_grad():
        for number, parameter in enumerate(model.model.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model


def test_the_loss_without_parts_beside_that_of_the_whole(model):
    whole = model.evaluate(report=Silent())
    with silenced(model.model, ["0.1", "1"]):
        alone = model.evaluate(report=Silent())
    found = model.evaluate(without=["0.1", "1"], report=Silent())
    assert found.pop("without") == ["0.1", "1"]
    assert found.pop("whole") == {name: whole[name] for name in ("loss", "perplexity", "bits_per_byte")}
    assert found == alone
    assert found["loss"] != whole["loss"] == model.evaluate(report=Silent())["loss"]
    assert model.evaluate(without="0.1", report=Silent())["without"] == ["0.1"]


@pytest.mark.parametrize(("each", "parts"), [("head", ["0.0", "0.1", "1.0", "1.1"]), ("layer", ["0", "1"])])
def test_how_much_the_loss_rises_without_each(model, each, parts):
    report = Bars()
    whole = model.evaluate(report=Silent())
    found = model.evaluate(without=f"each-{each}", report=report)
    table = found.pop(f"{each}s")
    assert found == whole
    assert [row["part"] for row in table] == parts
    for row in table:
        assert row["loss"] == model.evaluate(without=row["part"], report=Silent())["loss"]
        assert row["rise"] == row["loss"] - whole["loss"] != 0.0
    assert report.seen[-1] == (f"without each {each}", len(parts), f"{each}s")


def test_windows_are_those_that_were_asked_for(model):
    plain, sliding = (model.evaluate(without="0.1", stride=stride, report=Silent()) for stride in (None, 4))
    assert sliding["stride"] == 4
    assert sliding["whole"]["loss"] != plain["whole"]["loss"]


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ([], "no part is named"),
        ("", "'' is no part of a model"),
        ("7", "it has layers 0 to 1, each with heads 0 to 1"),
        (["0.1", "each-head"], "each-head is asked alone"),
        (["each-head", "each-layer"], "each-head is asked alone"),
        ("each-neuron", "'each-neuron' is no part of a model"),
        ([None], "None is no part of a model"),
    ],
)
def test_what_cannot_be_switched_off_is_an_error_before_anything_is_measured(model, without, said):
    report = Bars()
    with pytest.raises(UsageError, match=said):
        model.evaluate(without=without, report=report)
    assert report.seen == []


def test_tasks_are_not_asked_without_parts(model):
    with pytest.raises(UsageError, match="leave out tasks, limit, or the parts"):
        model.evaluate(without="0.1", tasks="hellaswag", limit=3)


def test_a_translator_translates_without_parts_and_for_each_only_reads(pairs, tmp_path, monkeypatch):
    model = trained(pairs, tmp_path / "run", **TINY_PAIRS)
    found = model.evaluate(without="cross.0", beams=1, report=Silent())
    assert found["whole"]["loss"] == model.evaluate(beams=1, report=Silent())["loss"] != found["loss"]
    assert "accuracy" in found
    assert "accuracy" in found["whole"]
    asked = []
    translate = api.translation.translate
    monkeypatch.setattr(api.translation, "translate", lambda *rest: asked.append(1) or translate(*rest))
    each = model.evaluate(without="each-head", beams=1, report=Silent())
    once = len(asked)
    assert {row["part"].rpartition(".")[0] for row in each["heads"]} == {"encoder.0", "decoder.0", "cross.0"}
    model.evaluate(beams=1, report=Silent())
    assert len(asked) == 2 * once > 0


def test_a_classifier_of_pictures(photos, tmp_path):
    model = trained(photos, tmp_path / "run", **TINY_PICTURES)
    found = model.evaluate(without="0", report=Silent())
    assert set(found["whole"]) == {"loss", "accuracy"}
    assert np.isfinite(found["loss"])


def test_word_vectors_have_no_parts(text, tmp_path):
    model = api.train(text, task="words", steps=3, out=tmp_path / "run", report=Silent(),
                      settings={"words.min_count": 1, "threads": 1})  # fmt: skip
    for without in ("0", "each-head", "each-layer"):
        with pytest.raises(UsageError, match="no layers"):
            model.evaluate(without=without, report=Silent())
