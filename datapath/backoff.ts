/**
 * Delays between retries.
 *
 * @module
 */

import { requireFunction, requireNumber, requireObject, requirePositive } from "../native/arguments.ts";
import { MAX_DELAY_MS } from "./clock.ts";

/** What {@linkcode Backoff} is made of. */
export interface BackoffOptions {
  /** The first delay, in milliseconds. Above 0. */
  readonly baseMs: number;
  /** No delay is longer, in milliseconds. At least `baseMs`, and no more than a timer takes. */
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
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When one is out of its range.
   */
  constructor(options: BackoffOptions) {
    const operation = "back off";
    requireObject(options, { operation, name: "options" });
    const { baseMs, maxMs, factor = 2, jitter = 0.25, random = Math.random } = options;
    requirePositive(baseMs, { operation, name: "baseMs", max: MAX_DELAY_MS });
    requireNumber(maxMs, { operation, name: "maxMs", min: baseMs, max: MAX_DELAY_MS });
    requireNumber(factor, { operation, name: "factor", min: 1, max: Number.MAX_VALUE });
    requireNumber(jitter, { operation, name: "jitter", min: 0, max: 1 });
    requireFunction(random, { operation, name: "random" });
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
