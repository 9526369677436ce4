"""The page of an inspection in a real browser: its numbers are the model's, its text is text, and it asks nobody."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from tests.contrast import AA, CONTRAST
from tests.inspection import looks

from nextile.api import Model
from nextile.inspection import payload as payloads
from nextile.inspection.page import ENTRY, IMPORT, html, page
from nextile.inspection.payload import payload
from nextile.models.build import build
from nextile.models.families import gpt2
from nextile.nn import specs

if shutil.which("chromium") is None:
    pytest.skip("there is no chromium: apt install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
expect = sync_api.expect
pytestmark = pytest.mark.usefixtures("one_thread")
slow = pytest.mark.slow

TEXT = looks.TEXT
KINDS = looks.KINDS


@lru_cache
def looked(kind: str) -> Any:
    maker, what = KINDS[kind]
    return maker().inspect(what)


@lru_cache
def content(kind: str) -> dict[str, Any]:
    return payload(looked(kind), max_tokens=4, beams=3)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser, one for all tests."""
    with sync_api.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path) -> Iterator[Callable[..., Any]]:
    """`opened(text of a page)` is it in a browser; in the end nothing was complained of, and nobody was asked."""
    contexts, complaints = [], []

    def opened(text: str, **options: Any) -> Any:
        file = tmp_path / f"page-{len(contexts)}.html"
        file.write_text(text, encoding="utf-8")
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(5000)
        contexts.append(context)
        found = context.new_page()
        asked = lambda request: request.url.startswith(("data:", file.as_uri())) or complaints.append(request.url)  # noqa: E731
        found.on("request", asked)
        found.on("console", lambda said: complaints.append(said.text))
        found.on("pageerror", lambda error: complaints.append(str(error)))
        found.on("dialog", lambda dialog: (complaints.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
        found.goto(file.as_uri())
        found.locator("html[data-ready]").wait_for()
        return found

    yield opened
    assert complaints == []
    for context in contexts:
        context.close()


def numbers(place: Any) -> list[float]:
    """The numbers that a part of the page shows, with all of their digits."""
    return [
        float(each) for each in place.locator(".number").evaluate_all("all => all.map((each) => each.dataset.value)")
    ]


def rounded(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return ("\u2212" + text[1:] if float(text) else text[1:]) if text[0] == "-" else text


# --- one file ---------------------------------------------------------------------------------------------------------


def test_the_modules_are_plain_and_each_is_in_the_file():
    text = html(looked("classify"))
    folder = files("nextile.inspection") / "page"
    modules = {each.name: each.read_text("utf-8") for each in folder.iterdir() if each.name.endswith(".js")}
    for name, source in modules.items():
        assert len(IMPORT.findall(source)) == len(re.findall(r"^import ", source, re.MULTILINE)), name
        assert not re.search(r"^export (?!(async )?(function|class|const) \w+)", source, re.MULTILINE), name
        assert "innerHTML" not in source, name
        assert "</script" not in source, name
        used = f"const ${name.removesuffix('.js')} = (() =>" in text
        assert used or name == ENTRY, name


def test_the_file_asks_nobody_and_says_so(opened):
    text = page(content("lm"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    opened(text)


def test_a_notebook_has_it_in_a_frame():
    text = looked("lm")._repr_html_()
    assert text.startswith("<iframe")
    assert "<script" not in text


# --- numbers ----------------------------------------------------------------------------------------------------------


def steps_of(found: Any, query: int) -> dict[str, np.ndarray]:
    """What a head does with a query, in NumPy."""
    head = {name: np.asarray(getattr(found, name), np.float64) for name in ("queries", "keys", "values", "scores")}
    hidden = np.asarray(found.hidden)[query]
    products = head["queries"][query] @ head["keys"].T
    powers = np.where(hidden, 0, np.exp(head["scores"][query] - head["scores"][query][~hidden].max()))
    weights = np.asarray(found.weights)[query]
    return {"products": products, "powers": powers, "weights": weights, "result": weights @ head["values"]}


def ledger(at: Any) -> np.ndarray:
    """The numbers of the table of one row: a line a key, its product first and its weight last."""
    lines = at.locator(".steps-of tbody tr")
    return np.array([(found[0], found[-2], found[-1]) for found in map(numbers, lines.all())])


@pytest.mark.parametrize("kind", ["lm", *(pytest.param(kind, marks=slow) for kind in KINDS if kind != "lm")])
def test_the_row_of_a_query_is_the_models_own(opened, kind):
    look, found = looked(kind), content(kind)
    chosen = found["chosen"]
    head = look.head(chosen["layer"], chosen["head"], chosen["which"])
    at = opened(page(found))
    at.locator("#heaviest-first").uncheck()
    steps = steps_of(head, chosen["query"])
    shown = ledger(at)
    np.testing.assert_allclose(shown[:, 0], steps["products"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(shown[:, 1], steps["powers"], atol=1e-5)
    np.testing.assert_allclose(shown[:, 2], steps["weights"], atol=1e-5)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(shown[:, 2], steps_of(head, chosen["query"] - 1)["weights"], atol=1e-5)
    cells = at.locator(".steps-of tbody tr td:nth-child(2) .number").all()
    assert [each.inner_text() for each in cells] == [rounded(value, 3) for value in shown[:, 0]]
    assert numbers(at.locator("#head .note").last)[0] < 1e-5  # what the page itself found


@slow
@pytest.mark.parametrize("shape", looks.SHAPES)
def test_every_shape_of_attention_is_reckoned_right(opened, shape):
    look = looks.SHAPES[shape]().inspect(TEXT)
    for layer in range(looks.DEPTH):
        at = opened(page(payload(look, layer=layer, head=2, max_tokens=1)))
        steps = steps_of(look.head(layer, 2), len(look.pieces) - 1)
        np.testing.assert_allclose(ledger(at)[:, 2], steps["weights"], atol=1e-5)
        assert numbers(at.locator("#head .note").last)[0] < 1e-5


RECKONED = """([part, query]) => {
  const row = new $reckon.Head(part).row(query);
  return [row.result, row.weights].map((each) => [...each]);
}"""
MOUNTED = 'mount(document.getElementById("views"), payload);'


def changed(text: str, mounted: str) -> str:
    """The page with another last line but one, which its policy allows."""
    text = text.replace(MOUNTED, mounted)
    script = re.search(r'<script type="module">(.*)</script>', text, re.DOTALL)
    assert script is not None
    tag = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    return re.sub(r"script-src 'sha256-[^']*'", f"script-src 'sha256-{tag}'", text)


def test_the_average_is_the_models_own_for_every_query(opened):
    look, found = looked("lm"), content("lm")
    at = opened(changed(page(found), f"{MOUNTED} window.$reckon = $reckon;"))
    for part in found["heads"][:3]:
        head = look.head(part["layer"], part["head"])
        for query in range(len(look.pieces)):
            result, weights = at.evaluate(RECKONED, [part, query])
            assert result == pytest.approx(np.asarray(head.result)[query], abs=1e-5)
            assert weights == pytest.approx(np.asarray(head.weights)[query], abs=1e-5)


def test_pointing_at_a_token_shows_its_row(opened):
    look, found = looked("lm"), content("lm")
    at = opened(page(found))
    chosen = found["chosen"]
    head = look.head(chosen["layer"], chosen["head"])
    strip = at.locator(".strip .piece")
    strip.nth(2).hover()
    expect(strip.nth(2)).to_have_class(re.compile("query"))
    expect(at.locator(".steps-of caption")).to_contain_text("position 2")
    np.testing.assert_allclose(ledger(at)[:, 2], np.asarray(head.weights)[2], atol=1e-5)
    at.mouse.move(5, 5)
    expect(at.locator(".steps-of caption")).to_contain_text(f"position {chosen['query']}")
    strip.nth(3).click()
    at.mouse.move(5, 5)
    expect(at.locator(".steps-of caption")).to_contain_text("position 3")  # it stays


def test_the_keyboard_goes_over_tokens_layers_and_heads(opened):
    found = content("lm")
    at = opened(page(found))
    at.locator(".strip .piece").first.focus()
    at.keyboard.press("ArrowRight")
    at.keyboard.press("Enter")
    expect(at.locator(".asks")).to_contain_text("position 1")
    thumb = at.locator(".thumb[aria-pressed='true']")
    at.locator("[data-place='0.0']").click()
    at.keyboard.press("ArrowDown")
    at.keyboard.press("ArrowRight")
    expect(thumb).to_have_attribute("data-place", "1.1")
    expect(at.locator(".stepper").first).to_contain_text("Layer 1")
    at.locator(".stepper").first.locator("button").last.focus()
    at.keyboard.press("ArrowDown")
    expect(thumb).to_have_attribute("data-place", "2.1")
    at.keyboard.press("Home")
    expect(thumb).to_have_attribute("data-place", "0.1")
    matrix = at.get_by_role("group", name="Weights, a row a query")
    matrix.focus()
    at.keyboard.press("ArrowDown")
    expect(matrix.get_by_role("status")).to_contain_text("from")
    at.keyboard.press("ArrowRight")
    at.keyboard.press("Enter")
    expect(at.locator(".asks")).to_contain_text("position 1")


@slow
def test_another_head_is_another_row(opened):
    look, found = looked("lm"), content("lm")
    at = opened(page(found))
    for layer, head in ((0, 1), (2, 3)):
        at.locator(f"[data-place='{layer}.{head}']").click()
        expect(at.locator(f"[data-place='{layer}.{head}']")).to_have_attribute("aria-pressed", "true")
        at.wait_for_timeout(50)
        wanted = np.asarray(look.weights(layer=layer, head=head))[found["chosen"]["query"]]
        np.testing.assert_allclose(ledger(at)[:, 2], wanted, atol=1e-5)


@slow
def test_vectors_stream_lens_neurons_and_rollout_show_the_models_numbers(opened):
    look, found = looked("lm"), content("lm")
    at, last = opened(page(found)), len(look.pieces) - 1
    token, position, both = numbers(at.locator("#vectors .readout"))
    assert token == pytest.approx(np.asarray(look.token_vectors)[last, 0], abs=1e-5)
    assert position == pytest.approx(np.asarray(look.position_vectors)[last, 0], abs=1e-5)
    assert both == pytest.approx(np.asarray(look.embedded)[last, 0], abs=1e-5)
    lengths = np.linalg.norm(np.asarray(look.stream()), axis=-1)[:, last]
    rows = [numbers(row) for row in at.locator("#stream tbody tr").all()]
    assert [row[0] for row in rows] == pytest.approx(lengths, abs=1e-4)
    assert [row[1:3] for row in rows[1:]] == [
        pytest.approx(each, abs=1e-4) for each in np.asarray(look.added())[:, :, last]
    ]
    lens = np.asarray(look.lens(5).probabilities)[:, last]
    assert [numbers(row) for row in at.locator("#lens .ranks li").all()] == [
        pytest.approx(each, abs=1e-5) for each in lens
    ]
    activations = np.asarray(look.neurons(5).activations)[:, last]
    assert numbers(at.locator("#neurons")) == pytest.approx(activations.ravel(), abs=1e-5)
    rollout = np.sort(np.asarray(look.rollout())[last])[::-1]
    assert numbers(at.locator("#rollout .shares")) == pytest.approx(rollout[:8], abs=1e-5)


SETTINGS = (
    {},
    {"temperature": 0.5},
    {"temperature": 1.5, "top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.1},
    {"temperature": 0.0},
)
SLIDERS = {"temperature": "Temperature", "top_k": "Top-k", "top_p": "Top-p", "min_p": "Min-p"}
PLACES = {
    "temperature": lambda v: round(v / 0.05), "top_k": lambda v: v - 1, "top_p": lambda v: round((v - 0.05) / 0.05),
    "min_p": lambda v: round(v / 0.01),
}  # fmt: skip


def test_sliders_cut_as_generate_does(opened):
    look = looked("lm")
    at = opened(page(content("lm")))
    for setting in SETTINGS:
        for name, label in SLIDERS.items():
            slider = at.get_by_role("slider", name=label)
            usual = {"temperature": 1.0, "top_k": 16, "top_p": 1.0, "min_p": 0.0}[name]
            slider.fill(str(PLACES[name](setting.get(name, usual))))
        wanted = {text: share for _, text, share in look.next(**setting, top=None)}
        bars = at.locator("#next .bar:not(:has(.plain))").all()
        shown = [float(bar.locator(".share").get_attribute("data-value")) for bar in bars]
        best = [share for _, _, share in look.next(**setting, top=12)]
        assert shown[: len(best)] == pytest.approx(best, abs=1e-5)
        assert sum(shown[len(best) :]) == 0
        told = at.locator("#next .note")
        assert told.inner_text().startswith(f"{len(wanted):,} token")


def test_a_text_of_one_token_has_predictions_and_no_classes(opened):
    at = opened(page(payload(looks.speaker().inspect([5]), max_tokens=1)))
    expect(at.locator("#lens .readout")).to_contain_text("After")
    assert at.locator("#lens tbody td").count() == looks.DEPTH + 1
    assert "class" not in at.locator("#lens").inner_text()


@slow
def test_what_is_said_of_a_head_and_of_the_stream_is_so_of_this_model(opened):
    lm, denoiser = opened(page(content("lm"))), opened(page(content("denoise")))
    assert "/ \u221ad" in lm.locator("#head .formula").inner_text()
    assert "\u00d7 1.0000" in denoiser.locator("#head .formula").inner_text()  # T5 does not divide by the root of d
    after = opened(page(payload(looks.SHAPES["after, sines, scaled"]().inspect(TEXT), max_tokens=1)))
    assert "norm(x + mlp(x))" in after.locator("#stream .formula").text_content()
    assert "norm(" not in lm.locator("#stream .formula").text_content()


@slow
def test_the_steps_are_those_of_the_decoding(opened):
    look = looked("lm")
    at = opened(page(content("lm")))
    cards = [numbers(card.locator("ol")) for card in at.locator("#steps .card").all()]
    wanted = [[np.exp(logprob) for _, _, logprob in step.alternatives] for step in look.steps(4)]
    assert cards == [pytest.approx(each, abs=1e-5) for each in wanted]
    assert at.locator("#beam .node").count() > 0


# --- the other kinds --------------------------------------------------------------------------------------------------

SECTIONS = {
    "lm": "pieces vectors head heads rollout stream neurons lens next steps beam neighbours",
    "masked": "pieces vectors head heads rollout stream neurons lens next neighbours",
    "translate": "pieces vectors head heads alignment rollout stream neurons lens next steps beam neighbours",
    "denoise": "pieces vectors head heads alignment rollout stream neurons lens next steps beam neighbours",
    "classify-text": "pieces vectors head heads rollout stream neurons lens classes",
    "classify": "vectors head heads rollout stream neurons lens classes",
    "paint": "vectors head heads rollout stream neurons lens next",
}


@pytest.mark.parametrize(
    "kind", ["classify", *(pytest.param(kind, marks=slow) for kind in KINDS if kind != "classify")]
)
def test_every_kind_has_its_steps(opened, kind):
    at = opened(page(content(kind)))
    assert at.locator(".step").evaluate_all("all => all.map((each) => each.id)") == SECTIONS[kind].split()
    assert at.locator(".contents a").count() == len(SECTIONS[kind].split())


@slow
def test_the_alignment_is_the_cross_attention(opened):
    look = looked("translate")
    at = opened(page(content("translate")))
    chosen = content("translate")["chosen"]
    wanted = np.asarray(look.weights("cross", layer=chosen["layer"], head=chosen["head"]))
    assert at.locator(".threads path").count() == (wanted >= 0.08).sum()
    at.get_by_label("mean of the layer").check()
    mean = np.asarray(look.weights("cross", layer=chosen["layer"])).mean(0)
    assert at.locator(".threads path").count() == (mean >= 0.08).sum()
    at.get_by_role("button", name="encoder").click()
    expect(at.locator(".asks")).to_contain_text("position")
    assert at.locator(".steps-of tbody tr").count() == len(look.pieces)


@slow
def test_words_have_their_neighbours_and_a_map(opened):
    from nextile.text.lexicon import train_lexicon

    tokenizer = train_lexicon([" ".join(f"word{n}" for n in range(30))] * 3, least=1)
    spec = specs.CBOW(vocab=tokenizer.vocab_size, width=8)
    model = looks.loaded(spec, tokenizer)
    look = model.inspect("word3 word7")
    at = opened(html(look))
    assert at.locator(".step").evaluate_all("all => all.map((each) => each.id)") == [
        "pieces",
        "vectors",
        "neighbours",
        "map",
    ]
    wanted = [cosine for _, near in look.neighbours(8) for _, cosine in near]
    assert numbers(at.locator("#neighbours")) == pytest.approx(wanted, abs=1e-5)
    at.locator(".spot[tabindex='0']").focus()
    seen = {at.locator("#map .readout").inner_text()}
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        at.keyboard.press(key)
        seen.add(at.locator("#map .readout").inner_text())
    assert len(seen) > 1


@slow
def test_a_server_is_asked_for_a_head_that_was_left_out(opened):
    look = looked("lm")
    whole = content("lm")
    less = {**whole, "heads": whole["heads"][:1]}
    ask = "(what, place) => window.answer(what, place)"
    at = opened(changed(page(less), MOUNTED.replace("payload)", f"payload, {ask})")))
    other = whole["heads"][1]
    asked = []
    at.expose_function("answer", lambda what, place: (asked.append((what, place)), other)[1])
    at.locator(f"[data-place='{other['layer']}.{other['head']}']").click()
    expect(at.locator(".ledger")).to_be_visible()
    assert asked == [("head", {"which": "self", "layer": other["layer"], "head": other["head"]})]
    wanted = np.asarray(look.weights(layer=other["layer"], head=other["head"]))[whole["chosen"]["query"]]
    at.wait_for_timeout(50)
    np.testing.assert_allclose(ledger(at)[:, 2], wanted, atol=1e-5)


@slow
def test_a_server_that_refuses_a_head_is_asked_once_and_its_words_stay(opened):
    whole = content("lm")
    ask = "() => Promise.reject(new Error(`no ${++window.count}`))"
    text = changed(page({**whole, "heads": whole["heads"][:1]}), MOUNTED.replace("payload)", f"payload, {ask})"))
    at = opened(text)
    at.evaluate("window.count = 0")
    other = whole["heads"][1]
    at.locator(f"[data-place='{other['layer']}.{other['head']}']").click()
    expect(at.locator(".missing")).to_contain_text("did not give this head: no 1")
    for piece in at.locator(".strip .piece").all()[:3]:
        piece.hover()
        at.wait_for_timeout(40)
    expect(at.locator(".missing")).to_contain_text("did not give this head: no 1")


@slow
def test_without_a_server_it_says_how_to_get_a_head(opened):
    whole = content("lm")
    at = opened(page({**whole, "heads": whole["heads"][:1]}))
    other = whole["heads"][1]
    at.locator(f"[data-place='{other['layer']}.{other['head']}']").click()
    expect(at.locator(".missing")).to_contain_text(f"--layer {other['layer']} --head {other['head']}")
    expect(at.locator(".ledger")).to_be_hidden()


@slow
def test_what_was_left_out_is_not_shown_as_what_was_there_before(opened, monkeypatch):
    monkeypatch.setattr(payloads, "WEIGHTS", 1)
    monkeypatch.setattr(payloads, "HEADS", 1)
    at = opened(page(payload(looked("translate"), layer=1, head=2, max_tokens=1)))
    expect(at.locator("#alignment .aligned")).to_be_visible()
    at.get_by_label("mean of the layer").check()  # of which there is one head of four
    expect(at.locator("#alignment .readout")).to_have_text("Layer 1, all heads; its weights were left out")
    at.get_by_label("mean of the layer").uncheck()
    expect(at.locator("#alignment .aligned")).to_be_visible()
    at.locator("[data-place='0.1']").click()
    expect(at.locator("#alignment .readout")).to_have_text("Layer 0, head 1; its weights were left out")
    expect(at.locator("#alignment .aligned")).to_be_hidden()
    expect(at.locator(".missing")).not_to_contain_text("All heads")
    found = payload(looked("classify"), layer=1, head=2, max_tokens=1)
    at = opened(page(found))
    shown = """(canvas) => {
      const copy = document.createElement("canvas").getContext("2d");
      copy.drawImage(canvas, 0, 0);
      return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
    }"""
    over = at.locator(".strip .matrix > canvas:not(.seen)")
    assert len(set(over.evaluate(shown)[3::4])) > 2
    at.locator("[data-place='0.1']").click()
    expect(at.locator(".stepper").first).to_contain_text("Layer 0")
    assert set(over.evaluate(shown)[3::4]) == {0}


# --- hostile text -----------------------------------------------------------------------------------------------------

TAGS = (
    "<img src=x onerror=BAD>", "<script>BAD</script>", "<svg onload=BAD>", "<iframe srcdoc='<script>BAD</script>'>",
    "<a href='javascript:BAD'>x</a>", "<body onload=BAD>", "<style>*{display:none}</style>", "<base href=//evil.test/>",
    "<details open ontoggle=BAD>", "<input autofocus onfocus=BAD>", "<video><source onerror=BAD></video>",
    "<math><mtext><img src=x onerror=BAD>", "<form action=//evil.test><button>x", "<object data='javascript:BAD'>",
    "<embed src='javascript:BAD'>", "<link rel=stylesheet href=//evil.test/x.css>", "<!--<script>", "<!-- -->",
    "<meta http-equiv=refresh content=0>", "<template><script>BAD</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=BAD>'>", "<marquee onstart=BAD>",
    "</script><script>BAD</script>",
    "</textarea><script>BAD</script>", "</title><script>BAD</script>", "-->\n<img src=x onerror=BAD>",
    "]]><script>BAD</script>", "'\"><img src=x onerror=BAD>", "javascript:BAD", "data:text/html,<script>BAD</script>",
    "{{constructor.constructor('BAD')()}}", "${BAD}", "$payload", "__proto__", "constructor", "toString",
    "hasOwnProperty", "*bold* ^up^ _down_ `code` +b+", "#ff0000",
)  # fmt: skip
SIGNS = ("\u202e", "\u2066", "\u2067", "\u0000", "\u0007", "\u001b[31m", "\u009b31m", "\ufeff", "\u2028", "\u007f",
         "\r", "\b", "\ud800")  # fmt: skip
WRAPS = (("&lt;", ""), ("\u202e", ""), ("", "\u0000"), ("%3C", ""), ("\\u003c", ""))
HOSTILE = [tag.replace("BAD", "window.ran=1") for tag in TAGS]
HOSTILE += [begin + tag + end for begin, end in WRAPS for tag in HOSTILE]
HOSTILE = list(dict.fromkeys(HOSTILE + [sign + "text" + sign for sign in SIGNS]))


def unharmed(at: Any) -> None:
    """No text became an element, an address or a program, nor turned the writing."""
    assert at.evaluate("window.ran") is None
    found = (
        "main :is(script, iframe, style, link, base, meta, object, embed, video, math, template, marquee, form, img)"
    )
    assert at.locator(found).count() == 0
    assert at.evaluate("document.scripts.length") == 2
    assert at.locator("main [src], main [href]:not([href^='#'])").count() == 0
    said = at.evaluate("document.body.textContent.replace(document.getElementById('payload').textContent, '')")
    assert not re.search("[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]", said)


def poisoned(found: dict[str, Any]) -> dict[str, Any]:
    """The payload with every text of a model made hostile."""
    place = iter(range(10**9))

    def bad(old: Any = None) -> str:
        return HOSTILE[next(place) % len(HOSTILE)]

    def piece(each: dict[str, Any]) -> dict[str, Any]:
        return {**each, "text": bad(), "merges": [[bad(), bad()], [bad()]]}

    new = {**found, "model": {**found["model"], "name": bad(), "family": bad()}, "leftOut": [bad(), bad()]}
    new["pieces"] = [piece(each) for each in found["pieces"]]
    new["target"] = found["target"] and [piece(each) for each in found["target"]]
    new["words"] = {name: bad() for name in found["words"]}
    for part in ("steps", "classes", "neighbours"):
        new[part] = [{**each, "text": bad()} for each in found.get(part, [])]
    new["steps"] = [{**e, "alternatives": [[i, bad(), p] for i, _, p in e["alternatives"]]} for e in new["steps"]]
    new["neighbours"] = [{**e, "near": [[bad(), cosine] for _, cosine in e["near"]]} for e in new["neighbours"]]
    if "beam" in found:
        rounds = [[{**node, "text": bad()} for node in nodes] for nodes in found["beam"]["rounds"]]
        new["beam"] = {"rounds": rounds, "texts": [{**text, "text": bad()} for text in found["beam"]["texts"]]}
    return new


def longer(found: dict[str, Any], count: int) -> dict[str, Any]:
    """The payload with as many pieces as there is hostile text, and none of what needs arrays of that size."""
    pieces = [{"id": n, "text": text, "merges": []} for n, text in enumerate(HOSTILE[:count])]
    arrays = {"weights", "heads", "rollout", "embedding", "stream", "lens", "neurons", "distributions"}
    kept = {name: value for name, value in found.items() if name not in arrays | {"steps", "beam", "chosen"}}
    return kept | {"pieces": pieces, "which": [], "stacks": {}, "kind": "words"}


def test_two_hundred_hostile_pieces_are_text(opened):
    assert len(HOSTILE) >= 200
    at = opened(page(longer(content("lm"), len(HOSTILE))))
    unharmed(at)
    shown = at.locator(".chip .word").all_text_contents()
    assert len(shown) == len(HOSTILE)
    as_they_are = [text for text in HOSTILE if not re.search("[\\s\u0000-\u001f\u007f-\u00a0\u2000-\uffff]", text)]
    assert len(as_they_are) > 50
    assert set(as_they_are) <= set(shown)


@pytest.mark.parametrize(
    "kind", ["translate", *(pytest.param(k, marks=slow) for k in ("lm", "classify", "paint", "masked"))]
)
def test_hostile_text_of_every_view_is_text(opened, kind):
    at = opened(page(poisoned(content(kind))))
    unharmed(at)
    for each in at.locator(".piece, .chip, .thumb").all()[:30]:
        each.focus()
    at.locator(".threads, .ledger").first.hover()
    unharmed(at)


@slow
def test_a_hostile_text_goes_through_a_real_model(opened):
    text = "<script>window.ran=1</script><!--<img src=x onerror=window.ran=1>"
    at = opened(html(looks.speaker().inspect(text[:40])))
    unharmed(at)
    assert "<script>" in "".join(at.locator(".line .piece").all_text_contents())


# --- small and quick --------------------------------------------------------------------------------------------------


@lru_cache
def six() -> str:
    """The page of 6 layers of 6 heads, a width of 384, and 64 tokens."""
    tokenizer = looks.tokens()
    model = build(gpt2.spec(vocab=50_257, context=64, width=384, depth=6, heads=6))
    found = Model(model.eval(), tokenizer, gpt2.spec(vocab=50_257, context=64, width=384, depth=6, heads=6), "gpt2")
    ids = torch.randint(0, tokenizer.vocab_size, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    return page(payload(found.inspect(ids), max_tokens=4))


@slow
def test_the_page_of_a_middling_model_is_small_and_quickly_there(opened):
    text = six()
    assert len(text.encode()) < 1_500_000
    times = []
    for _ in range(3):
        at = opened(text)
        times.append(
            float(at.evaluate("document.documentElement.dataset.ready"))
        )  # milliseconds since it was asked for
    assert min(times) < 1000


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_telephone_needs_no_scrolling_sideways(opened, kind):
    at = opened(page(content(kind)), viewport={"width": 360, "height": 640}, has_touch=True)
    for section in at.locator(".step").all():
        section.scroll_into_view_if_needed()
        assert at.evaluate("document.documentElement.scrollWidth") <= 360


# --- for everybody ----------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_can_be_used_has_a_name(opened, kind):
    at = opened(page(content(kind)))
    session = at.context.new_cdp_session(at)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "checkbox", "link", "image", "img", "list", "region", "group", "table", "navigation"}
    named = [(each["role"]["value"], each.get("name", {}).get("value", "")) for each in nodes if not each["ignored"]]
    assert sum(role in roles for role, _ in named) > 30
    assert [role for role, name in named if role in roles - {"list"} and not name.strip()] == []


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_scale_is_ordered_in_lightness(opened, scheme):
    text = page(content("lm"))
    at = opened(text, color_scheme=scheme)
    rows = at.locator("#heads .legend canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data]"
    )
    colours = np.array(rows, float).reshape(-1, 4)[:, :3] / 255
    light = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(np.cbrt(light))[::8]
    assert (steps < 0).all() if scheme == "light" else (steps > 0).all()
    assert abs(np.cbrt(light[0]) - np.cbrt(light[-1])) > 0.4


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["lm", "translate", "classify"])
def test_text_stands_out_from_its_ground(opened, kind, scheme):
    at = opened(page(content(kind)), color_scheme=scheme)
    found = at.evaluate(CONTRAST)
    assert len(found) > 100
    assert [each for each in found if each[0] < AA] == []


@slow
def test_colours_follow_a_choice(opened):
    at = opened(page(content("lm")), color_scheme="dark")
    pixels = "canvas => canvas.toDataURL()"
    legend = at.locator("#heads .legend canvas")
    dark = legend.evaluate(pixels)
    at.get_by_role("button", name="Colours").click()
    expect(at.locator("html")).to_have_attribute("data-theme", "light")
    assert legend.evaluate(pixels) != dark


@slow
def test_what_is_shown_no_more_is_forgotten(opened):
    again = 'window.again = () => mount(document.getElementById("views"), payload);'
    at = opened(changed(page(content("lm")), f"{MOUNTED} {again}"))
    at.evaluate("""() => {
      const canvases = ["#head canvas", "#heads .legend canvas"].map((each) => document.querySelector(each));
      window.were = canvases.map((each) => new WeakRef(each));
      window.kept = document.createElement("canvas");
      window.held = new WeakRef(window.kept);
    }""")
    at.evaluate("window.again()")
    at.wait_for_timeout(600)
    at.request_gc()
    assert at.evaluate("window.were.map((each) => each.deref() === undefined)") == [True, True]
    assert at.evaluate("window.held.deref() === window.kept")  # control
    pixels = at.locator("#heads .legend canvas").evaluate("canvas => canvas.toDataURL()")
    at.get_by_role("button", name="Colours").click()
    at.get_by_role("button", name="Colours").click()
    expect(at.locator("html")).to_have_attribute("data-theme", "dark")
    assert at.locator("#heads .legend canvas").evaluate("canvas => canvas.toDataURL()") != pixels
