"""ViT against transformers, with random weights: logits, folders, parameters."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nextile.base.errors import NextileError
from nextile.checkpoint import convert
from nextile.checkpoint.store import load_model, load_spec, save_model
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import vit
from nextile.models.families.table import family_of
from nextile.nn import specs

CLASSES = ("tench", "goldfish", "white shark", "crane", "crane")  # two of a thousand names are the same in ImageNet
SAME = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 12,
    "patch_size": 4,
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: number for number, name in enumerate(CLASSES)},
}
CONFIGS = {
    "colours": SAME,
    "grey, in pairs": SAME
    | {"num_channels": 1, "image_size": [6, 6], "patch_size": [2, 2], "hidden_act": "gelu_new", "layer_norm_eps": 1e-6},
}


def random_vit(settings):
    """A model of theirs in which every number counts."""
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = "layernorm" in name and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.1 if parameter.dim() == 1 else 0.2)
    return theirs


@pytest.fixture(params=CONFIGS)
def theirs(request):
    return random_vit(CONFIGS[request.param])


@pytest.fixture
def folder(theirs, tmp_path):
    """What they write of it."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(theirs, folder):
    """Our model with the same numbers, float32."""
    spec = vit.from_config(theirs.config.to_dict())
    model = build(spec)
    model.load_state_dict(convert.read(vit.key_map(spec), load_file(folder / "model.safetensors")))
    return model.eval()


def pictures(spec, rows=5):
    """(B, C, H, W)."""
    channels, side = spec.embed.channels, spec.embed.image
    return torch.randn(rows, channels, side, side, generator=torch.Generator().manual_seed(1))


def difference(ours, theirs, dtype=torch.float32):
    given = pictures(ours.spec).to(dtype)
    return (ours(given) - theirs(given).logits).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs):
    assert difference(ours, theirs) <= 1e-5
    assert theirs(pictures(ours.spec)).logits.std(0).min() > 0.1  # the picture counts


@torch.no_grad()
def test_logits_in_double_precision(ours, theirs):
    assert difference(ours.double(), theirs.double(), torch.float64) <= 1e-9


@torch.no_grad()
def test_control_two_heads_in_each_others_place_are_seen(ours, theirs):
    keys = ours.stack.blocks[1].self_attention.inner.key.weight  # (heads * 12, 48)
    keys.copy_(keys.unflatten(0, (4, 12))[[1, 0, 2, 3]].flatten(0, 1))
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
def test_control_patches_read_column_by_column_are_seen(ours, theirs):
    matrix, embed = ours.embed.project.weight, ours.spec.embed
    matrix.copy_(matrix.unflatten(1, (embed.channels, embed.patch, embed.patch)).mT.flatten(1))
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["embed.summary", "embed.position.weight", "head.bias", "stack.norm.bias"])
def test_control_one_wrong_number_is_seen(ours, theirs, name):
    ours.get_parameter(name).view(-1)[0] += 0.1
    assert difference(ours, theirs) > 1e-5


def test_weights_go_there_and_back_byte_for_byte(ours, folder):
    rules, here, wanted = vit.key_map(ours.spec), dict(ours.named_parameters()), load_file(folder / "model.safetensors")
    there = convert.write(rules, here)
    assert there.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in there.items())
    back = convert.read(rules, there)
    assert back.keys() == here.keys()
    assert all(torch.equal(value, here[name]) for name, value in back.items())


def test_as_many_parameters(ours, theirs):
    assert count.parameters(ours.spec).total == theirs.num_parameters()


@pytest.mark.parametrize(
    ("size", "total"),
    [("vit-tiny", 5_717_416), ("vit-small", 22_050_664), ("vit-base", 86_567_656), ("vit-large", 304_326_632)],
)
def test_published_parameter_counts(size, total):
    classes = tuple(f"class {i}" for i in range(1000))
    assert count.parameters(vit.spec(classes=classes, **vit.SIZES[size])).total == total


# --- folders --------------------------------------------------------------------------------------------------------


def small(**more):
    return vit.spec(**{"classes": ("cat", "dog"), "image": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2} | more)


@torch.no_grad()
def test_we_load_their_folder(folder, theirs, tmp_path):
    ours, family = load_model(folder)
    assert (family, ours.spec.head.classes) == ("vit", CLASSES)
    assert difference(ours, theirs) <= 1e-5
    for name in ("once", "twice"):
        save_model(tmp_path / name, ours)
        ours, _ = load_model(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


@torch.no_grad()
def test_we_load_the_names_of_their_memory(folder, theirs):
    save_file(theirs.state_dict(), folder / "model.safetensors")
    assert difference(load_model(folder)[0], theirs) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_transformers_loads_our_folder(tmp_path, channels):
    spec = small(classes=CLASSES, channels=channels, activation="gelu_tanh", dropout=0.1, stochastic_depth=0.2)
    ours = build(spec, seed=3).eval()
    for parameter in ours.parameters():
        parameter.add_(torch.randn_like(parameter) / 8)
    save_model(tmp_path, ours)
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, transformers.ViTForImageClassification)
    assert not any(info.values()), info
    assert difference(ours, theirs.eval()) <= 1e-5
    assert tuple(theirs.config.id2label[i] for i in range(5)) == CLASSES
    assert all(CLASSES[number] == name for name, number in theirs.config.label2id.items())
    assert theirs.config.label2id.keys() == set(CLASSES)
    assert load_spec(tmp_path) == (spec, "vit")


