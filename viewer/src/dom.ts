// DOM helpers.

/** The existing element with this id. */
export function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

/** Creates an element with text. */
export function createElement<K extends keyof HTMLElementTagNameMap>(tag: K, text = "", className = ""): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

/** Shows a message until it is dismissed; equal messages are shown once. Returns a function that removes it. */
export function showAlert(text: string, mild = false): () => void {
  const place = element("alerts");
  const shown = [...place.children].find((child) => child.firstChild?.textContent === text);
  const alert = shown ?? createElement("div", "", mild ? "alert mild" : "alert");
  const away = () => alert.remove();
  if (!shown) {
    const close = createElement("button", "Dismiss");
    close.type = "button";
    close.addEventListener("click", away);
    alert.append(createElement("span", text), close);
    place.append(alert);
  }
  return away;
}

/** Calls `task` `wait` milliseconds after the last of several calls. */
export function debounced(wait: number, task: () => void): () => void {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(task, wait);
  };
}

/** Resolves after `ms` milliseconds. */
export function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
