// Of a model for which the page has no play: what it is for, and the command that uses it.

import { make } from "./dom.js";

const USES = {
  words: ["knows words as vectors", "words NAME near king"],
};

export class About {
  constructor({ id, nextile }) {
    this.title = "About";
    const [what, command] = USES[nextile.task] ?? [`was trained for \u201c${nextile.task}\u201d`, "info NAME"];
    this.element = make(
      "div",
      { class: "about" },
      make(
        "p",
        {},
        `This model ${what}. Beside a look inside this page has nothing to play with it; the server gives its vectors at `,
        make("code", {}, "/v1/embeddings"),
        ", and the command line uses it by",
      ),
      make(
        "pre",
        { tabindex: "0", "aria-label": "Command" },
        make("code", {}, `nextile ${command.replace("NAME", id)}`),
      ),
    );
  }
}
