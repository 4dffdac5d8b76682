/**
 * Delays between retries.
 *
 * @module
 */

/** What {@linkcode Backoff} is made of. */
export interface BackoffOptions {
  /** The first delay, in milliseconds. Above 0. */
  readonly baseMs: number;
  /** No delay is longer, in milliseconds. At least `baseMs`. */
  readonly maxMs: number;
  /** How much longer each delay is than the one before. At least 1. @default 2 */
  readonly factor?: number | undefined;
  /**
   * Which part of a delay is left to chance: with 0.25 it lasts from 75 % to 100 % of the computed time, so that many
   * nodes that lost the same peer do not come back in step. From 0 to 1. @default 0.25
   */
  readonly jitter?: number | undefined;
  /** Numbers from 0 (included) to 1 (excluded). @default Math.random */
  readonly random?: (() => number) | undefined;
}

/**
 * Exponentially growing delays with jitter.
 *
 * @example Delays double up to the limit
 * ```ts
 * import { Backoff } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * const backoff = new Backoff({ baseMs: 100, maxMs: 500, jitter: 0 });
 * deepStrictEqual([1, 2, 3, 4].map(() => backoff.next()), [100, 200, 400, 500]);
 * backoff.reset();
 * deepStrictEqual(backoff.next(), 100);
 * ```
 */
export class Backoff {
  readonly #baseMs: number;
  readonly #maxMs: number;
  readonly #factor: number;
  readonly #jitter: number;
  readonly #random: () => number;
  #attempts = 0;

  /**
   * Begins with the first delay.
   *
   * @param options Delays, growth and jitter.
   * @throws {RangeError} When an option is out of its range.
   */
  constructor(options: BackoffOptions) {
    const { baseMs, maxMs, factor = 2, jitter = 0.25, random = Math.random } = options;
    if (!(baseMs > 0)) {
      throw new RangeError(`Cannot back off as "baseMs" must be above 0: current value is ${baseMs}`);
    }
    if (!(maxMs >= baseMs && Number.isFinite(maxMs))) {
      throw new RangeError(
        `Cannot back off as "maxMs" must be finite and at least "baseMs", ${baseMs}: current value is ${maxMs}`,
      );
    }
    if (!(factor >= 1)) {
      throw new RangeError(`Cannot back off as "factor" must be at least 1: current value is ${factor}`);
    }
    if (!(jitter >= 0 && jitter <= 1)) {
      throw new RangeError(`Cannot back off as "jitter" must be 0 to 1: current value is ${jitter}`);
    }
    this.#baseMs = baseMs;
    this.#maxMs = maxMs;
    this.#factor = factor;
    this.#jitter = jitter;
    this.#random = random;
  }

  /** How many delays were given since the start or the last {@linkcode Backoff.reset}. */
  get attempts(): number {
    return this.#attempts;
  }

  /** The next delay, in milliseconds. */
  next(): number {
    const full = Math.min(this.#maxMs, this.#baseMs * this.#factor ** this.#attempts);
    this.#attempts += 1;
    return full * (1 - this.#jitter * this.#random());
  }

  /** Starts again with the first delay. */
  reset(): void {
    this.#attempts = 0;
  }
}
