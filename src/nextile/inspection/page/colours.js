// Numbers as colours: one scale for weights, one for numbers of both signs, both ordered in lightness by day and night.

import { make } from "./dom.js";

const STOPS = { weight: ["--least", "--warm", "--most"], signed: ["--minus", "--least", "--plus"] };
const FINE = 256;

// --- OKLab, in which equal steps look equal (Ottosson 2020) -------------------------------------------------------------

const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
const curved = (c) => (c <= 0.0031308 ? 12.92 * c : 1.055 * c ** (1 / 2.4) - 0.055);

function lab([r, g, b]) {
  const [red, green, blue] = [r, g, b].map((each) => linear(each / 255));
  const l = Math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue);
  const m = Math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue);
  const s = Math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function rgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((each) => Math.round(255 * Math.min(1, Math.max(0, curved(each)))));
}

// --- scales -------------------------------------------------------------------------------------------------------------

/** What a colour of the style sheet is just now, as three numbers to 255. */
export function resolved(name) {
  const probe = make("span", { hidden: true });
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return found.slice(0, 3).map(Number);
}

function ramp(stops) {
  const labs = stops.map(lab);
  return Array.from({ length: FINE }, (_, step) => {
    const place = (step / (FINE - 1)) * (labs.length - 1);
    const left = Math.min(Math.floor(place), labs.length - 2);
    return rgb(labs[left].map((each, axis) => each + (labs[left + 1][axis] - each) * (place - left)));
  });
}

let ramps = {};
const listeners = new WeakMap(); // by the element that they draw: they go when it goes
const owners = new Set(); // the elements, weakly
const gone = new FinalizationRegistry((owner) => owners.delete(owner));

function forget() {
  ramps = {};
  for (const owner of owners) listeners.get(owner.deref())?.();
}

let watching = false;

/** Call it whenever light turns to dark, or back, for as long as there is the element that it is about; one for each. */
export function onTheme(element, listener) {
  const owner = new WeakRef(element);
  listeners.set(element, listener);
  owners.add(owner);
  gone.register(element, owner);
  if (watching) return;
  watching = true;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forget);
  new MutationObserver(forget).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
}

function colour(name, share) {
  ramps[name] ??= ramp(STOPS[name].map(resolved));
  return ramps[name][Math.round(Math.min(1, Math.max(0, share)) * (FINE - 1))];
}

/** A weight from 0 to 1: its root is what is seen, so that small ones are. */
export const ofWeight = (weight) => colour("weight", Math.sqrt(weight));

/** A number of either sign, against the largest. */
export const ofSigned = (value, most) => colour("signed", 0.5 + 0.5 * (most > 0 ? value / most : 0));

const brightness = ([r, g, b]) =>
  0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);

/** Give an element the colour of a weight as its ground, and text that stands out from it; null: none. */
export function tint(element, weight) {
  const ground = weight ? ofWeight(weight) : null;
  element.style.setProperty("--tint", ground ? css(ground) : "transparent");
  element.style.color = ground ? (brightness(ground) > 0.18 ? "#000" : "#fff") : "";
}

/** As CSS writes it. */
export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

// --- legends ------------------------------------------------------------------------------------------------------------

function bar(paint) {
  const canvas = make("canvas", { width: FINE, height: 1, "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  const draw = () => {
    const image = pen.createImageData(FINE, 1);
    for (let step = 0; step < FINE; step++) image.data.set([...paint(step / (FINE - 1)), 255], 4 * step);
    pen.putImageData(image, 0, 0);
  };
  draw();
  onTheme(canvas, draw);
  return canvas;
}

function legend(name, paint, ticks) {
  const marks = ticks.map(([share, text]) => {
    const mark = make("span", {}, text);
    mark.style.left = `${100 * share}%`;
    return mark;
  });
  return make("div", { class: "legend" }, make("b", {}, name), make("div", {}, bar(paint), ...marks));
}

/** What the colours of weights mean. */
export const weightLegend = (name = "weight") =>
  legend(
    name,
    (share) => colour("weight", share),
    [0, 0.05, 0.25, 0.5, 1].map((each) => [Math.sqrt(each), String(each)]),
  );

/** What the colours of numbers of both signs mean; `most` is the end of the scale, and some are beyond it or not. */
export const signedLegend = (name, most, beyond = false) =>
  legend(name, (share) => colour("signed", share), [
    [0, `${beyond ? "\u2264\u2009" : ""}\u2212${most}`],
    [0.5, "0"],
    [1, `${beyond ? "\u2265\u2009" : ""}${most}`],
  ]);
