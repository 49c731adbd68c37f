// Small helpers for the page.

/** The element with this id, which the page has. */
export function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** A new element with text. */
export function make<K extends keyof HTMLElementTagNameMap>(tag: K, text = "", className = ""): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Shows a message until it is dismissed; the same text is shown once. Gives what takes it away. */
export function say(text: string, mild = false): () => void {
  const place = element("alerts");
  const shown = [...place.children].find((child) => child.firstChild?.textContent === text);
  const alert = shown ?? make("div", "", mild ? "alert mild" : "alert");
  const away = () => alert.remove();
  if (!shown) {
    const close = make("button", "Dismiss");
    close.type = "button";
    close.addEventListener("click", away);
    alert.append(make("span", text), close);
    place.append(alert);
  }
  return away;
}

/** Calls `task` once, `wait` milliseconds after the last call. */
export function debounced(wait: number, task: () => void): () => void {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(task, wait);
  };
}

/** Waits. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
