// The line under the picture: state, time, levels, settings, and what can be done with the picture.
import { fileUrl } from "./api";
import { element } from "./dom";
import { about, capital, clock, labelText, SAMPLERS, STATES } from "./format";
import { JobState } from "./gen/tessera/v1/job_service_pb";
import { type Shown } from "./shown";

const foot = element("foot");
const status = element("status");
const time = element("time");
const place = element("levels");

function stateText({ state, stepsDone, tiles, total, job }: Shown): string {
  switch (state) {
    case JobState.QUEUED:
      return job.paused ? `Paused: ${job.paused}` : "Waiting for its turn";
    case JobState.DENOISING:
      return `Denoising, step ${stepsDone} of ${job.spec?.steps ?? 1}`;
    case JobState.DECODING:
      return `Sharpening, tile ${tiles.size} of ${total}`;
    default:
      return capital(STATES[state]);
  }
}

function timeText({ state, ended, progress: { elapsed, left } }: Shown): string {
  if (state === JobState.FINISHED) return `in ${clock(elapsed)}`;
  if (ended) return `after ${clock(elapsed)}`;
  const past = elapsed < 1 ? "" : clock(Math.floor(elapsed) || 1).replace(".0", "");
  if (state === JobState.QUEUED || left === null) return past;
  const rest = left < 1 ? "almost done" : `${about(left)} left`;
  return past ? `${past} · ${rest}` : rest;
}

/** Settings of the picture, or the error of a failed one. */
function aboutText({ job, state, error }: Shown): string {
  if (state === JobState.FAILED) return `${capital(error)}.`;
  const { seed = 0n, width = 0, height = 0, steps = 1, sampler = 0, bits = 8, strength, labels = {} } = job.spec ?? {};
  const parts = [
    `Seed ${seed}`,
    `${width} × ${height}`,
    `${steps} steps`,
    SAMPLERS[sampler],
    bits > 8 ? `${bits} bits` : "",
    strength === undefined ? "" : `edited, strength ${strength.toFixed(2)}`,
  ];
  return parts.filter(Boolean).join(" · ") + labelText(labels);
}

/** Shows the times, which pass between events. */
export function renderTime(shown: Shown): void {
  const text = timeText(shown);
  if (time.textContent !== text) time.textContent = text;
}

/** Shows a job of a model with `levels` levels; null: none. */
export function renderFooter(shown: Shown | null, levels: number): void {
  foot.hidden = !shown;
  document.body.classList.toggle("empty", !shown);
  if (!shown) {
    document.title = "Tessera";
    delete document.body.dataset.state;
    return;
  }
  const { state, stepsDone, tiles, total, job } = shown;
  const text = stateText(shown);
  status.textContent = text;
  renderTime(shown);
  element("about").textContent = aboutText(shown);
  element("about").title = aboutText(shown);
  document.body.dataset.state = STATES[state];
  const finished = state === JobState.FINISHED;
  document.title = `${finished ? "" : `${text} · `}Seed ${job.spec?.seed ?? 0n} · Tessera`;
  element("line-steps").style.setProperty("--part", String(finished ? 1 : stepsDone / (job.spec?.steps || 1)));
  element("line-tiles").style.setProperty("--part", String(tiles.size / total));
  element("cancel").hidden = shown.ended;
  for (const id of ["edit-this", "compare", "tiff", "png"]) element(id).hidden = !finished;
  for (const kind of ["tiff", "png"] as const) {
    const link = element<HTMLAnchorElement>(kind);
    link.href = fileUrl(shown.id, `image.${kind}`);
    link.title = `Download ${kind.toUpperCase()}`;
    link.setAttribute("aria-label", `Download ${kind.toUpperCase()}`);
  }
  renderLevels(shown, levels);
}

/** Shows the pyramid: a bar for each level, coarse to fine. */
function renderLevels({ settled, state }: Shown, count: number): void {
  if (place.children.length !== count) {
    place.replaceChildren();
    for (let i = 0; i < count; i++) {
      const bar = document.createElement("i");
      bar.style.width = "5px";
      bar.style.height = `${5 + (15 * i) / Math.max(count - 1, 1)}px`;
      place.append(bar);
    }
  }
  const next = state === JobState.DENOISING ? Math.max(...[...Array(count).keys()].filter((l) => !settled.has(l))) : -1;
  [...place.children].forEach((bar, i) => {
    const level = count - 1 - i;
    bar.classList.toggle("settled", settled.has(level));
    bar.classList.toggle("next", level === next);
  });
  const label = `${settled.size} of ${count} levels have settled`;
  place.setAttribute("aria-label", label);
  place.title = label;
}
