"""The page in a real browser: what it shows of a model, by mouse and by keyboard, and that hostile text stays text."""

from __future__ import annotations

import base64
import json
import math
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from tests.contrast import AA, CONTRAST
from tests.serving.conftest import made

from nextile.generation import sample
from nextile.inspection import payload as payloads
from nextile.inspection.payload import payload
from nextile.serving.guard import HEADERS
from nextile.serving.page import page_files

if shutil.which("chromium") is None:
    pytest.skip("there is no chromium: apt install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
expect = sync_api.expect

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)  # a picture of one pixel
WORDS = (" the", " model", " goes", " on", " with", " a", " text", ",", " word", " by", " word", ".", "\n", "And")
slow = pytest.mark.slow  # of those that are quick each, but many

TASKS = ("lm", "translate", "classify", "classify-text", "paint", "words", "masked", "denoise")


# --- a server that says what a test wants ---------------------------------------------------------------------------


@cache
def looked() -> dict[str, Any]:
    """What a real server says of a look inside."""
    return payload(made("lm").inspect("abc"))


class Stub:
    """What the server of a test says: its model, its words, what it refuses; and what it was asked."""

    def __init__(self):
        self.task, self.name, self.vocabulary = "lm", "a-model", 50
        self.words: tuple[str, ...] = WORDS
        self.others: tuple[str, ...] = (" one", " other", " third")
        self.pace = 0.0  # seconds a token
        self.refusals: list[tuple[int, str, dict[str, str]]] = []  # of the next requests but looks ahead
        self.breaks = False  # whether streams break off
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.left = threading.Event()  # whether somebody hung up in a stream

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """What was asked of a route, but for looks ahead."""
        return [body for at, body, _ in self.asked if at == path and body.get("max_tokens") != 1]

    def top(self, place: int) -> dict[str, float]:
        """The likeliest tokens at a place: less and less certain."""
        sure = 0.9 / (1 + place % 5)
        rest = (1 - sure) / 2
        shares = {other: rest / 2**k for k, other in enumerate(self.others)}
        return {self.words[place % len(self.words)]: math.log(sure)} | {o: math.log(p) for o, p in shares.items()}

    # --- answers ---

    def models(self) -> dict[str, Any]:
        image = {"size": 8, "channels": 3} if self.task in ("paint", "classify") else None
        facts = {
            "task": self.task, "family": "qwen3", "parameters": 12345, "context": 64, "chat": self.task == "lm",
            "vocab": self.vocabulary, "image": image,
        }  # fmt: skip
        return {"object": "list", "data": [{"id": self.name, "object": "model", "nextile": facts}]}

    def completion(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        offset = 0
        for place in range(min(body["max_tokens"], len(self.words))):
            word, top = self.words[place], self.top(place)
            logprobs = {
                "tokens": [word], "token_logprobs": [top[word]], "top_logprobs": [top], "text_offset": [offset],
            }  # fmt: skip
            offset += len(word)
            yield {"choices": [{"index": 0, "text": word, "logprobs": logprobs, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]}

    def chat(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}
        for word in self.words:
            yield {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    def paint(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        pictures = [{"b64_json": base64.b64encode(DOT).decode()}] * body["n"]
        for done in (16, 32, 64):
            yield {"done": done, "of": 64, "data": pictures}

    def beams(self, body: dict[str, Any]) -> dict[str, Any]:
        """Two beams: the words as they are, and one that goes another way; of each round one is dropped."""
        rounds, parents = [], [None, None]
        for column in range(min(body["max_tokens"], 4)):
            texts = (self.words[column], self.others[0], self.others[1])
            rounds.append(
                [
                    {"id": 3 * column + k, "parent": parents[min(k, 1)] if column else None, "token": 10 * k + column,
                     "text": text, "logprob": -0.5 * (column + 1) - k, "kept": k < 2}
                    for k, text in enumerate(texts)
                ]
            )  # fmt: skip
            parents = [3 * column, 3 * column + 1]
        best = {"text": "".join(self.words[: len(rounds)]), "score": -0.5, "ids": list(range(len(rounds)))}
        return {"object": "beams", "rounds": rounds, "texts": [best, {**best, "text": self.others[0], "score": -1.0}]}

    def translate(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = ["".join(self.words).strip(), *self.others][: body["n"]]
        found = [{"text": t, "score": -1.0 - k, "logprob": -2.0, "finish_reason": "stop"} for k, t in enumerate(texts)]
        return {"object": "list", "data": [{"index": 0, "translations": found}]}

    def fill(self, body: dict[str, Any]) -> dict[str, Any]:
        count = body["input"].count("[MASK]")
        shares = [{"id": k, "text": word, "probability": 0.5 / 2**k} for k, word in enumerate(self.words[:4])]
        whole = {"text": body["input"].replace("[MASK]", self.words[0]), "fills": [self.words[0]] * count}
        texts = [{**whole, "score": -1.0 - k if "n" in body else None} for k in range(body.get("n", 1))]
        return {"data": [{"index": 0, "texts": texts, "gaps": [] if "n" in body else [shares] * count}]}

    def inspect(self, body: dict[str, Any]) -> dict[str, Any]:
        return looked()

    def classify(self, body: dict[str, Any]) -> dict[str, Any]:
        shares = [{"label": word, "probability": 0.5 / 2**k} for k, word in enumerate(self.words[: body["top"]])]
        return {"object": "list", "data": [{"index": 0, "classes": shares}]}


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's stub says, with the headers that the real one sends."""

    stub: Stub

    def log_message(self, *message: Any) -> None:
        pass

    def _head(self, status: int, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"content-type": kind} | HEADERS | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def _json(self, answer: Any, status: int = 200, more: dict[str, str] | None = None) -> None:
        self._head(status, "application/json", more)
        self.wfile.write(json.dumps(answer).encode())

    def _refused(self, body: dict[str, Any]) -> bool:
        if not self.stub.refusals or body.get("max_tokens") == 1:
            return False
        status, message, more = self.stub.refusals.pop(0)
        self._json({"error": {"message": message, "type": "x", "param": None, "code": None}}, status, more)
        return True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._refused({}) or self._json(self.stub.models())
            return
        file = page_files().get(self.path)
        if file is None:
            self._json({"error": {"message": "there is nothing here"}}, 404)
            return
        self._head(200, file.type)
        self.wfile.write(file.content)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.stub.asked.append((self.path, body, dict(self.headers)))
        if self._refused(body):
            return
        streams = {"/v1/completions": self.stub.completion, "/v1/chat/completions": self.stub.chat,
                   "/v1/paint": self.stub.paint}  # fmt: skip
        if self.path not in streams:
            self._json(getattr(self.stub, self.path.removeprefix("/v1/"))(body))
        elif body.get("stream"):
            self._events(streams[self.path](body))
        else:
            self._json(next(streams[self.path](body)))

    def _events(self, events: Iterator[dict[str, Any]]) -> None:
        self._head(200, "text/event-stream")
        try:
            for number, event in enumerate(events):
                self._line(json.dumps(event))
                if self.stub.breaks and number == 3:
                    return
            self._line("[DONE]")
        except OSError:
            self.stub.left.set()

    def _line(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()
        time.sleep(self.stub.pace)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server of the contract; `.url` is where."""
    stub = Stub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"stub": stub}))
    stub.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield stub
    server.shutdown()
    server.server_close()
    thread.join()


# --- a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, one for all tests; closed before other files' tests, whose event loops it would disturb."""
    with sync_api.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield browser
        browser.close()


class Window:
    """A page of the browser that asks nothing but one server; `complaints` is what went to its console."""

    def __init__(self, browser: Any, url: str, **options: Any):
        self.context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}, **options})
        self.context.set_default_timeout(5000)
        self.url, self.complaints, self.elsewhere = url, [], []
        self.context.route("**/*", self._let)
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"a dialog: {dialog.message}"), dialog.dismiss()))

    def _let(self, route: Any) -> None:
        if route.request.url.startswith((self.url, "data:", "blob:")):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def open(self, view: str = "") -> Any:
        """The page, when it shows a model."""
        self.page.goto(f"{self.url}#{view}")
        self.page.locator("main section:visible").first.wait_for()
        return self.page

    def quiet(self) -> None:
        """Nothing was complained of, and nobody else was asked."""
        assert self.complaints == []
        assert self.elsewhere == []


