"""Image-GPT, the painter and the classifier, against transformers, with random weights: logits, colours, folders."""

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
from nextile.models.families import imagegpt
from nextile.models.families.table import family_of
from nextile.nn import specs

CLASSES = ("tench", "goldfish", "crane", "crane")
SAME = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": 18, "n_positions": 64}
CONFIGS = {
    "painter": (transformers.ImageGPTForCausalImageModeling, SAME),
    "painter, narrow inside": (
        transformers.ImageGPTForCausalImageModeling,
        SAME | {"n_inner": 40, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-3},
    ),
    "classifier": (transformers.ImageGPTForImageClassification, SAME | {"id2label": dict(enumerate(CLASSES))}),
    "classifier of two": (transformers.ImageGPTForImageClassification, SAME),
}


def random_imagegpt(name):
    """A model of theirs in which every number counts."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(0)
    theirs = kind(transformers.ImageGPTConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = "ln_" in name
            parameter.normal_(1.0 if gain else 0.0, 0.1 if parameter.dim() == 1 else 0.2)
    return theirs


@pytest.fixture(params=CONFIGS)
def theirs(request):
    return random_imagegpt(request.param)


@pytest.fixture
def folder(theirs, tmp_path):
    """What they write of it."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(theirs, folder):
    """Our model with the same numbers, float32."""
    spec = imagegpt.from_config(theirs.config.to_dict())
    model = build(spec)
    model.load_state_dict(convert.read(imagegpt.key_map(spec), load_file(folder / "model.safetensors")))
    return model.eval()


def ids(rows=3, length=64):
    """(B, T); the beginning of a picture, 17, stands before each."""
    tokens = torch.randint(0, 17, (rows, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = 17
    return tokens


def difference(ours, theirs):
    return (ours(ids()) - theirs(ids()).logits).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs):
    assert difference(ours, theirs) <= 1e-5
    painter, logits = isinstance(ours.spec, specs.Transformer), ours(ids())
    assert logits.shape == ((3, 64, 17) if painter else (3, len(ours.spec.head.classes)))
    assert (logits[:, -1] if painter else logits).std(0).min() > 0.01  # the picture counts


@torch.no_grad()
def test_logits_in_double_precision(ours, theirs):
    assert difference(ours.double(), theirs.double()) <= 1e-9


@torch.no_grad()
def test_control_two_heads_in_each_others_place_are_seen(ours, theirs):
    keys = ours.stack.blocks[1].self_attention.inner.key.weight  # (heads * 12, 48)
    keys.copy_(keys.unflatten(0, (4, 12))[[1, 0, 2, 3]].flatten(0, 1))
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
@pytest.mark.parametrize("part", ["embed.position", "stack.norm", "stack.blocks.2.feed_forward.inner.down", "head"])
def test_control_one_wrong_number_is_seen(ours, theirs, part):
    ours.get_parameter(f"{part}.weight").view(-1)[0] += 0.1
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
def test_forty_greedy_colours():
    theirs = random_imagegpt("painter")
    spec = imagegpt.from_config(theirs.config.to_dict())
    ours = build(spec)
    ours.load_state_dict(convert.read(imagegpt.key_map(spec), dict(theirs.state_dict())))
    begin = torch.tensor([[17, 3, 4], [17, 5, 6]])
    want = theirs.generate(
        begin, max_new_tokens=40, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(begin)
    )
    cache, step, got = ours.eval().new_cache(2, 64), begin, begin
    for _ in range(40):
        logits = ours(step, cache=cache)
        cache.advance(step.shape[1])
        step = logits[:, -1:].argmax(-1)
        got = torch.cat((got, step), 1)
    assert got.tolist() == want.tolist()
    assert len(set(got[0].tolist())) > 3


def test_weights_go_there_and_back_byte_for_byte(ours, folder):
    rules, here = imagegpt.key_map(ours.spec), dict(ours.named_parameters())
    there, wanted = convert.write(rules, here), load_file(folder / "model.safetensors")
    assert there.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in there.items())
    back = convert.read(rules, there)
    assert back.keys() == here.keys()
    assert all(torch.equal(value, here[name]) for name, value in back.items())


def test_as_many_parameters(ours, theirs):
    assert count.parameters(ours.spec).total == theirs.num_parameters()


@pytest.mark.parametrize(
    ("size", "millions"), [("imagegpt-small", 76), ("imagegpt-medium", 455), ("imagegpt-large", 1362)]
)
def test_published_parameter_counts(size, millions):
    """The paper's, which writes 1.4 billion for the last."""
    spec = imagegpt.spec(**imagegpt.SIZES[size])
    with torch.device("meta"):
        theirs = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**imagegpt.to_config(spec)))
    assert count.parameters(spec).total == theirs.num_parameters()
    assert count.parameters(spec).total // 10**6 == millions


def test_dropout_is_where_it_is_there():
    theirs = transformers.ImageGPTModel(transformers.ImageGPTConfig(**SAME))
    spec, block = imagegpt.from_config(theirs.config.to_dict()), theirs.h[0]
    wanted = (theirs.drop.p, block.attn.resid_dropout.p, block.attn.attn_dropout.p)
    assert (spec.embed.dropout, spec.stack.dropout, spec.stack.attention.dropout) == wanted == (0.1, 0.1, 0.1)


