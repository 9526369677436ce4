"""The engine: each text as `decode` writes it alone, whatever runs beside it; nobody starves; who goes leaves room."""

import random
import threading
import time
from functools import cache
from itertools import pairwise

import pytest
import torch

from nextile.base.errors import NextileError, UsageError
from nextile.generation.decode import decode
from nextile.generation.sample import Sampling
from nextile.models.build import build
from nextile.models.families import compact, gpt2, qwen3
from nextile.nn import specs
from nextile.nn.paged import bytes_a_token
from nextile.serving import engine as engine_module
from nextile.serving.batch import Batch, Text, pages_for
from nextile.serving.engine import Engine, Full, Request

VOCAB, CONTEXT = 61, 96
GREEDY = Sampling(temperature=0.0)
SYSTEM = [(7 * i) % VOCAB for i in range(40)]  # how many prompts begin
WAIT = 60.0


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are quickest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lively(model):
    """Its weights are large enough for every token to hang on what stands before it."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            spread = 0.25 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=spread)
    return model.eval()


def turning(scaling):
    """A spec with rotary positions that are scaled."""
    attention = specs.Attention(heads=4, kv_heads=2, bias="none", convolution=specs.ShortConvolution(taps=2))
    stack = specs.Stack(
        width=32, depth=2, causal=True, attention=attention, feed_forward=specs.MLP(hidden=64),
        position=specs.Rotary(scaling=scaling), local=specs.Local(window=9, pattern=(True, False)),
    )  # fmt: skip
    return specs.Transformer(
        context=CONTEXT, embed=specs.TokenEmbedding(vocab=VOCAB), stack=stack, head=specs.TiedHead()
    )


MODELS = {
    "gpt2": lambda: gpt2.spec(vocab=VOCAB, context=CONTEXT, width=32, depth=2, heads=4),
    "qwen3": lambda: qwen3.spec(vocab=VOCAB, context=CONTEXT, width=32, depth=2, heads=4),
    "windows, convolution": lambda: turning(None),
    "turns by length": lambda: turning(specs.DynamicScaling(factor=2.0, original=CONTEXT // 2)),
}


@cache
def model_called(name):
    return lively(build(MODELS[name]()))


@pytest.fixture
def model():
    return model_called("gpt2")


def memory_of(model, tokens):
    """Bytes that hold so many tokens."""
    return bytes_a_token(model.new_cache(1, 1)) * tokens


class Told:
    """What a ticket tells, and when it is over."""

    def __init__(self):
        self.things, self.over = [], threading.Event()

    def __call__(self, thing):
        self.things.append(thing)
        if isinstance(thing, BaseException) or getattr(thing, "finished", None):
            self.over.set()

    def wait(self):
        assert self.over.wait(WAIT)
        return self.things

    def tokens(self):
        """All of them. An error is raised."""
        for thing in self.wait():
            if isinstance(thing, BaseException):
                raise thing
        return [thing.token for thing in self.things]


def alone(model, request):
    """What `decode` alone tells of a request."""
    told = None if request.stop is None else lambda row, token: request.stop(token)
    return list(
        decode(
            model, [request.prompt], request.sampling, max_tokens=request.max_tokens, end_ids=request.end_ids,
            alternatives=request.alternatives, streams=[request.stream], min_tokens=request.min_tokens, stop=told,
            compiled=False,
        )
    )  # fmt: skip


def tokens_alone(model, request):
    return [event.token for event in alone(model, request)]


def seen(events):
    """What must be the same of events; their numbers are the same but for rounding."""
    return [(each.token, each.finished, [token for token, _ in each.alternatives]) for each in events]


def same(events, wanted):
    assert seen(events) == seen(wanted)
    assert [each.logprob for each in events] == pytest.approx([each.logprob for each in wanted], abs=1e-4)


def together(engine, requests):
    told = [Told() for _ in requests]
    for request, tell in zip(requests, told, strict=True):
        engine.submit(request, tell)
    return [tell.tokens() for tell in told]


# --- each as if it were alone -------------------------------------------------------------------------------------


def drawn_request(drawn):
    """Anything that may be asked."""
    length, most = drawn.choice([1, 2, 5, 20, 60, 95, 96, 150]), drawn.choice([1, 3, 10, 40, 110])
    beginning = SYSTEM[: drawn.choice([5, 24, 40])] if drawn.random() < 0.5 else []
    sampling = Sampling(
        temperature=drawn.choice([0.0, 0.8, 1.2]), top_p=drawn.choice([None, 0.9]), top_k=drawn.choice([None, 10]),
        repetition_penalty=drawn.choice([1.0, 1.2]), frequency_penalty=drawn.choice([0.0, 0.0, 0.5]),
        presence_penalty=drawn.choice([0.0, -0.5]), logit_bias=drawn.choice([{}, {3: -100, 5: 2.5}]),
        seed=drawn.randrange(1000),
    )  # fmt: skip
    return Request(
        beginning + [drawn.randrange(VOCAB) for _ in range(length)], sampling, most,
        end_ids=drawn.choice([(), (1, 2, 3, 4)]), alternatives=drawn.choice([0, 0, 3]), stream=drawn.randrange(3),
        stop=drawn.choice([None, lambda token: token == 8]), min_tokens=min(most, drawn.choice([0, 0, 5])),
    )  # fmt: skip


def drawn_batch(model, drawn):
    page = drawn.choice([1, 4, 16])
    full = -(-CONTEXT // page)
    pages = drawn.choice([full, full + 2, 2 * full, 8 * full])
    return Batch(model, rows=drawn.choice([1, 3, 8]), pages=pages, page=page, chunk=drawn.choice([page, 16, 50, 256]))


@torch.no_grad()
def scheduled(batch, drawn, requests, model, pause=1):
    """Let the requests come at any time, some go again; what each was told, and those that were given up."""
    waiting, told, texts = list(requests), [], []
    rounds = 0
    while waiting or len(batch):
        some = drawn.choice([0, 0, 1, 3]) if drawn.randrange(pause) == 0 else 0
        for _ in range(some if waiting and len(batch) else bool(waiting)):
            if waiting:
                told.append([])
                batch.check(waiting[0])
                texts.append(Text(waiting.pop(0), told[-1].append, CONTEXT))
                batch.add(texts[-1])
        if drawn.random() < 0.03:
            drawn.choice(texts).cancelled = True
        batch.drop_cancelled()
        batch.round()
        rounds += 1
        assert rounds < 20_000
    assert batch.pages_used == 0
    return told, texts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_any_schedule_writes_what_decode_writes_alone(name, seed):
    drawn, model = random.Random(f"{name} {seed}"), model_called(name)
    requests = [drawn_request(drawn) for _ in range(8)]
    told, texts = scheduled(drawn_batch(model, drawn), drawn, requests, model)
    for events, text, request in zip(told, texts, requests, strict=True):
        wanted = alone(model, request)
        assert len(events) == len(wanted) or text.cancelled
        same(events, wanted[: len(events)])


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(100, 130))
def test_many_more_schedules(seed, threads):
    torch.set_num_threads(threads)
    name = list(MODELS)[seed % len(MODELS)]
    drawn, model = random.Random(seed), model_called(name)
    requests = [drawn_request(drawn) for _ in range(25)]
    told, texts = scheduled(drawn_batch(model, drawn), drawn, requests, model)
    for events, text, request in zip(told, texts, requests, strict=True):
        wanted = alone(model, request)
        assert len(events) == len(wanted) or text.cancelled
        same(events, wanted[: len(events)])


def test_control_another_seed_stream_or_prompt_is_another_text(model):
    prompt, sampling = [1, 2, 3], Sampling(temperature=1.0, seed=1)
    requests = [
        Request(prompt, sampling, 20), Request(prompt, sampling, 20, stream=1), Request([1, 2, 4], sampling, 20),
        Request(prompt, Sampling(temperature=1.0, seed=2), 20), Request(prompt, Sampling(temperature=1.0), 20),
    ]  # fmt: skip
    engine = Engine(model)
    texts = together(engine, requests)
    engine.close()
    assert texts[0] == tokens_alone(model, requests[0])
    assert len(set(map(tuple, texts))) == 5


def test_the_engine_writes_many_at_once_as_each_alone(model):
    drawn = random.Random(7)
    requests = [drawn_request(drawn) for _ in range(30)]
    engine = Engine(model, rows=8, memory=memory_of(model, 4 * CONTEXT), page=4, chunk=20)
    told = [Told() for _ in requests]
    for request, tell in zip(requests, told, strict=True):
        engine.submit(request, tell)
    for request, tell in zip(requests, told, strict=True):
        same(tell.wait(), alone(model, request))
    now = engine.statistics()
    assert (now.running, now.waiting, now.pages_used) == (0, 0, 0)
    assert now.written == sum(len(tell.things) for tell in told)
    assert now.pages == CONTEXT
    assert engine.alive
    engine.close()


def test_two_hundred_streams_at_once(model):
    requests = [
        Request([number % VOCAB, *SYSTEM[: number % 30]], Sampling(seed=number), 5 + number % 9)
        for number in range(200)
    ]
    engine = Engine(model, rows=200)
    texts = together(engine, requests)
    engine.close()
    assert texts == [tokens_alone(model, request) for request in requests]


def test_global_randomness_is_neither_used_nor_changed(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    engine = Engine(model)
    together(engine, [Request([1], Sampling(), 5)])
    engine.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_training_goes_on_training_afterwards():
    model = lively(build(MODELS["gpt2"]())).train()
    engine = Engine(model)
    assert together(engine, [Request([1, 2], GREEDY, 5)]) == [tokens_alone(model, Request([1, 2], GREEDY, 5))]
    engine.close()
    assert model.training


@pytest.fixture(scope="module")
def stepped():
    """A batch of each model whose compiled step is there."""

    @cache
    def batch(name):
        made = Batch(model_called(name), rows=3, pages=80, page=4, chunk=16, compiled=True)
        until = time.monotonic() + 300.0
        while not made._solo.can_take(1) and time.monotonic() < until:
            time.sleep(0.05)
        assert made._solo.can_take(1)
        return made

    return batch


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_text_that_is_alone_at_times_is_the_same(stepped, name, seed):
    drawn, model, batch = random.Random(seed), model_called(name), stepped(name)
    requests = [drawn_request(drawn) for _ in range(10)]
    requests += [Request([1, 2, number], Sampling(seed=number, temperature=0.9), 150) for number in range(3)]
    alone_for, write = [0], batch._write_alone
    batch._write_alone = lambda text: (alone_for.append(text.number), write(text))
    told, texts = scheduled(batch, drawn, requests, model, pause=20)
    batch._write_alone = write
    assert len(alone_for) > 50  # it was alone, again and again
    for events, text, request in zip(told, texts, requests, strict=True):
        wanted = alone(model, request)
        assert len(events) == len(wanted) or text.cancelled
        same(events, wanted[: len(events)])


# --- what is shared -----------------------------------------------------------------------------------------------


def batch_of(model, *, rows=4, tokens=8 * CONTEXT, page=4, chunk=16):
    return Batch(model, rows=rows, pages=tokens // page, page=page, chunk=chunk)


def add(batch, *requests):
    """The texts, and what each is told."""
    told = [[] for _ in requests]
    texts = [Text(request, tell.append, CONTEXT) for request, tell in zip(requests, told, strict=True)]
    for text in texts:
        batch.add(text)
    return texts, told


@torch.no_grad()
def finish(batch):
    while len(batch):
        batch.round()


@pytest.mark.parametrize(("length", "reused"), [(39, 36), (40, 36), (41, 40), (42, 40)])
def test_a_prompt_that_comes_again_is_read_only_once(model, length, reused):
    batch, request = batch_of(model), Request([*SYSTEM, 1, 2][:length], GREEDY, 5)
    _, told = add(batch, request)
    finish(batch)
    assert (batch.counts.read, batch.counts.reused) == (length, 0)
    _, again = add(batch, request)
    finish(batch)
    assert (batch.counts.read, batch.counts.reused) == (2 * length - reused, reused)
    same(again[0], told[0])
    same(told[0], alone(model, request))


def test_two_that_come_together_read_what_they_have_in_common_once(model):
    batch = batch_of(model)
    requests = [Request([*SYSTEM, end], GREEDY, 5) for end in (1, 2, 3)]
    _, told = add(batch, *requests)
    finish(batch)
    assert (batch.counts.read, batch.counts.reused) == (43, 80)
    for events, request in zip(told, requests, strict=True):
        same(events, alone(model, request))


def test_what_was_written_is_known_as_well(model):
    batch = batch_of(model)
    _, [told] = add(batch, Request(SYSTEM[:10], GREEDY, 11))
    finish(batch)
    answer = [event.token for event in told]
    add(batch, Request([*SYSTEM[:10], *answer, 5], GREEDY, 1))
    finish(batch)
    assert batch.counts.reused == 20  # all that was read: the last token was not


def test_another_first_token_shares_nothing(model):
    batch = batch_of(model)
    add(batch, Request(SYSTEM, GREEDY, 2))
    finish(batch)
    add(batch, Request([SYSTEM[0] + 1, *SYSTEM[1:]], GREEDY, 2))
    finish(batch)
    assert batch.counts.reused == 0


def test_where_turns_hang_on_the_length_nothing_is_shared():
    batch = batch_of(model_called("turns by length"))
    add(batch, *[Request(SYSTEM, GREEDY, 2)] * 2)
    finish(batch)
    assert (batch.counts.read, batch.counts.reused) == (80, 0)


def test_old_pages_make_room(model):
    batch = batch_of(model, tokens=CONTEXT)
    for first in range(8):
        request = Request([first, *SYSTEM[:30]], GREEDY, 8)
        _, [told] = add(batch, request)
        finish(batch)
        same(told, alone(model, request))
    assert batch.cache.pages.available == batch.cache.pages.total


# --- room ---------------------------------------------------------------------------------------------------------


def test_when_pages_run_out_the_youngest_waits_and_goes_on_later(model):
    batch = batch_of(model, tokens=CONTEXT, rows=3)
    requests = [Request([first] * 20, Sampling(seed=first), 60) for first in (1, 2, 3)]
    texts, told = add(batch, *requests)
    put_back = set()
    with torch.no_grad():
        while len(batch):
            batch.round()
            put_back |= {text.number for text in batch.waiting if text.row.count}
            assert not batch.waiting or texts[0] not in batch.waiting
    assert put_back == {1, 2}
    for events, request in zip(told, requests, strict=True):
        same(events, alone(model, request))


def test_a_text_that_can_never_fit_is_refused_at_once(model):
    engine = Engine(model, memory=memory_of(model, 32), page=4)
    with pytest.raises(NextileError, match="may have 33 tokens and there is memory for 32: ask for fewer"):
        engine.submit(Request([1] * 30, GREEDY, 4), Told())
    assert together(engine, [Request([1] * 30, GREEDY, 3)]) == [tokens_alone(model, Request([1] * 30, GREEDY, 3))]
    engine.close()


def test_default_memory_is_bounded_by_rows_and_machine(model, monkeypatch):
    assert pages_for(model, 4, 16, None) == 4 * 6
    monkeypatch.setattr("nextile.serving.batch.memory_available", lambda device: 4 * memory_of(model, 200))
    assert pages_for(model, 4, 16, None) == 12
    with pytest.raises(UsageError, match="do not hold a page"):
        pages_for(model, 4, 16, 100)


def test_memory_is_allocated_once(model):
    batch = batch_of(model)
    stores = [layer.store.data_ptr() for layer in batch.cache.layers]
    add(batch, *[Request([first, *SYSTEM], GREEDY, 30) for first in range(6)])
    finish(batch)
    assert [layer.store.data_ptr() for layer in batch.cache.layers] == stores


# --- nobody starves -----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_long_prompt_does_not_hold_up_those_that_write(model):
    batch = batch_of(model, chunk=8)
    _, [told] = add(batch, Request([1], GREEDY, 60))
    batch.round()
    add(batch, Request(SYSTEM * 2, GREEDY, 4))
    for count in range(2, 12):  # 80 tokens of a prompt, 8 a round
        batch.round()
        assert len(told) == count


@torch.no_grad()
def test_no_more_than_a_chunk_of_prompts_is_read_in_a_round(model):
    batch = batch_of(model, chunk=8)
    add(batch, *[Request([first, *SYSTEM], GREEDY, 30) for first in range(4)])
    read = 0
    while len(batch):
        batch.round()
        assert batch.counts.read - read <= 8 + len(batch.active)  # the last token of each is read as if it wrote
        read = batch.counts.read


@torch.no_grad()
def test_prompts_take_turns(model):
    batch = batch_of(model, chunk=8)
    _, told = add(batch, *[Request([first, *SYSTEM * 2], GREEDY, 2) for first in range(3)], Request([9] * 7, GREEDY, 2))
    rounds = 0
    while not told[3]:
        batch.round()
        rounds += 1
    assert rounds <= 5
    assert not any(told[:3])


def test_jobs_and_texts_take_turns(model):
    engine, order = Engine(model), []

    def job(name):
        for number in range(5):
            order.append((name, number, engine.statistics().steps))
            yield number

    told = Told()
    engine.submit(Request([1], GREEDY, 80), told)
    for name in ("a", "b"):
        engine.run(job(name), lambda thing: None)
    assert told.tokens() == tokens_alone(model, Request([1], GREEDY, 80))
    engine.close()
    assert [entry[:2] for entry in order] == [(name, number) for number in range(5) for name in ("a", "b")]
    steps = [entry[2] for entry in order]
    assert all(b - a == 1 for a, b in pairwise(steps)), steps


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_a_job_tells_what_it_yields_without_gradients_and_ends_in_silence(model):
    engine, told, done = Engine(model), [], threading.Event()

    def work():
        yield torch.is_grad_enabled()
        yield threading.current_thread().name
        done.set()

    engine.run(work(), told.append)
    assert done.wait(WAIT)
    engine.close()
    assert told == [False, "nextile engine"]


def test_a_job_that_fails_tells_why_and_the_engine_goes_on(model):
    def work():
        yield 1
        raise NextileError("no such thing: take another")

    engine, told = Engine(model), Told()
    engine.run(work(), told)
    assert [str(thing) for thing in told.wait()] == ["1", "no such thing: take another"]
    assert together(engine, [Request([1], GREEDY, 3)]) == [tokens_alone(model, Request([1], GREEDY, 3))]
    assert engine.alive
    engine.close()


def test_a_job_that_is_cancelled_is_closed(model):
    closed, told = threading.Event(), []

    def work():
        try:
            while True:
                yield 1
        finally:
            closed.set()

    engine = Engine(model)
    ticket = engine.run(work(), told.append)
    while not told:
        time.sleep(0.001)
    ticket.cancel()
    ticket.cancel()
    assert closed.wait(WAIT)
    count = len(told)
    assert engine.statistics().jobs == 0
    engine.close()
    assert len(told) == count


def test_a_model_that_writes_no_text_does_jobs_alone():
    engine, told, done = Engine(lively(build(compact.spec(classes=("a", "b"), image=8, channels=1)))), [], []
    event = threading.Event()
    engine.run(iter([1, 2]), lambda thing: (told.append(thing), event.set() if thing == 2 else None))
    assert event.wait(WAIT)
    with pytest.raises(UsageError, match="writes no text"):
        engine.submit(Request([1], GREEDY, 3), done.append)
    assert engine.alive
    engine.close()


# --- coming and going ---------------------------------------------------------------------------------------------


class Gate:
    """Holds the engine's thread until it is opened."""

    def __init__(self, engine):
        self.reached, self.open = threading.Event(), threading.Event()
        engine.run(iter(self), lambda thing: None)
        assert self.reached.wait(WAIT)

    def __iter__(self):
        self.reached.set()
        assert self.open.wait(WAIT)
        yield None