@pytest.fixture
def window(chromium, stub) -> Iterator[Window]:
    """A page before a server that says what the test wants; in the end nothing has gone wrong in it."""
    window = Window(chromium, stub.url)
    yield window
    window.quiet()
    window.context.close()


def write(page: Any, text: str = "It was") -> None:
    """Type a text and let the model go on to its end."""
    page.get_by_label("Your text").fill(text)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("status").first).to_contain_text("tokens")


def number(text: str) -> float:
    """The percentage in a text."""
    return float(text.split("\u202f")[0].strip("<"))


# --- writing --------------------------------------------------------------------------------------------------------


def test_it_loads_and_says_what_is_served(window):
    page = window.open()
    expect(page.locator("#facts")).to_have_text("a-model qwen3 · 12,345 parameters · 64 tokens of context")
    assert page.title() == "a-model · nextile"
    assert page.get_by_role("tab").all_inner_texts() == ["Write", "Beams", "Chat", "Look inside"]


@slow
def test_what_asks_another_host_is_seen_by_these_tests(chromium, stub):
    window = Window(chromium, stub.url)
    window.open().evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert window.complaints  # the policy refused it, and said so
    window.context.close()


def test_a_continuation_comes_token_by_token(window, stub):
    stub.pace = 0.05
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(2).wait_for()
    assert page.locator(".token").count() < len(WORDS)  # it shows before all is there
    expect(page.locator(".token")).to_have_count(len(WORDS))
    assert "".join(page.locator(".token").all_text_contents()) == "".join(WORDS)
    expect(page.get_by_role("status").first).to_contain_text(f"{len(WORDS)} tokens")
    (body,) = stub.bodies("/v1/completions")
    assert (body["prompt"], body["stream"], body["temperature"], body["max_tokens"]) == ("It was", True, 0.8, 64)


@slow
def test_less_probable_tokens_have_more_colour(window):
    page = window.open()
    write(page)
    colours = page.locator(".token").evaluate_all(
        "all => all.map(each => Number(each.style.getPropertyValue('--surprise')))"
    )
    assert colours[:5] == sorted(colours[:5])
    assert colours[0] < colours[4]
    assert page.locator(".token").first.get_attribute("aria-label") == "the, 90.0\u202f%"


