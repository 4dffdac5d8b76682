/**
 * What moves packets in TypeScript asks of its two ends, whichever of them is native and whichever is not.
 *
 * @module
 */

import type { Moved, PacketHandle } from "../native/packet_handle.ts";
import { orAbort } from "../native/marshal.ts";
import { type Clock, delay } from "./clock.ts";
import type { Device, ScriptDevice } from "./device.ts";
import { DatapathError } from "./errors.ts";
import { MAX_PACKET_BYTES, type PacketBatch } from "./packet_batch.ts";
import type { ScriptUnderlay, Underlay } from "./underlay.ts";

/** How long a native end that takes nothing is waited for before its packets count as refused, as in the library's own pump. */
const PATIENCE_MS = 1000;

/** What became of packets that an end was given. */
export interface Given {
  /** How many it has dealt with, from the first on. */
  readonly count: number;
  /** Which of these it refused, by their index from the first on. */
  readonly refused: readonly number[];
}

/** One side of a pump. */
export interface PumpEnd {
  /** What it is, for messages. */
  readonly name: "device" | "underlay";
  /** What its calls are named, for messages. */
  readonly calls: { readonly take: string; readonly give: string };
  /** The largest packet that it is given, in bytes. */
  readonly largestBytes: number;
  /** Whether a call that failed is worth making again. */
  readonly mayRecover: boolean;
  /** Datagrams taken that were cut, and so dropped. */
  readonly truncated: number;
  /** Datagrams given that left from the base port as their hashed one was taken. */
  readonly portFallbacks: number;
  /** Waits for packets and appends them to `batch`, which is empty. Gives how many; 0 when it is closed. */
  take(batch: PacketBatch, signal: AbortSignal): Promise<number>;
  /** Hands packets of `batch` over, from index `from` on, at least one. */
  give(batch: PacketBatch, from: number, signal: AbortSignal): Promise<Given>;
  /** Gives everything back. */
  close(): Promise<void>;
}

/** A device as a side of a pump. */
export function deviceEnd(device: Device, clock: Clock): PumpEnd {
  if (device.kind === "script") return new ScriptDeviceEnd(device);
  return new NativeEnd({ name: "device", calls: { take: "read", give: "write" } }, device.native, clock);
}

/** An underlay as a side of a pump. */
export function underlayEnd(underlay: Underlay, clock: Clock): PumpEnd {
  if (underlay.kind === "script") return new ScriptUnderlayEnd(underlay);
  return new NativeEnd({ name: "underlay", calls: { take: "receive", give: "send" } }, underlay.native, clock);
}

/** What the two kinds of ends written in TypeScript have in common. */
abstract class ScriptEnd implements PumpEnd {
  abstract readonly name: PumpEnd["name"];
  abstract readonly calls: PumpEnd["calls"];
  abstract readonly largestBytes: number;
  readonly mayRecover = true;
  readonly truncated = 0;
  readonly portFallbacks = 0;

  abstract take(batch: PacketBatch, signal: AbortSignal): Promise<number>;
  abstract close(): Promise<void>;
  protected abstract ask(batch: PacketBatch, from: number, signal: AbortSignal): Promise<number>;

  async give(batch: PacketBatch, from: number, signal: AbortSignal): Promise<Given> {
    const left = batch.length - from;
    const count = await this.ask(batch, from, signal);
    if (count === 0) throw new Error(`It took none of ${left} packets`);
    return { count, refused: [] };
  }
}

class ScriptDeviceEnd extends ScriptEnd {
  readonly name = "device";
  readonly calls = { take: "read", give: "write" };
  readonly #device: ScriptDevice;

  constructor(device: ScriptDevice) {
    super();
    this.#device = device;
  }

  get largestBytes(): number {
    return this.#device.mtuBytes;
  }

  async take(batch: PacketBatch, signal: AbortSignal): Promise<number> {
    return await this.#device.read(batch, { signal });
  }

  async close(): Promise<void> {
    await this.#device.close();
  }

  protected async ask(batch: PacketBatch, from: number, signal: AbortSignal): Promise<number> {
    return await this.#device.write(batch, { from, signal });
  }
}

