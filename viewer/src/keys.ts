// Keys of the page, and the dialog that lists them.
import { createElement, element } from "./dom";

/** What a key does. */
export interface Key {
  /** Values of `KeyboardEvent.key`. */
  keys: string[];
  /** The key for people, if not the first of `keys`. */
  shown?: string;
  /** What it does, for people; empty: it is listed with the one before. */
  text: string;
  act: () => void;
}

/** Acts on keys while no field, dialog or panel has the focus. `escape`: Escape, everywhere but in dialogs. */
export function listen(keys: Key[], escape: () => void): void {
  const dialog = element<HTMLDialogElement>("keyboard");
  const help: Key = { keys: ["?"], text: "this list", act: () => dialog.showModal() };
  const all = [...keys, help];
  element("keys").replaceChildren(
    ...[...all.filter(({ text }) => text), { keys: ["Esc"], shown: "Esc", text: "close panels" } as Key].map(({ keys: [first = ""], shown, text }) => {
      const row = createElement("tr");
      const cell = createElement("th");
      cell.scope = "row";
      cell.append(createElement("kbd", shown ?? first.toUpperCase()));
      row.append(cell, createElement("td", text));
      return row;
    }),
  );
  element("help").addEventListener("click", help.act);
  document.addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    if (target.closest("dialog")) return;
    if (event.key === "Escape") return escape();
    if (target.closest("input, select, textarea, aside") || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = all.find(({ keys: values }) => values.includes(event.key));
    if (!found) return;
    event.preventDefault();
    found.act();
  });
}
