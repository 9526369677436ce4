// "Write": a language model goes on with a text, and shows how sure it was.

import { Bars } from "./bars.js";
import { Sampling } from "./controls.js";
import { count, later, make } from "./dom.js";
import { shaped } from "./sampling.js";
import { ask, events } from "./server.js";
import { Sheet } from "./sheet.js";
import { Work } from "./work.js";

const SHOWN = 10; // of the next tokens
const ALTERNATIVES = 20;
const REMEMBERED = 200; // steps that Undo goes back

/** Tokens out of the events of a stream: `offset`s cut the text that has come into the texts of its tokens. */
export class Arriving {
  constructor(sheet) {
    this.sheet = sheet;
    this.first = sheet.tokens.length;
    this.characters = [];
    this.offsets = [];
  }

  /** Take an event's choice; the tokens that are new. */
  take({ text, logprobs }) {
    this.characters.push(...text);
    const from = Math.max(this.offsets.length - 1, 0);
    const tokens = logprobs?.tokens ?? (text ? [text] : []);
    tokens.forEach((token, place) => this.add(token, place, logprobs));
    for (let place = from; place < this.offsets.length; place++) this.cut(place);
    return tokens.length;
  }

  add(token, place, logprobs) {
    const length = this.characters.length;
    this.offsets.push(logprobs?.text_offset?.[place] ?? length - [...token].length);
    const logprob = logprobs?.token_logprobs[place] ?? 0;
    this.sheet.add({ token, text: "", logprob, top: logprobs?.top_logprobs?.[place] ?? null });
  }

  cut(place) {
    const start = this.offsets[0];
    const from = this.offsets[place] - start;
    const to = place + 1 < this.offsets.length ? this.offsets[place + 1] - start : this.characters.length;
    this.sheet.tokens[this.first + place].text = this.characters.slice(from, to).join("");
    this.sheet.refresh(this.first + place);
  }
}

/** The probabilities of the next token, before and after the sliders. */
class Next {
  constructor(vocabulary, shape, choose) {
    this.vocabulary = vocabulary;
    this.shape = shape;
    this.top = null;
    this.bars = new Bars("The next token", (row) => choose(row.text));
    this.note = make("p", { class: "note" });
    this.element = make(
      "section",
      { class: "next", "aria-label": "The next token" },
      make("h2", {}, "The next token"),
      this.bars.element,
      this.note,
    );
  }

  say(words) {
    this.note.textContent = words;
  }

  show(top) {
    this.top = top;
    this.draw();
  }

  draw() {
    if (!this.top) return;
    const { rows, others } = shaped(this.top, this.vocabulary, this.shape());
    const shown = rows.slice(0, SHOWN).map(({ token, before, after }) => ({ text: token, before, after }));
    const sum = (name) => rows.slice(SHOWN).reduce((total, row) => total + row[name], others[name]);
    const left = { before: sum("before"), after: sum("after") };
    this.bars.draw(left.before > 1e-4 ? [...shown, { text: "all others", plain: true, ...left }] : shown);
  }
}

export class Write {
  /** lookInside(text): show what the model makes of a text. */
  constructor(model, lookInside) {
    this.model = model;
    this.title = "Write";
    this.past = []; // what Undo goes back to: {given, tokens}
    this.sampling = new Sampling({ change: () => this.next.draw() });
    this.next = new Next(
      model.nextile.vocab,
      () => this.sampling.shape,
      (token) => this.take(token),
    );
    this.work = new Work("Write", () => this.start());
    this.sheet = new Sheet({
      placeholder: "Begin a text, and let the model go on \u2026",
      changed: () => this.changed(),
      typing: (given, tokens) => this.typing(given, tokens),
      branch: (tokens, token) => this.branch(tokens, token),
    });
    this.look = later(250, () => this.lookAhead());
    this.makeButtons(lookInside);
    this.makeElement();
    this.changed();
  }

  makeButtons(lookInside) {
    const quiet = (words, onclick, title) => make("button", { type: "button", class: "quiet", title, onclick }, words);
    this.again = quiet("Another", () => this.rewrite(), "Another continuation of your text");
    this.undo = quiet("Undo", () => this.goBack(), "Back to what was before");
    this.keep = quiet("Edit all", () => this.own(), "Make all of it your text, to edit it");
    this.inside = quiet("Look inside", () => lookInside(this.text), "What the model makes of this text, number by number");
  }

  makeElement() {
    const { work, sheet, sampling, next } = this;
    const scale = make("p", { class: "scale" }, "certain ", make("span", { class: "gradient" }), " surprising");
    this.element = make(
      "div",
      { class: "columns" },
      make(
        "div",
        { class: "desk" },
        sheet.element,
        make("div", { class: "actions" }, work.button, this.again, this.undo, this.keep, this.inside, work.status),
        work.trouble,
        make("div", { class: "foot" }, work.curl, scale),
      ),
      make("aside", { "aria-label": "Sampling" }, next.element, sampling.sliders, sampling.fields),
    );
  }

