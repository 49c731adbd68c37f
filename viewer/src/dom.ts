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

/** The page is wide enough for the form in one row and a panel beside the picture. */
export const wide = matchMedia("(min-width: 981px)");

/** Closes a panel that covers the picture when something else is used. */
export function closeOutside(box: HTMLDetailsElement): void {
  document.addEventListener("pointerdown", ({ target }) => {
    if (!box.contains(target as Node)) box.open = false;
  });
  box.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget && !box.contains(relatedTarget as Node)) box.open = false;
  });
}

/** A click that counts only at the second press; the first one asks, with `question` as the button's text. */
export function confirmed(button: HTMLButtonElement, question: string, act: () => void): void {
  let text = "";
  const calm = () => {
    if (button.classList.contains("sure")) button.textContent = text;
    button.classList.remove("sure");
  };
  button.addEventListener("click", () => {
    if (button.classList.contains("sure")) {
      calm();
      act();
      return;
    }
    text = button.textContent ?? "";
    button.classList.add("sure");
    button.textContent = question;
  });
  button.addEventListener("blur", calm);
}

/** Puts text on the clipboard, and says so at `button` for a moment. */
export async function copy(text: string, button: HTMLButtonElement): Promise<void> {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages without TLS have no clipboard.
    const area = createElement("textarea");
    area.value = text;
    (document.querySelector<HTMLElement>("dialog[open]") ?? document.body).append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  button.dataset.said = done ? "Copied" : "Not copied";
  element("said").textContent = button.dataset.said;
  button.focus();
  setTimeout(() => {
    delete button.dataset.said;
    element("said").textContent = "";
  }, 1500);
}
