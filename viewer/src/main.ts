// The viewer: creates pictures, shows them while they are computed, and displays their progress.
import { Code, ConnectError } from "@connectrpc/connect";
import { base, errorMessage, headers, idOf, jobs, models, setToken, token } from "./api";
import { debounced, element, createElement, showAlert } from "./dom";
import { Gallery, STATES, newest } from "./gallery";
import { type Job, type JobEvent, type JobSpec, JobState } from "./gen/tessera/v1/job_service_pb";
import { type Model } from "./gen/tessera/v1/model_service_pb";
import { Labels, labelText } from "./labels";
import { Stage } from "./stage";
import { watch } from "./watch";

const form = element<HTMLFormElement>("order");
const seed = element<HTMLInputElement>("seed");
const size = element<HTMLSelectElement>("size");
const steps = element<HTMLInputElement>("steps");
const sampler = element<HTMLSelectElement>("sampler");
const quote = element<HTMLOutputElement>("quote");
const generate = element<HTMLButtonElement>("generate");
const editor = element<HTMLDialogElement>("editor");
const file = element<HTMLInputElement>("file");
const strength = element<HTMLInputElement>("strength");
const cancel = element<HTMLButtonElement>("cancel");
const more = element<HTMLButtonElement>("more");
const fields = element("fields");
const hint = element("hint");
const stage = new Stage(element("stage"));
const labels = new Labels();

let model: Model | null = null;
/** Id of the newest picture that was ordered here. */
let ordered = "";
/** Number of manual changes of the form. */
let edits = 0;

/** The job that is shown. */
interface Shown {
  id: string;
  job: Job;
  state: JobState;
  stepsDone: number;
  tiles: Set<number>;
  settled: Set<number>;
  stop: AbortController;
  error: string;
}
let shown: Shown | null = null;

const gallery = new Gallery(() => shown?.id ?? null);

// ---- Settings of the next picture

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