def test_a_full_queue_is_refused_at_once_and_has_room_when_someone_goes(model):
    engine = Engine(model, rows=1, queue=2)
    gate, request = Gate(engine), Request([1], GREEDY, 20)
    told = [Told() for _ in range(4)]
    tickets = [engine.submit(request, tell) for tell in told[:3]]
    began = time.monotonic()
    with pytest.raises(Full, match="3 texts are being written or wait: try again later"):
        engine.submit(request, told[3])
    assert time.monotonic() - began < 0.05
    assert engine.statistics().waiting == 3
    tickets[1].cancel()
    engine.submit(request, told[3])
    gate.open.set()
    want = tokens_alone(model, request)
    assert [told[number].tokens() for number in (0, 2, 3)] == [want] * 3
    assert told[1].things == []
    engine.close()


def test_jobs_are_bounded_too(model):
    engine = Engine(model, queue=2)
    gate = Gate(engine)
    engine.run(iter([1]), lambda thing: None)
    with pytest.raises(Full, match="2 jobs wait"):
        engine.run(iter([1]), lambda thing: None)
    gate.open.set()
    engine.close(WAIT)


@torch.no_grad()
def test_who_cancels_leaves_row_and_pages_before_the_next_step(model):
    batch = batch_of(model, rows=1, tokens=CONTEXT)
    texts, told = add(batch, Request(SYSTEM, GREEDY, 50), Request([5], GREEDY, 3))
    for _ in range(5):
        batch.round()
    assert batch.pages_used > 0
    texts[0].cancelled = True
    count = len(told[0])
    batch.drop_cancelled()
    assert (batch.pages_used, batch.active) == (0, [])
    finish(batch)
    assert len(told[0]) == count
    same(told[1], alone(model, Request([5], GREEDY, 3)))