  get text() {
    return this.sheet.text;
  }

  /** Another text, with nothing written after it. */
  put(text) {
    this.remember();
    this.sheet.put(text, []);
    this.sheet.input.focus();
  }

  /** When the view is shown. */
  entered() {
    this.look();
  }

  // --- writing ----------------------------------------------------------------------------------------------------

  start() {
    if (this.work.running) return undefined;
    this.remember();
    return this.work.run((signal) => this.write(signal));
  }

  /** End what is written; it has ended when the promise is kept. */
  stop() {
    return this.work.stop();
  }

  async write(signal) {
    const { sheet, work } = this;
    const body = { prompt: sheet.text, ...this.sampling.body, logprobs: ALTERNATIVES };
    work.asked("v1/completions", { ...body, stream: true });
    work.say("Writing \u2026");
    const arriving = new Arriving(sheet);
    const began = performance.now();
    let tokens = 0;
    let reason = null;
    try {
      for await (const event of events("v1/completions", body, signal)) {
        signal.throwIfAborted(); // the text may be another already
        const [choice] = event.choices;
        if (!choice) continue;
        tokens += arriving.take(choice);
        reason = choice.finish_reason ?? reason;
        this.follow();
      }
    } finally {
      this.changed();
    }
    work.say(said(tokens, reason, performance.now() - began));
  }

  /** Show what the newest token was drawn from, once a frame. */
  follow() {
    if (this.following) return;
    this.following = true;
    requestAnimationFrame(() => {
      this.following = false;
      const top = this.work.running && this.sheet.tokens.at(-1)?.top;
      if (top) this.next.show(top);
    });
  }

  // --- other ways -------------------------------------------------------------------------------------------------

  remember(given = this.sheet.given, tokens = this.sheet.tokens) {
    this.past = [...this.past.slice(1 - REMEMBERED), { given, tokens: [...tokens] }];
    this.changed();
  }

  /** Typing ends what is written and forgets what was, but Undo knows it. */
  typing(given, tokens) {
    this.stop();
    if (tokens.length) this.remember(given, tokens);
  }

  /** Instead of the token after these take that one, and go on from there. */
  async branch(tokens, text) {
    await this.stop();
    this.remember();
    const { top, logprob } = choice(this.sheet.tokens[tokens.length].top, text);
    this.sheet.put(this.sheet.given, [...tokens, { token: text, text, logprob, top }]);
    this.sheet.span(tokens.length).focus();
    await this.work.run((signal) => this.write(signal));
  }

  /** One token more, chosen by hand. */
  take(text) {
    if (this.work.running || text.startsWith("bytes:")) return;
    this.remember();
    this.sheet.add({ token: text, text, ...choice(this.next.top, text) });
    this.changed();
  }

  async rewrite() {
    await this.stop();
    this.remember();
    this.sheet.put(this.sheet.given, []);
    this.work.run((signal) => this.write(signal));
  }

  async goBack() {
    await this.stop();
    const was = this.past.pop();
    if (!was) return;
    this.sheet.put(was.given, was.tokens);
    this.work.say("");
    if (this.undo.disabled) this.sheet.input.focus();
  }

  async own() {
    await this.stop();
    this.put(this.sheet.text);
  }

  // --- what follows from a change ---------------------------------------------------------------------------------

  changed() {
    const some = this.sheet.tokens.length > 0;
    this.work.label(some ? "Go on" : "Write");
    this.again.disabled = this.keep.disabled = !some;
    this.undo.disabled = this.past.length === 0;
    this.inside.disabled = this.text === "";
    this.look();
  }

  /** Ask what the next token may be; one question at a time, the newest. */
  async lookAhead() {
    if (this.work.running || !this.element.checkVisibility()) return;
    this.asking?.abort();
    this.asking = new AbortController();
    // An end token would have no logprobs: it may be likely, but is not written here.
    const one = { max_tokens: 1, min_tokens: 1, temperature: 0, logprobs: ALTERNATIVES };
    try {
      const answer = await ask("v1/completions", { prompt: this.sheet.text, ...one }, this.asking.signal);
      this.next.show(answer.choices[0].logprobs?.top_logprobs?.[0] ?? {});
      this.next.say("");
    } catch (error) {
      if (error.name !== "AbortError") this.next.say(error.message);
    }
  }
}

const choice = (top, text) => ({ top, logprob: top[text] });

function said(tokens, reason, milliseconds) {
  const pace = tokens > 1 ? `, ${Math.round((1000 * tokens) / milliseconds).toLocaleString("en")} a second` : "";
  const end = { stop: "; it came to an end", length: "" }[reason] ?? "";
  return `${count(tokens, "token")}${pace}${end}.`;
}
