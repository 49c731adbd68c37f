// State of the connection to the server. After a failed call a notice is shown and the server is polled; the next call that
// succeeds removes the notice.
import { showAlert } from "./dom";

/** Longest interval between two polls, in milliseconds. */
const LONGEST = 8000;

let away: (() => void) | null = null;
let timer = 0;
let probe: () => Promise<unknown> = () => Promise.resolve();
let returned: () => void = () => {};

/** Sets the call that polls the server, and a callback for when it answers again. */
export function watchConnection(ask: () => Promise<unknown>, onReturn: () => void): void {
  probe = ask;
  returned = onReturn;
}

/** Records a call without an answer. */
export function missed(): void {
  if (away) return;
  away = showAlert("The server does not answer. Trying again.", true);
  askAgain(500);
}

/** Records a call with an answer. */
export function reached(): void {
  if (!away) return;
  clearTimeout(timer);
  away();
  away = null;
  returned();
}

function askAgain(wait: number): void {
  timer = window.setTimeout(async () => {
    await probe().catch(() => {});
    if (away) askAgain(Math.min(wait * 2, LONGEST));
  }, wait);
}
