// The page: which model is served, what it can do, light and dark, and the keys that work everywhere.

import { About } from "./about.js";
import { Beams } from "./beams.js";
import { Chat } from "./chat.js";
import { Classify } from "./classify.js";
import { count, make, rove, visible } from "./dom.js";
import { Paint } from "./paint.js";
import { Translate } from "./translate.js";
import { models, Work } from "./work.js";
import { Write } from "./write.js";

const place = document.getElementById("views");
const tabs = document.getElementById("tabs");

// --- light and dark -----------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];

function stored() {
  try {
    return THEMES.includes(localStorage.theme) ? localStorage.theme : "system";
  } catch {
    return "system"; // a browser that keeps nothing
  }
}

function wear(theme) {
  const button = document.getElementById("theme");
  document.documentElement.dataset.theme = theme;
  button.textContent = { system: "\u25d0", light: "\u25cb", dark: "\u25cf" }[theme];
  button.setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  button.title = button.getAttribute("aria-label");
  button.onclick = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.theme = next;
    } catch {
      /* it holds until the page is left */
    }
    wear(next);
  };
}

// --- views --------------------------------------------------------------------------------------------------------

let views = [];
let shown = null;

function show(view) {
  shown = view;
  for (const each of views) {
    each.panel.hidden = each !== view;
    each.tab.setAttribute("aria-selected", String(each === view));
    each.tab.tabIndex = each === view ? 0 : -1;
  }
  history.replaceState(null, "", `#${view.title.toLowerCase()}`);
  view.view.entered?.();
}

function arrange(list) {
  views = list.map((view) => {
    const name = view.title.toLowerCase();
    const tab = make(
      "button",
      { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}` },
      view.title,
    );
    const panel = make(
      "section",
      { role: "tabpanel", id: `panel-${name}`, "aria-labelledby": `tab-${name}` },
      view.element,
    );
    return { title: view.title, view, tab, panel };
  });
  for (const each of views) each.tab.addEventListener("click", () => show(each));
  tabs.replaceChildren(...views.map((each) => each.tab));
  tabs.hidden = views.length < 2;
  place.replaceChildren(...views.map((each) => each.panel));
  show(views.find((each) => `#${each.title.toLowerCase()}` === location.hash) ?? views[0]);
}

addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    shown?.view.start?.();
  }
  if (event.key === "Escape") shown?.view.stop?.();
});

// --- the model ----------------------------------------------------------------------------------------------------

function writers(model) {
  const write = new Write(model);
  const goOn = (text) => {
    write.put(text);
    show(views.find((each) => each.view === write));
  };
  return [write, new Beams(() => write.text, goOn), ...(model.nextile.chat ? [new Chat()] : [])];
}

const VIEWS = {
  lm: writers,
  translate: (model) => [new Translate(model)],
  classify: (model) => [new Classify(model)],
  "classify-text": (model) => [new Classify(model)],
  paint: () => [new Paint()],
};

const viewsOf = (model) => (VIEWS[model.nextile.task] ?? (() => [new About(model)]))(model);

function introduce({ id, nextile }) {
  const { family, parameters, context, image } = nextile;
  const reads = image
    ? `${image.size} \u00d7 ${image.size} pixels`
    : context && `${count(context, "token")} of context`;
  const facts = [family, count(parameters, "parameter"), reads].filter(Boolean).join(" \u00b7 ");
  document.getElementById("facts").replaceChildren(make("b", {}, visible(id)), ` ${visible(facts)}`);
  document.title = `${visible(id)} \u00b7 nextile`;
}

function begin() {
  const work = new Work("Load", () => {});
  place.replaceChildren(make("div", { class: "loading" }, work.status, work.trouble));
  return work.run(async (signal) => {
    work.say("Looking at the model \u2026");
    const [model] = await models(signal);
    introduce(model);
    arrange(viewsOf(model));
  });
}

wear(stored());
rove(tabs, "[role=tab]", { ArrowRight: 1, ArrowLeft: -1 });
begin();
