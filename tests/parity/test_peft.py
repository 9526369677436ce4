"""Adapters against PEFT: what it writes is computed here, what is written here is computed there, both train alike."""

import json
import warnings
from copy import deepcopy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from nextile.base.errors import NextileError
from nextile.checkpoint import convert
from nextile.checkpoint.adapters import attach, carriers, save_adapter
from nextile.checkpoint.pretrained import load
from nextile.checkpoint.store import load_model
from nextile.checkpoint.tuned import begin, save_tuned
from nextile.checkpoint.weights import load_tensors, save_tensors
from nextile.models.build import build
from nextile.models.families import vit
from nextile.models.families.table import FAMILIES, family_named
from nextile.nn.lora import Adapter, Lora, adaptable, adapters_of, add_lora, merge, put_adapters, use_adapter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SMALL = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": 0}
DECODER = {
    **SMALL, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
BASES = {
    "gpt2": transformers.GPT2Config(
        **SMALL, n_layer=2, n_embd=32, n_head=4, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "qwen3": transformers.Qwen3Config(**DECODER, head_dim=8, tie_word_embeddings=True),
    "gpt_neox": transformers.GPTNeoXConfig(**{**DECODER, "num_key_value_heads": 4}, tie_word_embeddings=True),
}  # fmt: skip
TARGETS = {
    "gpt2": ["c_attn", "mlp.c_proj"],
    "qwen3": ["q_proj", "v_proj", "down_proj"],
    "gpt_neox": ["query_key_value", "dense"],
}

SIZES = {"vocab": 40, "width": 32, "depth": 2, "heads": 4, "hidden": 64}
PICTURES = {"image": 8, "patch": 4, "classes": ("a", "b"), "width": 32, "depth": 2, "heads": 4, "hidden": 64}


def made(name):
    """The base there and here with the same random numbers, float32."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(BASES[name]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    family = family_named({"model_type": name})
    spec = family.from_config(BASES[name].to_dict())
    rules = family.key_map(spec)
    wanted = {key for rule in rules for key in rule.theirs}
    ours = build(spec)
    state = {key: value for key, value in theirs.state_dict().items() if key in wanted}
    ours.load_state_dict(convert.read(rules, state))
    return theirs, ours.eval()


def adapted(theirs, name, **settings):
    """A base of PEFT's with random numbers in both factors."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS[name], "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture(params=BASES)
def name(request):
    return request.param


@pytest.fixture
def pair(name, tmp_path):
    """PEFT's model, our base, and the folder that PEFT wrote."""
    theirs, ours = made(name)
    model = adapted(theirs, name)
    model.save_pretrained(tmp_path / "theirs")
    return model, ours, tmp_path / "theirs"


def ids(rows=2, length=24, seed=2):
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def difference(ours, theirs):
    return (ours(ids()) - theirs(ids()).logits).abs().max().item()


def numbers(folder):
    return load_tensors(folder / "adapter_model.safetensors")


def test_what_peft_wrote_gives_its_logits(pair):
    theirs, ours, folder = pair
    assert difference(ours, theirs) > 1e-3  # control: without the adapter they differ
    attach(ours, folder)
    assert difference(ours, theirs) <= 1e-5


@torch.no_grad()
def test_control_one_wrong_number_is_seen(pair):
    theirs, ours, folder = pair
    attach(ours, folder)
    next(iter(adapters_of(ours).values())).up.weight[0, 0] += 0.1
    assert difference(ours, theirs) > 1e-5


def test_merged_here_and_there_it_is_the_same(pair):
    theirs, ours, folder = pair
    attach(ours, folder)
    merge(ours)
    merged = theirs.merge_and_unload()
    assert difference(ours, merged) <= 1e-5
    family = family_named({"model_type": theirs.config.model_type})
    for key, value in convert.write(family.key_map(ours.spec), dict(ours.named_parameters())).items():
        torch.testing.assert_close(value, merged.state_dict()[key], rtol=0, atol=1e-6)


def test_from_peft_through_here_every_number_and_setting_is_the_same(pair, tmp_path):
    _, ours, folder = pair
    attach(ours, folder)
    save_adapter(tmp_path / "ours", ours, "the/base")
    before, after = numbers(folder), numbers(tmp_path / "ours")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    there, here = (json.loads((each / "adapter_config.json").read_text()) for each in (folder, tmp_path / "ours"))
    assert here["base_model_name_or_path"] == "the/base"
    said = {"base_model_name_or_path", "target_modules"}
    assert {key: there[key] for key in here if key not in said} == {key: here[key] for key in here if key not in said}


def written_here(ours, folder, theirs, spec):
    """Our adapter, in PEFT's hands."""
    add_lora(ours, spec, seed=5)
    with torch.no_grad():
        for number, adapter in enumerate(adapters_of(ours).values()):
            adapter.up.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    save_adapter(folder, ours, "base")
    return peft.PeftModel.from_pretrained(theirs, folder).eval()


@pytest.mark.parametrize("targets", [(), ("query", "value"), ("*.blocks.1.*.up", "key"), ("*.blocks.0.*",)])
def test_what_is_written_here_gives_the_same_in_peft(name, tmp_path, targets):
    theirs, ours = made(name)
    model = written_here(ours, tmp_path, theirs, Lora(rank=3, alpha=5, targets=targets))
    assert difference(ours, model) <= 1e-5
    _, again = made(name)
    attach(again, tmp_path)
    assert difference(again, model) <= 1e-5
    save_adapter(tmp_path / "again", again, "base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_layers_of_one_matrix_may_have_their_own_ranks_and_scales(tmp_path):
    theirs, ours = made("gpt2")
    layer = "stack.blocks.1.self_attention.inner"
    shapes = {"query": (2, 3.0), "value": (5, 4.0), "out": (1, 7.0)}
    adapters = {f"{layer}.{part}": Adapter(32, 32, *shape) for part, shape in shapes.items()}
    for number, adapter in enumerate(adapters.values()):
        adapter.initialise(torch.Generator().manual_seed(number))
        nn.init.normal_(adapter.up.weight, 0, 0.2)
    put_adapters(ours, adapters)
    save_adapter(tmp_path, ours, "base")
    model = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert difference(ours, model) <= 1e-5


def test_peft_adapts_no_layer_more(name, tmp_path):
    theirs, ours = made(name)
    model = written_here(ours, tmp_path, theirs, Lora(rank=3, targets=("*.blocks.1.*",)))
    there = {key.replace(".default", "") for key in model.state_dict() if "lora_" in key}
    assert there == set(numbers(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"0.mlp.down_proj": 2}, "alpha_pattern": {"0.mlp.down_proj": 9, "v_proj": 3}},
        {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 1}},
        {"layers_to_transform": [1], "lora_dropout": 0.25},
        {"target_modules": r".*layers\.0\.self_attn\.(q|o)_proj"},
        {"target_modules": "all-linear"},
    ],
)
def test_settings_of_peft_are_understood(settings, tmp_path):
    theirs, ours = made("qwen3")
    model = adapted(theirs, "qwen3", **settings)
    model.save_pretrained(tmp_path)
    attach(ours, tmp_path)
    assert difference(ours, model) <= 1e-5
    share = settings.get("lora_dropout", 0.0)
    assert {adapter.dropout.share for adapter in adapters_of(ours).values()} == {share}


