"""BERT against transformers, with random weights: logits, features, folders, old files, WordPiece."""

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
from nextile.models.families import bert, gpt2, vit
from nextile.models.families.table import family_of
from nextile.nn import specs
from nextile.text.tokenizer import Tokenizer

SAME = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "two types": SAME,
    "three types, another activation and eps": SAME
    | {"type_vocab_size": 3, "hidden_act": "gelu_new", "layer_norm_eps": 1e-3, "intermediate_size": 50},
}


def random_bert(settings, kind=transformers.BertForMaskedLM):
    """A model of theirs in which every number counts."""
    torch.manual_seed(0)
    theirs = kind(transformers.BertConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = name.endswith("LayerNorm.weight")
            parameter.normal_(1.0 if gain else 0.0, 0.1 if parameter.dim() == 1 else 0.2)
    return theirs


@pytest.fixture(params=CONFIGS)
def theirs(request):
    return random_bert(CONFIGS[request.param])


@pytest.fixture
def folder(theirs, tmp_path):
    """What they write of it."""
    theirs.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def ours(theirs, folder):
    """Our model with the same numbers, float32."""
    spec = bert.from_config(theirs.config.to_dict())
    model = build(spec)
    model.load_state_dict(convert.read(bert.key_map(spec), load_file(folder / "model.safetensors")))
    return model.eval()


def ids(rows=3, length=40):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def padding():
    """(3, 40): one row is whole, the others have padding behind their tokens."""
    keep = torch.ones(3, 40, dtype=torch.bool)
    keep[1, 25:] = False
    keep[2, 1:] = False
    return keep


def difference(ours, theirs):
    return (ours(ids()) - theirs(ids()).logits).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(ours, theirs):
    assert difference(ours, theirs) <= 1e-5
    assert theirs(ids()).logits.std((0, 1)).min() > 0.1  # the tokens count


@torch.no_grad()
def test_logits_in_double_precision(ours, theirs):
    assert difference(ours.double(), theirs.double()) <= 1e-9


@torch.no_grad()
def test_a_padded_batch(ours, theirs):
    keep = padding()
    got, wanted = ours(ids(), segments=keep), theirs(ids(), attention_mask=keep.long()).logits
    assert (got - wanted)[keep].abs().max() <= 1e-5
    assert (ours(ids()) - wanted)[keep].abs().max() > 1e-5  # the padding is hidden


@torch.no_grad()
def test_features_are_those_of_transformers(ours, theirs):
    keep = padding()
    wanted = theirs.bert(ids(), attention_mask=keep.long()).last_hidden_state
    assert (ours.features(ids(), segments=keep) - wanted)[keep].abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["embed.types.weight", "embed.norm.bias", "head.dense.bias", "head.norm.weight"])
def test_control_one_wrong_number_is_seen(ours, theirs, name):
    ours.get_parameter(name).view(-1)[0] += 0.1
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
def test_control_a_token_of_the_second_text_is_another(ours, theirs):
    second = torch.ones_like(ids())
    assert (ours(ids()) - theirs(ids(), token_type_ids=second).logits).abs().max() > 1e-5
    ours.embed.types.weight[0] = ours.embed.types.weight[1]
    assert (ours(ids()) - theirs(ids(), token_type_ids=second).logits).abs().max() <= 1e-5


def test_weights_go_there_and_back_byte_for_byte(ours, folder):
    rules, here, wanted = (
        bert.key_map(ours.spec),
        dict(ours.named_parameters()),
        load_file(folder / "model.safetensors"),
    )
    there = convert.write(rules, here)
    assert there.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in there.items())
    back = convert.read(rules, there)
    assert back.keys() == here.keys()
    assert all(torch.equal(value, here[name]) for name, value in back.items())


def test_as_many_parameters(ours, theirs):
    assert count.parameters(ours.spec).total == theirs.num_parameters()


@pytest.mark.parametrize(
    ("size", "total"), [("bert-tiny", 4_416_698), ("bert-base", 109_514_298), ("bert-large", 335_174_458)]
)
def test_published_parameter_counts(size, total):
    """Those of transformers for the published configurations."""
    assert count.parameters(bert.spec(**bert.SIZES[size])).total == total


def test_a_head_is_as_wide_in_every_size():
    assert {size["width"] / size["heads"] for size in bert.SIZES.values()} == {64}  # Turc et al. 2019


# --- folders --------------------------------------------------------------------------------------------------------


def small(**more):
    return bert.spec(**{"vocab": 97, "context": 64, "width": 16, "depth": 2, "heads": 2} | more)


