"""Tuning by adapters end to end: the base stays, a run's folder is PEFT's, resuming is exact, packing is remembered."""

import json
import shutil

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from tests.conftest import TINY, TINY_PAIRS, TINY_PICTURES

import nextile
from nextile.base.errors import NextileError, UsageError
from nextile.checkpoint.store import save_model
from nextile.models.build import build
from nextile.models.families import mixtral
from nextile.nn.lora import lora_parts
from nextile.nn.quantize import QuantizedLinear, QuantizedStacked
from nextile.tasks.report import Silent
from nextile.tasks.run import Run

LINES = [f"the {animal} {verb} and the {other} sleeps. " for animal in ("cat", "dog", "owl", "fox") for verb in
         ("runs", "eats", "sings") for other in ("hen", "ant", "cow")]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(LINES * 6))
    return path


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    """A small language model that was trained for a few steps."""
    out = tmp_path_factory.mktemp("base") / "base"
    nextile.train(text, steps=8, out=out, settings=TINY, report=Silent())
    return out


def tuned(text, base, out, **more):
    settings = {**TINY, "validation.every": 4, **more.pop("settings", {})}
    settings = {name: value for name, value in settings.items() if not name.startswith("model.")}
    return nextile.train(text, init=base, out=out, steps=8, lora=2, settings=settings, report=Silent(), **more)


def ids(model):
    return torch.tensor([model.tokenizer.encode("the cat runs and the hen sleeps")])


def test_the_base_stays_and_the_adapter_is_what_is_saved(text, base, tmp_path):
    before = (base / "model.safetensors").read_bytes()
    model = tuned(text, base, tmp_path / "run")
    assert (base / "model.safetensors").read_bytes() == before
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert (tmp_path / "run" / "adapter_model.safetensors").stat().st_size < len(before) / 2
    other = nextile.load(base, device="cpu")
    assert (model.model(ids(model)) - other.model(ids(model))).abs().max() > 1e-4
    for name, weight in other.model.named_parameters():
        held = dict(model.model.named_parameters())
        assert torch.equal(held.get(name, held.get(name.replace(".weight", ".base.weight"))), weight)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it by its old name
def test_peft_and_transformers_read_it(text, base, tmp_path):
    model = tuned(text, base, tmp_path / "run")
    theirs = PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids(model)).logits, model.model(ids(model)), rtol=0, atol=1e-5)


