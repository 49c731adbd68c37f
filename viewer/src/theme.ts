// Light and dark theme: that of the system until the other one is chosen here.
import { element } from "./dom";

const KEY = "tessera-theme";

type Theme = "light" | "dark";

const button = element<HTMLButtonElement>("theme");
const system = matchMedia("(prefers-color-scheme: light)");

function preferred(): Theme {
  return system.matches ? "light" : "dark";
}

/** The stored choice; null: the system's theme. */
function stored(): Theme | null {
  const value = localStorage.getItem(KEY);
  return value === "light" || value === "dark" ? value : null;
}

function show(): void {
  const choice = stored();
  const theme = choice ?? preferred();
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  button.setAttribute("aria-pressed", String(theme === "light"));
  const header = document.querySelector("header");
  const meta = document.querySelector("meta[name=theme-color]");
  if (header) meta?.setAttribute("content", getComputedStyle(header).backgroundColor);
}

/** Switches to the other theme. The system's theme is followed again when it is chosen. */
export function switchTheme(): void {
  const other: Theme = (stored() ?? preferred()) === "light" ? "dark" : "light";
  if (other === preferred()) localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, other);
  show();
}

system.addEventListener("change", show);
button.addEventListener("click", switchTheme);
show();
