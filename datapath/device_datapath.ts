/**
 * What the datapaths between a device of IP packets and an underlay of UDP datagrams have in common.
 *
 * @module
 */

import { requireInteger } from "../native/arguments.ts";
import type { Latency, PathMtuReason } from "../native/pump.ts";
import type { Clock } from "./clock.ts";
import type { Datapath, DatapathRunOptions, DatapathStats } from "./datapath.ts";
import type { Device } from "./device.ts";
import type { Engine } from "./engine.ts";
import { DatapathError, guarded, toDatapathError } from "./errors.ts";
import { type Pump, ThreadPump } from "./pump.ts";
import type { UdpUnderlayOptions } from "./udp_underlay.ts";
import type { NativeUnderlay, Underlay } from "./underlay.ts";

export type { Latency, PathMtuReason } from "../native/pump.ts";

/** The kernel would not do for one socket what it was found able to do. The datapath goes on without, and nothing is lost. */
export interface OffloadRefused {
  /** What it would not do: cut a run of datagrams that is sent in one call. */
  readonly offload: "udp-gso";
  /** The socket's address and port. */
  readonly local: string;
  /** What the kernel said. */
  readonly reason: string;
}

/**
 * The path to the peer of a network carries other packets than it did. Larger ones are dropped from now on, and their senders are
 * told.
 */
export interface PathMtuChanged {
  /** The network. */
  readonly vni: number;
  /** The largest IP packet of the underlay, in bytes; `undefined` when nothing is known of the path any more. */
  readonly pathMtuBytes: number | undefined;
  /** The largest inner packet, in bytes; `undefined` when the engine's is the only bound. */
  readonly innerMtuBytes: number | undefined;
  /**
   * A router on the way said so, an interface of this host does, what was learned is ten minutes old, or the peer has another
   * address.
   */
  readonly reason: PathMtuReason;
}

/** What a datapath between native ends is made of, beside its device. */
export interface NativeEndsOptions {
  /** The outer side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly underlay: NativeUnderlay | UdpUnderlayOptions;
  /** The engine, with bare IP packets inside and UDP outside. It stays its owner's, who closes it after the datapath. */
  readonly engine: Engine;
  /**
   * How much processor time the threads give for answering sooner, by looking again before they sleep: up to a millisecond
   * after each packet, up to 60 µs, or not at all. @default "balanced"
   */
  readonly latency?: Latency | undefined;
  /**
   * Lower the segment size that passing TCP connections announce to what fits the tunnel (RFC 9293 section 3.7.1), for ends that
   * do not hear how large packets may be. @default false
   */
  readonly clampMss?: boolean | undefined;
  /** Hears of path MTUs, down and up. What it throws is an uncaught error. @default none */
  readonly onPathMtu?: ((changed: PathMtuChanged) => void) | undefined;
  /** Hears of each socket for which the kernel refuses an offload, once. What it throws is an uncaught error. @default none */
  readonly onOffloadRefused?: ((refused: OffloadRefused) => void) | undefined;
}

/** What a datapath between two given ends is made of, beside its device, where one of them is written in TypeScript. */
export interface ScriptEndsOptions<U extends Underlay> {
  /** The outer side. It belongs to the datapath from `open` on. */
  readonly underlay: U;
  /** The engine, with bare IP packets inside and UDP outside. It stays its owner's, who closes it after the datapath. */
  readonly engine: Engine;
  /** Time, for the delays after failures. Keys and keepalives go by the engine's own. @default systemClock */
  readonly clock?: Clock | undefined;
}

/**
 * Moves packets between a device and an underlay. {@linkcode Datapath} says what each call does when.
 *
 * Between two native ends packets never enter JavaScript: native threads move them, and this class
 * starts, watches and stops those. Where an end is written in TypeScript it moves them itself, in batches:
 *
 * - A call of an end written in TypeScript that fails is made again after 10 ms, then 20, and so on. The 16th failure in a row is
 *   what `run` rejects with, as a {@linkcode DatapathError} with code `end-failed` and the last failure as its `cause`.
 * - A native end fails as it does between two native ones: at once, with `system` when the device was removed, and otherwise it counts
 *   what the operating system refuses. Its batches cross into the library and out of it in one call each.
 * - An end that closes of itself makes `run` reject with code `closed`.
 * - What an end does not take at once is handed to it again. Each direction holds one batch of 64 packets, and asks for
 *   no more until the other end has taken it.
 * - Every packet read is sealed or dropped by the engine, every sealed one is sent or counts as refused, and likewise inbound:
 *   when `run` has ended, the counters add up.
 * - A packet larger than the MTU of a device written in TypeScript that comes out of the tunnel counts as refused by the device. One that
 *   is too large for the tunnel is dropped as `tx_too_big`; a stack behind the device is told with ICMP between native ends only.
 */
export abstract class DeviceDatapath<D extends Device, U extends Underlay> implements Datapath {
  /** Which one it is. */
  abstract readonly kind: Datapath["kind"];
  /** The device, to look at. */
  readonly device: D;
  /** The underlay, to look at. */
  readonly underlay: U;
  readonly #engine: Engine;
  readonly #pump: Pump;
  readonly #closing = new AbortController();
  #hasRun = false;
  #running: Promise<void> | undefined;
  #closed: Promise<void> | undefined;

  /**
   * What `open` has made.
   *
   * @internal
   */
  protected constructor(device: D, underlay: U, engine: Engine, pump: Pump) {
    this.device = device;
    this.underlay = underlay;
    this.#engine = engine;
    this.#pump = pump;
  }

  async run(options: DatapathRunOptions = {}): Promise<void> {
    const operation = `run the ${this.kind} datapath`;
    if (this.#closed !== undefined) {
      throw new DatapathError("Cannot run the datapath as it is closed: open a new one", { code: "closed", operation });
    }
    if (this.#hasRun) {
      const message = "Cannot run the datapath as it has been run before: open a new one";
      throw new DatapathError(message, { code: "already-run", operation });
    }
    this.#hasRun = true;
    const { signal } = options;
    if (signal?.aborted) return;
    const stop = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
    this.#running = this.#pump.run(stop).catch((error) => {
      throw toDatapathError(error, operation);
    });
    await this.#running;
  }

  /**
   * Gives the device another MTU while packets move, and does nothing before and after. The engine's own bound stays. Between native ends
   * only.
   *
   * @param mtuBytes The largest packet, in bytes.
   * @throws {DatapathError} When the device cannot have it (`invalid-argument`), or the right is missing; `wrong-state` where an end is
   * written in TypeScript.
   */
  setDeviceMtu(mtuBytes: number): void {
    const operation = "set the MTU of the device";
    requireInteger(mtuBytes, { operation, name: "mtuBytes", min: 68, max: 65535 });
    const pump = this.#pump;
    if (!(pump instanceof ThreadPump)) {
      throw new DatapathError(
        `Cannot ${operation} as an end is written in TypeScript: set it where the device is made`,
        {
          code: "wrong-state",
          operation,
        },
      );
    }
    guarded(operation, () => pump.setDeviceMtu(mtuBytes));
  }

  stats(): DatapathStats {
    return {
      engine: this.#engine.counters(),
      networks: new Map(this.#engine.networks.map((vni) => [vni, this.#engine.counters(vni)])),
      ends: this.#pump.counters(),
    };
  }

  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#closing.abort();
    // What went wrong there is for the caller of `run` to hear.
    await this.#running?.catch(() => {});
    await this.#pump.close();
  }
}
