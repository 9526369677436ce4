"""Beams: wide enough they find what an exhaustive search finds, width 1 is greedy, batched = alone, ends, errors."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.beam import Beams, beam_search, highest
from nextile.generation.complete import complete, complete_by_beams
from nextile.generation.decode import CompiledReader, EagerReader, SourceReader, decode, padded
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import specs
from nextile.text.characters import train_characters
from nextile.text.tokenizer import Tokenizer

VOCAB, CONTEXT, END = 6, 12, 0
LONGEST = 5
PROMPTS = [[1, 2, 3], [4] * 6, [5]]
SOURCES = [[1, 2, 3], [4, 5, 1, 1, 2, 3, 5], [2]]


def lively(model, spread=0.6) -> Any:
    """Weights large enough for predictions to hang on what was read."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spreads = spread if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spreads)
    return model.eval()


def language_model(vocab=VOCAB):
    spec = gpt2.spec(vocab=vocab, context=CONTEXT, width=8, depth=2, heads=2)
    return lively(build(spec.model_copy(update={"head": specs.LinearHead(bias=True)})))


def translator(vocab=VOCAB):
    stack = specs.Stack(width=8, depth=2, attention=specs.Attention(heads=2), feed_forward=specs.MLP(hidden=16))
    decoder = stack.model_copy(update={"causal": True, "cross": specs.Attention(heads=2)})
    embed = specs.TokenEmbedding(vocab=vocab, position=specs.Learned(length=CONTEXT))
    return lively(
        build(
            specs.EncoderDecoder(
                context=CONTEXT, start=1, source=embed, encoder=stack, decoder=decoder, head=specs.LinearHead(bias=True)
            )
        )
    )


class Texts:
    """A language model and prompts: what the tests ask of both kinds of models."""

    def __init__(self, double=False, vocab=VOCAB):
        self.model, self.inputs = language_model(vocab), PROMPTS
        self.model = self.model.double() if double else self.model

    def search(self, beams, inputs=None, **options):
        return found(EagerReader(self.model, CONTEXT), inputs or self.inputs, beams, **options)

    def logits(self, given, texts):
        """What the model says after each token of all texts, of which none depends on a cache: (texts, T+1, V)."""
        return self.model(torch.tensor([given + text for text in texts]))[:, len(given) - 1 :]


class Pairs(Texts):
    """An encoder-decoder and sources."""

    def __init__(self, double=False, vocab=VOCAB):
        self.model, self.inputs = translator(vocab), SOURCES
        self.model = self.model.double() if double else self.model

    def search(self, beams, inputs=None, **options):
        inputs = inputs or self.inputs
        return found(SourceReader(self.model, inputs, CONTEXT), [[1]] * len(inputs), beams, **options)

    def logits(self, given, texts):
        return self.model(torch.tensor([given] * len(texts)), torch.tensor([[1, *text] for text in texts]))


@pytest.fixture(params=[Texts, Pairs], ids=["language model", "encoder-decoder"])
def kind(request):
    return request.param


def found(reader, prompts, beams, *, limit: int | list[int] = LONGEST, end_ids=(END,), **options):
    limits = limit if isinstance(limit, list) else [limit] * len(prompts)
    return beam_search(reader, prompts, beams, limits=limits, end_ids=end_ids, **options)


def plain(results):
    return [[(text.tokens, text.finished) for text in texts] for texts in results]


def scores(results):
    return [text.score for texts in results for text in texts]


# --- against searches that leave nothing out ----------------------------------------------------------------------


@cache
@torch.no_grad()
def every_text(kind, number):
    """All texts of up to LONGEST tokens, with their log-probability and length: {(tokens, reason): (sum, length)}."""
    case = kind()
    given, bodies = case.inputs[number], [list(body) for body in product(range(VOCAB), repeat=LONGEST)]
    logprobs = case.logits(given, bodies).log_softmax(-1)[:, :-1]
    own = logprobs.gather(-1, torch.tensor(bodies)[..., None])[..., 0].cumsum(-1)
    texts = {}
    for body, sums in zip(bodies, own.tolist(), strict=True):
        length = body.index(END) + 1 if END in body else LONGEST
        reason = "end" if END in body else "length"
        texts[tuple(body[: length - (reason == "end")]), reason] = (sums[length - 1], length)
    return texts


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 1.4, -0.5])
def test_beams_that_are_wide_enough_find_what_an_exhaustive_search_finds(kind, penalty):
    case, wide = kind(), Beams(width=800, length_penalty=penalty, patience="certain")
    for number, texts in enumerate(case.search(wide, n=50)):
        every = every_text(kind, number).items()
        ranked = sorted((-total / length**penalty, text) for text, (total, length) in every)
        assert [(tuple(text.tokens), text.finished) for text in texts] == [text for _, text in ranked[:50]]
        assert [text.score for text in texts] == pytest.approx([-score for score, _ in ranked[:50]], abs=1e-5)
    assert {text.finished for text in texts} == {"end", "length"} or penalty in (0.0, -0.5)


