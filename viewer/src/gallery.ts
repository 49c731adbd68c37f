// List of the server's pictures.
import { base, errorMessage, headers, idOf, jobs, token } from "./api";
import { element, createElement, showAlert } from "./dom";
import { type Job, JobState } from "./gen/tessera/v1/job_service_pb";

/** Number of newest pictures that are listed. */
const MOST = 100;

export const STATES: Record<JobState, string> = {
  [JobState.UNSPECIFIED]: "",
  [JobState.QUEUED]: "waiting",
  [JobState.DENOISING]: "denoising",
  [JobState.DECODING]: "decoding",
  [JobState.FINISHED]: "finished",
  [JobState.FAILED]: "failed",
  [JobState.CANCELLED]: "cancelled",
};

/** All jobs, newest first. */
export async function newest(): Promise<Job[]> {
  const all: Job[] = [];
  let pageToken = "";
  do {
    const page = await jobs.listJobs({ pageSize: 1000, pageToken });
    all.push(...page.jobs);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return all.slice(-MOST).reverse();
}

export class Gallery {
  private readonly panel = element("jobs");
  private readonly button = element<HTMLButtonElement>("list");
  private readonly list = element("pictures");
  private timer = 0;
  private rows = new Map<string, { key: string; row: HTMLLIElement }>();

  constructor(private readonly current: () => string | null) {
    this.button.addEventListener("click", () => this.toggle(!this.open));
  }

  toggle(open: boolean): void {
    this.panel.hidden = !open;
    this.button.setAttribute("aria-expanded", String(open));
    clearInterval(this.timer);
    if (open) {
      void this.fill();
      this.timer = window.setInterval(() => void this.fill(), 3000);
    }
  }

  get open(): boolean {
    return this.panel.hidden === false;
  }

  private async fill(): Promise<void> {
    let found: Job[];
    try {
      found = await newest();
    } catch (error) {
      showAlert(errorMessage(error));
      this.toggle(false);
      return;
    }
    if (!found.length) {
      this.list.replaceChildren(createElement("li", "None yet.", "none"));
      this.rows.clear();
      return;
    }
    const rows = new Map<string, { key: string; row: HTMLLIElement }>();
    for (const job of found) {
      const current = idOf(job.name) === this.current();
      const key = [job.state, job.stepsDone, job.tilesDone, current].join();
      const known = this.rows.get(job.name);
      rows.set(job.name, known?.key === key ? known : { key, row: this.row(job, current) });
    }
    this.rows = rows;
    const children = [...rows.values()].map(({ row }) => row);
    // The row with the focus stays in place.
    if (children.some((row, i) => row !== this.list.children[i]) || children.length !== this.list.children.length) {
      this.list.replaceChildren(...children);
    }
  }

  private row(job: Job, current: boolean): HTMLLIElement {
    const id = idOf(job.name);
    const { seed = 0n, width = 1, height = 1, steps = 1 } = job.spec ?? {};
    const link = createElement("a");
    link.href = `#jobs/${id}`;
    if (current) link.setAttribute("aria-current", "true");
    const thumb = createElement("img", "", "thumb");
    thumb.alt = "";
    thumb.loading = "lazy";
    const last = Math.ceil(Math.log2(Math.max(width, height)));
    const source = `${base}/jobs/${id}/image_files/${Math.min(8, last)}/0_0.png`;
    if (token()) void picture(source).then((url) => (thumb.src = url));
    else thumb.src = source;
    const text = createElement("span");
    const tiles = job.tileColumns * job.tileRows;
    const progress: Partial<Record<JobState, string>> = {
      [JobState.DENOISING]: ` ${job.stepsDone} / ${steps}`,
      [JobState.DECODING]: ` ${job.tilesDone} / ${tiles}`,
    };
    text.append(createElement("b", `Seed ${seed}`), createElement("small", `${width} × ${height} · ${STATES[job.state]}${progress[job.state] ?? ""}`));
    link.append(thumb, text);
    const remove = createElement("button", "Delete");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete the picture of seed ${seed}`);
    remove.addEventListener("click", () => void this.remove(job, remove));
    remove.addEventListener("blur", () => calm(remove));
    const row = createElement("li");
    row.append(link, remove);
    return row;
  }

  /** Deletes a picture at the second press; the first asks for confirmation. */
  private async remove(job: Job, button: HTMLButtonElement): Promise<void> {
    if (!button.classList.contains("sure")) {
      button.classList.add("sure");
      button.textContent = "Delete?";
      return;
    }
    try {
      await jobs.deleteJob({ name: job.name });
      if (idOf(job.name) === this.current()) location.hash = "";
    } catch (error) {
      showAlert(errorMessage(error));
    }
    await this.fill();
  }
}

function calm(button: HTMLButtonElement): void {
  button.classList.remove("sure");
  button.textContent = "Delete";
}

/** A thumbnail as an object URL, which needs no token. */
async function picture(source: string): Promise<string> {
  const answer = await fetch(source, { headers: headers() });
  return answer.ok ? URL.createObjectURL(await answer.blob()) : "";
}