def test_several_adapters_take_turns(pair, tmp_path):
    theirs, ours, folder = pair
    with torch.no_grad():
        theirs.disable_adapter_layers()
        base = theirs(ids()).logits
        theirs.enable_adapter_layers()
    attach(ours, folder, "one")
    attach(ours, folder, "two")
    adapters_of(ours, "two")
    with torch.no_grad():
        for adapter in adapters_of(ours, "two").values():
            adapter.up.weight.neg_()
    assert difference(ours, theirs) > 1e-3
    use_adapter(ours, "one")
    assert difference(ours, theirs) <= 1e-5
    use_adapter(ours, None)
    assert (ours(ids()) - base).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_both_train_alike(pair, kind):
    theirs, ours, folder = pair
    attach(ours, folder)
    losses = [trained(model, kind, read) for model, read in ((ours, ours), (theirs, lambda x: theirs(x).logits))]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-5
    assert losses[0][0] - losses[0][-2] > 1e-3  # control: on the same batch again, they have learned


@pytest.mark.parametrize(("name", "matrix"), [("gpt2", "c_attn"), ("gpt_neox", "query_key_value")])
def test_what_is_one_matrix_there_is_begun_and_trained_as_peft_does(name, matrix, tmp_path):
    theirs, ours = made(name)
    begin(ours, Lora(rank=3, alpha=6, targets=("query", "key", "value")), None, (), seed=5)
    save_adapter(tmp_path, ours, "base")
    assert {tuple(each.shape) for key, each in numbers(tmp_path).items() if matrix in key} == {(3, 32), (96, 3)}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 3
    model = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    losses = [trained(each, "adamw", read) for each, read in ((ours, ours), (model, lambda x: model(x).logits))]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-5
    assert losses[0][0] - losses[0][-2] > 1e-3  # control: on the same batch again, they have learned
    save_adapter(tmp_path / "ours", ours, "base")
    model.save_pretrained(tmp_path / "theirs")
    here, there = numbers(tmp_path / "ours"), numbers(tmp_path / "theirs")
    assert here.keys() == there.keys()
    for key, value in here.items():
        torch.testing.assert_close(value, there[key], rtol=0, atol=1e-5)


