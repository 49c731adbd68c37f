// Two pictures under one another: the second one is seen on the right of a boundary that can be moved.
import { errorMessage, idOf, isAway, jobs } from "./api";
import { createElement, element, showAlert } from "./dom";
import { title } from "./format";
import { type Job, JobState } from "./gen/tessera/v1/job_service_pb";
import { fetchPage } from "./pictures";
import { type Shown } from "./shown";
import { type Stage } from "./stage";

/** Number of newest pictures from which one can be chosen. */
const OFFERED = 200;

const box = element("comparison");
const button = element<HTMLButtonElement>("compare");
const menu = element<HTMLSelectElement>("compare-with");
const slider = element<HTMLInputElement>("divide");

/** True if two pictures have the same aspect ratio, so that their places correspond. */
export function comparable(a: Job, b: Job): boolean {
  const ratio = ({ spec }: Job) => (spec?.width ?? 1) / (spec?.height ?? 1);
  return Math.abs(ratio(a) / ratio(b) - 1) < 0.01;
}

/** The dimensions that the stage needs. */
export function extentOf({ spec, tileColumns: columns, tileRows: rows }: Job) {
  return { width: spec?.width ?? 1, height: spec?.height ?? 1, columns, rows, tileSize: spec?.tileSize ?? 0 };
}

export class Comparison {
  /** Id of the second picture; empty: there is none. */
  with = "";

  constructor(private readonly stage: Stage) {
    slider.addEventListener("input", () => this.#divide());
    menu.addEventListener("change", () => this.#go(menu.value));
    element("compare-end").addEventListener("click", () => this.#go(""));
  }

  get open(): boolean {
    return !box.hidden;
  }

  /** Compares the picture with the newest other one that has its shape, or ends the comparison. */
  async toggle(shown: Shown): Promise<void> {
    if (this.with) return this.#go("");
    try {
      const [other] = await this.#offers(shown.job);
      if (other) this.#go(idOf(other.name));
      else showAlert("There is no other finished picture of this shape.", true);
    } catch (error) {
      if (!isAway(error)) showAlert(errorMessage(error));
    }
  }

  /** Shows the second picture; an empty id: none. */
  async show(shown: Shown, id: string): Promise<void> {
    if (this.with === id) return;
    this.end();
    if (!id) return;
    this.with = id;
    button.setAttribute("aria-pressed", "true");
    try {
      const offers = await this.#offers(shown.job);
      let other = offers.find(({ name }) => idOf(name) === id);
      if (!other) ({ job: other } = await jobs.getJob({ name: `jobs/${id}` }));
      if (!other || this.with !== id) return;
      if (!offers.includes(other)) offers.unshift(other);
      menu.replaceChildren(...offers.map((job) => {
        const option = createElement("option", title(job));
        option.value = idOf(job.name);
        option.selected = option.value === id;
        return option;
      }));
      element("compare-left").textContent = title(shown.job);
      box.hidden = false;
      slider.value = "500";
      this.stage.compare(id, extentOf(other));
      this.#divide();
    } catch (error) {
      if (this.with !== id) return;
      if (!isAway(error)) showAlert(errorMessage(error));
      this.#go("");
    }
  }

  /** Ends the comparison, since another picture is shown. */
  end(): void {
    this.with = "";
    box.hidden = true;
    button.setAttribute("aria-pressed", "false");
    this.stage.endComparison();
  }

  /** Finished pictures with the shape of `job`, newest first. */
  async #offers(job: Job): Promise<Job[]> {
    const { jobs: newest } = await fetchPage(OFFERED);
    return newest.filter((other) => other.name !== job.name && other.state === JobState.FINISHED && comparable(job, other));
  }

  /** The address says what is compared. */
  #go(id: string): void {
    const [, first = ""] = /^#(jobs\/[0-9a-f]+)/.exec(location.hash) ?? [];
    location.hash = id ? `${first}/compare/${id}` : first;
  }

  #divide(): void {
    const part = Number(slider.value) / 1000;
    box.style.setProperty("--boundary", String(part));
    this.stage.divide(part);
  }
}
