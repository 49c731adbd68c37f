// The controls for the labels of a model: a menu for each label, and the guidance.
import { closeOutside, createElement, element } from "./dom";
import { capital, described, readable } from "./format";
import { type JobSpec } from "./gen/tessera/v1/job_service_pb";
import { type Model } from "./gen/tessera/v1/model_service_pb";

const box = element<HTMLDetailsElement>("labels");
const chosen = element("labels-chosen");
const list = element("label-list");
const guidance = element<HTMLInputElement>("guidance");

export class Labels {
  #menus = new Map<string, HTMLSelectElement>();

  constructor() {
    box.addEventListener("input", () => this.#summarise());
    closeOutside(box);
  }

  /** True if the model has labels. */
  get exist(): boolean {
    return this.#menus.size > 0;
  }

  /** Makes the controls of a model; there are none if it has no labels. Values that it has too are kept. */
  offer(model: Model): void {
    const before = this.spec().labels;
    this.#menus.clear();
    list.replaceChildren();
    for (const { name, values } of model.labels) {
      const menu = createElement("select");
      menu.id = `label-${name}`;
      for (const value of ["", ...values]) {
        const option = createElement("option", value ? readable(value) : "By the seed");
        option.value = value;
        menu.append(option);
      }
      if (values.includes(before[name] ?? "")) menu.value = before[name] ?? "";
      const label = createElement("label", capital(readable(name)));
      label.htmlFor = menu.id;
      const field = createElement("div");
      field.className = "field";
      field.append(label, menu);
      list.append(field);
      this.#menus.set(name, menu);
    }
    box.hidden = !this.exist;
    this.#summarise();
  }

  /** The chosen values and the guidance, as part of a spec. */
  spec(): { labels: Record<string, string>; guidance: number | undefined } {
    const labels: Record<string, string> = {};
    for (const [name, { value }] of this.#menus) if (value) labels[name] = value;
    return { labels, guidance: this.exist ? Number(guidance.value) : undefined };
  }

  /** Shows the labels of `spec`, or none if they are those in `drawn`, which its seed draws. */
  show(spec: JobSpec, drawn: Record<string, string>): void {
    const menus = [...this.#menus];
    const own = menus.every(([name]) => spec.labels[name] === drawn[name]);
    for (const [name, menu] of menus) menu.value = own ? "" : (spec.labels[name] ?? "");
    if (spec.guidance !== undefined) guidance.value = String(spec.guidance);
    this.#summarise();
  }

  close(): void {
    box.open = false;
  }

  #summarise(): void {
    const values = Object.entries(this.spec().labels).map(([name, value]) => described(name, value));
    const text = createElement("span", values.length ? values.join(", ") : "Labels");
    chosen.replaceChildren(text);
    chosen.setAttribute("aria-label", values.length ? `Labels: ${values.join(", ")}` : "Labels");
  }
}