def test_control_layers_that_share_nothing_are_written_under_each_other(tmp_path):
    _, ours = made("gpt2")
    add_lora(ours, Lora(rank=3, targets=("query", "key", "value")))
    save_adapter(tmp_path, ours, "base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 9


def trained(model, kind, logits):
    """The losses of six steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:  # PEFT froze it when it was saved
        parameters = [parameter.requires_grad_() for key, parameter in model.named_parameters() if "lora_" in key]
    rule = torch.optim.SGD(parameters, 0.3) if kind == "sgd" else torch.optim.AdamW(parameters, 3e-3)
    losses = []
    for step in range(6):
        batch = ids(seed=step % 2)
        loss = F.cross_entropy(logits(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        rule.zero_grad()
        loss.backward()
        rule.step()
        losses.append(loss.item())
    return losses


def test_an_adapter_of_another_model_is_refused_before_anything_is_changed(pair):
    *_, folder = pair
    _, other = made("qwen3" if "c_attn" in str(numbers(folder)) else "gpt2")
    with pytest.raises(NextileError, match="no linear layer of this model"):
        attach(other, folder)
    assert not any(isinstance(module, Adapter) for module in other.modules())


# --- what is no sound adapter ---------------------------------------------------------------------------------------


SOUND = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def both(down=(2, 32), up=(32, 2)):
    """Factors of these shapes."""
    return {f"{MODULE}.lora_A.weight": torch.ones(down), f"{MODULE}.lora_B.weight": torch.ones(up)}


def folder_of(tmp_path, settings=None, tensors=None):
    """A small folder by hand."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(SOUND | (settings or {})))
    save_tensors(tmp_path / "adapter_model.safetensors", both() if tensors is None else tensors)
    return tmp_path


def refused(folder, *parts):
    """The error's line, which says all of this."""
    with pytest.raises(NextileError) as caught:
        attach(made("qwen3")[1], folder)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    for part in parts:
        assert part in message
    return message


def test_the_folder_by_hand_is_sound(tmp_path):
    assert attach(made("qwen3")[1], folder_of(tmp_path)).rank == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "'use_dora' is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": "lm_head"}, "'saved"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"some_later_variant": {"a": 1}}, "'some_later_variant'"),
        ({"\x1b[2Jevil\n": "x" * 10_000}, "\\x1b[2Jevil\\n"),
        ({"r": 1 << 40}, "'rank'"),
        ({"r": -1}, "'rank'"),
        ({"r": 3}, "of rank 2"),
        ({"lora_alpha": float("nan")}, "'alpha'"),
        ({"lora_alpha": "eight"}, "'alpha'"),
        ({"lora_dropout": 1.0}, "'dropout'"),
        ({"rank_pattern": [3]}, "no table"),
        ({"rank_pattern": {"(a+)+$": 2}}, "nextile reads names only"),
        ({"alpha_pattern": {"q_proj": -2}}, "'alphas.q_proj'"),
        ({"target_modules": ["v_proj"]}, "leave out"),
        ({"target_modules": [["q_proj"]]}, "'targets"),
    ],
)
def test_a_configuration_that_asks_for_more_or_nonsense_is_refused_in_one_line(settings, said, tmp_path):
    refused(folder_of(tmp_path, settings), said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "no tensor"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 32)}, "only"),
        (both(down=(2, 32), up=(32, 3)), "different ranks"),
        (both(down=(2, 31), up=(32, 2)), "as a matrix"),
        (both(down=(2, 32), up=(31, 2)), "as a matrix"),
        (both(down=(64,), up=(32, 2)), "no matrix"),
        ({f"{MODULE}.lora_A.weight": torch.ones(2, 32).int()}, "no matrix"),
        ({f"{MODULE}.lora_embedding_A": torch.ones(2, 32)}, "lora_embedding_A"),
        ({"\x1b]0;evil": torch.ones(2, 32)}, "\\x1b]0;evil"),
        (both() | {"base_model.model.score.weight": torch.ones(2, 32)}, "score.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_one_line(tensors, said, tmp_path):
    refused(folder_of(tmp_path, tensors=tensors), said)


def test_a_layer_that_the_model_has_not_is_refused(tmp_path):
    tensors = {key.replace("layers.0", "layers.9"): value for key, value in both().items()}
    settings = {"base_model_name_or_path": "\x1b[2Jbase"}
    refused(folder_of(tmp_path, settings, tensors), "model.layers.9.self_attn.q_proj", "\\x1b[2Jbase")


def test_pickles_links_and_missing_files_are_refused(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "adapter_model.safetensors").rename(tmp_path.parent / "elsewhere.safetensors")
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    refused(folder, "safe_serialization")
    (folder / "adapter_model.safetensors").symlink_to(tmp_path.parent / "elsewhere.safetensors")
    refused(folder, "leaves its folder")
    (folder / "adapter_config.json").unlink()
    refused(folder, "is not an adapter's folder")


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"peft_type": "LORA", "r": {}}', "\udcff"])
def test_a_configuration_that_is_none_is_refused(text, tmp_path):
    folder = folder_of(tmp_path)
    (folder / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    refused(folder)


def test_a_layer_that_the_familys_files_have_not_as_a_matrix_is_named(tmp_path):
    model = build(vit.spec(**PICTURES))
    add_lora(model, Lora(rank=2, targets=("query", "project")))
    with pytest.raises(NextileError, match=r"embed\.project is no matrix of its own"):
        save_adapter(tmp_path, model, "base")


# --- heads beside an adapter ----------------------------------------------------------------------------------------

BODIES = {
    "gpt2": (BASES["gpt2"], ["c_attn"]),
    "qwen3": (BASES["qwen3"], ["q_proj", "up_proj"]),
    "bert": (
        transformers.BertConfig(
            vocab_size=61, num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64,
        ),
        ["query", "value"],
    ),
    "roberta": (
        transformers.RobertaConfig(
            vocab_size=61, num_hidden_layers=2, hidden_size=32, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=66, pad_token_id=1,
        ),
        ["query", "value"],
    ),
}  # fmt: skip


def classifier_there(name, folder):
    """A classifier into three of transformers' with random numbers, saved."""
    config = deepcopy(BODIES[name][0])
    config.num_labels, config.pad_token_id = 3, config.pad_token_id or 1
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
def classes_apart(ours, theirs):
    batch = ids() % 50 + 5  # none of which is padding
    there = torch.ones_like(batch, dtype=torch.bool)
    return (ours(batch, there) - theirs(batch, attention_mask=there.long()).logits).abs().max().item()


@pytest.mark.parametrize("name", BODIES)
def test_a_classifiers_adapter_of_peft_is_read_with_its_head(name, tmp_path):
    base = classifier_there(name, tmp_path / "base")
    before = deepcopy(base)
    settings = {"target_modules": BODIES[name][1], "task_type": "SEQ_CLS"}
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=2, **settings)).eval()
    theirs.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:  # the factors and the head
                parameter.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path / "tuned")
    ours = load(tmp_path / "tuned", device="cpu")
    assert ours.task == "classify-text"
    assert classes_apart(ours.model, theirs) <= 1e-5
    assert classes_apart(ours.model, before) > 1e-3  # control