@slow
def test_characters_of_several_tokens_are_cut_where_the_server_says(window, stub):
    offsets = iter([(0, "", "bytes:\\xf0\\x9f"), (0, "😀", "bytes:\\x98\\x80"), (1, " é", " é"), (3, "!", "!")])
    stub.completion = lambda body: (
        {"choices": [{"text": text, "logprobs": {"tokens": [token], "token_logprobs": [-1], "text_offset": [offset]}}]}
        for offset, text, token in offsets
    )
    page = window.open()
    write(page)
    assert page.locator(".token").all_text_contents() == ["", "😀", " é", "!"]


def test_an_alternative_is_chosen_by_keyboard_and_undone(window, stub):
    page = window.open()
    write(page)
    page.keyboard.press("Tab")  # from the text to its tokens, one stop of the key
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token").nth(2)).to_be_focused()
    page.keyboard.press("ArrowDown")
    alternatives = page.get_by_role("group", name="Alternatives", exact=True)
    expect(alternatives.get_by_role("button", name="goes, 30.0")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(alternatives.get_by_role("button", name="one, 35.0")).to_be_focused()
    page.keyboard.press("Escape")  # back to the token
    expect(page.locator(".token").nth(2)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator(".token").nth(2)).to_have_text(" one")
    expect(page.locator(".token").nth(2)).to_be_focused()
    expect(page.locator(".token")).to_have_count(3 + len(WORDS))
    assert stub.bodies("/v1/completions")[-1]["prompt"] == "It was the model one"
    page.get_by_role("button", name="Undo").click()
    assert "".join(page.locator(".token").all_text_contents()) == "".join(WORDS)


@slow
def test_pointing_at_a_token_shows_its_alternatives(window):
    page = window.open()
    write(page)
    alternatives = page.get_by_role("group", name="Alternatives", exact=True)
    page.locator(".token").nth(3).hover()
    expect(alternatives).to_contain_text("␣on")
    assert [number(each) for each in alternatives.locator(".share").all_inner_texts()] == [38.8, 22.5, 19.4, 9.7]
    page.mouse.move(5, 5)
    expect(alternatives).to_be_hidden()


@slow
def test_typing_ends_what_the_model_wrote_and_undo_brings_it_back(window):
    page = window.open()
    write(page)
    page.get_by_label("Your text").press_sequentially("!")
    expect(page.locator(".token")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_label("Your text")).to_have_value("It was")
    expect(page.locator(".token")).to_have_count(len(WORDS))


@slow
def test_typing_while_the_model_writes_ends_it(window, stub):
    stub.pace = 0.05
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(2).wait_for()
    page.get_by_label("Your text").press_sequentially("!")
    assert stub.left.wait(2)
    page.wait_for_timeout(200)
    assert page.locator(".token").count() == 0
    expect(page.get_by_label("Your text")).to_have_value("It was!")


@slow
def test_an_alternative_chosen_while_the_model_writes_ends_what_it_wrote(window, stub):
    stub.pace = 0.05
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    page.locator(".token").nth(3).wait_for()
    page.locator(".token").nth(1).hover()
    stub.pace = 0
    page.get_by_role("group", name="Alternatives", exact=True).get_by_role("button", name="other").click()
    expect(page.locator(".token")).to_have_count(2 + len(WORDS))
    assert "".join(page.locator(".token").all_text_contents()) == " the other" + "".join(WORDS)


@slow
def test_the_next_token_can_be_chosen_by_hand(window, stub):
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.get_by_role("region", name="The next token").get_by_role("button", name="other, ", exact=False).first.click()
    assert page.locator(".token").all_text_contents() == [" other"]
    page.wait_for_timeout(400)
    assert stub.asked[-1][1]["prompt"] == "It was other"  # it looks ahead again


@slow
def test_what_was_done_is_there_as_a_command(window, stub):
    page = window.open()
    write(page, "It's `$HOME`")
    page.locator("summary:visible").click()
    words = shlex.split(page.locator("pre code").first.inner_text())
    assert words[:2] == ["curl", f"{stub.url}v1/completions"]
    assert json.loads(words[words.index("-d") + 1]) == stub.bodies("/v1/completions")[-1]


# --- the sliders ----------------------------------------------------------------------------------------------------


def shares(page: Any) -> list[float]:
    return [number(each) for each in page.locator(".next .share").all_inner_texts()]


def test_sliders_are_felt_in_the_bars_without_asking_again(window, stub):
    page = window.open()
    page.locator(".next .bar").nth(3).wait_for()
    asked = len(stub.asked)
    before = shares(page)
    page.get_by_role("slider", name="Temperature").fill("40")  # of 0 to 40
    hot = shares(page)
    assert hot[0] < before[0]
    page.get_by_role("slider", name="Temperature").fill("0")
    assert shares(page) == [100, 0, 0, 0, 0]
    page.get_by_role("slider", name="Temperature").fill("40")
    page.get_by_role("slider", name="Top-k").fill("1")
    assert [each > 0 for each in shares(page)] == [True, True, False, False, False]
    page.get_by_role("slider", name="Top-k").fill("15")
    page.get_by_role("slider", name="Top-p").fill("0")
    assert shares(page) == [100, 0, 0, 0, 0]
    assert len(stub.asked) == asked


@slow
@pytest.mark.parametrize(
    "setting",
    [{}, {"temperature": 0.5}, {"temperature": 1.7}, {"top_k": 3}, {"top_p": 0.6}, {"top_p": 0.95, "temperature": 1.3},
     {"top_k": 5, "top_p": 0.7, "temperature": 0.7}, {"temperature": 0.0}],
)  # fmt: skip
def test_the_page_reckons_as_the_server_draws(window, setting):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 2
    cut = sample.temperature(logits, setting.get("temperature", 1.0))
    cut = sample.top_k(cut, setting["top_k"]) if "top_k" in setting else cut
    wanted = sample.top_p(cut, setting.get("top_p", 1.0)).softmax(-1)[0]
    top = {f"t{k}": each for k, each in enumerate(logits.log_softmax(-1)[0].tolist())}
    got = window.open().evaluate(
        "async ([top, setting]) => (await import('/sampling.js')).shaped(top, 20, setting)", [top, setting]
    )
    assert [row["after"] for row in got["rows"]] == pytest.approx(
        [wanted[int(row["token"][1:])].item() for row in got["rows"]]
    )
    assert got["others"]["after"] == 0


@slow
def test_tokens_that_are_not_shown_have_their_share(window):
    top = {"a": math.log(0.5), "b": math.log(0.2)}
    shaped = "async ([top, setting]) => (await import('/sampling.js')).shaped(top, 32, setting)"
    page = window.open()
    assert page.evaluate(shaped, [top, {}])["others"] == pytest.approx({"before": 0.3, "after": 0.3})
    hot = page.evaluate(shaped, [top, {"temperature": 2.0}])
    weights = [0.5**0.5, 0.2**0.5, 30 * 0.01**0.5]
    assert hot["others"]["after"] == pytest.approx(weights[2] / sum(weights))
    assert page.evaluate(shaped, [top, {"top_k": 2}])["others"]["after"] == 0
    assert page.evaluate(shaped, [top, {"top_k": 12}])["others"]["after"] == pytest.approx(0.1 / 0.8)


# --- stopping, and what goes wrong ----------------------------------------------------------------------------------


def test_escape_stops_and_the_server_is_told(window, stub):
    stub.pace = 0.1
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.get_by_role("button", name="Write").click()
    page.locator(".token").nth(1).wait_for()
    page.keyboard.press("Escape")
    expect(page.get_by_role("status").first).to_have_text("Stopped.")
    assert stub.left.wait(2)
    some = page.locator(".token").count()
    assert 2 <= some < len(WORDS)
    expect(page.get_by_role("button", name="Go on")).to_be_visible()


@slow
def test_a_full_server_is_asked_again_when_it_says(window, stub):
    page = window.open()
    stub.refusals = [(429, "the server is full", {"retry-after": "1"})]
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").first).to_contain_text("as many requests as it takes. the server is full")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    expect(again).to_be_enabled(timeout=3000)
    again.click()
    expect(page.locator(".token")).to_have_count(len(WORDS))
    expect(page.locator(".trouble:visible")).to_have_count(0)
    window.complaints = [said for said in window.complaints if "429" not in said]  # the browser's own line


@slow
def test_a_key_is_asked_for_and_sent(window, stub):
    stub.refusals = [(401, "the key is missing", {"www-authenticate": "Bearer"})]
    page = window.page
    page.goto(stub.url)
    expect(page.get_by_role("alert")).to_contain_text("The server asks for its key.")
    page.get_by_label("Key of the server").fill("s3cret")
    page.keyboard.press("Enter")
    write(page)
    assert stub.asked[-1][2]["Authorization"] == "Bearer s3cret"
    page.locator("summary:visible").click()
    assert "s3cret" not in page.locator("pre code").first.inner_text()  # but the name of a variable
    window.complaints = [said for said in window.complaints if "401" not in said]


@slow
@pytest.mark.parametrize(
    ("status", "said"),
    [(503, "closing down, or its engine stands still. why"), (400, "why"), (403, "under this name. why"), (500, "why")],
)
def test_a_refusal_is_said_where_it_belongs(window, stub, status, said):
    page = window.open()
    stub.refusals = [(status, "why", {})]
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").first).to_contain_text(said)
    window.complaints = [said for said in window.complaints if str(status) not in said]


@slow
def test_a_stream_that_breaks_off_is_not_taken_for_an_end(window, stub):
    stub.breaks = True
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").first).to_contain_text("The answer broke off")
    assert page.locator(".token").count() == 4  # what came is kept


@slow
def test_a_server_that_is_gone_is_said(window, stub):
    page = window.open()
    page.get_by_label("Your text").fill("It was")
    window.context.set_offline(True)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").first).to_contain_text("The server does not answer")
    window.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".token")).to_have_count(len(WORDS))
    window.complaints = [said for said in window.complaints if "ERR_INTERNET_DISCONNECTED" not in said]


