"""Classifiers of texts against transformers, with random weights: logits of padded batches, folders both ways."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tests.conftest import TINY

import nextile
from nextile.base.errors import NextileError
from nextile.checkpoint.store import load_model, save_model
from nextile.models import count
from nextile.models.families.classifiers import CLASSIFIERS
from nextile.models.families.table import family_named, family_of
from nextile.tasks.report import Silent
from nextile.text.build import train_tokenizer

PAD = 1
NAMES = {0: "bad", 1: "good", 2: "neither"}
COMMON = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "intermediate_size": 80, "pad_token_id": PAD, "id2label": NAMES}  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2, "max_position_embeddings": 64}
CASES = {
    "bert": transformers.BertConfig(**COMMON, classifier_dropout=0.25),
    "roberta": transformers.RobertaConfig(**COMMON, max_position_embeddings=66, type_vocab_size=1),
    "gpt2": transformers.GPT2Config(
        n_layer=2, n_embd=48, n_head=4, vocab_size=97, n_positions=64, pad_token_id=PAD, id2label=NAMES
    ),
    "llama": transformers.LlamaConfig(**GROUPED),
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=9),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=16),
    "gemma2": transformers.Gemma2Config(
        **GROUPED, head_dim=16, sliding_window=9, attn_implementation="eager", query_pre_attn_scalar=20
    ),
    "gpt-neox": transformers.GPTNeoXConfig(**COMMON | {"num_attention_heads": 3}, max_position_embeddings=64),
    "mixtral": transformers.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, experts_implementation="eager"
    ),
}
EXACT = ("bert", "roberta", "gpt2", "gpt-neox")  # whose reference computes in the precision that is asked for


def random_model(config):
    """A classifier of theirs in which every number counts, float32."""
    torch.manual_seed(0)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            gain = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
            gain = gain and "gemma" not in config.model_type
            parameter.normal_(1.0 if gain else 0.0, 0.1 if parameter.dim() == 1 else 0.2)
    return theirs


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(its name, our model as it is loaded from their folder, theirs, the folder)."""
    theirs = random_model(CASES[request.param])
    theirs.save_pretrained(tmp_path / "theirs")
    ours, name = load_model(tmp_path / "theirs")
    assert name == theirs.config.model_type
    return request.param, ours, theirs, tmp_path / "theirs"


def padded():
    """(3, 20): one row is whole, the others have padding behind their tokens."""
    keep = torch.ones(3, 20, dtype=torch.bool)
    keep[1, 13:] = False
    keep[2, 2:] = False
    ids = torch.randint(2, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    return ids.masked_fill(~keep, PAD), keep


def difference(ours, theirs, rows=3):
    ids, keep = (each[:rows] for each in padded())
    wanted = theirs(input_ids=ids, attention_mask=keep.long()).logits
    assert wanted.std() > 0.1  # they say something
    return (ours(ids, keep) - wanted).abs().max().item()


@torch.no_grad()
def test_text_classes_of_a_padded_batch_are_those_of_transformers(case):
    _, ours, theirs, _ = case
    assert difference(ours, theirs) <= 1e-5
    assert ours.spec.head.classes == tuple(NAMES.values())


@torch.no_grad()
def test_text_classes_in_double_precision(case):
    name, ours, theirs, _ = case
    rows = 2 if name == "gemma2" else 3  # of a row that is nearly all padding theirs is NaN in float64
    assert difference(ours.double(), theirs.double(), rows) <= (1e-9 if name in EXACT else 1e-5)


@torch.no_grad()
def test_control_of_text_classes_one_wrong_number_is_seen(case):
    _, ours, theirs, _ = case
    names = {name for name, _ in ours.named_parameters()} & {"head.weight", "head.dense.weight", "head.dense.bias"}
    for name in sorted(names | {"stack.blocks.1.self_attention.inner.out.weight"}):
        weight = ours.get_parameter(name)
        first = (0,) * weight.dim()
        weight[first] += 1.0
        assert difference(ours, theirs) > 1e-5
        weight[first] -= 1.0


@torch.no_grad()
def test_text_classes_written_are_what_was_read_and_transformers_loads_them(case, tmp_path):
    _, ours, theirs, folder = case
    save_model(tmp_path / "again", ours)
    first, second = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first)
    # transformers would choose a faster product for experts that it loads than for those that it makes
    config = theirs.config
    kernels = {"attn_implementation": config._attn_implementation}
    if config._experts_implementation is not None:
        kernels["experts_implementation"] = config._experts_implementation
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again", **kernels).eval()
    assert type(loaded) is type(theirs)
    assert (loaded.config.id2label, loaded.config.label2id) == (NAMES, {name: i for i, name in NAMES.items()})
    ids, keep = padded()
    asked = {"input_ids": ids, "attention_mask": keep.long()}
    assert torch.equal(loaded(**asked).logits, theirs(**asked).logits)
    if "classifier_dropout" in theirs.config.to_dict():
        wanted = theirs.config.classifier_dropout
        assert loaded.config.classifier_dropout == (0.1 if wanted is None else wanted)  # None is the stack's


