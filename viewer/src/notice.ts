// Message on the empty stage: no job yet, or the reason why a job has no picture.
import { element } from "./dom";

const box = element("hint");
const text = element("hint-text");
const more = element("hint-more");
const button = element<HTMLButtonElement>("hint-act");

export class Notice {
  #act: () => void = () => {};

  constructor() {
    button.addEventListener("click", () => this.#act());
  }

  /** Shows a text, a smaller one, and a button if there is something to do. */
  show(message: string, detail = "", label = "", act?: () => void): void {
    text.textContent = message;
    more.textContent = detail;
    more.hidden = !detail;
    button.textContent = label;
    button.hidden = !act;
    this.#act = act ?? (() => {});
    box.hidden = false;
  }

  hide(): void {
    box.hidden = true;
  }
}