def test_a_hundred_that_hang_up_leave_nothing_behind(model):
    engine = Engine(model, rows=20, queue=100)
    told = [Told() for _ in range(100)]
    tickets = [engine.submit(Request([1, *SYSTEM], Sampling(seed=n), 90), tell) for n, tell in enumerate(told)]
    while not told[0].things:
        time.sleep(0.01)
    for ticket in tickets:
        ticket.cancel()
    until = time.monotonic() + 1.0
    while engine.statistics().pages_used and time.monotonic() < until:
        time.sleep(0.01)
    now = engine.statistics()
    assert (now.running, now.waiting, now.pages_used) == (0, 0, 0)
    counts = [len(tell.things) for tell in told]
    time.sleep(0.05)
    assert [len(tell.things) for tell in told] == counts
    engine.close()


def test_who_cannot_be_told_is_given_up_and_the_others_go_on(model):
    def gone(thing):
        raise RuntimeError("nobody listens")

    engine, told, request = Engine(model), Told(), Request([1], GREEDY, 30)
    engine.submit(request, gone)
    engine.submit(request, told)
    assert told.tokens() == tokens_alone(model, request)
    assert engine.alive
    assert engine.statistics().running == 0
    engine.close()


def test_a_stop_that_fails_ends_its_own_text_alone(model):
    def stop(token):
        raise ValueError("a bug of its owner's")

    engine, told, other = Engine(model), Told(), Told()
    engine.submit(Request([1], GREEDY, 30, stop=stop), told)
    engine.submit(Request([1], GREEDY, 30), other)
    with pytest.raises(ValueError, match="a bug of its owner's"):
        told.tokens()
    assert other.tokens() == tokens_alone(model, Request([1], GREEDY, 30))
    assert engine.statistics().pages_used == 0
    engine.close()


