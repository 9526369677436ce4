// One piece of work at a time: its button, what is said of it, what went wrong, and the same by curl.

import { make } from "./dom.js";
import { ask, curl, useKey } from "./server.js";

const CONTROL = /Mac|iP(hone|ad)/.test(navigator.platform) ? "\u2318" : "Ctrl";

/** Copy a text, or where the browser does not let us, mark it. */
async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Marked: copy by Ctrl+C";
  }
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
}

/** Seconds on a button that can be pressed when they are over. */
function countdown(button, seconds) {
  const until = performance.now() + 1000 * seconds;
  const tick = () => {
    const left = Math.ceil((until - performance.now()) / 1000);
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left > 0 && button.isConnected) setTimeout(tick, 200);
  };
  tick();
}

export class Work {
  /** verb: what the button says; start: what it does; key: what does the same, as it is shown. */
  constructor(verb, start, key = `${CONTROL} \u21b5`) {
    this.verb = verb;
    this.key = key;
    this.start = start;
    this.running = null; // the AbortController
    this.end = Promise.resolve(); // of what ran last
    this.button = make("button", {
      class: "primary",
      type: "button",
      onclick: () => (this.running ? this.stop() : start()),
    });
    this.status = make("p", { class: "status", role: "status" });
    this.trouble = make("div", { class: "trouble", role: "alert" });
    this.code = make("code", {});
    this.copy = make("button", { type: "button", class: "quiet", onclick: () => copy(this.code, this.copy) }, "Copy");
    this.curl = make(
      "details",
      { class: "curl", hidden: true },
      make("summary", {}, "The same by curl"),
      make("pre", { tabindex: "0", "aria-label": "Command" }, this.code),
      this.copy,
    );
    this.label();
  }

  label(verb = this.verb) {
    this.verb = verb;
    const [word, key] = this.running ? ["Stop", "Esc"] : [verb, this.key];
    this.button.replaceChildren(word, make("kbd", { "aria-hidden": "true" }, key));
    this.button.setAttribute("aria-keyshortcuts", this.running ? "Escape" : "Control+Enter");
    this.button.classList.toggle("running", Boolean(this.running));
  }

  say(words) {
    this.status.textContent = words;
  }

  /** Do a task, which is told a signal that ends it; one at a time. */
  run(task) {
    if (!this.running) {
      this.running = new AbortController();
      this.end = this.through(task);
    }
    return this.end;
  }

  async through(task) {
    this.trouble.replaceChildren();
    this.label();
    try {
      await task(this.running.signal);
    } catch (error) {
      if (error.name === "AbortError") this.say("Stopped.");
      else this.fail(error, () => this.run(task));
    } finally {
      this.running = null;
      this.label();
    }
  }

  /** End what runs; it has ended when the promise is kept. */
  stop() {
    this.running?.abort();
    return this.end;
  }

  /** Remember what is asked, for curl. */
  asked(path, body) {
    this.code.textContent = curl(path, body);
    this.curl.hidden = false;
  }

  fail(error, retry) {
    this.say("");
    if (!("status" in error)) console.error(error);
    this.trouble.replaceChildren(make("span", {}, error.message));
    if (error.status === 401) this.askKey(retry);
    else if (error.wait !== null && error.wait !== undefined) this.offer(retry, error.wait);
    else if (error.status === 0 || error.status >= 500) this.offer(retry, 0);
  }

  offer(retry, seconds) {
    const button = make("button", { type: "button", class: "quiet", onclick: retry }, "Try again");
    this.trouble.append(button);
    countdown(button, seconds);
  }

  askKey(retry) {
    const input = make("input", {
      type: "password",
      "aria-label": "Key of the server",
      autocomplete: "current-password",
    });
    const onsubmit = (event) => {
      event.preventDefault();
      useKey(input.value);
      retry();
    };
    const user = make("input", { hidden: true, autocomplete: "username", value: "nextile" }); // for password keepers
    this.trouble.append(make("form", { onsubmit }, user, input, make("button", { class: "quiet" }, "Use this key")));
  }
}

/** The facts of the models that are served. */
export const models = async (signal) => (await ask("v1/models", undefined, signal)).data;