class ScriptUnderlayEnd extends ScriptEnd {
  readonly name = "underlay";
  readonly calls = { take: "receive", give: "send" };
  readonly largestBytes = Infinity;
  readonly #underlay: ScriptUnderlay;

  constructor(underlay: ScriptUnderlay) {
    super();
    this.#underlay = underlay;
  }

  async take(batch: PacketBatch, signal: AbortSignal): Promise<number> {
    return await this.#underlay.receive(batch, { signal });
  }

  async close(): Promise<void> {
    await this.#underlay.close();
  }

  protected async ask(batch: PacketBatch, from: number, signal: AbortSignal): Promise<number> {
    return await this.#underlay.send(batch, { from, signal });
  }
}

/**
 * A native end whose packets come into JavaScript since those of the other end do: one call for each batch, and none that
 * waits. What fails here fails for good; the library has dealt with what passes.
 */
class NativeEnd implements PumpEnd {
  readonly name: PumpEnd["name"];
  readonly calls: PumpEnd["calls"];
  readonly largestBytes = MAX_PACKET_BYTES;
  readonly mayRecover = false;
  readonly #handle: PacketHandle;
  readonly #clock: Clock;
  #truncated = 0;
  #portFallbacks = 0;

  constructor(what: Pick<PumpEnd, "name" | "calls">, handle: PacketHandle, clock: Clock) {
    this.name = what.name;
    this.calls = what.calls;
    this.#handle = handle;
    this.#clock = clock;
  }

  get truncated(): number {
    return this.#truncated;
  }

  get portFallbacks(): number {
    return this.#portFallbacks;
  }

  async take(batch: PacketBatch, signal: AbortSignal): Promise<number> {
    while (true) {
      const { bad } = this.#fill(batch);
      if (bad.length > 0) {
        this.#truncated += bad.length;
        const cut = new Set(bad);
        batch.retain((i) => !cut.has(i));
      }
      if (batch.length > 0) return batch.length;
      if (bad.length === 0) await orAbort(this.#handle.readable(), signal);
    }
  }

  async give(batch: PacketBatch, from: number, signal: AbortSignal): Promise<Given> {
    const left = batch.length - from;
    const giveUpAtMs = this.#clock.now() + PATIENCE_MS;
    while (true) {
      const hashed = Array.from({ length: left }, (_, i) => batch.sourcePort(from + i) !== 0);
      const { count, bad } = batch.hand(from, (...packets) => this.#handle.give(...packets));
      for (let i = 0; i < count; i++) if (hashed[i] && batch.sourcePort(from + i) === 0) this.#portFallbacks += 1;
      if (count > 0) return { count, refused: bad };
      if (!await this.#hasRoom(giveUpAtMs, signal)) return { count: left, refused: hashed.map((_, i) => i) };
    }
  }

  close(): Promise<void> {
    this.#handle.close();
    return Promise.resolve();
  }

  #fill(batch: PacketBatch): Moved {
    let moved: Moved = { count: 0, bad: [] };
    batch.fill("rx", undefined, (_input, descriptors, _count, output) => {
      moved = this.#handle.take(descriptors, output);
      return moved.count;
    });
    return moved;
  }

  /** Waits until the end may take packets again; false when it is too late for that. */
  async #hasRoom(giveUpAtMs: number, signal: AbortSignal): Promise<boolean> {
    const room = this.#handle.writable().then(() => true);
    const leftMs = giveUpAtMs - this.#clock.now();
    if (leftMs <= 0) return false;
    const decided = new AbortController();
    const late = delay(leftMs, { clock: this.#clock, signal: decided.signal }).then(() => false);
    try {
      return await orAbort(Promise.race([room, late]), signal);
    } finally {
      decided.abort();
      await Promise.allSettled([late]);
    }
  }
}

/** What an end is asked for when it did not keep to its interface. */
export function brokenEnd(operation: string, problem: string): DatapathError {
  return new DatapathError(`Cannot ${operation} as ${problem}`, { code: "end-failed", operation });
}