def test_bad_requests_are_errors_in_one_line(model):
    engine = Engine(model)
    for request, message in {
        "empty": (Request([], GREEDY, 3), "has no tokens"),
        "unknown": (Request([VOCAB], GREEDY, 3), "an id outside 0..60"),
        "none": (Request([1], GREEDY, 0), "max_tokens is 0: ask for at least 1"),
        "more": (Request([1], GREEDY, 3, min_tokens=4), "min_tokens is 4: ask for 0 to max_tokens, which is 3"),
        "never": (Request([1], GREEDY, 3, min_tokens=1, end_ids=range(VOCAB)), "all tokens end the text"),
        "fewer": (Request([1], GREEDY, 3, alternatives=-1), "alternatives is -1"),
    }.values():
        with pytest.raises(NextileError, match=message) as caught:
            engine.submit(request, Told())
        assert "\n" not in str(caught.value)
    assert engine.statistics().waiting == 0
    engine.close()
    with pytest.raises(UsageError, match="rows is 0"):
        Engine(model, rows=0)


def test_time_to_the_first_token_is_told_once_for_each_text(model):
    seconds = []
    engine = Engine(model, first_token=seconds.append)
    together(engine, [Request([1, 2], GREEDY, 9), Request([3], GREEDY, 4)])
    engine.close()
    assert len(seconds) == 2
    assert all(0.0 < each < WAIT for each in seconds)


