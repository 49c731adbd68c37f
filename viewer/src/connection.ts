// Whether the server answers. While it does not, a notice says so and the server is asked again; the notice goes when any call
// succeeds.
import { showAlert } from "./dom";

/** Longest time between two questions, in milliseconds. */
const LONGEST = 8000;

let away: (() => void) | null = null;
let timer = 0;
let probe: () => Promise<unknown> = () => Promise.resolve();
let returned: () => void = () => {};

/** Sets the call that asks whether the server answers, and what is done when it answers again. */
export function watchConnection(ask: () => Promise<unknown>, onReturn: () => void): void {
  probe = ask;
  returned = onReturn;
}

/** Records that the server did not answer. */
export function missed(): void {
  if (away) return;
  away = showAlert("The server does not answer. Trying again.", true);
  askAgain(500);
}

/** Records that the server answered. */
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