def test_control_narrow_beams_do_not_find_it():
    case = Texts(double=True)  # the same text scores within rounding the same, whatever stands beside it
    wide, narrow = (case.search(Beams(width=width, patience="certain"), n=3) for width in (800, 3))
    assert plain(wide) != plain(narrow)
    assert all(best >= found for best, found in zip(scores(wide), scores(narrow), strict=True))


@torch.no_grad()
def unstopped(case, given, beams, limit):
    """Beams without cache, tensors, padding, or an early end: the slowest honest program."""
    going, ended = [(0.0, [])], []
    for length in range(1, limit + 1):
        grown = [
            (total + share, [*text, token])
            for total, text in going
            for token, share in enumerate(case.logits(given, [text])[0, -1].log_softmax(-1).tolist())
        ]
        grown = sorted(grown, reverse=True)[: 2 * beams.width]
        ending = [text for text in grown[: beams.width] if text[1][-1] == END or length == limit]
        ended += [(total / length**beams.length_penalty, text) for total, text in ending]
        going = [text for text in grown if text[1][-1] != END][: beams.width]
    return sorted(ended, reverse=True)[: beams.width]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.4, -1.0])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_certain_loses_nothing_by_ending_early(kind, width, penalty):
    case, beams = kind(double=True), Beams(width=width, length_penalty=penalty, patience="certain")
    for given, texts in zip(case.inputs, case.search(beams, n=width, limit=6), strict=True):
        want = unstopped(case, given, beams, 6)
        assert [text.tokens for text in texts] == [[token for token in text if token != END] for _, text in want]
        assert [text.score for text in texts] == pytest.approx([score for score, _ in want], abs=1e-5)


def test_likely_ends_sooner_and_may_lose_by_it():
    likely = Pairs().search(Beams(width=2, length_penalty=1.4))
    certain = Pairs().search(Beams(width=2, length_penalty=1.4, patience="certain"))
    assert plain(likely) != plain(certain)
    assert all(sure >= quick for quick, sure in zip(scores(likely), scores(certain), strict=True))


class Chain:
    """A reader whose next token hangs on the last one alone."""

    def __init__(self, *shares: list[float]):
        self.logits = torch.tensor(shares).log()

    def start(self, rows):
        return self.read([row[-1] for row in rows])

    def read(self, tokens):
        return self.logits[tokens]

    def select(self, rows, each=1): ...


def test_where_length_counts_against_a_text_certain_waits_for_the_next_token_and_not_for_the_last():
    chain = Chain([1, 0, 0, 0], [0.2, 0.04, 0.75, 0.01], [0.98, 0.01, 0.005, 0.005], [0.6, 0.39, 0.009, 0.001])
    beams = Beams(width=2, length_penalty=-1.0, patience="certain")
    assert plain(found(chain, [[3]], beams, limit=7, n=2)) == [[([], "end"), ([1, 2], "end")]]  # not [1], found sooner


# --- sameness -----------------------------------------------------------------------------------------------------


def test_one_beam_is_greedy():
    case = Texts(vocab=61)
    for given, [text] in zip(PROMPTS, case.search(Beams(width=1)), strict=True):
        events = list(decode(case.model, [given], Sampling(temperature=0.0), max_tokens=LONGEST, end_ids=[END]))
        assert text.tokens == [event.token for event in events if event.finished != "end"]
        assert text.finished == events[-1].finished
        assert text.logprob == pytest.approx(sum(event.logprob for event in events), abs=1e-4)


@torch.no_grad()
def test_one_beam_is_greedy_beside_a_source():
    case = Pairs(vocab=61)
    for given, [text] in zip(SOURCES, case.search(Beams(width=1), end_ids=()), strict=True):
        greedy = []
        for _ in range(LONGEST):
            greedy.append(int(case.logits(given, [greedy])[0, -1].argmax()))
        assert text.tokens == greedy
        assert text.tokens != case.search(Beams(width=1), [[6, 7]], end_ids=())[0][0].tokens


