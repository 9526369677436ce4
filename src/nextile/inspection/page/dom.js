// Elements made by calls: what a model wrote goes in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

function dress(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element; properties that begin with "on" are listeners, others attributes; strings among children are text. */
export function make(name, properties = {}, ...children) {
  return dress(document.createElement(name), properties, children);
}

/** The same of a drawing. */
export function draw(name, properties = {}, ...children) {
  return dress(document.createElementNS(SVG, name), properties, children);
}

// --- text ---------------------------------------------------------------------------------------------------------

// Control characters, and those that turn the direction of all that follows.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]/g;

function named(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "\u2421" : `\u2039U+${code.toString(16).toUpperCase().padStart(4, "0")}\u203a`;
}

/** A text whose control characters show, and do nothing. */
export const visible = (text) => text.replace(HIDDEN, named);

/** A token by itself: its spaces and line breaks show as well. */
export const label = (token) =>
  visible(token)
    .replace(/^ +| +$/g, (spaces) => "\u2423".repeat(spaces.length))
    .replace(/\n/g, "\u21b5")
    .replace(/\t/g, "\u21e5");

/** What a screen reader says of a token. */
export function spoken(token) {
  const words = visible(token).replace(/\n/g, " new line ").replace(/\t/g, " tab ");
  return words.trim() === "" ? (token === "" ? "part of a character" : "space") : words.trim();
}

/** 0.1234 -> "12.3 %"; of very small ones that they are. */
export function percent(probability) {
  if (probability > 0 && probability < 0.0005) return "<0.1\u202f%";
  return `${(100 * probability).toFixed(probability >= 0.9995 ? 0 : 1)}\u202f%`;
}

export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

// --- keys ---------------------------------------------------------------------------------------------------------

/** Make of many elements one stop of the Tab key; keys, {ArrowDown: 1, ArrowUp: -1}, go on from one to another. */
export function rove(container, selector, keys) {
  const items = () => [...container.querySelectorAll(selector)];
  const settle = (chosen) =>
    items().forEach((item) => {
      item.tabIndex = item === chosen ? 0 : -1;
    });
  container.addEventListener("focusin", (event) => {
    const item = event.target.closest(selector);
    if (item) settle(item);
  });
  container.addEventListener("keydown", (event) => {
    const all = items();
    const here = all.indexOf(event.target.closest(selector));
    const there = { Home: 0, End: all.length - 1 }[event.key] ?? here + (keys[event.key] ?? NaN);
    if (here < 0 || !all[there] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    all[there].focus();
  });
}

/** Wait until nothing has happened for some milliseconds, then do it. */
export function later(milliseconds, act) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  };
}