# --- what goes wrong ----------------------------------------------------------------------------------------------


def broken_at(token):
    """A model that makes NaN of one token."""
    model = lively(build(MODELS["gpt2"]()))
    with torch.no_grad():
        model.embed.token.weight[token] = torch.nan
    model.head = torch.nn.Linear(32, VOCAB, bias=False)  # of its own: not every logit is broken
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model.eval()


def test_nan_ends_its_own_text_and_the_others_go_on():
    model = broken_at(60)
    unlucky = Sampling(temperature=0.0, logit_bias={60: -100.0})
    good = [Request([first, 2, *SYSTEM[:first]], unlucky, 40) for first in range(1, 5)]
    engine = Engine(model, rows=8, memory=memory_of(model, 3 * CONTEXT), page=4)
    told, bad = [Told() for _ in good], [Told() for _ in range(6)]
    for number, tell in enumerate(bad):
        engine.submit(Request([3] * number + [60] + [4] * number, unlucky, 40), tell)
    for request, tell in zip(good, told, strict=True):
        engine.submit(request, tell)
    for tell in bad:
        with pytest.raises(NextileError, match="predicts NaN or infinity"):
            tell.tokens()
    assert [tell.tokens() for tell in told] == [tokens_alone(model, request) for request in good]
    assert together(engine, good) == [tell.tokens() for tell in told]  # on pages that have held NaN
    assert engine.alive
    assert engine.statistics().pages_used == 0
    engine.close()


