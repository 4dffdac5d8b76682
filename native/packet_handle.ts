/**
 * Devices and sockets whose packets are moved from here, in batches, instead of by the library's own threads.
 *
 * @module
 */

import { PACKET_BYTES } from "./engine.ts";
import type { NativeError } from "./errors.ts";
import { EVENT_KIND, type NativeEvent } from "./events.ts";
import { SyncHandle } from "./handle.ts";
import { type Buffer, check, errBuffer, LITTLE_ENDIAN } from "./marshal.ts";
import type { Symbols } from "./symbols.ts";

/** What one call moved. */
export interface Moved {
  /** How many packets, from the first on. */
  readonly count: number;
  /** The indices of those that the operating system refused, or had cut. */
  readonly bad: readonly number[];
}

const VERDICT = 8;

interface Wait {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: NativeError) => void;
}

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

/** A handle that packets are read from and written to without waiting, and that tells on the library's one event queue when to go on. */
export abstract class PacketHandle extends SyncHandle {
  readonly #err: Buffer = errBuffer();
  #waits: { readable?: Wait; writable?: Wait } = {};
  #unsubscribe: (() => void) | undefined;

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

  /** Resolves when it is worth reading again, and when the handle closes. To be called right after a read that got nothing. */
  readable(): Promise<void> {
    return this.#wait("readable");
  }

  /** Resolves when it is worth writing again, and when the handle closes. To be called right after a write that took nothing. */
  writable(): Promise<void> {
    return this.#wait("writable");
  }

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

  protected override closed(): void {
    super.closed();
    this.#unsubscribe?.();
    // Whoever waits tries again, and hears that it is closed.
    this.#settle(({ resolve }) => resolve());
  }

  #wait(what: "readable" | "writable"): Promise<void> {
    this.use(what);
    this.#unsubscribe ??= this.library.events.subscribe(this.unsafeId(what), {
      onEvent: (event) => this.#hear(event),
      onError: (error) => this.#settle(({ reject }) => reject(error)),
    });
    return (this.#waits[what] ??= Promise.withResolvers<void>()).promise;
  }

  #hear({ kind }: NativeEvent): void {
    const what = kind === EVENT_KIND.readable ? "readable" : kind === EVENT_KIND.writable ? "writable" : undefined;
    if (what === undefined) return;
    this.#waits[what]?.resolve();
    delete this.#waits[what];
  }

  #settle(settle: (wait: Wait) => void): void {
    const waits = Object.values(this.#waits);
    this.#waits = {};
    waits.forEach(settle);
  }
}

function moved(packets: Buffer, count: number): Moved {
  const view = new DataView(packets.buffer, packets.byteOffset, packets.byteLength);
  const bad: number[] = [];
  for (let i = 0; i < count; i++) {
    if (view.getInt32(i * PACKET_BYTES + VERDICT, LITTLE_ENDIAN) !== 0) bad.push(i);
  }
  return { count, bad };
}
