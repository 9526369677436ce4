"""The 2017 Transformer against transformers' Marian, with random weights: logits, tokens, folders, parameters."""

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
from nextile.models.families import marian
from nextile.models.families.table import family_of
from nextile.nn import specs
from nextile.nn.position import sinusoid
from nextile.text.characters import train_characters

SAME = {
    "vocab_size": 97,
    "d_model": 48,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "scale_embedding": True,
    "pad_token_id": 96,
    "decoder_start_token_id": 96,
    "eos_token_id": 0,
    "forced_eos_token_id": None,
}
CONFIGS = {
    "relu": SAME | {"activation_function": "relu"},
    "swish": SAME | {"activation_function": "swish"},
    "two sizes, not scaled": SAME
    | {"decoder_layers": 2, "decoder_attention_heads": 6, "decoder_ffn_dim": 32, "scale_embedding": False},
}
TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")


def random_marian(settings):
    """A model of theirs in which every number counts, and the source does too."""
    torch.manual_seed(0)
    theirs = transformers.MarianMTModel(transformers.MarianConfig(**settings)).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name not in POSITIONS:
                small = tensor.dim() == 1 or len(tensor) == 1
                tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.1 if small else 0.2)
    return theirs


@pytest.fixture(params=CONFIGS)
def pair(request):
    """(our model, theirs) with the same random numbers, float32."""
    theirs = random_marian(CONFIGS[request.param])
    spec = marian.from_config(theirs.config.to_dict())
    state = {name: value for name, value in theirs.state_dict().items() if name not in TIED + POSITIONS}
    ours = build(spec)
    ours.load_state_dict(convert.read(marian.key_map(spec), state), strict=False)
    return ours.eval(), theirs


def ids(rows=3, length=40, seed=1):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding():
    """(3, 40): one row is whole, the others have padding behind and before their tokens."""
    keep = torch.ones(3, 40, dtype=torch.bool)
    keep[1, 25:] = False
    keep[2, 1:] = False
    return keep


def difference(ours, theirs, keep=None):
    """The largest difference of logits; keep (B, M) says which tokens of the source are none."""
    source, target = ids(), ids(length=30, seed=2)
    mask = None if keep is None else keep.long()
    wanted = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    return (ours(source, target, source_segments=keep) - wanted).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(pair):
    assert difference(*pair) <= 1e-5


@torch.no_grad()
def test_a_padded_batch(pair):
    assert difference(*pair, padding()) <= 1e-5
    assert difference(pair[0], lambda **given: pair[1](**given | {"attention_mask": None}), padding()) > 1e-5


@torch.no_grad()
def test_logits_in_double_precision(pair):
    """Their table of positions is float32 for good, so it is held against ours, and then ours is put in its place."""
    ours, theirs = pair[0].double(), pair[1].double()
    table = sinusoid(torch.arange(128), 48)
    for side in (theirs.model.encoder, theirs.model.decoder):
        assert (side.embed_positions.weight - table).abs().max() <= 1e-5
        side.embed_positions.weight.copy_(table)
    assert difference(ours, theirs, padding()) <= 1e-9


@torch.no_grad()
def test_sixty_four_greedy_tokens(pair):
    ours, theirs = pair
    source, keep = ids(), padding()
    want = theirs.generate(
        source,
        attention_mask=keep.long(),
        max_new_tokens=64,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
    )
    cache = ours.new_cache(3, 64)
    cache.memory = ours.encode(source, keep)
    step = got = torch.full((3, 1), ours.spec.start)
    for _ in range(64):
        logits = ours.head(ours.features(step, cache=cache))
        cache.advance(1)
        step = logits[:, -1:].argmax(-1)
        got = torch.cat((got, step), 1)
    assert got.tolist() == want.tolist()
    assert len({tuple(row) for row in got.tolist()}) == 3  # the source is heard


@torch.no_grad()
@pytest.mark.parametrize("name", ["encoder.blocks.1.self", "decoder.blocks.1.self", "decoder.blocks.1.cross"])
def test_control_one_wrong_number_is_seen(pair, name):
    pair[0].get_parameter(f"{name}_attention.inner.out.weight")[0, 0] += 0.1
    assert difference(*pair) > 1e-5


def test_weights_go_there_and_back_byte_for_byte(pair):
    ours, theirs = pair
    rules, here = marian.key_map(ours.spec), dict(ours.named_parameters())
    there = convert.write(rules, here)
    assert set(there) == set(theirs.state_dict()) - set(TIED + POSITIONS)
    for name, value in there.items():
        assert torch.equal(value, theirs.state_dict()[name]), name
    back = convert.read(rules, there)
    assert back.keys() == here.keys()
    assert all(torch.equal(value, here[name]) for name, value in back.items())


def test_as_many_parameters(pair):
    """Theirs holds the bias of the head as a buffer, and the positions as parameters that are not trained."""
    ours, theirs = pair
    assert count.parameters(ours.spec).total == theirs.num_parameters(only_trainable=True) + 97


