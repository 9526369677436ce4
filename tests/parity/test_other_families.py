"""RoBERTa, T5, BART and DeiT against transformers, with random weights: logits, features, folders."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nextile.checkpoint import convert
from nextile.checkpoint.store import load_model, load_spec, save_model
from nextile.generation.beam import Beams, beam_search
from nextile.generation.decode import SourceReader
from nextile.models import count
from nextile.models.build import build
from nextile.models.families import bart, deit, roberta, t5
from nextile.models.families.table import family_of
from nextile.nn import specs

T5 = {
    "vocab_size": 97, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0,
}  # fmt: skip
ENCODER = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80,
}  # fmt: skip
BART = {
    "vocab_size": 97, "d_model": 48, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 6, "encoder_ffn_dim": 80, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
}  # fmt: skip
CASES = {
    "roberta": (
        roberta,
        transformers.RobertaForMaskedLM,
        transformers.RobertaConfig(**ENCODER, max_position_embeddings=66, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
    "t5 1.0": (t5, transformers.T5ForConditionalGeneration, transformers.T5Config(**T5)),
    "t5 1.1, byt5": (
        t5,
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "bart": (bart, transformers.BartForConditionalGeneration, transformers.BartConfig(**BART)),
    "bart, scaled": (
        bart,
        transformers.BartForConditionalGeneration,
        transformers.BartConfig(**BART, scale_embedding=True, activation_function="relu"),
    ),
    "deit": (
        deit,
        transformers.DeiTForImageClassificationWithTeacher,
        transformers.DeiTConfig(
            **{name: value for name, value in ENCODER.items() if name != "vocab_size"}, image_size=24, patch_size=8,
            id2label={0: "cat", 1: "dog", 2: "tile"},
        ),
    ),
}  # fmt: skip
SAVES = {"bart": {"final_logits_bias"}}  # buffers of theirs, which are not parameters


def random_model(kind, config):
    """A model of theirs in which every number counts, float32."""
    torch.manual_seed(0)
    theirs = kind(config).eval()
    with torch.no_grad():
        for name, parameter in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if parameter.is_floating_point():
                gain = "norm.weight" in name.lower()
                spread = 0.1 if parameter.dim() == 1 or "T5" in kind.__name__ else 0.2
                parameter.normal_(1.0 if gain else 0.0, spread)
    return theirs


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    """(our family, our model as it is loaded from their folder, theirs, the folder)."""
    family, kind, config = CASES[request.param]
    theirs, folder = random_model(kind, config), tmp_path / "theirs"
    theirs.save_pretrained(folder)
    ours, name = load_model(folder)
    assert name == family.MODEL_TYPE
    return family, ours, theirs, folder


def ids(rows=3, length=40, seed=1):
    return torch.randint(2, 97, (rows, length), generator=torch.Generator().manual_seed(seed))


def padding():
    """(3, 40): one row is whole, the others have padding behind their tokens."""
    keep = torch.ones(3, 40, dtype=torch.bool)
    keep[1, 25:] = False
    keep[2, 3:] = False
    return keep


def pictures():
    return torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(2))


def both(ours, theirs):
    """Logits of the same inputs, those of padding left out."""
    keep = padding()
    if isinstance(ours.spec, specs.VisionTransformer):
        dtype = next(theirs.parameters()).dtype
        return ours(pictures().to(dtype)), theirs(pictures().to(dtype)).logits
    mask = {"attention_mask": keep.long()}
    if isinstance(ours.spec, specs.EncoderDecoder):
        target = ids(3, 12, seed=3)
        return ours(ids(), target, keep), theirs(ids(), decoder_input_ids=target, **mask).logits
    padded = ids().masked_fill(~keep, 1)  # RoBERTa finds its positions by the token of padding
    return ours(padded, segments=keep)[keep], theirs(padded, **mask).logits[keep]


def difference(ours, theirs):
    a, b = both(ours, theirs)
    assert b.std() > 0.1  # they say something
    return (a - b).abs().max().item()


@torch.no_grad()
def test_logits_are_those_of_transformers(case):
    _, ours, theirs, _ = case
    assert difference(ours, theirs) <= 1e-5


@torch.no_grad()
def test_logits_in_double_precision(case):
    family, ours, theirs, _ = case
    limit = 1e-5 if family is t5 else 1e-9  # T5 casts its norms to float32
    assert difference(ours.double(), theirs.double()) <= limit


@torch.no_grad()
def test_control_one_wrong_number_is_seen(case):
    _, ours, theirs, _ = case
    name = next(name for name, _ in ours.named_parameters() if name.endswith("1.self_attention.inner.out.weight"))
    ours.get_parameter(name)[0, 0] += 0.1
    assert difference(ours, theirs) > 1e-5


@torch.no_grad()
def test_what_is_written_is_what_was_read(case, tmp_path):
    family, ours, _, folder = case
    save_model(tmp_path / "ours", ours)
    assert load_spec(tmp_path / "ours") == (ours.spec, family.MODEL_TYPE)
    wanted, written = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "ours"))
    assert written.keys() - wanted.keys() <= {"lm_head.weight"}  # which transformers leaves out where it is tied
    assert all(torch.equal(written[name], value) for name, value in wanted.items())
    save_model(tmp_path / "twice", load_model(tmp_path / "ours")[0])
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()


@torch.no_grad()
def test_transformers_loads_what_is_written(case, tmp_path):
    family, ours, theirs, _ = case
    save_model(tmp_path / "ours", ours)
    again, info = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [type(theirs).__name__]
    assert difference(ours, again.eval()) <= 1e-5
    assert family_of(ours.spec) == family.MODEL_TYPE


def test_as_many_parameters(case):
    family, ours, theirs, _ = case
    here = count.parameters(ours.spec).total
    spare = sum(theirs.get_buffer(name).numel() for name in SAVES.get(family.MODEL_TYPE, ()))
    spare += 97 * 48 if isinstance(ours.spec, specs.EncoderDecoder) and family is t5 and not tied(ours) else 0
    assert here == theirs.num_parameters() + spare


def tied(model):
    return isinstance(model.spec.head, specs.TiedHead)


@pytest.mark.parametrize("case", ["t5 1.0", "t5 1.1, byt5", "bart"], indirect=True)
def test_the_best_texts_are_theirs(case):
    _, ours, theirs, _ = case
    source, keep = ids(), padding()
    wanted = theirs.generate(
        source, attention_mask=keep.long(), num_beams=3, max_new_tokens=12, do_sample=False, length_penalty=1.0,
        early_stopping=False, eos_token_id=96, pad_token_id=0, forced_eos_token_id=None, forced_bos_token_id=None,
        no_repeat_ngram_size=0, use_cache=True,
    )  # fmt: skip
    sources = [row[mask].tolist() for row, mask in zip(source, keep, strict=True)]
    start = ours.spec.start
    reader = SourceReader(ours, sources, 14)
    found = beam_search(reader, [[start]] * 3, Beams(width=3), limits=[12] * 3, end_ids={96})
    for row, hypotheses in zip(wanted.tolist(), found, strict=True):
        tokens = list(hypotheses[0].tokens)
        assert row[1 : 1 + len(tokens)] == tokens


# --- what is theirs alone -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_head_of_its_own_is_read(tmp_path):
    _, kind, config = CASES["t5 1.1, byt5"]
    theirs = random_model(kind, config)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = 0.1 * torch.randn(97, 48, generator=torch.Generator().manual_seed(4))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours, _ = load_model(tmp_path)
    again = kind.from_pretrained(tmp_path).eval()
    assert difference(ours, again) <= 1e-5
    assert difference(ours, theirs) > 1e-2


@torch.no_grad()
def test_a_head_that_was_left_out_has_memory_of_its_own(tmp_path):
    _, kind, config = CASES["t5 1.1, byt5"]
    random_model(kind, config).save_pretrained(tmp_path)
    ours, _ = load_model(tmp_path)
    before = ours.source.token.weight.clone()
    ours.head.weight.add_(1.0)
    assert torch.equal(ours.source.token.weight, before)


def test_roberta_is_not_bert():
    spec = roberta.spec(vocab=97, context=64, width=16, depth=1, heads=2)
    assert family_of(spec) == "roberta"
    without = spec.embed.model_copy(update={"position": specs.Learned(length=64), "types": 2})
    assert family_of(spec.model_copy(update={"embed": without})) == "bert"


@pytest.mark.parametrize(
    ("spec", "total"),
    [
        (lambda: t5.spec(**t5.SIZES["t5-small"], gated=False, activation="relu", tied=True), 60_506_624),
        (lambda: bart.spec(**bart.SIZES["bart-base"]), 139_420_416 + 50_265),
        (lambda: roberta.spec(**roberta.SIZES["roberta-base"]), 124_697_433),
    ],
)
def test_published_parameter_counts(spec, total):
    """Those of transformers for the published configurations; BART's bias is a buffer there."""
    assert count.parameters(spec()).total == total


def test_the_rules_use_every_tensor_once(case):
    family, ours, _, _ = case
    rules = family.key_map(ours.spec)
    here = dict(ours.named_parameters())
    back = convert.read(rules, convert.write(rules, here))
    assert back.keys() == here.keys() == dict(build(ours.spec).named_parameters()).keys()
    assert all(torch.equal(value, here[name]) for name, value in back.items())
