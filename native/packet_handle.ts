/**
 * Devices and sockets whose packets are moved from here, in batches, instead of by the library's own threads.
 *
 * @module
 */

import { PACKET_BYTES } from "./engine.ts";
import { type Buffer, check, errBuffer, LITTLE_ENDIAN } from "./marshal.ts";
import { ReadinessHandle } from "./readiness.ts";
import type { Symbols } from "./symbols.ts";

/** What one call moved. */
export interface Moved {
  /** How many packets, from the first on. */
  readonly count: number;
  /** The indices of those that the operating system refused, or had cut. */
  readonly bad: readonly number[];
}

const VERDICT = 8;

/** A call that fills `packets` with what there is; none: the event `readable` follows once there is something. */
type Fill = (
  symbols: Symbols,
  id: number,
  packets: Buffer,
  capacity: number,
  output: Buffer,
  outputBytes: number,
  err: Buffer,
  errBytes: number,
) => number;

/** A call that takes packets; fewer than there are: the event `writable` follows once it can take the next one. */
type Hand = (
  symbols: Symbols,
  id: number,
  input: Buffer,
  inputBytes: number,
  packets: Buffer,
  count: number,
  err: Buffer,
  errBytes: number,
) => number;

/** A handle that packets are read from and written to without waiting. */
export abstract class PacketHandle extends ReadinessHandle {
  readonly #err: Buffer = errBuffer();

  /**
   * Reads packets to the start of `output`.
   *
   * @param packets Descriptors to fill, as many as there is room for.
   * @param output At least 65535 bytes.
   * @returns Those that came. None: wait for {@linkcode PacketHandle.readable}.
   * @throws {NativeError} When it cannot be read from any more.
   */
  abstract take(packets: Buffer, output: Buffer): Moved;

  /**
   * Writes packets.
   *
   * @param input Their bytes.
   * @param packets `count` descriptors; they are changed.
   * @returns Those that are gone, well or not. None: wait for {@linkcode PacketHandle.writable}.
   * @throws {NativeError} When it cannot be written to any more.
   */
  abstract give(input: Buffer, packets: Buffer, count: number): Moved;

  protected fill(operation: string, packets: Buffer, output: Buffer, call: Fill): Moved {
    const { symbols, id } = this.use(operation);
    const capacity = Math.floor(packets.byteLength / PACKET_BYTES);
    const err = this.#err;
    const result = call(symbols, id, packets, capacity, output, output.byteLength, err, err.byteLength);
    return moved(packets, check(symbols, operation, result, err));
  }

  protected hand(operation: string, input: Buffer, packets: Buffer, count: number, call: Hand): Moved {
    const { symbols, id } = this.use(operation);
    const err = this.#err;
    // The C function trusts the count.
    const most = Math.min(count, Math.floor(packets.byteLength / PACKET_BYTES));
    const result = call(symbols, id, input, input.byteLength, packets, most, err, err.byteLength);
    return moved(packets, check(symbols, operation, result, err));
  }
}

/** An inner side of the library, until a pump takes it over. */
export abstract class DeviceHandle extends PacketHandle {
  /** Reads packets. @throws {NativeError} `ESYS` when the device is lost. */
  override take(packets: Buffer, output: Buffer): Moved {
    return this.fill("icx_device_read", packets, output, (symbols, ...call) => symbols.icx_device_read(...call));
  }

  /** Writes packets. @throws {NativeError} `ESYS` when the device is lost. */
  override give(input: Buffer, packets: Buffer, count: number): Moved {
    return this.hand(
      "icx_device_write",
      input,
      packets,
      count,
      (symbols, ...call) => symbols.icx_device_write(...call),
    );
  }

  /** For pumps: the library has taken the device over. */
  abstract releaseToPump(): void;
}

function moved(packets: Buffer, count: number): Moved {
  const view = new DataView(packets.buffer, packets.byteOffset, packets.byteLength);
  const bad: number[] = [];
  for (let i = 0; i < count; i++) {
    if (view.getInt32(i * PACKET_BYTES + VERDICT, LITTLE_ENDIAN) !== 0) bad.push(i);
  }
  return { count, bad };
}