@pytest.mark.parametrize("patience", ["likely", "certain"])
def test_batched_is_each_alone(kind, patience):
    case, beams = kind(double=True, vocab=29), Beams(width=4, patience=patience)
    limits = [6, 3, 7]
    end_ids = {case.search(Beams(width=1), limit=7)[0][0].tokens[2], END}  # one of them ends sooner than the others
    together = case.search(beams, limit=limits, end_ids=end_ids, n=4)
    alone = [
        case.search(beams, [given], limit=[limit], end_ids=end_ids, n=4)[0]
        for given, limit in zip(case.inputs, limits, strict=True)
    ]
    assert plain(together) == plain(alone)
    assert scores(together) == pytest.approx(scores(alone), rel=1e-6)
    assert plain(together) != plain(case.search(beams, limit=6, end_ids=end_ids, n=4))
    assert plain(case.search(beams, case.inputs[::-1], limit=limits[::-1], end_ids=end_ids, n=4)) == plain(alone[::-1])


@torch.no_grad()
def test_what_is_hidden_of_a_memory_is_never_heard():
    case = Pairs(vocab=29)

    def heard(place: int):
        """Scores when the keys and values at that place of the short sources are noise."""
        reader = SourceReader(case.model, SOURCES, CONTEXT)
        assert reader.memory is not None
        for keys, values in reader.memory.layers:
            keys[0, :, place] = values[0, :, place] = 1e4
        return scores(found(reader, [[1]] * 3, Beams(width=4), n=4))

    calm = scores(case.search(Beams(width=4), n=4))
    assert heard(3) == heard(6) == calm
    assert heard(2) != calm


def test_sources_leave_the_batch_when_they_are_done():
    sizes = []

    class Counting(SourceReader):
        def read(self, tokens):
            sizes.append((len(tokens), len(self.memory or ())))
            return super().read(tokens)

    found(Counting(translator(), SOURCES, CONTEXT), [[1]] * 3, Beams(width=3), limit=[4, 2, 1], end_ids=())
    assert sizes == [(6, 2), (3, 1), (3, 1)]  # the beams of a source share its memory


# --- ends and bounds ----------------------------------------------------------------------------------------------


def test_beams_wider_than_the_vocabulary(kind):
    [[first], [second], _] = kind().search(Beams(width=1), limit=1, end_ids=())
    for width in (VOCAB, VOCAB + 1, 50):
        texts = kind().search(Beams(width=width), limit=1, end_ids=(), n=width)
        assert [len(each) for each in texts] == [VOCAB] * 3  # there are no more
        assert [texts[0][0].tokens, texts[1][0].tokens] == [first.tokens, second.tokens]
        assert sum(torch.tensor([text.logprob for text in texts[0]]).exp()) == pytest.approx(1.0, abs=1e-5)


def test_what_may_not_be_written_is_not(kind):
    case = kind()
    free = case.search(Beams(width=3), end_ids=(), n=3)
    common = free[0][0].tokens[0]
    texts = case.search(Beams(width=3), end_ids=(), never={common}, n=3)
    assert any(common in text.tokens for each in free for text in each)
    assert not any(common in text.tokens for each in texts for text in each)
    only = case.search(Beams(width=3), end_ids={2}, never=set(range(VOCAB)) - {2}, n=3)
    assert plain(only) == [[([], "end")]] * 3
    assert case.search(Beams(width=3), never=range(VOCAB)) == [[], [], []]


def test_no_prompts_no_texts():
    assert found(EagerReader(language_model(), CONTEXT), [], Beams()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 4}, "n is 4 and the beams are 3 wide: ask for 1 to 3"),
        ({"n": 0}, "n is 0"),
        ({"limit": [2]}, "there are 3 prompts and 1 limits"),
        ({"limit": [2, 0, 1]}, "a limit is 0: allow at least 1 new token"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(UsageError, match=message):
        Texts().search(Beams(width=3), **options)


def test_a_broken_model_says_so(kind):
    case = kind()
    with torch.no_grad():
        next(case.model.head.parameters())[0, 0] = float("nan")
    with pytest.raises(NextileError, match="predicts NaN or infinity"):
        case.search(Beams(width=3))


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([[1], []], "source 1 has no tokens"),  # all padding
        ([[1, VOCAB]], "source 0 has an id outside 0..5"),
        ([[-1]], "source 0 has an id outside 0..5"),
    ],
)
def test_bad_sources(sources, message):
    with pytest.raises(NextileError, match=message):
        SourceReader(translator(), sources, CONTEXT)