def test_published_parameter_counts():
    spec = marian.spec(**marian.SIZES["marian-base"], activation="silu", start=58_100)
    with torch.device("meta"):
        theirs = transformers.MarianMTModel(transformers.MarianConfig(**marian.to_config(spec)))
    assert count.parameters(spec).total == theirs.num_parameters(only_trainable=True) + 58_101


# --- folders --------------------------------------------------------------------------------------------------------


def test_what_spec_makes_is_marians(tmp_path):
    for more in ({}, {"decoder_depth": 2, "activation": "silu", "dropout": 0.3, "attention_dropout": 0.1, "start": 5}):
        assert family_of(marian.spec(vocab=9, context=8, width=8, depth=1, heads=1, hidden=9, **more)) == "marian"


@pytest.mark.parametrize("change", ["before", "relative", "target", "head", "uneven"])
def test_what_marian_cannot_say_is_nextiles(tmp_path, change):
    spec = marian.spec(vocab=9, context=8, width=8, depth=2, heads=2, hidden=9)
    encoder, decoder = spec.encoder, spec.decoder
    update = {
        "before": {
            "encoder": encoder.model_copy(update={"norm_place": "before"}),
            "decoder": decoder.model_copy(update={"norm_place": "before"}),
        },
        "relative": {"encoder": encoder.model_copy(update={"position": specs.RelativeBias()})},
        "target": {"target": spec.source},
        "head": {"head": specs.TiedHead()},
        "uneven": {"encoder": encoder.model_copy(update={"attention": specs.Attention(heads=3, head_dim=4)})},
    }[change]
    other = spec.model_copy(update=update)
    assert family_of(other) is None
    save_model(tmp_path, model := build(other), train_characters(["abc"]))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "nextile"
    again, family = load_model(tmp_path)
    assert (again.spec, family) == (other, "nextile")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("tokenizer", [None, train_characters(["the quick brown fox"])], ids=["alone", "tokenizer"])
def test_transformers_loads_our_folder(tmp_path, tokenizer):
    spec = marian.spec(vocab=97, context=64, width=32, depth=2, heads=4, hidden=48, dropout=0.1, start=7)
    ours = build(spec, seed=3).eval()
    ours.head.bias.normal_()
    save_model(tmp_path, ours, tokenizer)
    theirs, info = transformers.MarianMTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert difference(ours, theirs.eval(), padding()) <= 1e-5
    said, end = theirs.generation_config, None if tokenizer is None else tokenizer.end_id
    assert (said.decoder_start_token_id, said.pad_token_id, said.eos_token_id, said.forced_eos_token_id) == (
        (7, 7, end, None)
    )
    if tokenizer is not None:
        read = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert read("brown fox", add_special_tokens=False).input_ids == tokenizer.encode("brown fox")
        written = json.loads((tmp_path / "generation_config.json").read_text())
        assert (written["decoder_start_token_id"], written["forced_eos_token_id"]) == (7, None)


@torch.no_grad()
def test_we_load_their_folder(pair, tmp_path):
    _, theirs = pair
    theirs.save_pretrained(tmp_path)
    ours, family = load_model(tmp_path)
    assert family == "marian"
    assert difference(ours, theirs, padding()) <= 1e-5


@pytest.fixture
def theirs(tmp_path):
    """A folder of theirs, with all the tensors that some files hold beside the needed ones."""
    model = random_marian(CONFIGS["relu"])
    model.save_pretrained(tmp_path)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    return tmp_path


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def test_copies_and_tables_of_positions_are_left_out(theirs):
    wanted = random_marian(CONFIGS["relu"])
    assert difference(load_model(theirs)[0], wanted) <= 1e-5
    rewrite(theirs, lambda tensors: tensors.pop("model.shared.weight"))  # one of its names is enough
    assert difference(load_model(theirs)[0], wanted) <= 1e-5


@pytest.mark.parametrize("name", TIED)
def test_a_copy_that_is_none_is_refused(theirs, name):
    rewrite(theirs, lambda tensors: tensors[name][3, 3].add_(1))
    with pytest.raises(NextileError, match=f"{name} unlike model.shared.weight.*different models"):
        load_model(theirs)


def test_what_nobody_knows_is_refused(theirs):
    rewrite(theirs, lambda tensors: tensors.update({"model.encoder.layer_norm.weight": torch.ones(48)}))
    with pytest.raises(NextileError, match=r"has model\.encoder\.layer_norm\.weight, which this family does not know"):
        load_model(theirs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("share_encoder_decoder_embeddings", False),
        ("normalize_embedding", True),
        ("normalize_before", True),
        ("static_position_embeddings", False),
        ("decoder_vocab_size", 96),
        ("encoder_layerdrop", 0.1),
        ("is_encoder_decoder", False),
    ],
)
def test_a_variant_that_the_spec_cannot_say_is_refused(theirs, field, value):
    config = json.loads((theirs / "config.json").read_text()) | {field: value}
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match=f"{field} is {value}"):
        load_spec(theirs)