# --- other views ----------------------------------------------------------------------------------------------------


@slow
def test_beams_are_a_tree_that_arrow_keys_go_along(window, stub):
    page = window.open("beams")
    page.get_by_label("Text to go on from").fill("It was")
    page.keyboard.press("Control+Enter")
    page.locator(".node").first.wait_for()
    kinds = {kind: page.locator(f".node.{kind}").count() for kind in ("best", "kept", "dropped")}
    assert kinds == {"best": 4, "kept": 4, "dropped": 4}
    assert "".join(page.locator(".node.best text").all_text_contents()) == "␣the␣model␣goes␣on"
    assert page.locator(".ranking .quote").first.inner_text() == "␣the model goes on"
    page.locator(".node[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".node:focus")).to_have_attribute("aria-label", "one, kept, path 13.5\u202f%")
    expect(page.locator("figcaption")).to_contain_text("␣one one has the log-probability -2.00")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")  # go on from there
    expect(page.get_by_role("tab", name="Write")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Your text")).to_have_value("It was one")


@slow
def test_a_chat_remembers_and_answers_again(window, stub):
    page = window.open("chat")
    page.get_by_label("System prompt").fill("Be short.")
    page.get_by_label("Your message").fill("What?")
    page.keyboard.press("Enter")
    answer = page.locator(".assistant .said")
    expect(answer).to_have_text("".join(WORDS))
    expect(page.locator(".status:visible")).to_have_text("Answered.")
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".talk li")).to_have_count(2)
    expect(page.locator(".status:visible")).to_have_text("Answered.")
    expect(answer).to_have_text("".join(WORDS))
    page.get_by_label("Your message").fill("And?")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant")).to_have_count(2)
    first, second, third = stub.bodies("/v1/chat/completions")
    assert first["messages"] == second["messages"]
    said = [(each["role"], each["content"]) for each in third["messages"]]
    assert said == [("system", "Be short."), ("user", "What?"), ("assistant", "".join(WORDS)), ("user", "And?")]