def test_it_is_saved_whole_and_goes_on_as_it_was(text, base, tmp_path):
    model = tuned(text, base, tmp_path / "run")
    with torch.no_grad():
        wanted = model.model(ids(model))
        model.save(tmp_path / "whole")
        assert torch.equal(model.model(ids(model)), wanted)
        assert lora_parts(model.model)
        whole = nextile.load(tmp_path / "whole", device="cpu")
        assert not lora_parts(whole.model)
        torch.testing.assert_close(whole.model(ids(model)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", ["full", "int4"])
def test_resumed_it_is_the_same_byte_for_byte(text, base, tmp_path, packed):
    settings = {"lora.base": packed, "lora.dropout": 0.1, "checkpoint.every": 4}
    tuned(text, base, tmp_path / "run", settings=settings)
    whole = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    nextile.train(resume=tmp_path / "run", report=Silent())
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == whole
    saved = load_file(next((tmp_path / "run" / "state").glob("step-*")) / "tensors.safetensors")
    assert {name.rpartition(".adapters.")[1] for name in saved if name.startswith("model.")} == {".adapters."}


def test_in_bfloat16_the_base_is_held_so_while_it_is_tuned_and_what_is_saved_is_as_ever(
    text, base, tmp_path, monkeypatch
):
    held = []
    monkeypatch.setattr(Run, "_validate", _noted(Run._validate, held))
    settings = {"precision": "bf16", "checkpoint.every": 4}
    model = tuned(text, base, tmp_path / "run", settings=settings)
    assert {each[".base.weight"] for each in held} == {torch.bfloat16}
    assert {each[".down.weight"] for each in held} == {torch.float32}
    assert {each.dtype for each in load_file(tmp_path / "run" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    assert json.loads((tmp_path / "run" / "config.json").read_text())["dtype"] == "float32"
    assert {part.base.weight.dtype for part in lora_parts(model.model).values()} == {torch.float32}
    whole = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    nextile.train(resume=tmp_path / "run", report=Silent())
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == whole


def _noted(validate, held):
    """A run's validation that notes the dtype of adapted layers' parameters before."""

    def noted(run):
        names = [*run.model.named_parameters()]
        held.append({end: p.dtype for name, p in names for end in (".base.weight", ".down.weight") if end in name})
        validate(run)

    return noted


def test_a_base_that_changed_is_not_resumed(text, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    tuned(text, tmp_path / "base", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000008")
    changed = nextile.load(tmp_path / "base", device="cpu")
    with torch.no_grad():
        next(changed.model.parameters())[0, 0] += 1.0
    changed.save(tmp_path / "base")
    with pytest.raises(NextileError, match="is not the model that this run began to tune"):
        nextile.train(resume=tmp_path / "run", report=Silent())


@pytest.mark.parametrize("packed", ["int8", "int4"])
def test_a_packed_base_is_packed_again_when_it_is_loaded(text, base, tmp_path, packed):
    model = tuned(text, base, tmp_path / "run", settings={"lora.base": packed})
    layers = [part.base for part in lora_parts(model.model).values()]
    assert layers
    assert all(isinstance(layer, QuantizedLinear) for layer in layers)
    said = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["val_loss"]
    assert model.evaluate(report=Silent())["loss"] == pytest.approx(said, rel=1e-3)


def test_a_tuned_model_can_be_begun_from(text, base, tmp_path):
    tuned(text, base, tmp_path / "run")
    model = nextile.train(text, init=tmp_path / "run", out=tmp_path / "next", steps=2, report=Silent(),
                          settings={"compile": False, "batch": 2, "context": 16})  # fmt: skip
    assert not lora_parts(model.model)
    assert (tmp_path / "next" / "model.safetensors").exists()


def test_a_new_head_is_trained_and_kept_beside_the_adapter(base, tmp_path):
    rows = [{"text": f"{line}", "label": line.split()[1]} for line in LINES]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tuned(tmp_path / "data.jsonl", base, tmp_path / "run")
    assert "base_model.model.score.weight" in load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    assert not (tmp_path / "run" / "trained.safetensors").exists()
    assert model.task == "classify-text"
    again = nextile.load(tmp_path / "run", device="cpu")
    assert again.classify("the owl eats and the cow sleeps") == model.classify("the owl eats and the cow sleeps")


def test_targets_are_named_with_commas_between(text, base, tmp_path):
    model = tuned(text, base, tmp_path / "run", settings={"lora.targets": "query,value"})
    assert {path.rpartition(".")[2] for path in lora_parts(model.model)} == {"query", "value"}
    with pytest.raises(UsageError, match="no linear layer is called 'quary': this model has"):
        tuned(text, base, tmp_path / "other", settings={"lora.targets": "query,quary"})


def test_without_a_model_there_is_nothing_to_tune(text, tmp_path):
    with pytest.raises(UsageError, match="name it by --init"):
        nextile.train(text, lora=2, steps=2, out=tmp_path / "run", report=Silent())


def test_an_adapter_whose_base_is_gone_is_an_error_in_one_line(text, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    tuned(text, tmp_path / "base", tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(NextileError, match="base"):
        nextile.load(tmp_path / "run", device="cpu")


def test_an_adapter_that_is_its_own_base_is_refused(text, base, tmp_path):
    tuned(text, base, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "run")
    (tmp_path / "run" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match="is an adapter itself"):
        nextile.load(tmp_path / "run", device="cpu")


@pytest.mark.parametrize("packed", ["full", "int8", "int4"])
def test_beside_experts_a_model_is_tuned_and_they_may_be_packed(text, base, tmp_path, packed):
    tokenizer = nextile.load(base, device="cpu").tokenizer
    spec = mixtral.spec(
        vocab=tokenizer.vocab_size, context=32, width=16, depth=1, heads=2, hidden=16, experts=4, chosen=2
    )
    save_model(tmp_path / "base", build(spec), tokenizer)
    settings = {"lora.base": packed}
    model = tuned(text, tmp_path / "base", tmp_path / "run", settings=settings)
    again = nextile.load(tmp_path / "run", device="cpu")
    with torch.no_grad():
        assert torch.equal(again.model(ids(again)), model.model(ids(model)))
    assert sum(isinstance(part, QuantizedStacked) for part in again.model.modules()) == (0 if packed == "full" else 3)
    assert {path.rpartition(".")[2] for path in lora_parts(again.model)} == {"query", "key", "value", "out"}
    assert again.describe().get("packed", {}).get("layers", 0) == (0 if packed == "full" else 7)


# --- every kind of model --------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{line.strip()}\t{line.strip()[::-1]}\n" for line in LINES))
    return path


KINDS = {
    "lm": ("text", TINY, None),
    "gpt2": ("text", TINY, "gpt2"),
    "translate": ("pairs", TINY_PAIRS | {"context": 64}, None),
    "marian": ("pairs", TINY_PAIRS | {"context": 64}, "marian"),
    "masked": ("text", TINY, None),
    "bert": ("text", TINY, "bert"),
    "denoise": ("text", TINY_PAIRS, None),
    "classify": ("photos", TINY_PICTURES, None),
    "vit": ("photos", TINY_PICTURES, "vit"),
    "paint": ("photos", TINY_PICTURES, None),
}
NAMES = {"gpt2": "lm", "marian": "translate", "bert": "masked", "vit": "classify"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_every_kind_is_tuned_saved_and_resumed(kind, request, tmp_path):
    source, settings, preset = KINDS[kind]
    data, task = request.getfixturevalue(source), NAMES.get(kind, kind)
    settings = {**settings, "batch": 4}
    nextile.train(data, task=task, preset=preset, steps=2, out=tmp_path / "base", settings=settings, report=Silent())
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    settings = {name: value for name, value in settings.items() if not name.startswith(("model.", "images."))}
    settings["checkpoint.every"] = 2
    nextile.train(
        data, task=task, init=tmp_path / "base", lora=2, steps=4, out=tmp_path / "run",
        settings={name: value for name, value in settings.items() if not name.startswith("tokenizer.")},
        report=Silent(),
    )  # fmt: skip
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    whole = (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run" / "state" / "step-00000004")
    (tmp_path / "run" / "adapter_model.safetensors").unlink()
    again = nextile.train(resume=tmp_path / "run", report=Silent())
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == whole
    assert lora_parts(again.model)
    again.save(tmp_path / "merged")
    assert nextile.load(tmp_path / "merged", device="cpu").spec == again.spec