@pytest.mark.parametrize("name", BODIES)
def test_a_new_head_trained_here_is_peft_s(name, tmp_path):
    classifier_there(name, tmp_path / "base")
    ours = load(tmp_path / "base", device="cpu").model
    heads = tuple(key for key, _ in ours.named_parameters() if key.startswith("head."))
    begin(ours, Lora(rank=2, targets=("query", "value")), None, heads, seed=3)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.2)
    save_tuned(tmp_path / "tuned", ours, str(tmp_path / "base"))
    assert not (tmp_path / "tuned" / "trained.safetensors").exists()
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "tuned").eval()
    assert classes_apart(ours.eval(), theirs) <= 1e-5
    again = load(tmp_path / "tuned", device="cpu")
    assert torch.equal(again.model(ids(), ids() >= 0), ours(ids(), ids() >= 0))
    theirs.save_pretrained(tmp_path / "again")
    before, after = numbers(tmp_path / "tuned"), numbers(tmp_path / "again")
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_language_model_becomes_a_classifier_by_its_adapter(tmp_path):
    made("gpt2")[0].save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=3, pad_token_id=1
    )
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="SEQ_CLS")).eval()
    model.save_pretrained(tmp_path / "tuned")
    found = load(tmp_path / "tuned", device="cpu")
    assert found.spec.head.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert classes_apart(found.model, model) <= 1e-5