@slow
def test_a_chat_is_stopped(window, stub):
    stub.pace = 0.1
    page = window.open("chat")
    page.get_by_label("Your message").fill("What?")
    page.keyboard.press("Enter")
    expect(page.locator(".assistant .said")).to_contain_text("model")
    page.keyboard.press("Escape")
    assert stub.left.wait(2)
    expect(page.locator(".assistant .said")).not_to_contain_text("And")


@slow
def test_a_translation_stands_beside_its_source(window, stub):
    stub.task = "translate"
    page = window.open()
    page.get_by_label("Text to translate").fill("Ein Haus")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("group", name="Translation")).to_have_text("".join(WORDS).strip())
    expect(page.locator(".ranking li")).to_have_count(4)
    expect(page.locator(".node")).to_have_count(12)
    assert stub.bodies("/v1/translate")[0] == {"input": "Ein Haus", "beams": 5, "n": 4, "length_penalty": 1}


def dropped(page: Any, target: str, kind: str, data: bytes, how: str = "drop") -> None:
    """Drop a file, or paste it."""
    page.evaluate(
        """([target, kind, data, how]) => {
          const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
          const files = new DataTransfer();
          files.items.add(new File([bytes], "it.png", { type: kind }));
          const event = how === "drop" ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: files, bubbles: true });
          document.querySelector(target).dispatchEvent(event);
        }""",
        [target, kind, base64.b64encode(data).decode(), how],
    )


@pytest.mark.parametrize("how", ["drop", pytest.param("paste", marks=slow), pytest.param("choose", marks=slow)])
def test_a_picture_is_classified(window, stub, how):
    stub.task = "classify"
    page = window.open()
    if how == "choose":
        page.get_by_label("Choose a picture", exact=True).set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": DOT}
        )
    else:
        dropped(page, ".drop", "image/png", DOT, how)
    expect(page.locator(".verdict")).to_contain_text("the 50.0")
    expect(page.locator(".bars li")).to_have_count(10)
    expect(page.get_by_role("img", name="Your picture")).to_be_visible()
    url = "data:image/png;base64," + base64.b64encode(DOT).decode()
    assert stub.bodies("/v1/classify") == [{"input": url, "top": 10}]


@slow
def test_what_is_no_picture_is_said(window, stub):
    stub.task = "classify"
    page = window.open()
    dropped(page, ".drop", "image/png", b"no picture")
    expect(page.get_by_role("alert")).to_have_text("it.png is no picture that the browser can read.")
    assert stub.asked == []


@slow
def test_a_text_is_classified_as_it_is_typed(window, stub):
    stub.task = "classify-text"
    page = window.open()
    page.get_by_label("Text to classify").press_sequentially("Good")
    expect(page.locator(".verdict")).to_contain_text("the 50.0")
    assert [body["input"] for body in stub.bodies("/v1/classify")] == ["Good"]


@slow
def test_pictures_appear_as_they_are_painted_and_can_be_kept(window, stub):
    stub.task, stub.pace = "paint", 0.2
    page = window.open()
    page.get_by_role("slider", name="Pictures").fill("2")  # of 1, 2, 4, ...
    page.get_by_role("button", name="Paint").click()
    page.locator(".grid img").nth(3).wait_for()
    expect(page.get_by_role("progressbar")).to_be_visible()  # seen before all is done
    assert page.locator(".grid").get_by_role("link").count() == 0
    expect(page.get_by_role("link", name="Download picture 4")).to_be_visible()
    assert page.locator(".grid img").first.evaluate("each => getComputedStyle(each).imageRendering") == "pixelated"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download picture 4").click()
    assert download.value.suggested_filename == "picture-4.png"


@slow
def test_a_half_picture_is_completed(window, stub):
    stub.task = "paint"
    page = window.open()
    dropped(page, ".drop", "image/png", DOT)
    page.get_by_role("link", name="Download picture 9").wait_for()
    page.get_by_role("button", name="From nothing").click()
    page.get_by_role("button", name="Paint").click()
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert ["image" in body for body in stub.bodies("/v1/paint")] == [True, False]


