"""At which rates a run begins that begins from a model, who may say otherwise, and what a plan by adapters costs."""

import json

import pytest
from tests.conftest import TINY

import nextile
from nextile.base.errors import UsageError
from nextile.cli.main import run
from nextile.models import count
from nextile.models.families import qwen3
from nextile.tasks.report import Silent
from nextile.tasks.tuning import tuning_rate

TUNED = {name: value for name, value in TINY.items() if not name.startswith(("model", "tokenizer"))}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"the {i} cats run and the hen sleeps. " for i in range(100)))
    return path


@pytest.fixture(scope="module")
def base(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "base"
    nextile.train(text, steps=2, out=out, settings=TINY, report=Silent())
    return out


def planned(text, base, **given):
    settings = TUNED | given.pop("settings", {})
    return nextile.plan(text, init=base, steps=4, settings=settings, report=Silent(), **given)


# --- rates ----------------------------------------------------------------------------------------------------------


def test_a_hundred_million_parameters_are_tuned_as_bert_is_and_more_of_them_less():
    assert tuning_rate(100_000_000) == 5e-5
    assert 1e-5 <= tuning_rate(7_000_000_000) <= 2e-5
    assert tuning_rate(1_000) == 1e-3
    rates = [tuning_rate(10**power) for power in range(3, 12)]
    assert rates == sorted(rates, reverse=True)


def test_a_model_that_has_learned_is_tuned_by_adamw_at_the_rate_of_its_size(text, base):
    plan = planned(text, base)
    wanted = tuning_rate(count.parameters(plan.model).total)
    assert (plan.optimizer.type, plan.optimizer.lr, plan.optimizer.weight_decay) == ("adamw", wanted, 0.0)
    assert ("learning rate", f"{wanted:g} at its peak, AdamW") in plan.rows()


def test_what_is_trained_from_nothing_keeps_the_usual_rates(text):
    plan = nextile.plan(text, steps=4, settings=TINY, report=Silent())
    assert (plan.optimizer.type, plan.optimizer.lr) == ("muon", 3e-3)
    assert ("learning rate", "0.003 at its peak, Muon, 0.02 for matrices") in plan.rows()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"lr": 2e-6}, ("adamw", 2e-6)),
        ({"optimizer.lr": 3e-6}, ("adamw", 3e-6)),
        ({"optimizer": "muon"}, ("muon", 3e-3)),
        ({"optimizer": {"type": "muon", "lr": 1e-4}}, ("muon", 1e-4)),
    ],
)
def test_whoever_says_another_rate_gets_it(text, base, settings, wanted):
    optimizer = planned(text, base, settings=settings).optimizer
    assert (optimizer.type, optimizer.lr) == wanted


def test_adapters_take_their_own_rate(text, base):
    assert planned(text, base, lora=2).optimizer.lr == 1e-3


def test_what_a_run_took_is_in_its_folder(text, base, tmp_path):
    nextile.train(text, init=base, steps=1, out=tmp_path / "run", settings=TUNED, report=Silent())
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["settings"]["optimizer"]["type"] == found["plan"]["optimizer"]["type"] == "adamw"


# --- memory ---------------------------------------------------------------------------------------------------------

SPEC = qwen3.spec(vocab=1000, context=64, width=64, depth=2, heads=2)


def test_what_is_frozen_costs_itself_alone():
    total, asked = count.parameters(SPEC).total, {"rows": 2, "length": 16}
    whole = count.training_memory(SPEC, **asked)
    assert count.training_memory(SPEC, **asked, tuned=count.Tuned(trained=total, bytes=4 * total)) == whole
    frozen = count.training_memory(SPEC, **asked, tuned=count.Tuned(trained=0, bytes=4 * total))
    assert whole - frozen == total * 4 * 4  # gradients twice and two moments


def test_a_plan_by_adapters_counts_what_is_trained(text, base):
    whole, plan = planned(text, base), planned(text, base, lora=2)
    model = nextile.train(text, init=base, lora=2, steps=1, out=base.parent / "tuned", settings=TUNED, report=Silent())
    adapter = model.describe()["adapter"]
    total = count.parameters(whole.model).total
    assert plan.tuned.trained == adapter["trained_parameters"] < total
    assert plan.tuned.bytes == 4 * (total + adapter["trained_parameters"])
    assert whole.memory() - plan.memory() == 4 * (4 * total - 5 * adapter["trained_parameters"])
    assert ("trained", f"{plan.tuned.trained:,} parameters beside a frozen base") in plan.rows()


def test_what_is_frozen_is_counted_in_the_precision_of_the_products(text, base):
    wide, narrow = (planned(text, base, lora=2, settings={"precision": name}).tuned for name in ("fp32", "bf16"))
    matrices = count.parameters(planned(text, base).model).matrices  # no biases, and norms stay as they are
    assert narrow.trained == wide.trained
    assert wide.bytes - narrow.bytes == 2 * matrices


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_packed_base_is_counted_packed(text, base, kind):
    full, packed = planned(text, base, lora=2), planned(text, base, lora=2, settings={"lora.base": kind})
    assert packed.tuned.trained == full.tuned.trained
    assert packed.tuned.bytes < full.tuned.bytes


def test_a_new_head_is_counted_as_trained(base, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"the {i} cats", "label": i % 2}) + "\n" for i in range(20)))
    settings = {name: value for name, value in TUNED.items() if name != "context"}
    plan = nextile.plan(data, init=base, lora=1, steps=1, settings=settings, report=Silent())
    adapters = nextile.plan(data, init=base, lora=2, steps=1, settings=settings, report=Silent()).tuned.trained
    assert 2 * plan.tuned.trained - adapters == 2 * 16  # the head's matrix, whatever the rank


def test_plan_takes_lora_on_the_command_line(text, base, capsys):
    sets = [part for name, value in TUNED.items() for part in ("--set", f"{name}={str(value).lower()}")]
    assert run(["plan", str(text), "--init", str(base), "--lora", "2", "--steps", "1", "--json", *sets]) == 0
    assert json.loads(capsys.readouterr().out)["tuned"]["trained"] > 0


def test_adapters_without_a_model_cannot_be_planned(text):
    with pytest.raises(UsageError, match="name it by --init"):
        nextile.plan(text, lora=2, steps=1, settings=TINY, report=Silent())


def test_how_a_new_model_begins_is_not_said_of_one_that_is_there(text, base):
    with pytest.raises(UsageError, match="initialisation=zero_out is of a new model: leave it out beside --init"):
        planned(text, base, settings={"initialisation": "zero_out"})


def test_a_plan_counts_the_scores_that_its_device_keeps(text):
    plan = nextile.plan(text, steps=4, settings=TINY, report=Silent())
    assert plan.model_copy(update={"compiled": False}).memory() < plan.model_copy(update={"compiled": True}).memory()