function offerSizes(of: Model): void {
  const trained = `${of.width}x${of.height}`;
  size.replaceChildren();
  for (const [label, pairs] of sizes(of)) {
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
}

function spec() {
  const [width = 0, height = 0] = size.value.split("x").map(Number);
  return {
    seed: BigInt(seed.value),
    width,
    height,
    steps: Number(steps.value),
    sampler: Number(sampler.value),
    ...labels.spec(),
  };
}

/**
 * Copies a picture's settings to the form. Its labels are copied if they are not those that its seed draws, so that another
 * seed draws others.
 */
async function showSpec(id: string, from: JobSpec): Promise<void> {
  seed.value = String(from.seed);
  steps.value = String(from.steps);
  sampler.value = String(from.sampler || 1);
  const value = `${from.width}x${from.height}`;
  if ([...size.options].some((option) => option.value === value)) size.value = value;
  // The form that ordered it has them.
  if (labels.exist && id !== ordered) {
    const before = edits;
    const drawn = await jobs.quoteJob({ spec: { ...from, labels: {}, strength: undefined } }).catch(() => null);
    if (before === edits && drawn?.spec) labels.show(from, drawn.spec.labels);
  }
  askQuote();
}

/** Formats bytes. */
function bytes(value: number): string {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const unit = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  const scaled = value / 1000 ** unit;
  return `${scaled.toFixed(scaled < 10 ? 1 : 0)} ${units[unit]}`;
}

/** Formats seconds. */
function duration(seconds: number): string {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

let asked = 0;
const askQuote = debounced(250, async () => {
  if (!model || !form.checkValidity()) return;
  const mine = ++asked;
  try {
    const { quote: found } = await jobs.quoteJob({ spec: spec() });
    if (mine !== asked || !found) return;
    const time = Number(found.computeTime?.seconds ?? 0n) + (found.computeTime?.nanos ?? 0) / 1e9;
    quote.textContent = `${duration(time)} · ${bytes(Number(found.memoryBytes))} of memory`;
    quote.title = found.notices.map((notice) => `${notice.charAt(0).toUpperCase()}${notice.slice(1)}.`).join("\n");
  } catch {
    // The request itself reports the error.
    if (mine === asked) quote.textContent = "";
  }
});

function roll(): void {
  const [random = 0] = crypto.getRandomValues(new Uint32Array(1));
  seed.value = String(random % 1_000_000);
  edits += 1;
}

function showFields(open: boolean): void {
  fields.classList.toggle("open", open);
  more.setAttribute("aria-expanded", String(open));
}

async function order(): Promise<void> {
  generate.disabled = true;
  try {
    // A lost response is requested again with the same id.
    const requestId = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const request = { spec: spec(), requestId };
    const { job } = await jobs.createJob(request).catch((error: unknown) => {
      if (ConnectError.from(error).code !== Code.Unavailable) throw error;
      return jobs.createJob(request);
    });
    showFields(false);
    if (job) {
      ordered = idOf(job.name);
      location.hash = `jobs/${ordered}`;
    }
  } catch (error) {
    if (!(await askToken(error))) showAlert(errorMessage(error));
  } finally {
    generate.disabled = false;
  }
}

/** Uploads a picture to edit and opens the job. */
async function editPicture(picture: File): Promise<void> {
  const { seed: noise, steps: count, sampler: method, labels: chosen, guidance } = spec();
  const query = new URLSearchParams({
    strength: strength.value,
    seed: String(noise),
    steps: String(count),
    sampler: ["dpmpp", "dpmpp", "heun", "ddim"][method] ?? "dpmpp",
    ...(guidance === undefined ? {} : { guidance: String(guidance) }),
    ...Object.fromEntries(Object.entries(chosen).map(([name, value]) => [`labels.${name}`, value])),
  });
  try {
    // For an unknown type the server reports the accepted ones.
    const type = picture.type.startsWith("image/") ? picture.type : "image/x-unknown";
    const sent = { method: "POST", headers: { ...headers(), "content-type": type }, body: picture };
    const answer = await fetch(`${base}/jobs?${query}`, sent);
    if (answer.status === 401) throw new ConnectError("a bearer token is needed", Code.Unauthenticated);
    if (!answer.ok) {
      const { detail } = (await answer.json()) as { detail: string };
      showAlert(`The picture can't be edited: ${detail}.`);
      return;
    }
    const { name } = (await answer.json()) as { name: string };
    ordered = idOf(name);
    location.hash = `jobs/${ordered}`;
  } catch (error) {
    if (!(await askToken(error))) showAlert(errorMessage(error));
  }
}

/** Asks for a token after an authentication error; true if one was entered. */
async function askToken(error: unknown): Promise<boolean> {
  if (ConnectError.from(error).code !== Code.Unauthenticated) return false;
  const dialog = element<HTMLDialogElement>("token");
  const text = element<HTMLInputElement>("token-text");
  text.value = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (!text.value) return false;
  setToken(text.value);
  location.reload();
  return true;
}

// ---- The picture that is shown

/** Shows a picture. Its settings are copied to the form unless the form was edited after `before` edits. */
async function open(id: string, before: number): Promise<void> {
  if (shown?.id === id) return;
  shown?.stop.abort();
  const stop = new AbortController();
  shown = null;
  let job: Job | undefined;
  try {
    ({ job } = await jobs.getJob({ name: `jobs/${id}` }));
  } catch (error) {
    if (!(await askToken(error))) showAlert(errorMessage(error));
    return;
  }
  // Another picture may have been opened meanwhile.
  if (!job?.spec || location.hash !== `#jobs/${id}`) return;
  shown = {
    id, job, stop,
    state: job.state,
    stepsDone: job.stepsDone,
    tiles: new Set(),
    settled: new Set(),
    error: job.error,
  };
  const { width, height, tileSize } = job.spec;
  stage.open(id, width, height, job.tileColumns, job.tileRows, tileSize);
  if (!ended()) stage.wait();
  seen = "";
  if (edits === before) void showSpec(id, job.spec);
  render();
  if (gallery.open) gallery.toggle(matchMedia("(min-width: 861px)").matches);
  const current = shown;
  try {
    await watch(job.name, stop.signal, (event) => take(current, event));
  } catch (error) {
    if (!(await askToken(error))) showAlert(errorMessage(error));
  }
}

function ended(): boolean {
  return shown !== null && [JobState.FINISHED, JobState.FAILED, JobState.CANCELLED].includes(shown.state);
}

function take(of: Shown, { sequence, event }: JobEvent): void {
  if (of !== shown) return;
  // Events before this time are not highlighted.
  const news = sequence > of.job.sequence;
  switch (event.case) {
    case "started":
      if (of.state === JobState.QUEUED) of.state = JobState.DENOISING;
      break;
    case "step":
      of.stepsDone = event.value.step;
      if (!ended()) of.state = event.value.step === event.value.of ? JobState.DECODING : JobState.DENOISING;
      if (event.value.estimate) stage.previewChanged();
      break;
    case "levelSettled":
      of.settled.add(event.value.level);
      stage.previewChanged();
      break;
    case "tile": {
      const { column, row, rect } = event.value;
      of.tiles.add(row * of.job.tileColumns + column);
      if (rect) stage.tileDone(column, row, rect, news);
      break;
    }
    case "finished":
      of.state = JobState.FINISHED;
      break;
    case "failed":
      of.state = JobState.FAILED;
      of.error = event.value.message;
      break;
    case "cancelled":
      of.state = JobState.CANCELLED;
      break;
  }
  renderSoon();
}

let drawing = 0;
function renderSoon(): void {
  // Hidden pages run timers, slowly, but no animation frames.
  if (!drawing) drawing = window.setTimeout(() => ((drawing = 0), render()), 30);
}

function render(): void {
  const foot = element("foot");
  foot.hidden = !shown;
  document.body.classList.toggle("empty", !shown);
  if (!shown) {
    document.title = "Tessera";
    return;
  }
  const { job, state, stepsDone, tiles } = shown;
  const { seed: of = 0n, width = 0, height = 0, steps: all = 1 } = job.spec ?? {};
  const total = Math.max(job.tileColumns * job.tileRows, 1);
  const text: Record<JobState, string> = {
    [JobState.UNSPECIFIED]: "",
    [JobState.QUEUED]: "Waiting for its turn",
    [JobState.DENOISING]: `Denoising, step ${stepsDone} of ${all}`,
    [JobState.DECODING]: `Sharpening, tile ${tiles.size} of ${total}`,
    [JobState.FINISHED]: "Finished",
    [JobState.FAILED]: "Failed",
    [JobState.CANCELLED]: "Cancelled",
  };
  element("status").textContent = text[state];
  const name = ["", "DPM++ 2M", "Heun", "DDIM"][job.spec?.sampler ?? 0] ?? "";
  const edited = job.spec?.strength === undefined ? "" : ` · edited, strength ${job.spec.strength.toFixed(2)}`;
  element("about").textContent =
    state === JobState.FAILED
      ? shown.error
      : `Seed ${of} · ${width} × ${height} · ${all} steps${name && ` · ${name}`}${edited}${labelText(job.spec?.labels ?? {})}`;
  document.body.dataset.state = STATES[state];
  document.title = `${STATES[state] === "finished" ? "" : `${text[state]} · `}Seed ${of} · Tessera`;
  element("line-steps").style.setProperty("--part", String(stepsDone / all));
  element("line-tiles").style.setProperty("--part", String(tiles.size / total));
  if (ended()) stage.rest();
  cancel.hidden = ended();
  for (const kind of ["tiff", "png"] as const) {
    const link = element<HTMLAnchorElement>(kind);
    link.hidden = state !== JobState.FINISHED;
    link.href = `${base}/jobs/${shown.id}/image.${kind}`;
    link.setAttribute("aria-label", `Download ${kind.toUpperCase()}`);
  }
  renderLevels();
}

/** Shows the pyramid: a bar for each level, coarse to fine. */
function renderLevels(): void {
  const place = element("levels");
  const count = model?.levels.length ?? 0;
  if (!shown || !count) return;
  if (place.children.length !== count) {
    place.replaceChildren();
    for (let i = 0; i < count; i++) {
      const bar = createElement("i");
      bar.style.width = "5px";
      bar.style.height = `${5 + (15 * i) / Math.max(count - 1, 1)}px`;
      place.append(bar);
    }
  }
  const { settled } = shown;
  const next = shown.state === JobState.DENOISING ? Math.max(...[...Array(count).keys()].filter((l) => !settled.has(l))) : -1;
  [...place.children].forEach((bar, i) => {
    const level = count - 1 - i;
    bar.classList.toggle("settled", settled.has(level));
    bar.classList.toggle("next", level === next);
  });
  const label = `${settled.size} of ${count} levels have settled`;
  place.setAttribute("aria-label", label);
  place.title = label;
}

/** The last viewport sent to the server. */
let seen = "";
const tellView = debounced(300, async () => {
  if (!shown || ended()) return;
  const viewport = stage.view() ?? undefined;
  const text = JSON.stringify(viewport ?? null);
  if (text === seen || (seen === "" && !viewport)) return;
  seen = text;
  try {
    await jobs.setViewport({ name: shown.job.name, viewport });
  } catch {
    // The viewport only changes the order of tiles; the next movement sends it again.
    seen = "?";
  }
});
stage.onview = tellView;

// ---- Wiring

form.addEventListener("submit", (event) => {
  event.preventDefault();
  void order();
});
form.addEventListener("input", () => {
  edits += 1;
  askQuote();
});
element("dice").addEventListener("click", roll);
element("edit").addEventListener("click", () => form.reportValidity() && editor.showModal());
element("editor-close").addEventListener("click", () => editor.close());
strength.addEventListener("input", () => {
  element("strength-value").textContent = Number(strength.value).toFixed(2);
});
element("editing").addEventListener("submit", () => {
  const [picture] = file.files ?? [];
  if (picture) void editPicture(picture);
});
// A picture dropped on the page is selected in the dialog.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const { dataTransfer } = event as DragEvent;
    if (!dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && dataTransfer.files.length && form.reportValidity()) {
      file.files = dataTransfer.files;
      if (!editor.open) editor.showModal();
    }
  });
}
more.addEventListener("click", () => showFields(!fields.classList.contains("open")));
element("in").addEventListener("click", () => stage.zoom(1.5));
element("out").addEventListener("click", () => stage.zoom(1 / 1.5));
element("fit").addEventListener("click", () => stage.fit());
cancel.addEventListener("click", async () => {
  if (!shown) return;
  cancel.disabled = true;
  try {
    await jobs.cancelJob({ name: shown.job.name });
  } catch (error) {
    showAlert(errorMessage(error));
  } finally {
    cancel.disabled = false;
  }
});
for (const kind of ["tiff", "png"]) {
  element(kind).addEventListener("click", async (event) => {
    // Links do not send the token.
    if (!token() || !shown) return;
    event.preventDefault();
    const answer = await fetch(`${base}/jobs/${shown.id}/image.${kind}`, { headers: headers() });
    if (!answer.ok) return void showAlert("The picture can't be downloaded.");
    const link = createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `tessera-${shown.job.spec?.seed ?? ""}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    gallery.toggle(false);
    labels.close();
    showFields(false);
    return;
  }
  const typing = (event.target as HTMLElement).closest("input, select, dialog, aside");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys: Record<string, () => void> = {
    ArrowLeft: () => stage.pan(-1, 0),
    ArrowRight: () => stage.pan(1, 0),
    ArrowUp: () => stage.pan(0, -1),
    ArrowDown: () => stage.pan(0, 1),
    "+": () => stage.zoom(1.5),
    "=": () => stage.zoom(1.5),
    "-": () => stage.zoom(1 / 1.5),
    "0": () => stage.fit(),
  };
  const act = keys[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

function route(before: number): void {
  const id = /^#jobs\/([0-9a-f]+)$/.exec(location.hash)?.[1];
  hint.hidden = true;
  if (id) {
    void open(id, before);
    return;
  }
  shown?.stop.abort();
  shown = null;
  stage.close();
  render();
  hint.hidden = false;
}
window.addEventListener("hashchange", () => route(edits));

async function start(): Promise<void> {
  try {
    const { models: found } = await models.listModels({});
    model = found[0] ?? null;
    if (model) {
      offerSizes(model);
      labels.offer(model);
    } else showAlert("The server has no model.");
    if (!location.hash) {
      const [last] = await newest();
      if (last) history.replaceState(null, "", `#jobs/${idOf(last.name)}`);
    }
  } catch (error) {
    if (!(await askToken(error))) showAlert(errorMessage(error));
  }
  askQuote();
  // Input during this request is kept.
  route(0);
}
void start();

// For tests: true if everything shown is final.
Object.assign(window, { tessera: { sharp: () => stage.sharp(), view: () => stage.view() } });