@slow
def test_gaps_are_filled_and_another_token_is_chosen_for_one(window, stub):
    stub.task = "masked"
    page = window.open()
    page.get_by_label("Text with gaps").fill("It [MASK] a")
    page.get_by_role("button", name="Insert a gap").click()
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("group", name="Filled")).to_have_text("It  the a the")
    assert page.locator(".gaps section").count() == 2
    page.get_by_role("region", name="Gap 1").get_by_role("button").nth(1).click()
    expect(page.get_by_label("Text with gaps")).to_have_value(f"It{stub.words[1]} a[MASK]")
    expect(page.locator(".gaps section")).to_have_count(1)
    assert [body["input"] for body in stub.bodies("/v1/fill")] == ["It [MASK] a[MASK]", f"It{stub.words[1]} a[MASK]"]
    page.get_by_label("Text with gaps").fill("It was")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".status:visible")).to_have_text("Write [MASK] where something is missing.")


@slow
def test_a_denoiser_shows_its_best_texts(window, stub):
    stub.task = "denoise"
    page = window.open()
    page.get_by_label("Text with gaps").fill("It [MASK] a")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".ranking li")).to_have_count(4)


@slow
def test_a_model_without_a_play_has_its_command(window, stub):
    stub.task = "words"
    assert "nextile words a-model near king" in window.open().locator("main").inner_text()


# --- hostile text ---------------------------------------------------------------------------------------------------

TAGS = (
    "<img src=x onerror=BAD>", "<script>BAD</script>", "<svg onload=BAD>", "<iframe srcdoc='<script>BAD</script>'>",
    "<a href='javascript:BAD'>x</a>", "<body onload=BAD>", "<style>*{display:none}</style>", "<base href=//evil.test/>",
    "<details open ontoggle=BAD>", "<input autofocus onfocus=BAD>", "<video><source onerror=BAD></video>",
    "<math><mtext><img src=x onerror=BAD>", "<form action=//evil.test><button>x", "<object data='javascript:BAD'>",
    "<embed src='javascript:BAD'>", "<link rel=stylesheet href=//evil.test/x.css>",
    "<meta http-equiv=refresh content=0>",
    "<template><script>BAD</script></template>", "<noscript><p title='</noscript><img src=x onerror=BAD>'>",
    "<marquee onstart=BAD>", "</textarea><script>BAD</script>", "</title><script>BAD</script>",
    "-->\n<img src=x onerror=BAD>",
    "]]><script>BAD</script>", "'\"><img src=x onerror=BAD>", "javascript:BAD", "data:text/html,<script>BAD</script>",
    "{{constructor.constructor('BAD')()}}", "${BAD}", "__proto__", "constructor", "toString", "hasOwnProperty",
)  # fmt: skip
SIGNS = (
    "\u202e",
    "\u2066",
    "\u2067",
    "\u0000",
    "\u0007",
    "\u001b[31m",
    "\u009b31m",
    "\ufeff",
    "\u2028",
    "\u007f",
    "\r",
    "\b",
)
WRAPS = (("&lt;", ""), ("\u202e", ""), ("", "\u0000"), ("%3C", ""), ("\\u003c", ""))
BAD = "window.ran=1"
HOSTILE = [tag.replace("BAD", BAD) for tag in TAGS]
HOSTILE += [begin + tag + end for begin, end in WRAPS for tag in HOSTILE]
HOSTILE = list(dict.fromkeys(HOSTILE + [sign + "text" + sign for sign in SIGNS]))


def unharmed(page: Any) -> None:
    """No text became an element, an address or a program."""
    assert page.evaluate("window.ran") is None
    found = page.locator(
        "main :is(script, iframe, style, link, base, meta, object, embed, video, math, template, marquee, form)"
    )
    assert found.count() == 0
    assert page.evaluate("document.scripts.length") == 1
    assert (
        page.locator(
            "main [src]:not([src^='data:image/']), main [href]:not([href^='data:image/'], [href^='#'])"
        ).count()
        == 0
    )


def raw(text: str) -> bool:
    """Whether a text has characters that steer a terminal or turn the writing."""
    return any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066\u2067" for c in text)