def failing(monkeypatch, action):
    """A model whose every call does this first."""
    model = lively(build(MODELS["gpt2"]()))
    features = model.features

    def replaced(*given, **named):
        action()
        return features(*given, **named)

    monkeypatch.setattr(model, "features", replaced)
    return model


def test_a_round_that_goes_wrong_ends_its_texts_and_no_others(monkeypatch):
    errors = [RuntimeError("too large"), RuntimeError("too large again")]
    engine = Engine(failing(monkeypatch, lambda: errors and (_ for _ in ()).throw(errors.pop(0))), rows=1)
    gate, told = Gate(engine), [Told() for _ in range(3)]
    for tell in told:
        engine.submit(Request([1], GREEDY, 3), tell)
    gate.open.set()
    for tell, message in zip(told, ("too large", "too large again"), strict=False):
        with pytest.raises(RuntimeError, match=message):
            tell.tokens()
    assert len(told[2].tokens()) == 3
    assert engine.alive
    assert engine.statistics().pages_used == 0
    engine.close()


@torch.no_grad()
def test_texts_that_have_all_their_pages_hold_nobody_up(model):
    batch = batch_of(model, rows=3, tokens=3 * CONTEXT, page=8)
    texts, _ = add(batch, *[Request([first, *SYSTEM, *SYSTEM], GREEDY, 10_000) for first in range(2)])
    while any(len(text.pages) * 8 < CONTEXT for text in texts):
        batch.round()
    third, _ = add(batch, Request((SYSTEM * 3)[:CONTEXT], GREEDY, 10_000))
    batch.round()
    assert third[0] in batch.active
    assert len(batch.active) == 3