# --- a classifier of a painter --------------------------------------------------------------------------------------


def small(**more):
    return imagegpt.spec(**{"vocab": 18, "context": 64, "width": 16, "depth": 2, "heads": 2} | more)


@torch.no_grad()
def test_a_classifier_sees_what_its_painter_saw():
    painter = build(small(dropout=0.3), seed=1)
    spec = imagegpt.classifier(painter.spec, ("cat", "dog"), dropout=0.1)
    assert (spec.embed.dropout, spec.stack.dropout, spec.stack.attention.dropout) == (0.1, 0.1, 0.1)
    model = build(spec)
    model.load_state_dict({**painter.state_dict(), "head.weight": torch.ones(2, 16)})
    wanted = painter.eval().features(ids())
    assert torch.equal(model.eval().features(ids()), wanted)
    assert torch.allclose(model(ids()), wanted.mean(1).sum(-1, keepdim=True).expand(-1, 2), atol=1e-6)


# --- folders --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_we_load_their_folder(folder, theirs, tmp_path):
    ours, family = load_model(folder)
    assert family == "imagegpt"
    assert difference(ours, theirs) <= 1e-5
    for name in ("once", "twice"):
        save_model(tmp_path / name, ours)
        ours, _ = load_model(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


@torch.no_grad()
def test_masks_that_early_versions_stored_are_left_out(folder, theirs):
    tensors = load_file(folder / "model.safetensors")
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril().bool() for i in range(3)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    save_file(tensors | masks, folder / "model.safetensors")
    assert difference(load_model(folder)[0], theirs) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", ["painter", "classifier"])
def test_transformers_loads_our_folder(tmp_path, kind):
    spec = small(dropout=0.1)
    spec = spec if kind == "painter" else imagegpt.classifier(spec, CLASSES, dropout=0.2)
    ours = build(spec, seed=3).eval()
    for parameter in ours.parameters():
        parameter.add_(torch.randn_like(parameter) / 8)
    save_model(tmp_path, ours)
    called = json.loads((tmp_path / "config.json").read_text())["architectures"]
    theirs, info = getattr(transformers, called[0]).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert difference(ours, theirs.eval()) <= 1e-5
    assert ("Classification" in type(theirs).__name__) == (kind == "classifier")
    if kind == "classifier":
        assert tuple(theirs.config.id2label[i] for i in range(4)) == CLASSES
    assert load_spec(tmp_path) == (spec, "imagegpt")


def test_what_spec_makes_is_imagegpts():
    for more in ({}, {"hidden": 20, "activation": "gelu_tanh", "eps": 1e-3}, {"dropout": 0.1}):
        assert family_of(small(**more)) == "imagegpt"
        assert family_of(imagegpt.classifier(small(**more), ("one",), dropout=0.2)) == "imagegpt"


STACK = {
    "layer norm": {"norm": specs.LayerNorm()},
    "not causal": {"causal": False},
    "no bias": {"attention": specs.Attention(heads=2, bias="none")},
    "stochastic depth": {"stochastic_depth": 0.1},
}
PARTS = {
    "whole vocabulary": {"head": specs.LinearHead()},
    "tied": {"head": specs.TiedHead()},
    "long": {"context": 32},
    "sinusoidal": {"embed": specs.TokenEmbedding(vocab=18, position=specs.Sinusoidal(length=64))},
}
CLASSIFIERS = {
    "biased": {"head": specs.MeanHead(classes=("cat", "dog"))},
    "weighted": {"head": specs.WeightedHead(classes=("cat", "dog"), bias=False)},
    "patches": {"embed": specs.PatchEmbedding(image=8, patch=2)},
}


@pytest.mark.parametrize("change", [*STACK, *PARTS, *CLASSIFIERS])
def test_what_imagegpt_cannot_say_is_nextiles(tmp_path, change):
    spec = imagegpt.classifier(small(), ("cat", "dog")) if change in CLASSIFIERS else small()
    changes = (PARTS | CLASSIFIERS).get(change) or {"stack": spec.stack.model_copy(update=STACK[change])}
    other = spec.model_copy(update=changes)
    assert family_of(other) is None
    save_model(tmp_path, model := build(other))
    again, family = load_model(tmp_path)
    assert (again.spec, family) == (other, "nextile")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("tie_word_embeddings", True),
        ("add_cross_attention", True),
    ],
)
def test_a_variant_that_the_spec_cannot_say_is_refused(field, value):
    config = transformers.ImageGPTConfig(**SAME).to_dict() | {field: value}
    with pytest.raises(NextileError, match=f"{field} is {value}"):
        imagegpt.from_config(config)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 1},
        {"n_positions": 0},
        {"n_embd": None},
        {"n_head": 5},
        {"architectures": 7},
        {"activation_function": "cosine"},
        {"n_layer": 1 << 30},
    ],
)
def test_a_broken_configuration_is_one_line(tmp_path, fields):
    config = transformers.ImageGPTConfig(**SAME).to_dict() | {"architectures": None} | fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match="get a sound copy") as caught:
        load_spec(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
