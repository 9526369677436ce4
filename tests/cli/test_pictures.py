"""The verbs about pictures: what they ask of the library, and what they write where."""

import json

import numpy as np
from PIL import Image

HOSTILE = "\x1b[2J"


def test_classify_writes_a_line_a_class(nextile_, library):
    answer = nextile_("classify", "m", "a.png", "b.png", "--top", "2")
    assert answer.code == 0
    assert answer.out.splitlines()[1] == "a.png\tdog\t0.2500"
    assert len(answer.out.splitlines()) == 4
    assert library.asked == {"name": "m", "top": 2, "device": None, "dtype": None}


def test_classify_says_what_is_no_picture_and_goes_on(nextile_, library):
    answer = nextile_("classify", "m", "a.txt", "b.png")
    assert answer.code == 1
    assert answer.out.startswith("b.png\tcat")
    assert "'a.txt' is no picture" in answer.err
    assert "1 of 2 files" in answer.err


def test_classify_json_has_an_object_a_picture(nextile_, library):
    answer = nextile_("classify", "m", "a.png", "--json")
    assert json.loads(answer.out) == {
        "image": "a.png",
        "classes": [{"class": f"cat{HOSTILE}", "probability": 0.75}, {"class": "dog", "probability": 0.25}],
    }


def test_classify_asks_for_pictures(nextile_, library):
    assert nextile_("classify", "m").code == 2
    assert nextile_("classify", "m", "a.png", "--top", "0").code == 2


def test_paint_writes_one_picture_or_a_sheet(nextile_, library, tmp_path):
    assert nextile_("paint", "m", "--out", str(tmp_path / "one.png"), "--seed", "3").code == 0
    with Image.open(tmp_path / "one.png") as one:
        assert np.asarray(one).shape == (4, 4, 3)
    assert library.asked["seed"] == 3
    answer = nextile_("paint", "m", "--n", "9", "--out", str(tmp_path / "sheet.png"), "--temperature", "0.5", "--json")
    assert json.loads(answer.out) == {"out": str(tmp_path / "sheet.png"), "n": 9, "size": 4}
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 90
    assert (library.asked["n"], library.asked["temperature"]) == (9, 0.5)


def test_paint_is_asked_wrongly(nextile_, library, tmp_path):
    assert nextile_("paint", "m").code == 2
    wrong = nextile_("paint", "m", "--out", "sheet.jpg")
    assert (wrong.code, wrong.err) == (2, "nextile: 'sheet.jpg' is no .png: name the picture so, as --out sheet.png\n")
    assert nextile_("paint", "m", "--out", "a.png", "--beams", "2", "--temperature", "1").code == 2


def test_evaluate_probes_a_painter(nextile_, library):
    answer = nextile_("evaluate", "m", "photos", "--probe", "--json")
    assert json.loads(answer.out) == {"layer 1": 0.5, "raw pixels": 0.25, "untrained network": 0.125}
    assert library.asked["probed"] == ["photos"]
    assert nextile_("evaluate", "m", "--probe").code == 2