@torch.no_grad()
def test_we_load_their_folder(folder, theirs, tmp_path):
    ours, family = load_model(folder)
    assert family == "bert"
    assert difference(ours, theirs) <= 1e-5
    for name in ("once", "twice"):
        save_model(tmp_path / name, ours)
        ours, _ = load_model(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    wanted, written = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "once"))
    assert written.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in written.items())


@torch.no_grad()
def test_transformers_loads_our_folder(tmp_path):
    spec = small(activation="relu", types=1, eps=1e-3, dropout=0.1, attention_dropout=0.2)
    ours = build(spec, seed=3).eval()
    for parameter in ours.parameters():
        parameter.add_(torch.randn_like(parameter) / 8)
    save_model(tmp_path, ours)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, transformers.BertForMaskedLM)
    assert not any(info.values()), info
    assert difference(ours, theirs.eval()) <= 1e-5
    assert load_spec(tmp_path) == (spec, "bert")


def test_dropout_is_where_it_is_there():
    settings = SAME | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**settings))
    spec, layer = bert.from_config(theirs.config.to_dict()), theirs.bert.encoder.layer[0]
    places = {theirs.bert.embeddings.dropout.p, layer.attention.output.dropout.p, layer.output.dropout.p}
    assert {spec.embed.dropout, spec.stack.dropout} == places == {0.1}
    assert spec.stack.attention.dropout == layer.attention.self.dropout.p == 0.2


def published(folder, **more):
    """What was published of a model that also learned which text follows which, all names of its memory kept."""
    theirs = random_bert(SAME, transformers.BertForPreTraining)
    theirs.config.architectures = ["BertForPreTraining"]
    theirs.config.save_pretrained(folder)
    tensors = {name: value.clone() for name, value in theirs.state_dict().items()}
    tensors |= {"bert.embeddings.position_ids": torch.arange(64)[None], **more}
    save_file(tensors, folder / "model.safetensors")
    return theirs


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")


