"""Classifiers of texts: equal to transformers' GPT-2 with a head, and padding never counts."""

import pytest
import torch
import transformers
from pydantic import ValidationError

from nextile.checkpoint.convert import read
from nextile.models import count
from nextile.models.build import build, skeleton
from nextile.models.families import bert, bidirectional, gpt2, qwen3
from nextile.models.families.table import family_of
from nextile.nn import specs

CLASSES = ("bad", "good", "neither")
HEADS = {
    "summary": specs.SummaryHead, "pooled": specs.PooledHead, "mean": specs.MeanHead, "last": specs.LastHead
}  # fmt: skip
LENGTHS = (7, 3, 9, 1)
PAD = 49


def classifier(body: specs.Transformer, head: str, bias: bool = True) -> specs.TextClassifier:
    return specs.TextClassifier(
        context=body.context, embed=body.embed, stack=body.stack, head=HEADS[head](classes=CLASSES, bias=bias)
    )


def bodies():
    size = {"vocab": 50, "context": 12, "width": 32, "depth": 2, "heads": 4}
    return {"gpt2": gpt2.spec(**size), "qwen3": qwen3.spec(**size), "bert": bert.spec(**size),
            "bidirectional": bidirectional.spec(**size)}  # fmt: skip


def padded(seed: int = 0, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of LENGTHS, filled with PAD, which occurs in no text; and where the texts are."""
    there = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    there = there.flip(1) if left else there
    ids = torch.randint(0, PAD, there.shape, generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(~there, PAD), there.long()


def lively(spec, dtype=torch.float32):
    """A model whose every number is large enough to count."""
    model = build(spec, seed=1).to(dtype).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.detach().normal_(0.0, 0.3, generator=generator)
    return model


def theirs_and_ours(dtype):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=12, n_embd=32, n_layer=2, n_head=4, num_labels=3, pad_token_id=PAD,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.GPT2ForSequenceClassification(config).to(dtype).eval()
    spec = classifier(gpt2.spec(vocab=50, context=12, width=32, depth=2, heads=4), "last", bias=False)
    tensors = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    score = tensors.pop("score.weight")
    ours = skeleton(spec)
    ours.load_state_dict({**read(gpt2.key_map(bodies()["gpt2"]), tensors), "head.weight": score}, assign=True)
    return theirs, ours.eval()


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@torch.no_grad()
def test_a_padded_batch_is_classified_as_by_transformers(dtype, atol):
    theirs, ours = theirs_and_ours(dtype)
    ids, there = padded()
    expected = theirs(input_ids=ids, attention_mask=there).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(ids, there), expected, rtol=0, atol=atol)
    assert (ours(ids) - expected).abs().max() > 100 * atol  # without the mask the last token is padding


# --- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(("body", "head"), [("gpt2", "last"), ("qwen3", "last"), ("qwen3", "mean"), ("bert", "summary"),
                                            ("bert", "pooled"), ("bert", "mean"),
                                            ("bidirectional", "last")])  # fmt: skip
@torch.no_grad()
def test_a_batch_is_each_text_alone(body, head, left):
    model = lively(classifier(bodies()[body], head), torch.float64)
    ids, there = padded(left=left)
    alone = torch.cat([model(row[mask.bool()][None]) for row, mask in zip(ids, there, strict=True)])
    torch.testing.assert_close(model(ids, there), alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(model(ids, there.bool()), alone, rtol=0, atol=1e-9)
    other = torch.where(there.bool(), ids, (ids + 17) % 50)
    assert torch.equal(model(other, there), model(ids, there))
    assert (model(other) - alone).abs().max() > 1e-3  # unmasked, padding counts


@torch.no_grad()
def test_each_head_reads_its_own_tokens():
    hears = {"summary": [0], "pooled": [0], "mean": range(9), "last": [8]}
    for head, places in hears.items():
        model = lively(classifier(bodies()["bert"], head))
        x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
        there = torch.ones(1, 9, dtype=torch.bool)
        for place in range(9):
            changed = x.clone()
            changed[:, place] += 1.0
            same = torch.equal(model.head.of_texts(changed, there), model.head.of_texts(x, there))
            assert same == (place not in places)


# --- the spec -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["gpt2", "qwen3", "bert", "bidirectional"])
@pytest.mark.parametrize("head", ["mean", "last"])
def test_a_classifier_is_counted_as_it_is_built(body, head):
    spec = classifier(bodies()[body], head)
    found = count.parameters(spec)  # counted == built is asserted inside
    assert found.head == 3 * 32 + 3
    assert count.outputs_of(spec) == 3
    assert family_of(spec) is None
    assert specs.TextClassifier.model_validate(spec.model_dump()) == spec


def test_a_pooled_head_is_counted_and_has_its_own_dropout():
    spec = classifier(bodies()["bert"], "pooled")
    assert count.parameters(spec).head == 3 * 32 + 3 + 32 * 32 + 32
    dropped = lively(spec.model_copy(update={"head": spec.head.model_copy(update={"dropout": 0.5})}))
    ids, there = padded()
    assert torch.equal(dropped(ids, there), lively(spec)(ids, there))
    torch.manual_seed(0)
    assert not torch.equal(
        dropped.head.train().of_texts(torch.ones(4, 9, 32), there != 0),
        dropped.head.eval().of_texts(torch.ones(4, 9, 32), there != 0),
    )


def test_the_flops_of_a_head_are_those_of_a_text():
    spec = classifier(bodies()["qwen3"], "last")
    scores = count.score_flops(spec.stack, 8)
    ends = count.forward_flops(spec, 8) - 2 * count.parameters(spec).matrices - scores
    assert ends == pytest.approx(2 * 32 * 3 / 8)


def test_what_cannot_see_a_text_is_refused():
    given = bodies()
    for head in ("summary", "pooled"):
        with pytest.raises(ValidationError, match="the first token sees nothing else"):
            classifier(given["gpt2"], head)
    with pytest.raises(ValidationError, match="longer than the 12 positions"):
        classifier(given["gpt2"].model_copy(update={"context": 13}), "last")
    crossed = given["qwen3"].stack.model_copy(update={"cross": specs.Attention(heads=4)})
    with pytest.raises(ValidationError, match="no memory to attend to"):
        classifier(given["qwen3"].model_copy(update={"stack": crossed}), "last")
