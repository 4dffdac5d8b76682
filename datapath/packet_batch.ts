/**
 * Many packets in one buffer, in the form that the engine takes.
 *
 * @module
 */

import { requireInteger, requireObject, requireType } from "../native/arguments.ts";
import { RX_DROP_REASONS, type RxDropReason, TX_DROP_REASONS, type TxDropReason } from "./counters.ts";

/** Bytes of one descriptor: `IcxPacket` of the C interface. */
const DESCRIPTOR_BYTES = 48;

const OFFSET = 0;
const LENGTH = 4;
const VERDICT = 8;
const VNI = 12;
const ADDRESS = 16;
const PORT = 32;
const SOURCE_PORT = 34;
const TRAFFIC_CLASS = 36;

/**
 * The most bytes that one packet or datagram has, by the length fields of IPv4, IPv6 and UDP. An empty batch that a datapath hands
 * to an end has room for one of that size; what is larger is the end's to drop.
 */
export const MAX_PACKET_BYTES: number = 65_535;

/** The first 12 bytes of an IPv4-mapped IPv6 address. */
const MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/** Why a packet went no further: the name of the counter that went up. */
export type DropReason = RxDropReason | TxDropReason;

/**
 * What became of a packet.
 *
 * - `forward`: it goes on, to the other side.
 * - `handled`: it was answered locally; the answer goes back to the virtual side.
 * - `consumed`: it was for the engine itself, a keepalive; nothing is left of it.
 * - otherwise it was dropped, and the counter of that name went up.
 */
export type Verdict = "forward" | "handled" | "consumed" | DropReason;

/** Which way the packets of a batch went. */
export type Direction = "rx" | "tx";

/** Where a datagram goes to or came from. */
export interface Endpoint {
  /** The 4 bytes of an IPv4 or the 16 bytes of an IPv6 address. */
  readonly address: Uint8Array;
  /** The UDP port. */
  readonly port: number;
}

/** Where a datagram came from, and how. */
export interface PacketSource extends Endpoint {
  /** The TOS byte or traffic class of its outer header, where the underlay knows it. @default 0 */
  readonly trafficClass?: number | undefined;
}

/** What a {@linkcode PacketBatch} is made of. */
export interface PacketBatchOptions {
  /** How many packets there is room for, 1 to 65536. @default 64 */
  readonly capacity?: number | undefined;
  /** How many bytes all of them may have together. @default capacity × 2048 */
  readonly bufferBytes?: number | undefined;
}

/**
 * A list of packets that lie back to back in one buffer. Nothing is allocated per packet: one batch is filled, handed to
 * the engine, emptied and filled again.
 *
 * As the input of an engine call its packets are what arrived. As the output, packet `i` is what became of packet `i` of
 * the input: {@linkcode PacketBatch.verdict} tells, and for `forward` and `handled` {@linkcode PacketBatch.packet} is
 * the result.
 */
export class PacketBatch {
  /** How many packets there is room for. */
  readonly capacity: number;
  readonly #buffer: Uint8Array<ArrayBuffer>;
  #descriptors: Uint8Array<ArrayBuffer>;
  #view: DataView;
  /** For the next call that fills this batch, which takes the place of the others when it has gone well. */
  #spare: Uint8Array<ArrayBuffer>;
  #length = 0;
  #used = 0;
  #direction: Direction = "tx";

  /**
   * Makes an empty batch.
   *
   * @param options Its size.
   * @throws {RangeError} When an option is out of its range.
   */
  constructor(options: PacketBatchOptions = {}) {
    const operation = "make a batch";
    requireObject(options, { operation, name: "options" });
    const { capacity = 64, bufferBytes = capacity * 2048 } = options;
    requireInteger(capacity, { operation, name: "capacity", min: 1, max: 65536 });
    requireInteger(bufferBytes, { operation, name: "bufferBytes", min: 1, max: 2 ** 31 - 1 });
    this.capacity = capacity;
    this.#buffer = new Uint8Array(bufferBytes);
    this.#descriptors = new Uint8Array(capacity * DESCRIPTOR_BYTES);
    this.#view = new DataView(this.#descriptors.buffer);
    this.#spare = new Uint8Array(capacity * DESCRIPTOR_BYTES);
  }

  /** How many packets are in it. */
  get length(): number {
    return this.#length;
  }

  /** Takes all packets out. */
  clear(): void {
    this.#length = 0;
    this.#used = 0;
  }

