/**
 * A device in memory: what is written on one side is read on the other.
 *
 * @module
 */

import { closedEnd, PacketQueue } from "./_packet_queue.ts";
import type { ScriptDevice } from "./device.ts";
import type { PacketBatch } from "./packet_batch.ts";

/** What a pair of {@linkcode MemoryDevice}s is made of. */
export interface MemoryDeviceOptions {
  /** The largest packet, in bytes. @default 1392 */
  readonly mtuBytes?: number | undefined;
  /** How many packets may be under way in each direction. @default 256 */
  readonly capacity?: number | undefined;
}

/**
 * One side of a pipe of IP packets. Both sides are devices: one is for a datapath, the other for a test, a stack written
 * in TypeScript, or a second datapath.
 *
 * Nothing is lost: a write waits while the pipe is full. When one side closes, packets written to it vanish; the other
 * side stays as it is.
 *
 * @example A packet goes through
 * ```ts
 * import { MemoryDevice } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * const [left, right] = MemoryDevice.pair();
 * await left.push(new Uint8Array([1, 2, 3]));
 * deepStrictEqual(await right.pull(), new Uint8Array([1, 2, 3]));
 * ```
 */
export class MemoryDevice implements ScriptDevice {
  readonly kind = "script";
  readonly mtuBytes: number;
  readonly #in: PacketQueue;
  readonly #out: PacketQueue;
  #closed = false;

  private constructor(mtuBytes: number, queues: { readonly in: PacketQueue; readonly out: PacketQueue }) {
    this.mtuBytes = mtuBytes;
    this.#in = queues.in;
    this.#out = queues.out;
  }

  /**
   * Makes both sides.
   *
   * @param options Their size.
   * @throws {RangeError} When an option is out of its range.
   */
  static pair(options: MemoryDeviceOptions = {}): [MemoryDevice, MemoryDevice] {
    const { mtuBytes = 1392, capacity = 256 } = options;
    if (!(Number.isInteger(mtuBytes) && mtuBytes >= 20 && mtuBytes <= 65_535)) {
      throw new RangeError(`Cannot make a device as "mtuBytes" must be 20 to 65535: current value is ${mtuBytes}`);
    }
    const [there, back] = [new PacketQueue(capacity), new PacketQueue(capacity)];
    return [
      new MemoryDevice(mtuBytes, { in: back, out: there }),
      new MemoryDevice(mtuBytes, { in: there, out: back }),
    ];
  }

  async read(batch: PacketBatch, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<number> {
    return await this.#in.take(batch, options);
  }

  async write(
    batch: PacketBatch,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    const { from = 0 } = options;
    const room = await this.#room(options);
    const count = Math.min(room, batch.length - from);
    for (let i = from; i < from + count; i++) this.#checkSize(batch.packetBytes(i));
    for (let i = from; i < from + count; i++) this.#out.put({ bytes: batch.packet(i).slice() });
    return count;
  }

  /**
   * Writes one packet.
   *
   * @param packet Its bytes, which are copied.
   * @param options The signal that ends the wait for room.
   * @throws {RangeError} When it is larger than the MTU.
   */
  async push(packet: Uint8Array, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    this.#checkSize(packet.length);
    await this.#room(options);
    this.#out.put({ bytes: packet.slice() });
  }

  /**
   * Waits for one packet.
   *
   * @param options The signal that ends the wait.
   * @returns Its bytes; `undefined` when this side is closed.
   */
  async pull(
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<Uint8Array<ArrayBuffer> | undefined> {
    return (await this.#in.shift(options))?.bytes;
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#in.close();
    this.#out.wake();
    return Promise.resolve();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #room(options: { readonly signal?: AbortSignal | undefined }): Promise<number> {
    const room = await this.#out.room(() => this.#closed, options);
    if (this.#closed) throw closedEnd("device", "write packets");
    return room;
  }

  #checkSize(bytes: number): void {
    if (bytes > this.mtuBytes) {
      throw new RangeError(`Cannot write a packet as it must have at most ${this.mtuBytes} bytes: it has ${bytes}`);
    }
  }
}
