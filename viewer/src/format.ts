// Numbers and specs as text.
import { type JobSpec, JobState, type Job, Sampler } from "./gen/tessera/v1/job_service_pb";
import { type Timestamp } from "@bufbuild/protobuf/wkt";

export const STATES: Record<JobState, string> = {
  [JobState.UNSPECIFIED]: "",
  [JobState.QUEUED]: "waiting",
  [JobState.DENOISING]: "denoising",
  [JobState.DECODING]: "decoding",
  [JobState.FINISHED]: "finished",
  [JobState.FAILED]: "failed",
  [JobState.CANCELLED]: "cancelled",
};

/** True if a job in this state does not change any more. */
export function isEnded(state: JobState): boolean {
  return [JobState.FINISHED, JobState.FAILED, JobState.CANCELLED].includes(state);
}

/** Names of samplers for people. */
export const SAMPLERS: Record<Sampler, string> = {
  [Sampler.UNSPECIFIED]: "",
  [Sampler.DPMPP]: "DPM++ 2M",
  [Sampler.HEUN]: "Heun",
  [Sampler.DDIM]: "DDIM",
};

/** Names of samplers in queries and on the command line. */
export const SAMPLER_NAMES: Record<Sampler, string> = {
  [Sampler.UNSPECIFIED]: "dpmpp",
  [Sampler.DPMPP]: "dpmpp",
  [Sampler.HEUN]: "heun",
  [Sampler.DDIM]: "ddim",
};

/** A name of a model for people: `late_dusk` as `late dusk`. */
export function readable(name: string): string {
  return name.replace(/[_-]+/g, " ");
}

/** A word with a capital letter. */
export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A label's value for people. */
export function described(name: string, value: string): string {
  return value === "none" ? `no ${readable(name)}` : readable(value);
}

/** A picture's labels as text that follows its other settings. */
export function labelText(labels: Record<string, string>): string {
  return Object.entries(labels)
    .map(([name, value]) => ` · ${value === "none" ? "" : `${readable(name)} `}${described(name, value)}`)
    .join("");
}

/** A picture in a few words. */
export function title(job: Job): string {
  return `Seed ${job.spec?.seed ?? 0n}${isEdit(job.spec) ? ", edited" : ""}`;
}

/** True for the spec of an edited picture. */
export function isEdit(spec: JobSpec | undefined): boolean {
  return spec?.strength !== undefined;
}

/** Bytes with a unit. */
export function bytes(value: number): string {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const unit = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), units.length - 1);
  const scaled = value / 1000 ** unit;
  return `${scaled.toFixed(scaled < 10 && unit > 0 ? 1 : 0)} ${units[unit]}`;
}

/** A number of floating-point operations. */
export function operations(value: number): string {
  const power = Math.max(Math.floor(Math.log10(Math.max(value, 1)) / 3) * 3, 0);
  const digits = [...String(power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");
  return `${(value / 10 ** power).toPrecision(3)} × 10${digits}`;
}

/** An estimate of seconds. */
export function about(seconds: number): string {
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `about ${Math.round(seconds)} s`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min`;
  return `about ${(seconds / 3600).toFixed(1)} h`;
}

/** A measured time in seconds: `0.8 s`, `42 s`, `3:07 min`, `1:02:00 h`. */
export function clock(seconds: number): string {
  if (seconds < 9.95) return `${Math.max(seconds, 0).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const two = (value: number) => String(value).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}:${two(whole % 60)} min`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(whole % 60)} h`;
}

/** A time of the server, or a duration, in seconds. */
export function seconds(time: Pick<Timestamp, "seconds" | "nanos"> | undefined): number {
  return time ? Number(time.seconds) + time.nanos / 1e9 : 0;
}

/** A time of the server for people. */
export function moment(time: Timestamp | undefined): string {
  return time ? new Date(seconds(time) * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" }) : "";
}
