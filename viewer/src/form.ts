// The settings of the next picture, their cost, and its order.
import { Code, ConnectError } from "@connectrpc/connect";
import { jobs } from "./api";
import { closeOutside, createElement, debounced, element } from "./dom";
import { about, bytes, capital, SAMPLERS, seconds } from "./format";
import { type Job, type JobSpec, type Sampler } from "./gen/tessera/v1/job_service_pb";
import { type Model } from "./gen/tessera/v1/model_service_pb";
import { Labels } from "./labels";

const DEFAULT_TILE = "512";
const LARGEST_SEED = 2n ** 64n - 1n;

const form = element<HTMLFormElement>("order");
const seed = element<HTMLInputElement>("seed");
const size = element<HTMLSelectElement>("size");
const steps = element<HTMLInputElement>("steps");
const sampler = element<HTMLSelectElement>("sampler");
const model = element<HTMLSelectElement>("model");
const count = element<HTMLInputElement>("count");
const bits = element<HTMLSelectElement>("bits");
const tileSize = element<HTMLSelectElement>("tile-size");
const quote = element<HTMLOutputElement>("quote");
const options = element<HTMLDetailsElement>("options");
const optionsChosen = element("options-chosen");
const more = element<HTMLButtonElement>("more");
const fields = element("fields");

/** The settings of the form, as part of a spec. */
export type Settings = Pick<JobSpec, "model" | "seed" | "width" | "height" | "steps" | "sampler" | "bits" | "tileSize" | "labels" | "guidance">;

/** Offered sizes: the model's aspect ratio, squares and portraits, from small to the largest. */
function sizes({ width, height, sizeMultiple, maxExtent }: Model): Map<string, [number, number][]> {
  const round = (value: number) => Math.max(sizeMultiple, Math.round(value / sizeMultiple) * sizeMultiple);
  const scaled = (w: number, h: number): [number, number][] => {
    const all = [0.25, 0.5, 1, 2, 4, 8].map((scale): [number, number] => [round(w * scale), round(h * scale)]);
    const fit = all.filter(([a, b]) => a <= maxExtent && b <= maxExtent);
    return [...new Map(fit.map((pair) => [pair.join(), pair])).values()];
  };
  const side = Math.min(width, height);
  return new Map([
    [width === height ? "Square" : width > height ? "Wide" : "Tall", scaled(width, height)],
    ...(width === height ? [] : ([["Square", scaled(side, side)], [width > height ? "Tall" : "Wide", scaled(height, width)]] as const)),
  ] as [string, [number, number][]][]);
}

/** Creates a job. A lost response is requested again with the same id. */
export async function createJob(spec: Partial<Settings>): Promise<Job | undefined> {
  const requestId = crypto.getRandomValues(new Uint32Array(4)).join("-");
  const request = { spec, requestId };
  const { job } = await jobs.createJob(request).catch((error: unknown) => {
    if (ConnectError.from(error).code !== Code.Unavailable) throw error;
    return jobs.createJob(request);
  });
  return job;
}

export class Form {
  /** Number of manual changes. */
  edits = 0;
  readonly #labels = new Labels();
  #models: Model[] = [];
  #asked = 0;

