// "Chat": a conversation, answers as they come.

import { Sampling } from "./controls.js";
import { make, visible } from "./dom.js";
import { events } from "./server.js";
import { Work } from "./work.js";

export class Chat {
  constructor() {
    this.title = "Chat";
    this.messages = []; // {role, content}
    this.work = new Work("Send", () => this.start(), "\u21b5"); // Ctrl+Enter does as well
    this.sampling = new Sampling({ length: 256, stop: false });
    this.log = make("ol", { class: "talk", "aria-label": "Conversation" });
    this.input = make("textarea", {
      class: "box prose",
      rows: 2,
      "aria-label": "Your message",
      placeholder: "Say something \u2026",
      onkeydown: (event) => this.key(event),
    });
    this.system = make("textarea", {
      class: "box",
      rows: 3,
      "aria-label": "System prompt",
      placeholder: "You are \u2026",
    });
    const quiet = (words, onclick) => make("button", { type: "button", class: "quiet", onclick }, words);
    this.retry = quiet("Answer again", () => this.again());
    this.fresh = quiet("New chat", () => this.clear());
    this.element = make(
      "div",
      { class: "columns" },
      make(
        "div",
        { class: "desk" },
        this.log,
        this.work.trouble,
        this.input,
        make("div", { class: "actions" }, this.work.button, this.retry, this.fresh, this.work.status),
        this.work.curl,
      ),
      make(
        "aside",
        { "aria-label": "Sampling" },
        make("div", { class: "field" }, make("h2", {}, "System prompt"), this.system),
        this.sampling.sliders,
        this.sampling.fields,
      ),
    );
    this.settle();
  }

  /** Enter sends, Shift+Enter is a new line. */
  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    this.start();
  }

  start() {
    const content = this.input.value.trim();
    if (!content || this.work.running) return;
    this.input.value = "";
    this.push("user", content);
    this.answer();
  }

  stop() {
    this.work.stop();
  }

  /** Another answer to the last question. */
  async again() {
    await this.work.stop();
    if (this.messages.at(-1)?.role === "assistant") this.pop();
    this.answer();
  }

  async clear() {
    await this.work.stop();
    this.messages = [];
    this.log.replaceChildren();
    this.work.trouble.replaceChildren();
    this.work.say("");
    this.settle();
    this.input.focus();
  }

  push(role, content) {
    this.messages.push({ role, content });
    const words = make("div", { class: "said" }, visible(content));
    this.log.append(make("li", { class: role }, make("b", {}, role === "user" ? "You" : "Model"), words));
    this.settle();
    return words;
  }

  pop() {
    this.messages.pop();
    this.log.lastChild.remove();
  }

  answer() {
    return this.work.run((signal) => this.listen(signal)).then(() => this.settle());
  }

  async listen(signal) {
    const system = this.system.value.trim();
    const messages = system ? [{ role: "system", content: system }, ...this.messages] : [...this.messages];
    const body = { messages, ...this.sampling.body };
    this.work.asked("v1/chat/completions", { ...body, stream: true });
    this.work.say("Answering \u2026");
    const words = this.push("assistant", "");
    const message = this.messages.at(-1);
    words.classList.add("coming");
    let reason = null;
    try {
      for await (const event of events("v1/chat/completions", body, signal)) {
        const [choice] = event.choices;
        message.content += choice?.delta?.content ?? "";
        words.textContent = visible(message.content.trimStart());
        reason = choice?.finish_reason ?? reason;
        this.log.lastChild.scrollIntoView({ block: "nearest" });
      }
    } finally {
      words.classList.remove("coming");
      if (message.content === "" && reason === null) this.pop();
    }
    this.work.say(reason === "length" ? "Answered; cut at the most tokens." : "Answered.");
  }

  settle() {
    this.retry.disabled = !this.messages.length;
    this.fresh.disabled = !this.messages.length;
  }
}