def test_two_hundred_hostile_tokens_are_text(window, stub):
    assert len(HOSTILE) >= 200
    stub.words = tuple(HOSTILE)
    stub.others = tuple(HOSTILE[:8])
    page = window.open()
    page.get_by_role("slider", name="Tokens").fill("8")  # at most 256
    write(page)
    shown = page.locator(".token").all_text_contents()
    assert len(shown) == len(HOSTILE)
    assert not any(map(raw, shown))
    assert shown[: len(TAGS)] == HOSTILE[: len(TAGS)]  # those are characters as they are
    for place in range(0, len(HOSTILE), 10):
        page.locator(".token").nth(place).focus()
        expect(page.get_by_role("group", name="Alternatives", exact=True)).to_be_visible()
    unharmed(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").first).to_contain_text("tokens")
    unharmed(page)


@slow
@pytest.mark.parametrize("task", ["beams", "chat", "translate", "classify-text"])
def test_hostile_text_of_other_views_is_text(window, stub, task):
    stub.task = "lm" if task in ("beams", "chat") else task
    stub.words, stub.others, stub.name = tuple(HOSTILE), tuple(HOSTILE[-3:]), HOSTILE[0]
    page = window.open(task)
    box = page.locator("main section:visible textarea").first
    box.fill("It was")
    if task == "chat":
        page.get_by_role("textbox", name="Your message").fill("It was")
    page.keyboard.press("Control+Enter")
    page.locator(".node, .assistant .said:not(.coming), .ranking li, .verdict b").first.wait_for()
    page.wait_for_timeout(100)
    unharmed(page)
    assert not raw(page.locator("body").inner_text().replace("\r", ""))
    assert HOSTILE[0] in page.locator("body").inner_text()


# --- for everybody --------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(chromium, stub, scheme):
    window = Window(chromium, stub.url, color_scheme=scheme)
    stub.top = lambda place: {stub.words[place % len(WORDS)]: -0.75 * place, " other": -1.0}  # up to the most colour
    page = window.open()
    write(page)
    page.locator(".token").nth(1).focus()
    page.locator("summary:visible").click()
    found = page.evaluate(CONTRAST)
    page.get_by_role("tab", name="Beams").click()
    page.keyboard.press("Control+Enter")
    page.locator(".node").first.wait_for()
    found += page.evaluate(CONTRAST)
    assert len(found) > 50
    assert [each for each in found if each[0] < AA] == []
    window.quiet()
    window.context.close()


@slow
def test_colours_follow_the_system_and_a_choice_that_is_kept(chromium, stub):
    window = Window(chromium, stub.url, color_scheme="dark")
    page = window.open()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    button = page.get_by_role("button", name="Colours")
    button.click()
    light = page.evaluate(ground)
    assert (dark, light) == ("rgb(23, 24, 26)", "rgb(250, 249, 246)")
    page.reload()
    expect(button).to_have_attribute("aria-label", "Colours: light")
    assert page.evaluate(ground) == light
    button.click()
    button.click()
    expect(button).to_have_attribute("aria-label", "Colours: as the system")
    assert page.evaluate(ground) == dark
    window.context.close()


CONTROLS = """() => [...document.querySelectorAll("a[href], button, input, textarea, summary, pre, [tabindex]")]
  .filter((each) => each.checkVisibility() && !each.disabled && each.tabIndex >= 0)
  .map((each, place) => { each.dataset.stop = place; return place; })"""
FOCUSED = "document.activeElement === document.body ? -1 : Number(document.activeElement.dataset.stop ?? NaN)"


def walk(page: Any) -> set[int]:
    """The numbers of the controls that the Tab key comes by, from the first on to the last."""
    page.locator(".skip").focus()
    found = {page.evaluate(FOCUSED)}
    for _ in range(60):
        page.keyboard.press("Tab")
        place = page.evaluate(FOCUSED)
        if place in (-1, 0):
            break
        found.add(place)
    return found


@slow
@pytest.mark.parametrize("task", TASKS)
def test_the_tab_key_comes_by_every_control_and_each_has_a_name(window, stub, task):
    stub.task = task
    page = window.open()
    if task == "lm":
        write(page)
        page.wait_for_timeout(350)  # the bars of the next token
    wanted = page.evaluate(CONTROLS)
    assert len(wanted) >= 3
    assert set(wanted) <= walk(page)
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "slider", "tab", "link", "img", "progressbar", "list", "region", "tabpanel"}
    named = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]
    assert sum(role in roles for role, _ in named) >= 3
    assert [role for role, name in named if role in roles and not name.strip()] == []


@slow
@pytest.mark.parametrize("task", TASKS)
def test_a_telephone_needs_no_scrolling_sideways(chromium, stub, task):
    window = Window(chromium, stub.url, viewport={"width": 360, "height": 640}, has_touch=True)
    stub.task, stub.words = task, (*WORDS, " unreasonablylongwordsthatdonotendinanyplace" * 3)
    page = window.open()
    views = page.get_by_role("tab")
    for place in range(max(views.count(), 1)):
        if views.count() > 1:
            views.nth(place).click()
        boxes = page.locator("main section:visible textarea")
        if boxes.count():
            boxes.last.fill("It was") if boxes.count() == 1 else boxes.first.fill("It was")
            page.keyboard.press("Control+Enter")
            page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    if task == "lm":
        views.first.click()
        page.locator(".token").nth(3).tap()
        pop = page.get_by_role("group", name="Alternatives", exact=True).bounding_box()
        assert pop["x"] >= 0
        assert pop["x"] + pop["width"] <= 360
    window.context.close()


# --- before the real server -----------------------------------------------------------------------------------------


@pytest.fixture
def opened(chromium) -> Iterator[Any]:
    """`opened(running)` is a page before a real server; in the end nothing has gone wrong in it."""
    windows: list[Window] = []

    def opened(running: Any, view: str = "", **options: Any) -> Any:
        windows.append(Window(chromium, f"{running.url}/", **options))
        return windows[-1].open(view)

    yield opened
    for window in windows:
        window.quiet()
        window.context.close()


def test_a_real_model_writes_and_goes_on_from_an_alternative(opened, lm):
    page = opened(lm)
    page.get_by_role("slider", name="Tokens").fill("4")  # at most 16
    page.get_by_label("Your text").fill("abc")
    page.get_by_label("Seed").first.fill("1")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".status:visible")).to_contain_text("token")
    shown = page.locator(".token").all_text_contents()
    wanted = lm.post("/v1/completions", prompt="abc", max_tokens=16, temperature=0.8, seed=1, logprobs=1)
    (choice,) = wanted.json["choices"]
    assert "".join(shown) == choice["text"]
    assert len(shown) == len(choice["logprobs"]["tokens"])
    page.locator(".token").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator(".status:visible")).to_contain_text("token")
    expect(page.locator(".next .bar").first).to_be_visible()
    assert sum(number(each) for each in page.locator(".next .share").all_inner_texts()) == pytest.approx(100, abs=1)