def test_an_exception_in_the_thread_fails_all_and_the_engine_is_dead(monkeypatch):
    def fail():
        raise RuntimeError("the device is gone")

    engine = Engine(failing(monkeypatch, fail), rows=1)
    gate, told = Gate(engine), [Told() for _ in range(3)]
    for tell in told:
        engine.submit(Request([1], GREEDY, 3), tell)
    gate.open.set()
    for tell in told:
        with pytest.raises(RuntimeError, match="the device is gone"):
            tell.tokens()
        assert len(tell.things) == 1
    engine._thread.join(WAIT)
    assert not engine.alive
    with pytest.raises(NextileError, match=r"has failed \(the device is gone\): start it again"):
        engine.submit(Request([1], GREEDY, 3), Told())
    engine.close()


def test_a_stuck_step_is_seen_within_two_seconds(monkeypatch):
    stuck, entered = threading.Event(), threading.Event()
    engine = Engine(failing(monkeypatch, lambda: (entered.set(), stuck.wait(WAIT))))
    told = Told()
    assert engine.alive
    engine.submit(Request([1], GREEDY, 2), told)
    assert entered.wait(WAIT)
    assert engine.alive
    time.sleep(2.0 - engine_module.LOOK)
    assert not engine.alive
    stuck.set()
    told.tokens()
    assert engine.alive
    engine.close()