@pytest.mark.parametrize("pooled", [True, False])
def test_berts_pooler_comes_from_the_files_of_a_base_that_fills_gaps(pooled, tmp_path):
    torch.manual_seed(0)
    kind = transformers.BertForPreTraining if pooled else transformers.BertForMaskedLM
    kind(BODIES["bert"][0]).save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    settings = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, **settings)).eval()
    model.save_pretrained(tmp_path / "tuned")
    if not pooled:  # which transformers then made up, and PEFT did not keep
        with pytest.raises(NextileError, match=r"do not make one model, first at head\.dense\.weight"):
            load(tmp_path / "tuned", device="cpu")
        return
    found = load(tmp_path / "tuned", device="cpu")
    assert found.family == "bert"
    assert classes_apart(found.model, model) <= 1e-5


def test_what_is_no_module_by_itself_in_the_familys_files_stands_in_a_file_of_ours(tmp_path):
    model = build(FAMILIES["bert"].spec(**SIZES))
    begin(model, Lora(rank=2, targets=("query",)), None, ("embed.token.weight", "head.bias"), seed=0)
    save_tuned(tmp_path, model, "base")  # cls.predictions has more than the bias
    assert set(load_tensors(tmp_path / "trained.safetensors")) == {"head.bias"}
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["bert.embeddings.word_embeddings"]


def test_an_adapter_with_a_head_is_no_adapter_beside_others(tmp_path):
    tensors = both() | {"base_model.model.score.weight": torch.ones(2, 32)}
    refused(folder_of(tmp_path, {"modules_to_save": ["score"]}, tensors), "score.weight", "load the folder as a model")


def test_a_head_that_the_base_has_not_or_has_otherwise_is_refused(tmp_path):
    classifier_there("qwen3", tmp_path / "base")
    folder = tmp_path / "tuned"
    folder.mkdir()
    for settings, tensor, said in (
        ({"modules_to_save": ["lm_head"]}, {"lm_head.weight": torch.ones(61, 32)}, "lm_head.weight"),
        ({"modules_to_save": ["score"]}, {"score.weight": torch.ones(4, 32)}, "do not make one model"),
    ):
        tensors = both() | {f"base_model.model.{key}": value for key, value in tensor.items()}
        folder_of(folder, {"base_model_name_or_path": str(tmp_path / "base")} | settings, tensors)
        with pytest.raises(NextileError, match=said):
            load(folder, device="cpu")


# --- every family ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family_a_product_of_factors_moves_as_its_weights_do(family):
    module = FAMILIES[family]
    model = build(module.spec(**(PICTURES if family in ("vit", "deit") else SIZES)))
    layers, known = adaptable(model), carriers(model, family)
    blocks = {path for path in layers if "blocks" in path.split(".")}
    assert blocks <= {path for carrier in known.values() for path in carrier.layers}
    for carrier in known.values():
        torch.manual_seed(3)
        down = torch.randn(3, layers[carrier.layers[0]].in_features)
        up = torch.randn(sum(layers[path].out_features for path in carrier.layers), 3)
        parts = carrier.ours(up)
        assert torch.equal(carrier.theirs(parts), up)
        product = (up @ down).mT if carrier.turned else up @ down
        for part, weight in zip(parts, carrier.rule.read([product]), strict=True):
            torch.testing.assert_close(part @ down, weight)


@torch.no_grad()
def test_a_vision_transformer_under_the_names_that_its_modules_have_in_memory(tmp_path):
    spec = vit.spec(**PICTURES)
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**vit.to_config(spec))).eval()
    theirs.save_pretrained(tmp_path / "base")
    ours, _ = load_model(tmp_path / "base")
    model = written_here(ours, tmp_path / "ours", theirs, Lora(rank=2, targets=("query", "up")))
    images = torch.randn(2, 3, 8, 8)
    assert (ours(images) - model(images).logits).abs().max() <= 1e-5
    use_adapter(ours, None)
    assert (ours(images) - model(images).logits).abs().max() > 1e-3  # control
