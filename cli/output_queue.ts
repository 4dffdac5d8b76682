/** Text on its way to a reader that may be slow, stuck or gone. */

import { type Clock, systemClock } from "../datapath/clock.ts";

/** What an {@linkcode OutputQueue} is made of. */
export interface OutputQueueOptions {
  /** Takes some of the bytes, at least one, and says how many. */
  readonly write: (bytes: Uint8Array) => Promise<number>;
  /** Text that waits beyond this is dropped, in UTF-16 units. @default 1048576 */
  readonly maxLength?: number | undefined;
  /** Says that so many pieces were dropped; its text goes where they should have gone. */
  readonly describeLoss: (pieces: number) => string;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/** How long to wait before a reader that is not ready is tried again, in milliseconds. */
const NOT_READY_MS = 50;

const encoder = new TextEncoder();

/**
 * Passes text on in order, piece by piece, and never makes its caller wait: while the reader is stuck the text waits up to a
 * limit, and what is beyond it, or what cannot be written (a full disk, a pipe without a reader), is dropped and counted.
 */
export class OutputQueue {
  readonly #write: (bytes: Uint8Array) => Promise<number>;
  readonly #maxLength: number;
  readonly #describeLoss: (pieces: number) => string;
  readonly #clock: Clock;
  #waiting: string[] = [];
  #length = 0;
  #dropped = 0;
  /** The last line was written in part. */
  #torn = false;
  #draining: Promise<void> | undefined;

  /** Makes an empty queue. */
  constructor(options: OutputQueueOptions) {
    const { write, maxLength = 1 << 20, describeLoss, clock = systemClock } = options;
    this.#write = write;
    this.#maxLength = maxLength;
    this.#describeLoss = describeLoss;
    this.#clock = clock;
  }

  /** Takes a piece of text: one or more whole lines. */
  push(text: string): void {
    if (this.#length + text.length > this.#maxLength) {
      this.#dropped += 1;
      return;
    }
    this.#waiting.push(text);
    this.#length += text.length;
    this.#draining ??= this.#drain();
  }

  /** Resolves when everything was written or dropped, or when `timeoutMs` is over. */
  async flush(timeoutMs: number): Promise<void> {
    if (this.#draining === undefined) return;
    let cancel = () => {};
    const timeout = new Promise<void>((resolve) => {
      cancel = this.#clock.schedule(timeoutMs, resolve);
    });
    await Promise.race([this.#draining, timeout]);
    cancel();
  }

  async #drain(): Promise<void> {
    // What is pushed in the same turn goes out with it.
    await Promise.resolve();
    while (this.#waiting.length > 0) {
      const pieces = this.#waiting;
      const text = pieces.join("");
      this.#waiting = [];
      const written = await this.#writeAll(text);
      this.#length -= text.length;
      if (written) await this.#tellLoss();
      else this.#dropped += pieces.length;
    }
    this.#draining = undefined;
  }

  async #tellLoss(): Promise<void> {
    if (this.#dropped === 0) return;
    const dropped = this.#dropped;
    this.#dropped = 0;
    if (!await this.#writeAll(this.#describeLoss(dropped))) this.#dropped += dropped;
  }

  /** Writes a text that ends a line; false when that, or the rest of it, is not possible. */
  async #writeAll(text: string): Promise<boolean> {
    // What a failed write left of a line must not run into the next one.
    const bytes = encoder.encode(this.#torn ? `\n${text}` : text);
    let written = 0;
    while (written < bytes.length) {
      try {
        const taken = await this.#write(bytes.subarray(written));
        if (taken === 0) throw new Error("Cannot write as nothing is taken");
        written += taken;
        this.#torn = written < bytes.length;
      } catch (error) {
        // A pipe that somebody made nonblocking.
        if (!(error instanceof Error) || error.name !== "WouldBlock") return false;
        await new Promise<void>((resolve) => void this.#clock.schedule(NOT_READY_MS, resolve));
      }
    }
    return true;
  }
}
