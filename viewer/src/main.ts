// The viewer: creates pictures, shows them while they are computed, and displays their progress.
import { Code, ConnectError } from "@connectrpc/connect";
import { errorMessage, isAway, jobs, models, report, setToken, token } from "./api";
import { Comparison, extentOf } from "./compare";
import { watchConnection } from "./connection";
import { renderDetails } from "./details";
import { copy, debounced, element, showAlert, wide } from "./dom";
import { download } from "./download";
import { Editor } from "./editor";
import { renderFooter, renderTime } from "./footer";
import { createJob, Form, type Settings } from "./form";
import { capital } from "./format";
import { Gallery } from "./gallery";
import { type JobEvent, type JobSpec, JobState } from "./gen/tessera/v1/job_service_pb";
import { listen } from "./keys";
import { Overview } from "./map";
import { Notice } from "./notice";
import { onPanel, openPanel, showPanel } from "./panels";
import { fetchPage } from "./pictures";
import { clockOffset } from "./progress";
import { Shown } from "./shown";
import { Stage } from "./stage";
import { switchTheme } from "./theme";
import { watch } from "./watch";

const generate = element<HTMLButtonElement>("generate");
const cancel = element<HTMLButtonElement>("cancel");
const link = element<HTMLButtonElement>("link");
const actual = element<HTMLButtonElement>("actual");
const full = element<HTMLButtonElement>("full");

const stage = new Stage(element("stage"));
const overview = new Overview(stage);
const comparison = new Comparison(stage);
const notice = new Notice();
const form = new Form(() => void order(() => form.orders));
const editor = new Editor(form, openOrdered, (error) => void failed(error));

/** Ids of the pictures that were ordered here. */
const ordered = new Set<string>();
/** The job that is shown. */
let shown: Shown | null = null;
/** Id of the picture that is about to be shown. */
let opening = "";
/** True once the models are known. */
let started = false;

const gallery = new Gallery(() => shown?.id ?? null);

// ---- Orders

/** Orders pictures and opens the first one. */
async function order(settings: () => (Settings | JobSpec)[]): Promise<void> {
  generate.disabled = true;
  let first = "";
  try {
    for (const spec of settings()) {
      const job = await createJob(spec);
      if (!job) continue;
      ordered.add(job.name);
      if (first) continue;
      first = job.name;
      form.close();
      location.hash = job.name;
    }
  } catch (error) {
    await failed(error);
  } finally {
    generate.disabled = false;
  }
  if (form.orders.length > 1 && first && wide.matches) showPanel("jobs");
  void gallery.refresh();
}

/** Opens a picture that was ordered by an upload. */
function openOrdered(id: string): void {
  ordered.add(`jobs/${id}`);
  form.close();
  location.hash = `jobs/${id}`;
}

/** Shows an error, or asks for a token if that is what is missing. */
async function failed(error: unknown): Promise<void> {
  if (!(await askToken(error))) report(error);
}

/** Asks for a token after an authentication error; true if one was entered. */
async function askToken(error: unknown): Promise<boolean> {
  if (ConnectError.from(error).code !== Code.Unauthenticated) return false;
  const dialog = element<HTMLDialogElement>("token");
  const text = element<HTMLInputElement>("token-text");
  if (!dialog.open) {
    text.value = "";
    dialog.showModal();
  }
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (!text.value) return false;
  setToken(text.value);
  location.reload();
  return true;
}

// ---- The picture that is shown

/** Shows a picture. Its settings are copied to the form unless the form was edited after `before` edits. */
async function open(id: string, before: number): Promise<void> {
  if (opening === id) return;
  opening = id;
  shown?.stop.abort();
  shown = null;
  let offset = 0;
  try {
    const onHeader = (headers: Headers) => (offset = clockOffset(headers.get("date")));
    const { job } = await jobs.getJob({ name: `jobs/${id}` }, { onHeader });
    // Another picture may have been opened meanwhile.
    if (!job?.spec || parse().id !== id) return;
    shown = new Shown(job, offset);
  } catch (error) {
    if (parse().id !== id || (await askToken(error))) return;
    showMissing(error);
    return;
  } finally {
    if (opening === id) opening = "";
  }
  const { job } = shown;
  const extent = extentOf(job);
  stage.open(id, extent);
  overview.open(extent.width, extent.height);
  if (!shown.ended) stage.wait();
  notice.hide();
  seen = "";
  if (job.spec && form.edits === before) void form.show(job.spec, ordered.has(job.name));
  render();
  if (openPanel() && !wide.matches) showPanel(null);
  void compare();
  const current = shown;
  try {
    await watch(job.name, shown.stop.signal, (event) => take(current, event));
  } catch (error) {
    if (current === shown && !(await askToken(error))) showMissing(error);
  }
}