def test_a_slow_step_is_not_stuck(monkeypatch):
    monkeypatch.setattr(engine_module, "GRACE", 0.1)
    until = []

    def compute():
        until.append(time.monotonic() + 1.0)
        while time.monotonic() < until[-1]:
            pass

    engine, told = Engine(failing(monkeypatch, compute)), Told()
    engine.submit(Request([1], GREEDY, 1), told)
    while not told.over.is_set():
        assert engine.alive
    monkeypatch.setattr(engine_module, "PATIENCE", 0.2)
    engine.submit(Request([1], GREEDY, 1), Told())
    time.sleep(0.5)
    assert not engine.alive  # without end
    engine.close(WAIT)


def test_an_engine_with_nothing_to_do_is_alive(model, monkeypatch):
    monkeypatch.setattr(engine_module, "GRACE", 0.05)
    engine = Engine(model)
    time.sleep(0.2)
    assert engine.alive
    engine.close()
    assert not engine.alive


# --- the end ------------------------------------------------------------------------------------------------------


def test_closing_finishes_what_there_is_and_takes_on_no_more(model):
    engine = Engine(model, rows=2)
    gate, told, request = Gate(engine), [Told() for _ in range(5)], Request([1], GREEDY, 30)
    for tell in told:
        engine.submit(request, tell)
    closing = threading.Thread(target=engine.close, args=(WAIT,))
    closing.start()
    while not engine._closing:
        time.sleep(0.01)
    with pytest.raises(NextileError, match="is being closed"):
        engine.submit(request, Told())
    with pytest.raises(NextileError, match="is being closed"):
        engine.run(iter([1]), lambda thing: None)
    gate.open.set()
    closing.join(WAIT)
    assert [tell.tokens() for tell in told] == [tokens_alone(model, request)] * 5
    assert not engine.alive


def test_closing_at_once_fails_what_there_is(model):
    engine, told, job = Engine(model, rows=1), [Told() for _ in range(3)], Told()
    gate = Gate(engine)
    for tell in told:
        engine.submit(Request([1], GREEDY, 90), tell)
    engine.run(iter([1]), job)
    closing = threading.Thread(target=engine.close, args=(0.0,))
    closing.start()
    while not engine._closing:
        time.sleep(0.01)
    gate.open.set()
    closing.join(WAIT)
    for tell in (*told, job):
        assert isinstance(tell.wait()[-1], NextileError)
    assert not engine._thread.is_alive()
