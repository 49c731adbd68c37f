// The server's pictures, newest first: fetched by pages, kept up to date by asking for the newest ones.
import { Code, ConnectError } from "@connectrpc/connect";
import { idOf, jobs } from "./api";
import { isEdit, isEnded, labelText, SAMPLERS, STATES } from "./format";
import { type Job } from "./gen/tessera/v1/job_service_pb";

/** Pictures that are asked for again and again. */
const NEWEST = 100;
/** Pictures in the other pages. */
const PAGE = 1000;
/** Running pictures among the older ones that are asked for at a time. */
const RUNNING = 8;

/** Least length of a word that is looked for in ids. */
const ID_LETTERS = 6;

export type Order = "newest" | "oldest" | "seed" | "largest" | "state";

/** A page of jobs, newest first. */
export function fetchPage(pageSize: number, pageToken = "") {
  return jobs.listJobs({ pageSize, pageToken, orderBy: "create_time desc" });
}

/** A picture in the list. */
export interface Entry {
  id: string;
  job: Job;
  /** What the search looks at, in lower case. */
  text: string;
}

function entry(job: Job): Entry {
  const { seed = 0n, width = 0, height = 0, sampler = 0, labels = {}, model = "", bits = 8 } = job.spec ?? {};
  const words = [
    `seed ${seed}`, `${width}x${height}`, `${width} × ${height}`, STATES[job.state], SAMPLERS[sampler], labelText(labels),
    isEdit(job.spec) ? "edited" : "", bits > 8 ? `${bits} bits` : "", model, job.owner,
  ];
  return { id: idOf(job.name), job, text: words.join(" ").toLowerCase() };
}

export class Pictures {
  /** All that are known, newest first. */
  entries: Entry[] = [];
  /** True once all pages have been fetched. */
  complete = false;
  #next = "";
  #begun = false;

  /** Fetches the newest pictures, and whatever has changed. */
  async refresh(): Promise<void> {
    const { jobs: page, nextPageToken } = await fetchPage(NEWEST);
    const newest = page.map(entry);
    const fresh = new Set(newest.map(({ id }) => id));
    // Known jobs that are older than the page's last one are kept; a newer one that is missing from the page was deleted.
    const end = nextPageToken ? this.entries.findLastIndex(({ id }) => fresh.has(id)) + 1 : this.entries.length;
    const older = this.entries.slice(end);
    this.entries = [...newest, ...older];
    if (!this.#begun) {
      this.#begun = true;
      this.#next = nextPageToken;
      this.complete = !nextPageToken;
    }
    const running = older.filter(({ job }) => !isEnded(job.state)).slice(-RUNNING);
    await Promise.all(running.map(({ id }) => this.#update(id)));
  }

  /** Fetches the next older page; nothing if all are known. */
  async fetchMore(): Promise<void> {
    if (this.complete || !this.#begun) return;
    const { jobs: page, nextPageToken } = await fetchPage(PAGE, this.#next);
    const known = new Set(this.entries.map(({ id }) => id));
    this.entries = [...this.entries, ...page.map(entry).filter(({ id }) => !known.has(id))];
    this.#next = nextPageToken;
    this.complete = !nextPageToken;
  }

  /** Forgets everything, so that all pages are fetched again. */
  clear(): void {
    this.entries = [];
    this.complete = false;
    this.#begun = false;
  }

  /** Forgets a picture. */
  remove(id: string): void {
    this.entries = this.entries.filter((known) => known.id !== id);
  }

  /** Those that have all words of `search`, in order. */
  select(search: string, order: Order): Entry[] {
    const words = search.toLowerCase().replace(/(\d)\s*×\s*(\d)/g, "$1x$2").split(/\s+/).filter(Boolean);
    // Short words are in many ids by chance.
    const has = ({ id, text }: Entry) => words.every((word) => text.includes(word) || (word.length >= ID_LETTERS && id.includes(word)));
    const found = this.entries.filter(has);
    const pixels = ({ job: { spec } }: Entry) => (spec?.width ?? 0) * (spec?.height ?? 0);
    const seed = ({ job: { spec } }: Entry) => spec?.seed ?? 0n;
    switch (order) {
      case "newest":
        return found;
      case "oldest":
        return found.reverse();
      case "seed":
        return found.sort((a, b) => (seed(a) < seed(b) ? -1 : seed(a) > seed(b) ? 1 : 0));
      case "largest":
        return found.sort((a, b) => pixels(b) - pixels(a));
      case "state":
        return found.sort((a, b) => a.job.state - b.job.state);
    }
  }

  async #update(id: string): Promise<void> {
    try {
      const { job } = await jobs.getJob({ name: `jobs/${id}` });
      if (job) this.entries = this.entries.map((known) => (known.id === id ? entry(job) : known));
    } catch (error) {
      if (ConnectError.from(error).code !== Code.NotFound) throw error;
      this.remove(id);
    }
  }
}
