/**
 * Time as an input: the system's clock, and one that tests move by hand.
 *
 * @module
 */

import { requireNumber } from "../native/arguments.ts";

/** The longest delay that a timer takes, about 24.8 days, in milliseconds. */
export const MAX_DELAY_MS: number = 2 ** 31 - 1;

/** A source of monotonic time and of timers. Everything here that waits takes one, so that no test has to. */
export interface Clock {
  /** Milliseconds since an arbitrary origin. Never goes back. */
  now(): number;
  /**
   * Calls `callback` once, after `delayMs` milliseconds, unless the returned function is called before. That function
   * may be called any number of times, also afterwards.
   *
   * @throws {RangeError} When `delayMs` is not between 0 and {@linkcode MAX_DELAY_MS}.
   */
  schedule(delayMs: number, callback: () => void): () => void;
}

function checkDelay(delayMs: number): void {
  requireNumber(delayMs, { operation: "wait", name: "delayMs", min: 0, max: MAX_DELAY_MS });
}

/** The clock of the process: `performance.now()` and `setTimeout`. */
export const systemClock: Clock = {
  now: () => performance.now(),
  schedule(delayMs, callback) {
    checkDelay(delayMs);
    const id = setTimeout(callback, delayMs);
    return () => clearTimeout(id);
  },
};

/** Options of {@linkcode delay}. */
export interface DelayOptions {
  /** Ends the wait early; the promise then rejects with the signal's reason. @default none */
  readonly signal?: AbortSignal | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/**
 * Waits.
 *
 * @param ms How long, in milliseconds.
 * @param options Signal and clock.
 * @returns A promise that resolves when the time is over, or rejects with the signal's reason.
 *
 * @example Wait on a clock that is moved by hand
 * ```ts
 * import { delay, ManualClock } from "@icx/icx";
 *
 * const clock = new ManualClock();
 * const waiting = delay(60_000, { clock });
 * await clock.advance(60_000);
 * await waiting;
 * ```
 */
export function delay(ms: number, options: DelayOptions = {}): Promise<void> {
  const { signal, clock = systemClock } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    let cancel = () => {};
    const onAbort = () => {
      cancel();
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", onAbort, { once: true });
    cancel = clock.schedule(ms, () => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    });
    // The runtime lets promise reactions run while it loads its timers for the first time.
    if (signal?.aborted) onAbort();
  });
}

interface Timer {
  readonly at: number;
  readonly order: number;
  readonly callback: () => void;
}

/** A {@linkcode Clock} that stands still until it is told to move: for tests. */
export class ManualClock implements Clock {
  #now = 0;
  #order = 0;
  readonly #timers = new Set<Timer>();

  now(): number {
    return this.#now;
  }

  schedule(delayMs: number, callback: () => void): () => void {
    checkDelay(delayMs);
    const timer = { at: this.#now + delayMs, order: this.#order++, callback };
    this.#timers.add(timer);
    return () => this.#timers.delete(timer);
  }

  /** How many timers are waiting. */
  get pending(): number {
    return this.#timers.size;
  }

  /**
   * Moves the time forward. Timers run in the order in which they are due, those set on the way included; what waits on
   * promises gets its turn after each of them.
   *
   * @param ms How far, in milliseconds.
   */
  async advance(ms: number): Promise<void> {
    checkDelay(ms);
    const end = this.#now + ms;
    await settle();
    for (let timer = this.#next(end); timer !== undefined; timer = this.#next(end)) {
      this.#timers.delete(timer);
      this.#now = timer.at;
      timer.callback();
      await settle();
    }
    this.#now = end;
  }

  #next(end: number): Timer | undefined {
    let next: Timer | undefined;
    for (const timer of this.#timers) {
      if (timer.at > end) continue;
      if (next === undefined || timer.at < next.at || (timer.at === next.at && timer.order < next.order)) next = timer;
    }
    return next;
  }
}

/** Lets every promise reaction that is ready, and those that follow from them, run. */
function settle(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
