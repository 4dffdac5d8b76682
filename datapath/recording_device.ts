/**
 * A device that keeps what passes through it.
 *
 * @module
 */

import { CAPACITY_RANGE, requireInteger, requireObject } from "../native/arguments.ts";
import { type Clock, systemClock } from "./clock.ts";
import type { ScriptDevice } from "./device.ts";
import type { PacketBatch } from "./packet_batch.ts";

/** A packet that passed. */
export interface RecordedPacket {
  /** Whether the device gave it (`"read"`) or took it (`"write"`). */
  readonly direction: "read" | "write";
  /** When, in milliseconds of the clock. */
  readonly atMs: number;
  /** A copy of its bytes. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** What a {@linkcode RecordingDevice} is made of. */
export interface RecordingDeviceOptions {
  /** The device that does the work. It belongs to this one. */
  readonly device: ScriptDevice;
  /** How many packets are kept: the first ones. Later ones are counted only. @default 10000 */
  readonly capacity?: number | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/**
 * Stands before another device, does as that one does, and keeps what passes in both directions.
 *
 * @example What was written is on record
 * ```ts
 * import { MemoryDevice, PacketBatch, RecordingDevice } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * const [inner] = MemoryDevice.pair();
 * const device = new RecordingDevice({ device: inner });
 * const batch = new PacketBatch();
 * batch.append(new Uint8Array([1, 2, 3]));
 * await device.write(batch);
 * deepStrictEqual(device.packets.map(({ direction, bytes }) => [direction, ...bytes]), [["write", 1, 2, 3]]);
 * ```
 */
export class RecordingDevice implements ScriptDevice {
  readonly kind = "script";
  readonly #device: ScriptDevice;
  readonly #capacity: number;
  readonly #clock: Clock;
  readonly #packets: RecordedPacket[] = [];
  #missed = 0;

  /**
   * Begins with an empty record.
   *
   * @param options Device, size and clock.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When the capacity is out of its range.
   */
  constructor(options: RecordingDeviceOptions) {
    const operation = "record a device";
    requireObject(options, { operation, name: "options" });
    const { device, capacity = 10_000, clock = systemClock } = options;
    requireObject(device, { operation, name: "device" });
    requireInteger(capacity, { operation, name: "capacity", ...CAPACITY_RANGE });
    this.#device = device;
    this.#capacity = capacity;
    this.#clock = clock;
  }

  get mtuBytes(): number {
    return this.#device.mtuBytes;
  }

  /** What has passed, in order. */
  get packets(): readonly RecordedPacket[] {
    return this.#packets;
  }

  /** How many packets passed when the record was full. */
  get missed(): number {
    return this.#missed;
  }

  async read(batch: PacketBatch, options?: { readonly signal?: AbortSignal | undefined }): Promise<number> {
    const before = batch.length;
    const count = await this.#device.read(batch, options);
    this.#record("read", batch, before, batch.length);
    return count;
  }

  async write(
    batch: PacketBatch,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    const { from = 0 } = options;
    const count = await this.#device.write(batch, options);
    this.#record("write", batch, from, from + count);
    return count;
  }

  close(): Promise<void> {
    return this.#device.close();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #record(direction: "read" | "write", batch: PacketBatch, from: number, to: number): void {
    const atMs = this.#clock.now();
    for (let i = from; i < to; i++) {
      if (this.#packets.length < this.#capacity) {
        this.#packets.push({ direction, atMs, bytes: batch.packet(i).slice() });
      } else this.#missed += 1;
    }
  }
}
