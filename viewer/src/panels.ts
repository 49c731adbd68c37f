// The panel beside the picture: the list of pictures or the details; one at a time.
import { element } from "./dom";

export type Panel = "jobs" | "details";

const BUTTONS: Record<Panel, string> = { jobs: "list", details: "info" };

let current: Panel | null = null;
const listeners: ((panel: Panel | null) => void)[] = [];

/** Calls `task` with the open panel whenever another one is opened, or none. */
export function onPanel(task: (panel: Panel | null) => void): void {
  listeners.push(task);
}

/** Opens a panel and closes the other; null: closes both. `focus`: keyboards go on where the panel is, or was. */
export function showPanel(panel: Panel | null, focus = false): void {
  const before = current;
  current = panel;
  for (const [id, button] of Object.entries(BUTTONS)) {
    element(id).hidden = id !== panel;
    element(button).setAttribute("aria-expanded", String(id === panel));
  }
  if (panel !== before) for (const task of listeners) task(panel);
  if (focus && !panel && before) element(BUTTONS[before]).focus();
}

/** The open panel. */
export function openPanel(): Panel | null {
  return current;
}

for (const [id, button] of Object.entries(BUTTONS) as [Panel, string][]) {
  element(button).addEventListener("click", () => showPanel(current === id ? null : id));
  element(`${id}-close`).addEventListener("click", () => showPanel(null, true));
}
