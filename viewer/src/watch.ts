// Follows a job's events, and goes on where it was when the connection breaks.
import { passes, jobs, words } from "./api";
import { pause, say } from "./dom";
import { type JobEvent } from "./gen/tessera/v1/job_service_pb";

/** Calls `take` with every event of the job after `sequence`, in order, once each; ends after the last one. */
export async function watch(name: string, signal: AbortSignal, take: (event: JobEvent) => void): Promise<void> {
  let afterSequence = 0n;
  let failures = 0;
  let away = () => {};
  while (!signal.aborted) {
    try {
      const options = { withoutTileData: true, withoutPreviews: true };
      for await (const { event } of jobs.watchJob({ name, afterSequence, options }, { signal })) {
        if (signal.aborted) return;
        if (!event) continue;
        away();
        failures = 0;
        afterSequence = event.sequence;
        take(event);
        if (["finished", "failed", "cancelled"].includes(event.event.case ?? "")) return;
      }
      // A stream that ends early is one that broke: the server is stopping.
    } catch (error) {
      if (signal.aborted) return;
      if (!passes(error)) throw error;
      away();
      if (failures > 0) away = say(`${words(error)} Trying again.`, true);
    }
    failures += 1;
    await pause(Math.min(500 * 2 ** failures, 8000));
  }
  away();
}