def until(page: Any, holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let the page go on until something holds here. Errors: AssertionError when it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def test_what_was_written_is_looked_into_and_other_heads_are_asked_for(opened, lm, monkeypatch):
    monkeypatch.setattr(payloads, "HEADS", 0)  # room for the chosen one alone
    page = opened(lm)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(lm.url)))
    page.get_by_label("Your text").fill("abc")
    page.get_by_role("button", name="Look inside").click()
    expect(page.get_by_role("tab", name="Look inside")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("What to look at")).to_have_value("abc")
    page.locator(".step").first.wait_for()
    assert page.url.endswith("#look-inside")
    assert asked.count("/v1/inspect") == 1
    for place in range(4):
        thumb = page.locator(f'.thumb[data-place="0.{place}"]')
        thumb.click()
        expect(thumb).to_have_attribute("aria-pressed", "true")
        expect(page.locator(".missing")).to_be_hidden()
    until(page, lambda: asked.count("/v1/inspect/head") == 3)
    page.get_by_label("What to look at").fill("h")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".inspect")).to_have_count(1)


@slow
@pytest.mark.parametrize("kind", ["translator", "labeller", "masker", "denoiser"])
def test_real_models_are_looked_into(opened, kind, request):
    running = request.getfixturevalue(kind)
    page = opened(running, "look-inside")
    page.get_by_label("What to look at").fill("ab[MASK]c" if kind in ("masker", "denoiser") else "abc")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".step")).not_to_have_count(0)


@slow
@pytest.mark.parametrize("kind", ["classifier", "painter"])
def test_a_dropped_picture_is_looked_into(opened, kind, request):
    page = opened(request.getfixturevalue(kind), "look-inside")
    dropped(page, "#panel-look-inside .drop", "image/png", DOT)
    expect(page.locator(".step")).not_to_have_count(0)


@slow
def test_hostile_text_that_is_looked_into_is_text(opened, octets):
    page = opened(octets, "look-inside")
    for text in ("<img src=x onerror=BAD>", "\u202e</textarea><script>BAD</script>"):
        page.get_by_label("What to look at").fill(text)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".step")).not_to_have_count(0)
        expect(page.locator(".primary:visible")).to_contain_text("Look inside")  # and no longer Stop
        unharmed(page)


@slow
def test_real_masks_are_filled(opened, masker):
    page = opened(masker)
    page.get_by_label("Text with gaps").fill("ab[MASK]c")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("group", name="Filled")).to_have_text(masker.model.generate("ab[MASK]c"))


@slow
def test_real_beams_are_drawn(opened, lm):
    page = opened(lm, "beams")
    page.get_by_label("Text to go on from").fill("abc")
    page.keyboard.press("Control+Enter")
    page.locator(".node").first.wait_for()
    assert page.locator(".node.best").count() >= 1
    found = lm.post("/v1/beams", input="abc", beams=4, max_tokens=12, n=4).json
    assert page.locator(".node.best, .node.kept").count() == sum(n["kept"] for each in found["rounds"] for n in each)
    assert page.locator(".ranking li").count() == len(found["texts"])


@slow
def test_a_real_model_chats(opened, talker):
    page = opened(talker, "chat")
    page.get_by_label("Your message").fill("abc")
    page.keyboard.press("Enter")
    expect(page.locator(".status:visible")).to_contain_text("Answered")
    assert page.locator(".talk li").count() == 2


@slow
def test_a_real_translator_translates(opened, translator):
    page = opened(translator)
    page.get_by_label("Text to translate").fill("abc def")
    page.keyboard.press("Control+Enter")
    page.locator(".node").first.wait_for()
    best = translator.post("/v1/translate", input="abc def").json["data"][0]["translations"][0]["text"]
    assert page.get_by_role("group", name="Translation").text_content() == best


@slow
def test_a_real_classifier_classifies_a_dropped_picture(opened, classifier):
    page = opened(classifier)
    dropped(page, ".drop", "image/png", DOT)
    expect(page.locator(".bars li")).to_have_count(3)
    assert "<b>cow</b>" in page.locator(".bars").inner_text()  # a class's name is text
    assert sum(number(each) for each in page.locator(".share").all_inner_texts()) == pytest.approx(100, abs=0.3)


@slow
def test_a_real_classifier_of_texts_classifies(opened, labeller):
    page = opened(labeller)
    page.get_by_label("Text to classify").fill("abc")
    expect(page.locator(".bars li")).to_have_count(2)


@slow
def test_a_real_painter_paints_and_completes(opened, painter):
    page = opened(painter)
    page.get_by_role("button", name="Paint").click()
    page.get_by_role("link", name="Download picture 9").wait_for()
    dropped(page, ".drop", "image/png", DOT)
    page.get_by_role("button", name="From nothing").wait_for()
    page.get_by_role("link", name="Download picture 9").wait_for()
    sizes = page.locator(".grid img").evaluate_all("all => all.map((each) => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[4, 4]] * 9


@slow
def test_a_browser_that_was_given_the_key_sends_it_for_the_page(opened, made, serving):
    with serving(made("lm"), key="s3cret") as running:
        page = opened(running, http_credentials={"username": "any", "password": "s3cret"})
        page.get_by_label("Your text").fill("abc")
        page.keyboard.press("Control+Enter")
        page.locator(".token").first.wait_for()
