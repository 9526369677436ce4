"""What is told of a model that is packed, and of one that was tuned beside its base."""

import json

import pytest
import torch

from nextile.api import Model
from nextile.checkpoint.store import save_model
from nextile.checkpoint.tuned import begin, save_tuned
from nextile.cli.main import run
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn.lora import Lora, add_lora, lora_parts, use_adapter
from nextile.nn.quantize import Int4, Int8, quantize

WIDTH, HIDDEN, DEPTH = 16, 64, 2
MATRICES = DEPTH * (4 * WIDTH * WIDTH + 2 * WIDTH * HIDDEN)  # numbers of the blocks' matrices


def small(folder=None):
    spec = gpt2.spec(vocab=50, context=32, width=WIDTH, depth=DEPTH, heads=2)
    return Model(build(spec), None, spec, "gpt2", folder)


def test_of_a_plain_model_its_bytes_and_nothing_else():
    model = small()
    found = model.describe()
    assert found["bytes"] == 4 * found["parameters"]["total"]
    assert not {"packed", "adapter"} & found.keys()


@pytest.mark.parametrize(("kind", "each"), [(Int8(), 8), (Int4(), 5)])
def test_of_a_packed_model_how_and_how_small(kind, each):
    model = small()
    whole = model.describe()["bytes"]
    quantize(model.model, kind)
    found = model.describe()
    packed = found["packed"]
    assert (packed["kind"], packed["layers"]) == (kind.type, 6 * DEPTH)
    scales = 4 * DEPTH * (4 * WIDTH + HIDDEN + WIDTH) if each == 8 else 0  # float32, one a row
    filled = DEPTH * (4 * WIDTH + HIDDEN) * 16 * each // 8 if each == 5 else 0  # rows of 16 fill up a group of 32
    assert packed["bytes"] == MATRICES * each // 8 + scales + filled
    assert found["bytes"] == whole - 4 * MATRICES + packed["bytes"]


def test_of_an_adapter_what_it_adapts_and_how_much_is_trained():
    model = small()
    add_lora(model.model, Lora(rank=2, targets=("query", "up")))
    found = model.describe()["adapter"]
    trained = DEPTH * 2 * (2 * WIDTH + WIDTH + HIDDEN)
    assert found == {
        "rank": 2, "alpha": 4.0, "targets": ["query", "up"], "layers": 2 * DEPTH, "trained_parameters": trained,
        "trained_in_full": 0,
    }  # fmt: skip
    assert trained == sum(each.numel() for each in model.model.parameters() if each.requires_grad)
    use_adapter(model.model, None)
    assert "adapter" not in model.describe()


def test_of_several_ranks_all_are_told_and_a_shared_side_counts_once():
    model = small()
    add_lora(model.model, Lora(rank=2, targets=("query",)))
    parts = list(lora_parts(model.model).values())
    parts[1].named("default").rank = 3
    parts[1].named("default").down = parts[0].named("default").down
    found = model.describe()["adapter"]
    assert found["rank"] == [2, 3]
    assert found["trained_parameters"] == 2 * WIDTH + DEPTH * 2 * WIDTH


@pytest.fixture
def tuned(tmp_path):
    """A folder of an adapter beside a base in int8, of which one matrix was trained in full."""
    model = small().model
    save_model(tmp_path / "base", model)
    begin(model, Lora(rank=2, targets=("up", "down")), Int8(), ("embed.position.weight",), 0)
    save_tuned(tmp_path / "tuned", model, str(tmp_path / "base"))
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(config | {"nextile_base": {"type": "int8"}}))
    return tmp_path / "tuned"


def test_a_folder_tells_its_base_and_what_was_trained_in_full(tuned, capsys):
    assert run(["info", str(tuned), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["base"] == str(tuned.parent / "base")
    assert found["adapter"]["trained_in_full"] == 32 * WIDTH
    assert found["adapter"]["trained_parameters"] == 32 * WIDTH + DEPTH * 2 * 2 * (WIDTH + HIDDEN)
    assert found["packed"]["kind"] == "int8"
    assert run(["info", str(tuned)]) == 0
    table = capsys.readouterr().err
    assert "adapter.rank" in table
    assert "packed.bytes" in table


def test_a_hostile_name_of_a_base_never_reaches_the_terminal(tuned, capsys):
    torch.manual_seed(0)
    path = tuned / "adapter_config.json"
    evil = tuned.parent / "b\x1b[2Jd"
    (tuned.parent / "base").rename(evil)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(evil)}))
    assert run(["info", str(tuned)]) == 0
    assert "\x1b" not in capsys.readouterr().err