def test_compiled_rows_do_not_move():
    with pytest.raises(ValueError, match="give beams an EagerReader"):
        CompiledReader(language_model(), CONTEXT, 1).select([0, 0], each=2)


# --- the parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 19, 20, 99, 221, 1017])
@pytest.mark.parametrize("count", [1, 2, 10])
@pytest.mark.parametrize("width", [1, 5])
def test_the_highest_are_those_of_topk(size, count, width):
    x = torch.randn(7, width, size, generator=torch.Generator().manual_seed(size))
    x[..., ::3] = -torch.inf
    less, more = torch.randn(2, 7, width, 1, generator=torch.Generator().manual_seed(1))
    every = (x - less + more).flatten(1)
    want = every.topk(min(count, size * width)).values
    values, places = highest(x, less, more, count)
    assert torch.equal(values, want)
    assert torch.equal(every.gather(1, places), want)


@torch.no_grad()
def test_a_reader_of_sources_reads_as_the_whole_model_does():
    model = translator(vocab=29)
    reader = SourceReader(model, SOURCES, CONTEXT)
    ids, counts = padded(SOURCES)
    real, target = torch.arange(ids.shape[1]) < counts[:, None], torch.tensor([[1, 7, 3], [1, 8, 4], [1, 9, 5]])
    want = model(ids, target, source_segments=real)
    torch.testing.assert_close(reader.start([[1]] * 3), want[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(reader.read([7, 8, 9]), want[:, 1], rtol=0, atol=1e-5)
    reader.select([2, 2, 0, 0], each=2)
    torch.testing.assert_close(reader.read([5, 5, 3, 3]), want[[2, 2, 0, 0], 2], rtol=0, atol=1e-5)
    assert not torch.allclose(want[0, 2], want[2, 2], atol=1e-2)


# --- texts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Writer:
    """What `nextile.load` returns, as far as completing goes."""

    model: Any
    tokenizer: Tokenizer


@pytest.fixture
def writer():
    tokenizer = train_characters(["abcdefgh .\n"])
    return Writer(language_model(tokenizer.vocab_size), tokenizer)


def test_completions_by_beams(writer):
    prompts = ["a bad", "", "cafe."]
    found: Any = complete_by_beams(writer, prompts, Beams(width=3), max_tokens=6, n=2, batch=2)
    assert [[text.prompt for text in texts] for texts in found] == [[prompt] * 2 for prompt in prompts]
    for texts in found:
        assert [text.text for text in texts] == [writer.tokenizer.decode(text.tokens) for text in texts]
        assert texts[0].score > texts[1].score
        assert all((text.finish_reason == "length") == (len(text.tokens) == 6) for text in texts)
        assert texts[0].note is None
    assert found[1][0].text != found[0][0].text
    assert complete_by_beams(writer, ["cafe."], Beams(width=3), max_tokens=6, n=2)[0][0].text == found[2][0].text
    greedy = complete(writer, prompts, Sampling(temperature=0.0), max_tokens=6)
    assert [texts[0].text for texts in complete_by_beams(writer, prompts, Beams(width=1), max_tokens=6)] == [
        texts[0].text for texts in greedy
    ]


def test_end_tokens_of_the_callers_own(writer):
    [[free]] = complete_by_beams(writer, ["a bad"], Beams(width=1), max_tokens=6, end_ids=())
    [[text]] = complete_by_beams(writer, ["a bad"], Beams(width=1), max_tokens=6, end_ids={free.tokens[3]})
    assert text.finish_reason == "end"
    assert text.tokens == free.tokens[: free.tokens.index(free.tokens[3])]


def test_beams_stay_within_the_context(writer):
    [[short]] = complete_by_beams(writer, ["abc"], Beams(width=2), max_tokens=50, end_ids=())
    assert (len(short.tokens), short.note) == (CONTEXT + 1 - 3, None)
    [[cut]], [[same]] = (
        complete_by_beams(writer, [prompt], Beams(width=2), max_tokens=50, end_ids=())
        for prompt in ("fade" + "cab" * 2, "cab" * 2)
    )
    assert cut.note == "the prompt has 10 tokens and the model reads 6: its first 4 were left out"
    assert cut.text == same.text
    [[whole]] = complete_by_beams(writer, ["fade" + "cab" * 2], Beams(width=2), max_tokens=3)
    assert whole.note is None


def test_completions_without_tokens_are_refused(writer):
    with pytest.raises(UsageError, match="max_tokens is 0: ask for at least 1"):
        complete_by_beams(writer, ["a"], Beams(), max_tokens=0)
    assert complete_by_beams(writer, [], Beams()) == []
