// Time of a job: how long it has run, and how long it will take, from its own speed and the cost of its parts.
import { jobs } from "./api";
import { seconds } from "./format";
import { type Job, type JobEvent, type JobSpec } from "./gen/tessera/v1/job_service_pb";

/** Part of the work after which the job's own speed counts. */
const ENOUGH = 0.04;

/** Difference of the server's clock to this one's in seconds, from the header `date` of an answer. */
export function clockOffset(date: string | null): number {
  const time = Date.parse(date ?? "");
  const offset = (time - Date.now()) / 1000;
  // The header has whole seconds.
  return Number.isNaN(offset) || Math.abs(offset) < 2.5 ? 0 : offset;
}

/** Part of a job's time that its denoising takes, from quotes of two numbers of steps; null if it can't be told. */
async function denoisingShare(spec: JobSpec): Promise<number | null> {
  const { steps } = spec;
  const others = steps <= 500 ? steps * 2 : Math.floor(steps / 2);
  const time = async (count: number) => {
    const asked = { ...spec, steps: count, groupSteps: {}, strength: undefined };
    const { quote } = await jobs.quoteJob({ spec: asked });
    return seconds(quote?.computeTime);
  };
  try {
    const [here, there] = await Promise.all([time(steps), time(others)]);
    const share = ((there - here) / (others - steps)) * (steps / here);
    return share > 0 && share < 1 ? share : null;
  } catch {
    // The sides of an edited picture may be none of the model's.
    return null;
  }
}

/** Time and progress of one job. Times are those of the server, in seconds since 1970. */
export class Progress {
  #created: number;
  #started = 0;
  #ended: number;
  /** Last start: a server that comes back starts a job again. */
  #resumed = 0;
  #doneAtResumption = 0;
  /** Last progress, and the seconds that were left then. */
  #at = 0;
  #left: number | null = null;
  #share = 0.7;
  #firstStep: number | null = null;
  #done = 0;

  /** `offset`: the server's clock less this one's. */
  constructor(
    private readonly job: Job,
    private readonly offset: number,
  ) {
    this.#created = seconds(job.createTime);
    this.#ended = seconds(job.endTime);
    if (!this.#ended && job.spec) {
      void denoisingShare(job.spec).then((share) => {
        if (share !== null) this.#share = share;
      });
    }
  }

  /** Records an event, with the numbers of steps and tiles after it. */
  take({ time, event }: JobEvent, steps: number, of: number, tiles: number, total: number): void {
    const at = seconds(time);
    switch (event.case) {
      case "started":
        this.#started ||= at;
        this.#resumed = at;
        this.#doneAtResumption = this.#done;
        break;
      case "step":
        this.#firstStep ??= Math.max(steps - 1, 0);
        break;
      case "finished":
      case "failed":
      case "cancelled":
        this.#ended = at;
        return;
    }
    if (!["started", "step", "tile"].includes(event.case ?? "")) return;
    const first = this.#firstStep ?? 0;
    const denoised = of > first ? Math.min((steps - first) / (of - first), 1) : 1;
    this.#done = this.#share * denoised + (1 - this.#share) * (tiles / Math.max(total, 1));
    this.#at = at;
    const since = this.#done - this.#doneAtResumption;
    const quoted = seconds(this.job.quote?.computeTime);
    if (since > ENOUGH) this.#left = ((at - this.#resumed) / since) * (1 - this.#done);
    else this.#left = quoted ? quoted * (1 - this.#done) : null;
  }

  /** Seconds since the job was started; before, since it was ordered. */
  get elapsed(): number {
    return Math.max((this.#ended || this.#now) - (this.#started || this.#created), 0);
  }

  /** Seconds that are left; null: unknown. */
  get left(): number | null {
    if (this.#left === null || this.#ended) return null;
    return Math.max(this.#left - Math.max(this.#now - this.#at, 0), 0);
  }

  get #now(): number {
    return Date.now() / 1000 + this.offset;
  }
}