/** Shows why there is no picture. */
function showMissing(error: unknown): void {
  shown?.stop.abort();
  shown = null;
  stage.close();
  render();
  if (isAway(error)) notice.show("There is no picture while the server does not answer.");
  else notice.show(errorMessage(error), "", "Show the newest picture", () => void openNewest());
}

/** Shows why a job that has ended has no picture. */
async function explainEnd(of: Shown): Promise<void> {
  const { state, job, tiles } = of;
  if (state === JobState.FINISHED || tiles.size) return;
  const preview = await jobs.getPreview({ name: job.name }).catch(() => null);
  if (of !== shown || preview) return;
  const { spec } = job;
  const again = spec && spec.strength === undefined ? () => void order(() => [spec]) : undefined;
  if (state === JobState.FAILED) notice.show("This picture has failed.", `${capital(of.error)}.`, "Try again", again);
  else notice.show("Cancelled before there was anything to see.", "", "Generate again", again);
}

function take(of: Shown, message: JobEvent): void {
  if (of !== shown) return;
  const { event, sequence } = message;
  const ended = of.ended;
  of.take(message);
  if (event.case === "levelSettled" || (event.case === "step" && event.value.estimate)) stage.previewChanged();
  if (event.case === "tile") {
    const { column, row, rect } = event.value;
    // Events before this time are not highlighted.
    if (rect) stage.tileDone(column, row, rect, sequence > of.job.sequence);
  }
  if (["finished", "failed", "cancelled"].includes(event.case ?? "")) {
    stage.rest();
    void explainEnd(of);
    // The speed has been measured once more, and the list changes.
    if (!ended) form.askQuote();
    void gallery.refresh();
  }
  renderSoon();
}

let drawing = 0;
function renderSoon(): void {
  // Hidden pages run timers, slowly, but no animation frames.
  if (!drawing) drawing = window.setTimeout(() => ((drawing = 0), render()), 30);
}

function render(): void {
  renderFooter(shown, form.model(shown?.job.spec?.model)?.levels.length ?? 0);
  renderDetails(shown);
}

// Times pass between events.
setInterval(() => {
  if (!shown || shown.ended) return;
  renderTime(shown);
  renderDetails(shown);
}, 1000);

/** The last viewport sent to the server. */
let seen = "";
const tellView = debounced(300, async () => {
  if (!shown || shown.ended) return;
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
stage.onpixels = () => overview.refresh();
stage.onmove = () => {
  const { scale } = stage;
  actual.textContent = `${scale >= 0.0995 || scale === 0 ? Math.round(scale * 100) : (scale * 100).toFixed(1)} %`;
  actual.setAttribute("aria-label", `Zoom ${actual.textContent}; show at 100 %`);
  overview.draw();
};

// ---- Addresses

/** What the address shows. */
function parse(): { id: string; other: string } {
  const [, id = "", other = ""] = /^#jobs\/([0-9a-f]+)(?:\/compare\/([0-9a-f]+))?$/.exec(location.hash) ?? [];
  return { id, other };
}

function route(before: number): void {
  const { id } = parse();
  if (id && id === shown?.id) return void compare();
  notice.hide();
  comparison.end();
  if (id) return void open(id, before).then(() => gallery.refresh());
  shown?.stop.abort();
  shown = null;
  stage.close();
  render();
  notice.show(started ? "Choose a seed and press Generate." : "There is no picture while the server does not answer.");
  void gallery.refresh();
}

function compare(): void {
  if (shown) void comparison.show(shown, parse().other);
}

/** Shows the newest picture, or that there is none. */
async function openNewest(): Promise<void> {
  try {
    const { jobs: newest } = await fetchPage(1);
    location.hash = newest[0]?.name ?? "";
  } catch (error) {
    await failed(error);
  }
}

/** Shows the picture before or after the one that is shown, in the order of creation. */
async function step(older: boolean): Promise<void> {
  if (!shown) return;
  try {
    const orderBy = older ? "create_time desc" : "create_time";
    const { jobs: next } = await jobs.listJobs({ pageSize: 1, pageToken: shown.id, orderBy });
    if (next[0]) location.hash = next[0].name;
  } catch (error) {
    await failed(error);
  }
}

// ---- Wiring

function toggleList(): void {
  showPanel(openPanel() === "jobs" ? null : "jobs");
  if (openPanel() === "jobs") element("search").focus();
}

function toggleFull(): void {
  if (document.fullscreenElement) void document.exitFullscreen();
  else void element("view").requestFullscreen().catch(() => showAlert("The browser has no full screen here.", true));
}

async function stop(): Promise<void> {
  if (!shown) return;
  cancel.disabled = true;
  try {
    await jobs.cancelJob({ name: shown.job.name });
  } catch (error) {
    report(error);
  } finally {
    cancel.disabled = false;
  }
}

element("edit").addEventListener("click", () => editor.open(shown, false));
element("edit-this").addEventListener("click", () => editor.open(shown, true));
element("in").addEventListener("click", () => stage.zoom(1.5));
element("out").addEventListener("click", () => stage.zoom(1 / 1.5));
element("fit").addEventListener("click", () => stage.fit());
actual.addEventListener("click", () => stage.actual());
full.addEventListener("click", toggleFull);
document.addEventListener("fullscreenchange", () => full.setAttribute("aria-pressed", String(document.fullscreenElement !== null)));
element("compare").addEventListener("click", () => shown && void comparison.toggle(shown));
link.addEventListener("click", () => void copy(location.href, link));
cancel.addEventListener("click", () => void stop());
for (const kind of ["tiff", "png"] as const) {
  element(kind).addEventListener("click", (event) => {
    // Links do not send the token.
    if (!token() || !shown) return;
    event.preventDefault();
    void download(shown.id, shown.job.spec?.seed ?? 0n, kind);
  });
}
onPanel(() => render());

// A picture dropped on the page is selected in the dialog.
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const { dataTransfer } = event as DragEvent;
    if (!dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", kind === "dragover");
    if (kind === "drop" && dataTransfer.files.length) editor.drop(dataTransfer.files, shown);
  });
}

