/**
 * What ends in memory have in common: one side of a pipe of packets.
 *
 * @module
 */

import { PacketQueue, type QueuedPacket } from "./_packet_queue.ts";
import { DatapathError } from "./errors.ts";
import type { PacketBatch } from "./packet_batch.ts";

/** What waits for a packet, or for room for one. */
export interface MemoryWaitOptions {
  readonly signal?: AbortSignal | undefined;
}

/** As {@linkcode MemoryWaitOptions}, and which packet of a batch is the first. */
export interface MemoryGiveOptions extends MemoryWaitOptions {
  readonly from?: number;
}

/** One side of a pipe. Nothing is lost but what is under way to a side that has closed. */
export class MemoryEnd {
  readonly #what: string;
  readonly #in: PacketQueue;
  readonly #out: PacketQueue;
  #closed = false;

  private constructor(what: string, queues: { readonly in: PacketQueue; readonly out: PacketQueue }) {
    this.#what = what;
    this.#in = queues.in;
    this.#out = queues.out;
  }

  /** Makes both sides. `what` names one of them, for messages. */
  static pair(what: string, capacity: number): [MemoryEnd, MemoryEnd] {
    const [there, back] = [new PacketQueue(capacity), new PacketQueue(capacity)];
    return [new MemoryEnd(what, { in: back, out: there }), new MemoryEnd(what, { in: there, out: back })];
  }

  /** Waits for packets and appends those that `batch` has room for. Gives how many; 0 when this side is closed. */
  take(batch: PacketBatch, options: MemoryWaitOptions): Promise<number> {
    return this.#in.take(batch, options);
  }

  /** Waits for a packet; `undefined` when this side is closed. */
  pull(options: MemoryWaitOptions): Promise<QueuedPacket | undefined> {
    return this.#in.shift(options);
  }

  /** Waits for room, and puts as many packets of `batch` in as there is. `packet` makes one; what it throws leaves all where they are. */
  async give(
    batch: PacketBatch,
    options: MemoryGiveOptions,
    packet: (index: number) => QueuedPacket,
  ): Promise<number> {
    const { from = 0 } = options;
    const count = Math.min(await this.#room(options), batch.length - from);
    const packets = Array.from({ length: count }, (_, i) => packet(from + i));
    for (const one of packets) this.#out.put(one);
    return count;
  }

  /** Waits for room, and puts a packet in. */
  async push(packet: QueuedPacket, options: MemoryWaitOptions): Promise<void> {
    await this.#room(options);
    this.#out.put(packet);
  }

  /** What comes to this side vanishes from now on, and whoever waits on it stops. */
  close(): Promise<void> {
    this.#closed = true;
    this.#in.close();
    this.#out.wake();
    return Promise.resolve();
  }

  async #room(options: MemoryWaitOptions): Promise<number> {
    const room = await this.#out.room(() => this.#closed, options);
    if (!this.#closed) return room;
    const operation = `give packets to the ${this.#what}`;
    throw new DatapathError(`Cannot ${operation} as it is closed: make a new pair`, { code: "closed", operation });
  }
}
