// Watches a job's events and resumes after a broken connection.
import { isTransient, jobs, errorMessage } from "./api";
import { pause, showAlert } from "./dom";
import { type JobEvent } from "./gen/tessera/v1/job_service_pb";

/** Calls `take` once for each event of the job after `sequence`, in order; resolves after the last event. */
export async function watch(name: string, signal: AbortSignal, take: (event: JobEvent) => void): Promise<void> {
  let afterSequence = 0n;
  let failures = 0;
  let away = () => {};
  while (!signal.aborted) {
    try {
      const options = { withoutTileData: true, withoutPreviews: true, estimates: true };
      for await (const { event } of jobs.watchJob({ name, afterSequence, options }, { signal })) {
        if (signal.aborted) return;
        if (!event) continue;
        away();
        failures = 0;
        afterSequence = event.sequence;
        take(event);
        if (["finished", "failed", "cancelled"].includes(event.event.case ?? "")) return;
      }
      // The stream ended early because the server is stopping.
    } catch (error) {
      if (signal.aborted) return;
      if (!isTransient(error)) throw error;
      away();
      if (failures > 0) away = showAlert(`${errorMessage(error)} Trying again.`, true);
    }
    failures += 1;
    await pause(Math.min(500 * 2 ** failures, 8000));
  }
  away();
}
