// The job that is shown, followed by its events.
import { isEnded } from "./format";
import { type Job, type JobEvent, JobState } from "./gen/tessera/v1/job_service_pb";
import { Progress } from "./progress";

export class Shown {
  readonly id: string;
  state: JobState;
  stepsDone: number;
  error: string;
  /** Name of the device that computes it. */
  device = "";
  /** Provenance of the finished picture, JSON. */
  receipt = "";
  /** Indices of the decoded tiles. */
  readonly tiles = new Set<number>();
  /** Levels that have settled. */
  readonly settled = new Set<number>();
  readonly stop = new AbortController();
  readonly progress: Progress;

  constructor(
    readonly job: Job,
    offset: number,
  ) {
    this.id = job.name.replace(/^jobs\//, "");
    this.state = job.state;
    this.stepsDone = job.stepsDone;
    this.error = job.error;
    this.progress = new Progress(job, offset);
  }

  get ended(): boolean {
    return isEnded(this.state);
  }

  get total(): number {
    return Math.max(this.job.tileColumns * this.job.tileRows, 1);
  }

  /** Applies an event. */
  take(message: JobEvent): void {
    const { event } = message;
    switch (event.case) {
      case "started":
        if (this.state === JobState.QUEUED) this.state = JobState.DENOISING;
        this.device = event.value.device;
        break;
      case "step":
        this.stepsDone = event.value.step;
        if (!this.ended) this.state = event.value.step === event.value.of ? JobState.DECODING : JobState.DENOISING;
        break;
      case "levelSettled":
        this.settled.add(event.value.level);
        break;
      case "tile":
        this.tiles.add(event.value.row * this.job.tileColumns + event.value.column);
        break;
      case "finished":
        this.state = JobState.FINISHED;
        this.receipt = event.value.receipt;
        break;
      case "failed":
        this.state = JobState.FAILED;
        this.error = event.value.message;
        break;
      case "cancelled":
        this.state = JobState.CANCELLED;
        break;
    }
    this.progress.take(message, this.stepsDone, this.job.spec?.steps ?? 1, this.tiles.size, this.total);
  }
}
