// Light, dark, or as the system has it: a button that goes from one to the next, and remembers.

const THEMES = ["system", "light", "dark"];
const SIGNS = { system: "\u25d0", light: "\u25cb", dark: "\u25cf" };

function stored() {
  try {
    return THEMES.includes(localStorage.theme) ? localStorage.theme : "system";
  } catch {
    return "system"; // a browser that keeps nothing
  }
}

/** Wear what was chosen before; the button chooses the next. */
export function wear(button, theme = stored()) {
  document.documentElement.dataset.theme = theme;
  button.textContent = SIGNS[theme];
  button.setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  button.title = button.getAttribute("aria-label");
  button.onclick = () => {
    const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.theme = next;
    } catch {
      /* it holds until the page is left */
    }
    wear(button, next);
  };
}
