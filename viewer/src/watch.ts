// Watches a job's events and resumes after a broken connection.
import { isAway, isTransient, jobs } from "./api";
import { missed } from "./connection";
import { pause } from "./dom";
import { type JobEvent } from "./gen/tessera/v1/job_service_pb";

/** Calls `take` once for each event of the job after `sequence`, in order; resolves after the last event. */
export async function watch(name: string, signal: AbortSignal, take: (event: JobEvent) => void): Promise<void> {
  let afterSequence = 0n;
  let failures = 0;
  while (!signal.aborted) {
    try {
      const options = { withoutTileData: true, withoutPreviews: true, estimates: true };
      for await (const { event } of jobs.watchJob({ name, afterSequence, options }, { signal })) {
        if (signal.aborted) return;
        if (!event) continue;
        failures = 0;
        afterSequence = event.sequence;
        take(event);
        if (["finished", "failed", "cancelled"].includes(event.event.case ?? "")) return;
      }
      // The stream ended early because the server is stopping.
    } catch (error) {
      if (signal.aborted) return;
      if (!isTransient(error)) throw error;
      // The first failure may be that of a stream that was cut, which is resumed.
      if (failures > 0 && isAway(error)) missed();
    }
    failures += 1;
    await pause(Math.min(500 * 2 ** failures, 8000));
  }
}