def test_text_classes_have_a_family_and_their_parameters_are_counted(case):
    _, ours, theirs, _ = case
    assert family_of(ours.spec) == theirs.config.model_type
    assert count.parameters(ours.spec).total == sum(each.numel() for each in theirs.parameters())


def test_every_classifier_is_compared():
    assert {config.model_type for config in CASES.values()} == CLASSIFIERS.keys()


# --- by the tokenizer's own frame -----------------------------------------------------------------------------------


@pytest.fixture
def gpt2_folder(tmp_path):
    """A classifier of theirs with tokens that stand alone: transformers adds nothing to a text."""
    tokenizer = train_tokenizer("byte", 300, ["a text"])
    theirs = random_model(transformers.GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=tokenizer.vocab_size, n_positions=32, id2label=NAMES,
        bos_token_id=tokenizer.end_id, eos_token_id=tokenizer.end_id,
    ))  # fmt: skip
    theirs.save_pretrained(tmp_path / "gpt2")
    tokenizer.save(tmp_path / "gpt2")
    return theirs, tmp_path / "gpt2"


@torch.no_grad()
def test_a_text_is_given_the_classes_that_their_tokenizer_and_model_give_it(gpt2_folder):
    theirs, folder = gpt2_folder
    reads = transformers.AutoTokenizer.from_pretrained(folder)
    shares = theirs(**reads("a text", return_tensors="pt")).logits.softmax(-1)[0]
    found = dict(nextile.load(folder, device="cpu").classify("a text"))
    assert [found[name] for name in NAMES.values()] == pytest.approx(shares.tolist(), abs=1e-6)


def test_it_is_evaluated_and_trained_further(gpt2_folder, tmp_path):
    _, folder = gpt2_folder
    data = tmp_path / "data.jsonl"
    rows = [{"text": f"a text {i}", "label": NAMES[i % 3]} for i in range(30)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = nextile.load(folder, device="cpu")
    measured = model.evaluate(data, report=Silent())
    given = [dict(model.classify(row["text"]))[row["label"]] for row in rows]
    assert measured["loss"] == pytest.approx(-torch.tensor(given).log().mean().item(), abs=1e-3)  # in bf16, may be
    settings = {name: TINY[name] for name in ("compile", "precision", "threads")} | {"batch": 6}
    tuned = nextile.train(data, init=folder, out=tmp_path / "run", steps=2, settings=settings, report=Silent())
    assert (tuned.family, tuned.spec.head.classes) == ("gpt2", tuple(NAMES.values()))
    with torch.no_grad():  # what is trained here adds an end, and says so to transformers
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
        ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")("a text", return_tensors="pt")["input_ids"]
        shares = theirs(input_ids=ids).logits.softmax(-1)[0]
    assert ids[0, -1] == tuned.tokenizer.end_id
    found = dict(tuned.classify("a text"))
    assert [found[name] for name in NAMES.values()] == pytest.approx(shares.tolist(), abs=1e-6)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"problem_type": "multi_label_classification"}, "problem_type is 'multi_label_classification'"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"id2label": {"0": "a number"}}, "a single label"),
        ({"model_type": "deberta"}, "classifier of texts of model_type 'deberta'"),
        ({"id2label": {"0": "a", "2": "b"}}, "none of them is 1"),
        ({"hidden_size": -1}, "width"),
        ({"pad_token_id": -1, "model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "padding"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(tmp_path, change, said):
    config = CASES["bert"].to_dict() | {"architectures": ["BertForSequenceClassification"]} | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NextileError, match=said) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [["BertForSequenceClassification"], "BertForSequenceClassification", 7, None, [3]])
def test_the_class_is_named_in_a_list(named):
    config = {"model_type": "bert", "architectures": named}
    assert (family_named(config) is CLASSIFIERS["bert"]) == (named == ["BertForSequenceClassification"])