def test_what_spec_makes_is_vits():
    for more in ({}, {"channels": 1, "hidden": 20, "activation": "relu", "eps": 1e-5, "classes": ("one",)},
                 {"dropout": 0.1, "attention_dropout": 0.2, "stochastic_depth": 0.3}):  # fmt: skip
        assert family_of(small(**more)) == "vit"


STACK = {
    "no bias": {"attention": specs.Attention(heads=2, bias="none")},
    "rms norm": {"norm": specs.RMSNorm()},
    "after": {"norm_place": "after"},
    "rotary": {"position": specs.Rotary()},
    "gated": {"feed_forward": specs.GatedMLP(hidden=64)},
}
PARTS = {
    "mean": {"head": specs.MeanHead(classes=("cat", "dog"))},
    "weighted": {"head": specs.WeightedHead(classes=("cat", "dog"))},
    "no bias in the head": {"head": specs.SummaryHead(classes=("cat", "dog"), bias=False)},
    "convolutions": {"embed": specs.ConvEmbedding(image=8)},
    "dropout of its own": {"embed": specs.PatchEmbedding(image=8, patch=4, dropout=0.1)},
}


@pytest.mark.parametrize("change", [*STACK, *PARTS])
def test_what_vit_cannot_say_is_nextiles(tmp_path, change):
    spec = small()
    changes = PARTS.get(change) or {"stack": spec.stack.model_copy(update=STACK[change])}
    other = spec.model_copy(update=changes)
    assert family_of(other) is None
    save_model(tmp_path, model := build(other))
    again, family = load_model(tmp_path)
    assert (again.spec, family) == (other, "nextile")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


# --- configurations -------------------------------------------------------------------------------------------------


def read(**fields):
    """The spec of a configuration as JSON has it, some of it changed; None: left out."""
    config = json.loads(json.dumps(transformers.ViTConfig(**SAME).to_dict())) | fields
    return vit.from_config({name: value for name, value in config.items() if value is not None})


def test_dropout_is_where_it_is_there():
    theirs = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SAME, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2)
    )
    spec = vit.from_config(theirs.config.to_dict())
    layer = theirs.vit.layers[0]
    wanted = (theirs.vit.embeddings.dropout.p, layer.dropout.p, layer.attention.attention_dropout)
    assert (spec.embed.dropout, spec.stack.dropout, spec.stack.attention.dropout) == wanted == (0.1, 0.1, 0.2)


def test_classes_are_in_the_order_of_their_numbers():
    many = [f"class {i}" for i in range(12)]
    assert read(id2label={str(i): many[i] for i in reversed(range(12))}).head.classes == tuple(many)


def test_classes_without_names_have_those_of_transformers():
    for fields, number in (({}, 2), ({"num_labels": 3}, 3)):
        said = {"id2label": None, "label2id": None} | fields
        theirs = transformers.ViTConfig(**fields).id2label
        assert read(**said).head.classes == tuple(theirs[i] for i in range(number))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"image_size": [12, 16]}, r"image_size is \[12, 16\].*squares only"),
        ({"patch_size": [4]}, r"patch_size is \[4\].*squares only"),
        ({"image_size": list(range(99_999))}, r"image_size is \[0, 1, 2, .{,9}\.\.\.\].*squares only"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "2 classes and none of them is 1"),
        ({"id2label": {"1": "cat", "2": "dog"}}, "2 classes and none of them is 0"),
        ({"id2label": ["cat", "dog"]}, "id2label is list"),
    ],
)
def test_a_variant_that_the_spec_cannot_say_is_refused(fields, message):
    with pytest.raises(NextileError, match=message) as caught:
        read(**fields)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "fields",
    [
        {"patch_size": 5},
        {"num_channels": 4},
        {"image_size": "wide"},
        {"image_size": 1 << 20},
        {"id2label": {}},
        {"id2label": {"0": None}},
        {"num_labels": 1 << 40, "id2label": None},
        {"num_labels": "many", "id2label": None},
        {"hidden_act": "cosine"},
        {"num_hidden_layers": 1 << 30},
        {"nextile_stochastic_depth": 1.0},
    ],
)
def test_a_broken_configuration_is_one_line(folder, fields):
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match="get a sound copy") as caught:
        load_spec(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_a_tensor_of_another_shape_is_one_line(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["vit.embeddings.cls_token"] = torch.zeros(1, 2, 24)  # as many numbers
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(NextileError, match=r"cls_token as \(1, 2, 24\) and config\.json says \(1, 1, 48\)"):
        load_model(folder)
