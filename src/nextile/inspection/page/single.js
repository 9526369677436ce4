// The page as one file: the payload lies in it.

import { make, visible } from "./dom.js";
import { facts, mount } from "./inspect.js";
import { wear } from "./theme.js";

const payload = JSON.parse(document.getElementById("payload").textContent);
const name = visible(payload.model.name);
wear(document.getElementById("theme"));
document.getElementById("facts").replaceChildren(make("b", {}, name), ` ${facts(payload)}`);
document.title = `${name || "A model"}, looked into \u00b7 nextile`;
mount(document.getElementById("views"), payload);
document.documentElement.dataset.ready = String(performance.now());