def first_name(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@torch.no_grad()
def test_what_no_part_of_ours_needs_is_left_out(tmp_path):
    theirs = published(tmp_path)
    spare = {"bert.pooler.dense.weight", "cls.seq_relationship.bias", "cls.predictions.decoder.weight"}
    assert spare <= load_file(tmp_path / "model.safetensors").keys()
    ours, _ = load_model(tmp_path)
    assert (ours(ids()) - theirs(ids()).prediction_logits).abs().max() <= 1e-5


@torch.no_grad()
def test_the_names_of_the_first_checkpoints_are_known(tmp_path):
    theirs = published(tmp_path)
    rewrite(tmp_path, lambda tensors: {first_name(name): value for name, value in tensors.items()})
    assert "bert.encoder.layer.2.output.LayerNorm.gamma" in load_file(tmp_path / "model.safetensors")
    ours, _ = load_model(tmp_path)
    assert (ours(ids()) - theirs(ids()).prediction_logits).abs().max() <= 1e-5


def test_two_names_of_two_numbers_are_refused(tmp_path):
    published(tmp_path, **{"bert.embeddings.LayerNorm.gamma": torch.zeros(48)})
    with pytest.raises(NextileError, match=r"LayerNorm\.gamma unlike bert\.embeddings\.LayerNorm\.weight"):
        load_model(tmp_path)


def test_a_decoder_that_is_no_copy_is_refused(tmp_path):
    published(tmp_path, **{"cls.predictions.decoder.weight": torch.zeros(97, 48)})
    with pytest.raises(NextileError, match=r"decoder\.weight unlike bert\.embeddings\.word_embeddings\.weight"):
        load_model(tmp_path)


def test_what_nobody_knows_is_refused(tmp_path):
    published(tmp_path, **{"bert.encoder.layer.0.crossattention.self.query.weight": torch.ones(48, 48)})
    with pytest.raises(NextileError, match=r"crossattention.*which this family does not know"):
        load_model(tmp_path)


def test_a_file_without_the_head_is_refused(tmp_path):
    published(tmp_path)
    rewrite(tmp_path, lambda tensors: {name: value for name, value in tensors.items() if name.startswith("bert.")})
    with pytest.raises(NextileError, match=r"lacks cls\.predictions\.bias"):
        load_model(tmp_path)


# --- specs and configurations ---------------------------------------------------------------------------------------


def test_what_spec_makes_is_berts():
    for more in ({}, {"hidden": 20, "activation": "relu", "eps": 1e-5, "types": 1},
                 {"dropout": 0.1, "attention_dropout": 0.2}):  # fmt: skip
        assert family_of(small(**more)) == "bert"


def test_the_other_families_keep_their_own():
    assert family_of(gpt2.spec(vocab=9, context=8, width=8, depth=1, heads=1)) == "gpt2"
    assert family_of(vit.spec(classes=("cat",), image=8, patch=4, width=8, depth=1, heads=1)) == "vit"


STACK = {
    "causal": {"causal": True},
    "before": {"norm_place": "before"},
    "rotary": {"position": specs.Rotary()},
    "eps of its own": {"norm": specs.LayerNorm(eps=1e-3)},
    "stochastic depth": {"stochastic_depth": 0.1},
}
EMBED = {
    "no types": {"types": None},
    "no norm": {"norm": None},
    "sinusoidal": {"position": specs.Sinusoidal(length=64)},
    "scaled": {"scale": 2.0},
}
HEAD = {
    "tied": specs.TiedHead(bias=True),
    "another activation": specs.MaskedHead(activation="relu", norm=specs.LayerNorm(eps=1e-12)),
}


@pytest.mark.parametrize("change", [*STACK, *EMBED, *HEAD])
def test_what_bert_cannot_say_is_nextiles(tmp_path, change):
    spec = small()
    stack, embed = (spec.stack.model_copy(update=STACK.get(change)), spec.embed.model_copy(update=EMBED.get(change)))
    other = spec.model_copy(update={"stack": stack, "embed": embed, "head": HEAD.get(change, spec.head)})
    assert family_of(other) is None
    save_model(tmp_path, model := build(other))
    again, family = load_model(tmp_path)
    assert (again.spec, family) == (other, "nextile")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("position_embedding_type", "relative_key"),
        ("tie_word_embeddings", False),
        ("type_vocab_size", 0),
        ("type_vocab_size", 1 << 30),
        ("hidden_act", "tanh"),
        ("num_attention_heads", 0),
        ("num_attention_heads", 5),
        ("layer_norm_eps", 0.0),
        ("intermediate_size", "wide"),
    ],
)
def test_a_variant_that_the_spec_cannot_say_is_refused_in_one_line(tmp_path, field, value):
    config = {"model_type": "bert", **SAME}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_spec(tmp_path)[1] == "bert"
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(NextileError) as caught:
        load_spec(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_decoder_is_refused_by_name():
    with pytest.raises(NextileError, match=r"is_decoder is True in config\.json; nextile reads this family with False"):
        bert.from_config(transformers.BertConfig(**SAME, is_decoder=True).to_dict())


# --- WordPiece ------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "fox", "##es", "jump", "##ed", ",", "cafe"]
TEXT = "The quick FOXES jumped, café zebra [MASK]"


@pytest.fixture
def wordpiece(tmp_path):
    """Their tokenizer, and ours of its folder."""
    theirs = transformers.BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)})
    theirs.save_pretrained(tmp_path)
    return theirs, Tokenizer.load(tmp_path)


def test_a_wordpiece_tokenizer_is_read(wordpiece):
    theirs, ours = wordpiece
    assert (ours.kind, ours.vocab_size) == ("other", len(WORDS))
    assert (ours.pad_id, ours.unknown_id, ours.begin_id, ours.end_id, ours.mask_id) == (0, 1, 2, 3, 4)
    text = TEXT.removesuffix("[MASK]")
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode("the foxes jumped")) == "the foxes jumped"


def test_the_text_of_a_mask_is_text(wordpiece):
    theirs, ours = wordpiece
    assert theirs(TEXT).input_ids.count(4) == 1
    assert 4 not in ours.encode(TEXT)
    assert ours.special_ids == {0, 1, 2, 3, 4}


def test_a_tokenizer_without_a_mask_says_so(wordpiece, tmp_path):
    _, ours = wordpiece
    config = {name: value for name, value in ours.config.items() if name != "mask_token"}
    assert Tokenizer(ours.core, config).mask_id is None
    assert Tokenizer(ours.core, config | {"mask_token": "<mask>"}).mask_id is None  # named, and no token


@torch.no_grad()
def test_a_masked_word_is_predicted_as_there(wordpiece, tmp_path):
    tokenizer = wordpiece[1]
    save_model(tmp_path, build(small(vocab=len(WORDS)), seed=1).eval(), tokenizer)
    ours, theirs = load_model(tmp_path)[0], transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(tmp_path)("the [MASK] jumped", return_tensors="pt")
    row = [tokenizer.begin_id, *tokenizer.encode("the"), tokenizer.mask_id, *tokenizer.encode("jumped")]
    assert inputs.input_ids[0].tolist() == [*row, tokenizer.end_id]
    assert (ours(inputs.input_ids) - theirs(**inputs).logits).abs().max() <= 1e-5