  /**
   * Copies a packet in.
   *
   * @param packet Its bytes; it may be empty.
   * @param source Where it came from; needed for what a UDP underlay received.
   * @returns Whether there was room for it.
   * @throws {TypeError} When it is no `Uint8Array`. @throws {RangeError} When an address has neither 4 nor 16 bytes, or the
   * port or traffic class is none.
   */
  append(packet: Uint8Array, source?: PacketSource): boolean {
    requireBytes(packet, "packet");
    const room = this.reserve();
    if (room === undefined || room.length < packet.length) return false;
    room.set(packet);
    this.commit(packet.length, source);
    return true;
  }

  /**
   * The free rest of the buffer, for a read that writes straight into it; {@linkcode PacketBatch.commit} makes what was
   * written a packet.
   *
   * @returns The rest, possibly empty; `undefined` when the batch holds as many packets as it can.
   */
  reserve(): Uint8Array<ArrayBuffer> | undefined {
    return this.#length === this.capacity ? undefined : this.#buffer.subarray(this.#used);
  }

  /**
   * Makes the next bytes of the free rest a packet.
   *
   * @param length How many bytes were written at the start of what {@linkcode PacketBatch.reserve} gave.
   * @param source Where it came from; needed for what a UDP underlay received.
   * @throws {RangeError} When there is no room for it, an address has neither 4 nor 16 bytes, or the port or traffic class is
   * none.
   */
  commit(length: number, source?: PacketSource): void {
    requireInteger(length, { operation: "add a packet", name: "length", min: 0, max: this.#buffer.length });
    if (source !== undefined) requireSource(source);
    if (this.#length === this.capacity || length > this.#buffer.length - this.#used) {
      throw new RangeError(
        `Cannot add a packet as there must be room for it: ${this.#length} of ${this.capacity} packets and ` +
          `${this.#used} of ${this.#buffer.length} bytes are taken, ${length} bytes are asked for`,
      );
    }
    const at = this.#length * DESCRIPTOR_BYTES;
    this.#descriptors.fill(0, at, at + DESCRIPTOR_BYTES);
    this.#view.setUint32(at + OFFSET, this.#used, LITTLE_ENDIAN);
    this.#view.setUint32(at + LENGTH, length, LITTLE_ENDIAN);
    if (source !== undefined) this.#setSource(at, source);
    this.#length += 1;
    this.#used += length;
  }

  /** What became of packet `index`. */
  verdict(index: number): Verdict {
    const code = this.#view.getInt32(this.#at(index) + VERDICT, LITTLE_ENDIAN);
    const verdict = code >= 0
      ? (["forward", "handled", "consumed"] as const)[code]
      : (this.#direction === "rx" ? RX_DROP_REASONS : TX_DROP_REASONS)[-1 - code];
    if (verdict === undefined) {
      throw new RangeError(`Cannot read the verdict as it must be known: current value is ${code}`);
    }
    return verdict;
  }

  /** The bytes of packet `index`, as a view into the batch: valid until it is cleared. */
  packet(index: number): Uint8Array<ArrayBuffer> {
    const at = this.#at(index);
    const offset = this.#view.getUint32(at + OFFSET, LITTLE_ENDIAN);
    return this.#buffer.subarray(offset, offset + this.#view.getUint32(at + LENGTH, LITTLE_ENDIAN));
  }

  /** How many bytes packet `index` has. */
  packetBytes(index: number): number {
    return this.#view.getUint32(this.#at(index) + LENGTH, LITTLE_ENDIAN);
  }

  /**
   * Takes out the packets that `keep` does not want. The others keep their order and their bytes stay where they are.
   *
   * @param keep Hears the index of each packet once, in order, and may look at that packet only.
   */
  retain(keep: (index: number) => boolean): void {
    let kept = 0;
    for (let i = 0; i < this.#length; i++) {
      if (!keep(i)) continue;
      if (kept !== i) {
        this.#descriptors.copyWithin(kept * DESCRIPTOR_BYTES, i * DESCRIPTOR_BYTES, (i + 1) * DESCRIPTOR_BYTES);
      }
      kept += 1;
    }
    this.#length = kept;
  }

  /** The network of packet `index`; 0 where the verdict is neither `forward` nor `consumed`. */
  vni(index: number): number {
    return this.#view.getUint32(this.#at(index) + VNI, LITTLE_ENDIAN);
  }

  /** Where packet `index` goes to, or came from. */
  endpoint(index: number): Endpoint {
    const at = this.#at(index);
    const address = this.#descriptors.slice(at + ADDRESS, at + ADDRESS + 16);
    const mapped = MAPPED.every((byte, i) => address[i] === byte);
    return { address: mapped ? address.subarray(12) : address, port: this.#view.getUint16(at + PORT, LITTLE_ENDIAN) };
  }

  /** The port that packet `index` is to be sent from; 0 for the underlay's own. */
  sourcePort(index: number): number {
    return this.#view.getUint16(this.#at(index) + SOURCE_PORT, LITTLE_ENDIAN);
  }

  /** The TOS byte or traffic class of the outer header of packet `index`: the one to send it with, or the one it came with. */
  trafficClass(index: number): number {
    return this.#view.getUint8(this.#at(index) + TRAFFIC_CLASS);
  }

  /**
   * Runs one native call over raw memory: for engines only.
   *
   * @param direction Which way the packets go.
   * @param input The batch whose packets are transformed, beginning with `from`; without one the call makes packets.
   * @param call Gets the input's bytes, the descriptors, how many of them count, and the output's bytes; returns how many
   * it filled in.
   * @returns How many packets this batch now holds. When it throws, the batch holds what it held before.
   */
  fill(
    direction: Direction,
    input: { readonly batch: PacketBatch; readonly from: number } | undefined,
    call: (
      input: Uint8Array<ArrayBuffer>,
      descriptors: Uint8Array<ArrayBuffer>,
      count: number,
      output: Uint8Array<ArrayBuffer>,
    ) => number,
  ): number {
    if (input !== undefined) {
      const { batch, from } = input;
      if (batch === this) throw new TypeError("Cannot transform a batch into itself: give another one for the output");
      requireInteger(from, { operation: "transform packets", name: "from", min: 0, max: batch.#length });
    }
    let count = this.capacity;
    let bytes = EMPTY;
    const descriptors = this.#spare;
    if (input !== undefined) {
      const { batch, from } = input;
      count = Math.min(count, batch.#length - from);
      const start = from * DESCRIPTOR_BYTES;
      descriptors.set(batch.#descriptors.subarray(start, start + count * DESCRIPTOR_BYTES));
      bytes = batch.#buffer.subarray(0, batch.#used);
    }
    const length = count === 0 ? 0 : call(bytes, descriptors, count, this.#buffer);
    this.#spare = this.#descriptors;
    this.#descriptors = descriptors;
    this.#view = new DataView(descriptors.buffer);
    this.#direction = direction;
    this.#length = length;
    this.#used = 0;
    // Results lie in the order of the packets, so the last one that has bytes ends where the free rest begins.
    for (let i = 0; i < this.#length; i++) {
      const at = i * DESCRIPTOR_BYTES;
      const length = this.#view.getUint32(at + LENGTH, LITTLE_ENDIAN);
      if (length > 0) this.#used = this.#view.getUint32(at + OFFSET, LITTLE_ENDIAN) + length;
    }
    return this.#length;
  }

  /**
   * Runs one native call over the packets from `from` on: for native ends only.
   *
   * @param call Gets the batch's bytes, the descriptors of those packets, and how many they are.
   * @returns What the call gives.
   */
  hand<T>(
    from: number,
    call: (input: Uint8Array<ArrayBuffer>, descriptors: Uint8Array<ArrayBuffer>, count: number) => T,
  ): T {
    return call(
      this.#buffer.subarray(0, this.#used),
      this.#descriptors.subarray(from * DESCRIPTOR_BYTES, this.#length * DESCRIPTOR_BYTES),
      this.#length - from,
    );
  }

  #at(index: number): number {
    if (!(Number.isInteger(index) && index >= 0 && index < this.#length)) {
      throw new RangeError(`Cannot read packet ${index} as the batch holds ${this.#length}`);
    }
    return index * DESCRIPTOR_BYTES;
  }

  #setSource(at: number, { address, port, trafficClass = 0 }: PacketSource): void {
    if (address.length === 4) {
      this.#descriptors.set(MAPPED, at + ADDRESS);
      this.#descriptors.set(address, at + ADDRESS + 12);
    } else {
      this.#descriptors.set(address, at + ADDRESS);
    }
    this.#view.setUint16(at + PORT, port, LITTLE_ENDIAN);
    this.#view.setUint8(at + TRAFFIC_CLASS, trafficClass);
  }
}

function requireBytes(value: unknown, name: string): void {
  requireType(value instanceof Uint8Array, value, { operation: "add a packet", name, allowed: "a Uint8Array" });
}

function requireSource(source: PacketSource): void {
  const operation = "add a packet";
  requireObject(source, { operation, name: "source" });
  const { address, port, trafficClass = 0 } = source;
  requireBytes(address, "source.address");
  requireInteger(port, { operation, name: "source.port", min: 0, max: 65535 });
  requireInteger(trafficClass, { operation, name: "source.trafficClass", min: 0, max: 255 });
  if (address.length !== 4 && address.length !== 16) {
    throw new RangeError(
      `Cannot ${operation} as "source.address" must have 4 or 16 bytes: it has ${address.length}; see addressBytes`,
    );
  }
}

const EMPTY = new Uint8Array(0);

/** The library is built for the processor that it runs on, and takes numbers in that one's byte order. */
const LITTLE_ENDIAN = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
