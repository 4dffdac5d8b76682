/**
 * An underlay that behaves as badly as it is told to.
 *
 * @module
 */

import { CAPACITY_RANGE, requireInteger, requireNumber, requireObject } from "../native/arguments.ts";
import { type Clock, systemClock } from "./clock.ts";
import { type Endpoint, MAX_PACKET_BYTES, PacketBatch } from "./packet_batch.ts";
import { Turns } from "./turns.ts";
import type { ScriptUnderlay } from "./underlay.ts";

/** What a {@linkcode ImpairedUnderlay} is made of. All rates are from 0 to 1, of the datagrams sent. */
export interface ImpairedUnderlayOptions {
  /** The underlay that does the work. It belongs to this one. */
  readonly underlay: ScriptUnderlay;
  /** Where chance begins: the same seed and the same datagrams have the same fate. A whole number. */
  readonly seed: number;
  /** How many are lost. @default 0 */
  readonly lossRate?: number | undefined;
  /** How many are sent twice. @default 0 */
  readonly duplicateRate?: number | undefined;
  /** How many get one bit flipped. @default 0 */
  readonly corruptRate?: number | undefined;
  /** How many let 1 to 8 later ones pass; without later ones they go after 50 ms. @default 0 */
  readonly reorderRate?: number | undefined;
  /** How long each is under way, in milliseconds. @default 0 */
  readonly delayMs?: number | undefined;
  /** How much longer at most, in milliseconds; it reorders too. @default 0 */
  readonly jitterMs?: number | undefined;
  /** How many datagrams may be under way; more are lost, as in a queue that is full. @default 1024 */
  readonly capacity?: number | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/** What has become of the datagrams: `sent` + `lost` + `overflowed` + those under way are `taken` + `duplicated`. */
export interface ImpairmentCounters {
  /** Datagrams that it was given to send. */
  readonly taken: number;
  /** Lost by chance. */
  readonly lost: number;
  /** Copies made. */
  readonly duplicated: number;
  /** Sent with a flipped bit. */
  readonly corrupted: number;
  /** Held back until later ones had passed. */
  readonly reordered: number;
  /** Lost as too many were under way. */
  readonly overflowed: number;
  /** Handed on. */
  readonly sent: number;
}

/** How many later datagrams may pass one that is held back. */
const REORDER_SPAN = 8;

/** How long a datagram is held back when none follows, in milliseconds. */
const REORDER_MS = 50;

/** The longest delay and the longest jitter, in milliseconds. */
const MAX_IMPAIRED_MS = 60_000;

/** How long until datagrams are tried again that the underlay refused, in milliseconds. */
const RETRY_MS = 10;

/** Datagrams that are handed on in one call. */
const BATCH_PACKETS = 64;

interface Datagram {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly endpoint: Endpoint;
  /** When it is to be handed on. */
  readonly atMs: number;
}

interface Held {
  readonly datagram: Datagram;
  /** How many later ones still pass it. */
  left: number;
}

/**
 * Stands before another underlay and loses, doubles, damages, reorders and delays what is sent through it. What is
 * received passes untouched: impair both sides of a wire for both directions.
 *
 * A send is done when the datagrams are under way. What the underlay refuses later is tried again, and the next send fails
 * with its reason.
 *
 * @example Every second datagram is lost
 * ```ts
 * import { ImpairedUnderlay, MemoryUnderlay, PacketBatch } from "@icx/icx";
 * import { ok } from "node:assert";
 *
 * const [left, right] = MemoryUnderlay.pair();
 * const underlay = new ImpairedUnderlay({ underlay: left, seed: 1, lossRate: 0.5 });
 * const batch = new PacketBatch();
 * for (let i = 0; i < 64; i++) batch.append(new Uint8Array([i]), right.endpoint);
 * await underlay.send(batch);
 * const { lost, sent } = underlay.counters();
 * ok(lost > 16 && sent === 64 - lost);
 * ```
 */
export class ImpairedUnderlay implements ScriptUnderlay {
  readonly kind = "script";
  readonly #underlay: ScriptUnderlay;
  readonly #rates: {
    readonly loss: number;
    readonly duplicate: number;
    readonly corrupt: number;
    readonly reorder: number;
  };
  readonly #delayMs: number;
  readonly #jitterMs: number;
  readonly #capacity: number;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #counters: { -readonly [Name in keyof ImpairmentCounters]: number } = {
    taken: 0,
    lost: 0,
    duplicated: 0,
    corrupted: 0,
    reordered: 0,
    overflowed: 0,
    sent: 0,
  };
  /** Under way, in the order of their times. */
  readonly #queue: Datagram[] = [];
  /** Held back, in the order in which they came. */
  readonly #held: Held[] = [];
  readonly #batch = new PacketBatch({ capacity: BATCH_PACKETS, bufferBytes: 2 * MAX_PACKET_BYTES });
  readonly #turns = new Turns();
  readonly #closing = new AbortController();
  #cancelTimer: () => void = () => {};

  /**
   * Begins with nothing under way.
   *
   * @param options Underlay, seed and impairments.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When one is out of its range.
   */
  constructor(options: ImpairedUnderlayOptions) {
    const operation = "impair the underlay";
    requireObject(options, { operation, name: "options" });
    const { underlay, seed, lossRate = 0, duplicateRate = 0, corruptRate = 0, reorderRate = 0 } = options;
    const { delayMs = 0, jitterMs = 0, capacity = 1024, clock = systemClock } = options;
    requireObject(underlay, { operation, name: "underlay" });
    for (const [name, rate] of Object.entries({ lossRate, duplicateRate, corruptRate, reorderRate })) {
      requireNumber(rate, { operation, name, min: 0, max: 1 });
    }
    for (const [name, ms] of Object.entries({ delayMs, jitterMs })) {
      requireNumber(ms, { operation, name, min: 0, max: MAX_IMPAIRED_MS });
    }
    requireInteger(capacity, { operation, name: "capacity", ...CAPACITY_RANGE });
    requireInteger(seed, { operation, name: "seed", min: Number.MIN_SAFE_INTEGER, max: Number.MAX_SAFE_INTEGER });
    this.#underlay = underlay;
    this.#rates = { loss: lossRate, duplicate: duplicateRate, corrupt: corruptRate, reorder: reorderRate };
    this.#delayMs = delayMs;
    this.#jitterMs = jitterMs;
    this.#capacity = capacity;
    this.#clock = clock;
    this.#random = seededRandom(seed);
  }

  /** What has become of the datagrams so far. */
  counters(): ImpairmentCounters {
    return { ...this.#counters };
  }

  /** How many datagrams are under way. */
  get pending(): number {
    return this.#queue.length + this.#held.length;
  }

  receive(batch: PacketBatch, options?: { readonly signal?: AbortSignal | undefined }): Promise<number> {
    return this.#underlay.receive(batch, options);
  }

  async send(
    batch: PacketBatch,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    const { from = 0, signal } = options;
    signal?.throwIfAborted();
    await this.#handOn(signal);
    for (let i = from; i < batch.length; i++) this.#accept(batch.packet(i).slice(), batch.endpoint(i));
    // They are under way whatever happens now, and must not be given again.
    await this.#handOn(signal).catch(() => {});
    return batch.length - from;
  }

  async close(): Promise<void> {
    this.#closing.abort();
    this.#cancelTimer();
    await this.#underlay.close();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(bytes: Uint8Array<ArrayBuffer>, endpoint: Endpoint): void {
    const { loss, duplicate, corrupt, reorder } = this.#rates;
    const counters = this.#counters;
    counters.taken += 1;
    if (this.#chance(loss)) {
      counters.lost += 1;
      return;
    }
    const copies = this.#chance(duplicate) ? 2 : 1;
    counters.duplicated += copies - 1;
    for (let copy = 0; copy < copies; copy++) {
      if (this.pending >= this.#capacity) {
        counters.overflowed += 1;
        continue;
      }
      const atMs = this.#clock.now() + this.#delayMs + this.#random() * this.#jitterMs;
      const datagram = { bytes: this.#chance(corrupt) ? this.#corrupted(bytes) : bytes, endpoint, atMs };
      // Those held back before this one count it as passing.
      this.#letPass();
      if (this.#chance(reorder)) {
        counters.reordered += 1;
        this.#held.push({ datagram, left: 1 + Math.floor(this.#random() * REORDER_SPAN) });
      } else {
        this.#enqueue(datagram);
      }
    }
  }

  #chance(rate: number): boolean {
    return rate > 0 && this.#random() < rate;
  }

  #corrupted(bytes: Uint8Array<ArrayBuffer>): Uint8Array<ArrayBuffer> {
    if (bytes.length === 0) return bytes;
    const bit = Math.floor(this.#random() * bytes.length * 8);
    const copy = bytes.slice();
    copy[bit >> 3] = (copy[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    this.#counters.corrupted += 1;
    return copy;
  }

  #letPass(): void {
    for (const held of this.#held.splice(0)) {
      held.left -= 1;
      if (held.left > 0) this.#held.push(held);
      else this.#enqueue(held.datagram);
    }
  }

  #enqueue(datagram: Datagram): void {
    let at = this.#queue.length;
    while (at > 0 && (this.#queue[at - 1]?.atMs ?? 0) > datagram.atMs) at -= 1;
    this.#queue.splice(at, 0, datagram);
  }

  /** Hands on what is due, and sets the timer for the rest. */
  async #handOn(signal: AbortSignal | undefined): Promise<void> {
    await this.#turns.take(async () => {
      this.#cancelTimer();
      let retryMs = 0;
      try {
        await this.#sendDue(signal);
      } catch (error) {
        retryMs = RETRY_MS;
        throw error;
      } finally {
        this.#setTimer(retryMs);
      }
    });
  }

  async #sendDue(signal: AbortSignal | undefined): Promise<void> {
    const now = this.#clock.now();
    while ((this.#held[0]?.datagram.atMs ?? Infinity) + REORDER_MS <= now) {
      const held = this.#held.shift();
      if (held !== undefined) this.#enqueue(held.datagram);
    }
    while (!this.#closing.signal.aborted && (this.#queue[0]?.atMs ?? Infinity) <= now) {
      const batch = this.#batch;
      batch.clear();
      for (const { bytes, endpoint, atMs } of this.#queue) {
        if (atMs > now || !batch.append(bytes, endpoint)) break;
      }
      const count = await this.#underlay.send(batch, { signal });
      if (!(count >= 1)) throw new Error(`The underlay took none of ${batch.length} datagrams`);
      this.#queue.splice(0, count);
      this.#counters.sent += count;
    }
  }

  #setTimer(leastMs: number): void {
    if (this.#closing.signal.aborted) return;
    const dueMs = Math.min(this.#queue[0]?.atMs ?? Infinity, (this.#held[0]?.datagram.atMs ?? Infinity) + REORDER_MS);
    if (dueMs === Infinity) return;
    this.#cancelTimer = this.#clock.schedule(Math.max(leastMs, dueMs - this.#clock.now(), 0), () => {
      // What fails is tried again, and the next send hears of it.
      this.#handOn(this.#closing.signal).catch(() => {});
    });
  }
}

/** Numbers from 0 (included) to 1 (excluded) that depend on `seed` alone: a Weyl sequence of 32 bits, mixed. */
function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e37_79b9) >>> 0;
    let mixed = state;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0_aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a_2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}
