/**
 * A device in memory: what is written on one side is read on the other.
 *
 * @module
 */

import { requireInteger, requireObject } from "../native/arguments.ts";
import { MemoryEnd } from "./_memory_end.ts";
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
  readonly #end: MemoryEnd;

  private constructor(mtuBytes: number, end: MemoryEnd) {
    this.mtuBytes = mtuBytes;
    this.#end = end;
  }

  /**
   * Makes both sides.
   *
   * @param options Their size.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When one is out of its range.
   */
  static pair(options: MemoryDeviceOptions = {}): [MemoryDevice, MemoryDevice] {
    const operation = "make a device";
    requireObject(options, { operation, name: "options" });
    const { mtuBytes = 1392, capacity = 256 } = options;
    requireInteger(mtuBytes, { operation, name: "mtuBytes", min: 20, max: 65_535 });
    const [left, right] = MemoryEnd.pair("device", capacity);
    return [new MemoryDevice(mtuBytes, left), new MemoryDevice(mtuBytes, right)];
  }

  async read(batch: PacketBatch, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<number> {
    return await this.#end.take(batch, options);
  }

  async write(
    batch: PacketBatch,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    return await this.#end.give(batch, options, (i) => {
      this.#checkSize(batch.packetBytes(i));
      return { bytes: batch.packet(i).slice() };
    });
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
    await this.#end.push({ bytes: packet.slice() }, options);
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
    return (await this.#end.pull(options))?.bytes;
  }

  close(): Promise<void> {
    return this.#end.close();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #checkSize(bytes: number): void {
    if (bytes > this.mtuBytes) {
      throw new RangeError(`Cannot write a packet as it must have at most ${this.mtuBytes} bytes: it has ${bytes}`);
    }
  }
}
