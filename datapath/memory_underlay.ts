/**
 * An underlay in memory: what is sent on one side is received on the other.
 *
 * @module
 */

import { requireObject } from "../native/arguments.ts";
import { MemoryEnd } from "./_memory_end.ts";
import type { QueuedPacket } from "./_packet_queue.ts";
import { type Endpoint, MAX_PACKET_BYTES, type PacketBatch } from "./packet_batch.ts";
import type { ScriptUnderlay } from "./underlay.ts";

/** What a pair of {@linkcode MemoryUnderlay}s is made of. */
export interface MemoryUnderlayOptions {
  /** The address of each side. @default 192.0.2.1 and 192.0.2.2, both with port 6081 */
  readonly endpoints?: readonly [Endpoint, Endpoint] | undefined;
  /** How many datagrams may be under way in each direction. @default 256 */
  readonly capacity?: number | undefined;
}

/** A datagram as it arrived. */
export interface MemoryDatagram {
  /** Its payload. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The side that it came from. */
  readonly source: Endpoint;
  /** Where that side sent it to. */
  readonly destination: Endpoint;
}

/**
 * One side of a wire between two nodes. Datagrams arrive on the other side, wherever they are sent to, in order and
 * without loss: a send waits while the wire is full. {@linkcode ImpairedUnderlay} makes a bad one of it.
 *
 * When one side closes, datagrams sent to it vanish; the other side stays as it is, as with UDP.
 *
 * @example A datagram goes through
 * ```ts
 * import { MemoryUnderlay, PacketBatch } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * const [left, right] = MemoryUnderlay.pair();
 * const batch = new PacketBatch();
 * batch.append(new Uint8Array([1, 2, 3]), right.endpoint);
 * await left.send(batch);
 * const { bytes, source } = (await right.pull())!;
 * deepStrictEqual([bytes, source], [new Uint8Array([1, 2, 3]), left.endpoint]);
 * ```
 */
export class MemoryUnderlay implements ScriptUnderlay {
  readonly kind = "script";
  /** What the other side sees as the source. */
  readonly endpoint: Endpoint;
  readonly #end: MemoryEnd;

  private constructor(endpoint: Endpoint, end: MemoryEnd) {
    this.endpoint = endpoint;
    this.#end = end;
  }

  /**
   * Makes both sides.
   *
   * @param options Their addresses and size.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When one is out of its range.
   */
  static pair(options: MemoryUnderlayOptions = {}): [MemoryUnderlay, MemoryUnderlay] {
    requireObject(options, { operation: "make an underlay", name: "options" });
    const { endpoints = DEFAULT_ENDPOINTS, capacity = 256 } = options;
    const [left, right] = MemoryEnd.pair("underlay", capacity);
    return [new MemoryUnderlay(endpoints[0], left), new MemoryUnderlay(endpoints[1], right)];
  }

  async receive(batch: PacketBatch, options: { readonly signal?: AbortSignal | undefined } = {}): Promise<number> {
    return await this.#end.take(batch, options);
  }

  async send(
    batch: PacketBatch,
    options: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    return await this.#end.give(batch, options, (i) => this.#datagram(batch.packet(i), batch.endpoint(i)));
  }

  /**
   * Sends one datagram.
   *
   * @param bytes Its payload, which is copied.
   * @param destination Where to.
   * @param options The signal that ends the wait for room.
   * @throws {RangeError} When it is larger than any datagram of the protocol.
   */
  async push(
    bytes: Uint8Array,
    destination: Endpoint,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    if (bytes.length > MAX_PACKET_BYTES) {
      throw new RangeError(
        `Cannot send a datagram as it must have at most ${MAX_PACKET_BYTES} bytes: it has ${bytes.length}`,
      );
    }
    await this.#end.push(this.#datagram(bytes, destination), options);
  }

  /**
   * Waits for one datagram.
   *
   * @param options The signal that ends the wait.
   * @returns The datagram; `undefined` when this side is closed.
   */
  async pull(options: { readonly signal?: AbortSignal | undefined } = {}): Promise<MemoryDatagram | undefined> {
    const packet = await this.#end.pull(options);
    if (packet?.source === undefined || packet.destination === undefined) return undefined;
    return { bytes: packet.bytes, source: packet.source, destination: packet.destination };
  }

  close(): Promise<void> {
    return this.#end.close();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #datagram(bytes: Uint8Array, destination: Endpoint): QueuedPacket {
    return { bytes: bytes.slice(), source: this.endpoint, destination };
  }
}

const DEFAULT_ENDPOINTS: readonly [Endpoint, Endpoint] = [
  { address: new Uint8Array([192, 0, 2, 1]), port: 6081 },
  { address: new Uint8Array([192, 0, 2, 2]), port: 6081 },
];
