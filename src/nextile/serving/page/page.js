// The page: which model is served, what it can do, light and dark, and the keys that work everywhere.

import { About } from "./about.js";
import { Beams } from "./beams.js";
import { Chat } from "./chat.js";
import { Classify } from "./classify.js";
import { count, make, rove, visible } from "./dom.js";
import { Fill } from "./fill.js";
import { Inside } from "./inside.js";
import { Paint } from "./paint.js";
import { wear } from "./theme.js";
import { Translate } from "./translate.js";
import { models, Work } from "./work.js";
import { Write } from "./write.js";

const place = document.getElementById("views");
const tabs = document.getElementById("tabs");

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
  history.replaceState(null, "", `#${view.name}`);
  view.view.entered?.();
}

function arrange(list) {
  views = list.map((view) => {
    const name = view.title.toLowerCase().replaceAll(" ", "-");
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
    return { name, view, tab, panel };
  });
  for (const each of views) each.tab.addEventListener("click", () => show(each));
  tabs.replaceChildren(...views.map((each) => each.tab));
  tabs.hidden = views.length < 2;
  place.replaceChildren(...views.map((each) => each.panel));
  show(views.find((each) => `#${each.name}` === location.hash) ?? views[0]);
}

addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    shown?.view.start?.();
  }
  if (event.key === "Escape") shown?.view.stop?.();
});

// --- the model ----------------------------------------------------------------------------------------------------

const open = (view) => show(views.find((each) => each.view === view));

function writers(model) {
  const write = new Write(model, (text) => {
    open(inside);
    inside.look(text);
  });
  const inside = new Inside(model, () => write.text);
  const goOn = (text) => {
    write.put(text);
    open(write);
  };
  return [write, new Beams(() => write.text, goOn), ...(model.nextile.chat ? [new Chat()] : []), inside];
}

/** A view and a look inside what it is about. */
function besides(view, begun) {
  return (model) => {
    const main = view(model);
    return [main, new Inside(model, () => begun(main))];
  };
}

const VIEWS = {
  lm: writers,
  masked: besides((model) => new Fill(model), (fill) => fill.input.value),
  denoise: besides((model) => new Fill(model), (fill) => fill.input.value),
  translate: besides((model) => new Translate(model), (translate) => translate.input.value),
  classify: besides((model) => new Classify(model), (classify) => classify.picture.url),
  "classify-text": besides((model) => new Classify(model), (classify) => classify.input.value),
  paint: besides(() => new Paint(), (paint) => paint.picture?.url),
};

const viewsOf = (model) => (VIEWS[model.nextile.task] ?? (() => [new About(model), new Inside(model)]))(model);

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

wear(document.getElementById("theme"));
rove(tabs, "[role=tab]", { ArrowRight: 1, ArrowLeft: -1 });
begin();