  /** `submit`: called when pictures are ordered. */
  constructor(submit: () => void) {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      submit();
    });
    form.addEventListener("input", (event) => {
      this.edits += 1;
      if (event.target === model) this.#offer();
      seed.setCustomValidity(/^\d{1,20}$/.test(seed.value) && BigInt(seed.value) > LARGEST_SEED ? `At most ${LARGEST_SEED}.` : "");
      this.#summarise();
      this.askQuote();
    });
    // A field that is wrong is not left in a closed panel.
    form.addEventListener("invalid", ({ target }) => {
      this.openFields(true);
      const panel = (target as HTMLElement).closest("details");
      if (panel) panel.open = true;
    }, true);
    more.addEventListener("click", () => this.openFields(!fields.classList.contains("open")));
    element("dice").addEventListener("click", () => this.roll());
    closeOutside(options);
    this.#summarise();
  }

  /** Offers the models of the server, the default first. */
  offerModels(models: Model[]): void {
    const before = model.value;
    this.#models = models;
    model.replaceChildren();
    for (const { name } of models) {
      const option = createElement("option", name.replace(/^models\//, ""));
      option.value = name;
      option.selected = name === before;
      model.append(option);
    }
    element("model-field").hidden = models.length < 2;
    this.#offer();
  }

  /** The model with this name; the default if it is empty. */
  model(name = model.value): Model | undefined {
    return this.#models.find((known) => known.name === name) ?? (name ? undefined : this.#models[0]);
  }

  /** Offers sizes and labels of the chosen model. */
  #offer(): void {
    const chosen = this.model();
    if (!chosen) return;
    const before = size.value;
    const trained = `${chosen.width}x${chosen.height}`;
    size.replaceChildren();
    for (const [label, pairs] of sizes(chosen)) {
      const group = createElement("optgroup");
      group.label = label;
      for (const [width, height] of pairs) {
        const option = createElement("option", `${width} × ${height}`);
        option.value = `${width}x${height}`;
        option.selected = option.value === trained;
        group.append(option);
      }
      size.append(group);
    }
    if (this.#models.length > 1 && [...size.options].some(({ value }) => value === before)) size.value = before;
    this.#labels.offer(chosen);
    this.#summarise();
  }

  get settings(): Settings {
    const [width = 0, height = 0] = size.value.split("x").map(Number);
    return {
      model: model.value,
      seed: BigInt(seed.value),
      width,
      height,
      steps: Number(steps.value),
      sampler: Number(sampler.value) as Sampler,
      bits: Number(bits.value),
      tileSize: Number(tileSize.value),
      ...this.#labels.spec(),
    };
  }

  /** The settings of all pictures that are ordered at once: of consecutive seeds. */
  get orders(): Settings[] {
    const { settings } = this;
    return Array.from({ length: Number(count.value) }, (_, i) => ({ ...settings, seed: BigInt.asUintN(64, settings.seed + BigInt(i)) }));
  }

  get valid(): boolean {
    return form.matches(":valid");
  }

  /** Shows what is wrong with a field; true if nothing is. */
  reportValidity(): boolean {
    return form.reportValidity();
  }

  /**
   * Copies a picture's settings to the form. Its labels are copied if they are not those that its seed draws, so that
   * another seed draws others. `own`: the form has ordered it and has its labels.
   */
  async show(spec: JobSpec, own: boolean): Promise<void> {
    if (this.model(spec.model) && model.value !== spec.model) {
      model.value = spec.model;
      this.#offer();
    }
    seed.value = String(spec.seed);
    seed.setCustomValidity("");
    steps.value = String(spec.steps);
    sampler.value = String(spec.sampler || 1);
    bits.value = String(spec.bits || 8);
    const tile = String(spec.tileSize || DEFAULT_TILE);
    if ([...tileSize.options].some((option) => option.value === tile)) tileSize.value = tile;
    const value = `${spec.width}x${spec.height}`;
    if ([...size.options].some((option) => option.value === value)) size.value = value;
    this.#summarise();
    if (this.#labels.exist && !own) {
      const before = this.edits;
      const drawn = await jobs.quoteJob({ spec: { ...spec, labels: {}, strength: undefined } }).catch(() => null);
      if (before === this.edits && drawn?.spec) this.#labels.show(spec, drawn.spec.labels);
    }
    this.askQuote();
  }

  /** Asks for the cost of the next picture, which depends on the measured speed of the server. */
  readonly askQuote = debounced(250, async () => {
    if (!this.model() || !this.valid) return;
    const mine = ++this.#asked;
    try {
      const { quote: found } = await jobs.quoteJob({ spec: this.settings });
      if (mine !== this.#asked || !found) return;
      const pictures = Number(count.value);
      quote.textContent = `Next: ${about(seconds(found.computeTime) * pictures)} · ${bytes(Number(found.memoryBytes))} of memory`;
      const notices = found.notices.map((notice) => `${capital(notice)}.`);
      quote.title = ["Estimate of the next picture's time and memory", ...notices].join("\n");
      quote.classList.toggle("noted", notices.length > 0);
    } catch {
      // The request itself reports the error.
      if (mine === this.#asked) quote.textContent = "";
    }
  });

  roll(): void {
    const [random = 0] = crypto.getRandomValues(new Uint32Array(1));
    seed.value = String(random % 1_000_000);
    seed.setCustomValidity("");
    this.edits += 1;
  }

  openFields(open: boolean): void {
    fields.classList.toggle("open", open);
    more.setAttribute("aria-expanded", String(open));
  }

  /** Closes every panel of the form; true if one was open. */
  close(): boolean {
    const open = options.open || element<HTMLDetailsElement>("labels").open || fields.classList.contains("open");
    options.open = false;
    this.#labels.close();
    this.openFields(false);
    return open;
  }

  #summarise(): void {
    const pictures = Number(count.value);
    const chosen = [
      model.selectedIndex > 0 ? model.value.replace(/^models\//, "") : "",
      pictures > 1 ? `${pictures} pictures` : "",
      sampler.value === "1" ? "" : SAMPLERS[Number(sampler.value) as Sampler],
      bits.value === "8" ? "" : `${bits.value} bits`,
      tileSize.value === DEFAULT_TILE ? "" : `tiles of ${tileSize.value}`,
    ].filter(Boolean);
    optionsChosen.replaceChildren(createElement("span", chosen.join(", ") || "More"));
    optionsChosen.setAttribute("aria-label", chosen.length ? `More: ${chosen.join(", ")}` : "More settings");
  }
}
