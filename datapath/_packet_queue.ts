/**
 * A bounded queue of packets between two ends in memory.
 *
 * @module
 */

import { CAPACITY_RANGE, requireInteger } from "../native/arguments.ts";
import type { Endpoint, PacketBatch } from "./packet_batch.ts";

/** One packet in a queue. */
export interface QueuedPacket {
  /** Its bytes, of its own. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Where it came from. */
  readonly source?: Endpoint | undefined;
  /** Where it was sent to. */
  readonly destination?: Endpoint | undefined;
}

/** Options of what waits for a queue. */
export interface QueueWaitOptions {
  readonly signal?: AbortSignal | undefined;
}

/** Packets in order, at most `capacity` of them. */
export class PacketQueue {
  readonly #capacity: number;
  readonly #packets: QueuedPacket[] = [];
  readonly #waiting = new Set<() => void>();
  #closed = false;

  constructor(capacity: number) {
    requireInteger(capacity, { operation: "queue packets", name: "capacity", ...CAPACITY_RANGE });
    this.#capacity = capacity;
  }

  /** Nobody takes packets any more: those in it are gone, and so are those put in later. */
  close(): void {
    this.#closed = true;
    this.#packets.length = 0;
    this.wake();
  }

  /** Makes whoever waits look again. */
  wake(): void {
    for (const wake of [...this.#waiting]) wake();
  }

  /** Waits until there is room or the caller gives up. Gives how many packets fit. */
  async room(isGivenUp: () => boolean, options: QueueWaitOptions = {}): Promise<number> {
    await this.#until(() => this.#closed || isGivenUp() || this.#packets.length < this.#capacity, options.signal);
    return this.#closed ? this.#capacity : this.#capacity - this.#packets.length;
  }

  /** Puts a packet in; there must be room for it. */
  put(packet: QueuedPacket): void {
    if (this.#closed) return;
    this.#packets.push(packet);
    this.wake();
  }

  /** Waits for a packet; `undefined` when the queue is closed. */
  async shift(options: QueueWaitOptions = {}): Promise<QueuedPacket | undefined> {
    await this.#until(() => this.#closed || this.#packets.length > 0, options.signal);
    const packet = this.#packets.shift();
    this.wake();
    return packet;
  }

  /** Waits for packets and appends those that `batch` has room for. Gives how many; 0 when the queue is closed. */
  async take(batch: PacketBatch, options: QueueWaitOptions = {}): Promise<number> {
    await this.#until(() => this.#closed || this.#packets.length > 0, options.signal);
    let count = 0;
    for (; count < this.#packets.length; count++) {
      const packet = this.#packets[count];
      if (packet === undefined || !batch.append(packet.bytes, packet.source)) break;
    }
    const first = this.#packets[0];
    if (count === 0 && first !== undefined) {
      throw new RangeError(`Cannot read as the batch must have room for a packet of ${first.bytes.length} bytes`);
    }
    this.#packets.splice(0, count);
    this.wake();
    return count;
  }

  async #until(isReady: () => boolean, signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted();
    while (!isReady()) {
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const onAbort = () => reject(signal?.reason);
      this.#waiting.add(resolve);
      signal?.addEventListener("abort", onAbort, { once: true });
      try {
        await promise;
      } finally {
        this.#waiting.delete(resolve);
        signal?.removeEventListener("abort", onAbort);
      }
    }
  }
}