listen(
  [
    { keys: ["ArrowLeft"], shown: "← → ↑ ↓", text: "move the picture", act: () => stage.pan(-1, 0) },
    { keys: ["ArrowRight"], text: "", act: () => stage.pan(1, 0) },
    { keys: ["ArrowUp"], text: "", act: () => stage.pan(0, -1) },
    { keys: ["ArrowDown"], text: "", act: () => stage.pan(0, 1) },
    { keys: ["+", "="], text: "zoom in", act: () => stage.zoom(1.5) },
    { keys: ["-"], text: "zoom out", act: () => stage.zoom(1 / 1.5) },
    { keys: ["0"], text: "all of the picture", act: () => stage.fit() },
    { keys: ["1"], text: "100 %", act: () => stage.actual() },
    { keys: ["PageUp"], shown: "Page ↑", text: "newer picture", act: () => void step(false) },
    { keys: ["PageDown"], shown: "Page ↓", text: "older picture", act: () => void step(true) },
    { keys: ["f"], text: "full screen", act: toggleFull },
    { keys: ["g"], text: "list of pictures", act: toggleList },
    { keys: ["i"], text: "details", act: () => shown && showPanel(openPanel() === "details" ? null : "details") },
    { keys: ["c"], text: "compare", act: () => shown?.state === JobState.FINISHED && void comparison.toggle(shown) },
    { keys: ["e"], text: "edit", act: () => editor.open(shown, true) },
    { keys: ["l"], text: "copy the link", act: () => shown && void copy(location.href, link) },
    { keys: ["r"], text: "random seed", act: () => (form.roll(), form.askQuote()) },
    { keys: ["t"], text: "light or dark", act: switchTheme },
  ],
  () => {
    if (form.close()) return;
    if (openPanel()) showPanel(null, true);
    else if (comparison.with && shown) void comparison.toggle(shown);
  },
);

window.addEventListener("hashchange", () => route(form.edits));

async function start(): Promise<void> {
  try {
    const { models: found } = await models.listModels({});
    form.offerModels(found);
    if (!found.length) showAlert("The server has no model.");
    if (!location.hash) {
      const { jobs: newest } = await fetchPage(1);
      // A picture may have been ordered meanwhile.
      if (newest[0] && !location.hash) history.replaceState(null, "", `#${newest[0].name}`);
    }
    started = true;
  } catch (error) {
    await failed(error);
  }
  form.askQuote();
  // Input during this request is kept.
  route(0);
}

watchConnection(
  () => models.listModels({}),
  () => {
    if (!started) void start();
    else if (!shown) route(form.edits);
    void gallery.refresh();
  },
);
void start();

// For tests: true if everything shown is final.
Object.assign(window, { tessera: { sharp: () => stage.sharp(), view: () => stage.view() } });
