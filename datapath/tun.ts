/**
 * The tun datapath: a device of IP packets, an underlay of UDP datagrams, and what moves packets between them.
 *
 * @module
 */

import { requireInteger, requireObject, requireType } from "../native/arguments.ts";
import type { Clock } from "./clock.ts";
import type { Datapath, DatapathRunOptions, DatapathStats } from "./datapath.ts";
import type { Latency, PathMtuReason, PumpNotice } from "../native/pump.ts";
import type { Device, NativeDevice } from "./device.ts";
import { Engine } from "./engine.ts";
import { DatapathError, guarded, toDatapathError } from "./errors.ts";
import { type Pump, ThreadPump } from "./pump.ts";
import { ScriptPump } from "./script_pump.ts";
import { TunDevice, type TunDeviceOptions } from "./tun_device.ts";
import { UdpUnderlay, type UdpUnderlayOptions } from "./udp_underlay.ts";
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

/** What a {@linkcode TunDatapath} between native ends is made of. */
export interface TunDatapathOptions {
  /** The inner side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly device: NativeDevice | TunDeviceOptions;
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

/** What a {@linkcode TunDatapath} between two given ends is made of. At least one of them is written in TypeScript. */
export interface TunDatapathEnds<D extends Device, U extends Underlay> {
  /** The inner side. It belongs to the datapath from `open` on. */
  readonly device: D;
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
 * Between two native ends, a TUN device and UDP sockets, packets never enter JavaScript: native threads move them, and this class
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
 *
 * @example Packets flow until the process is told to stop
 * ```ts ignore
 * import { Engine, Library, TunDatapath } from "@icx/icx";
 *
 * await using library = Library.open();
 * using engine = Engine.create({ library, keepaliveMs: 25_000 });
 * engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
 * await using datapath = await TunDatapath.open({
 *   device: { library, addresses: ["10.9.0.1/24"] },
 *   underlay: { library },
 *   engine,
 * });
 * await datapath.run({ signal: AbortSignal.timeout(60_000) });
 * ```
 *
 * @example Two tunnel ends in one process, over memory
 * ```ts
 * import { addressBytes, Engine, Library, MemoryDevice, MemoryUnderlay, TunDatapath } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * const underlays = MemoryUnderlay.pair();
 * const keys = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
 * const sides = [];
 * for (const [at, underlay] of underlays.entries()) {
 *   const engine = Engine.create({ library, dangerIsolatedKeyHistory: true });
 *   const prefixes = ["10.1.0.0/16", "10.2.0.0/16"];
 *   const [src = "", dst = ""] = at === 0 ? prefixes : prefixes.toReversed();
 *   engine.addNetwork({ vni: 7, peer: at === 0 ? "192.0.2.2:6081" : "192.0.2.1:6081", routes: [{ src, dst }] });
 *   const [rxKey = "", txKey = ""] = at === 0 ? keys : keys.toReversed();
 *   engine.dangerInstall({ vni: 7, rxSpi: 1 + at, txSpi: 2 - at, rxKey, txKey, expiresAtNs: 2n ** 63n });
 *   const [device, host] = MemoryDevice.pair();
 *   const datapath = await TunDatapath.open({ device, underlay, engine });
 *   sides.push({ host, engine, datapath, running: datapath.run() });
 * }
 * const [left, right] = sides;
 *
 * const header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
 * const packet = new Uint8Array([...header, ...addressBytes("10.1.0.1"), ...addressBytes("10.2.0.1")]);
 * await left?.host.push(packet);
 * deepStrictEqual(await right?.host.pull(), packet);
 *
 * for (const { datapath, running, engine } of sides) {
 *   await datapath.close();
 *   await running;
 *   engine.close();
 * }
 * ```
 */
export class TunDatapath<D extends Device = NativeDevice, U extends Underlay = NativeUnderlay> implements Datapath {
  readonly kind = "tun";
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

  private constructor(device: D, underlay: U, engine: Engine, pump: Pump) {
    this.device = device;
    this.underlay = underlay;
    this.#engine = engine;
    this.#pump = pump;
  }

  /**
   * Makes the device and binds the sockets, where they are not handed in. Nothing moves yet.
   *
   * @param options The parts.
   * @throws {DatapathError} When one of them cannot be had; `wrong-state` for an engine that cannot move real
   * traffic over UDP. Those that were made or handed in are closed then.
   * @throws {TypeError} When one of them is something else. Nothing is made or closed then.
   */
  static open(options: TunDatapathOptions): Promise<TunDatapath>;
  /** The same, where an end is written in TypeScript. */
  static open<D extends Device, U extends Underlay>(options: TunDatapathEnds<D, U>): Promise<TunDatapath<D, U>>;
  static async open(
    options: TunDatapathOptions | TunDatapathEnds<Device, Underlay>,
  ): Promise<TunDatapath<Device, Underlay>> {
    const operation = "open the tun datapath";
    requireObject(options, { operation, name: "options" });
    const { device: deviceOption, underlay: underlayOption, engine } = options;
    requireObject(deviceOption, { operation, name: "device" });
    requireObject(underlayOption, { operation, name: "underlay" });
    requireType(engine instanceof Engine, engine, { operation, name: "engine", allowed: "an Engine" });
    await using parts = new AsyncDisposableStack();
    if ("kind" in underlayOption) parts.adopt(underlayOption, (underlay) => underlay.close());
    if ("kind" in deviceOption) parts.adopt(deviceOption, (device) => device.close());
    const device = "kind" in deviceOption ? deviceOption : parts.use(TunDevice.open(deviceOption));
    const underlay = "kind" in underlayOption ? underlayOption : parts.use(UdpUnderlay.open(underlayOption));
    const pump = pumpFor(device, underlay, options);
    parts.move();
    return new TunDatapath(device, underlay, engine, pump);
  }

  async run(options: DatapathRunOptions = {}): Promise<void> {
    const operation = "run the tun datapath";
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

/** What moves packets between two ends of these kinds. */
function pumpFor(
  device: Device,
  underlay: Underlay,
  options: TunDatapathOptions | TunDatapathEnds<Device, Underlay>,
): Pump {
  const { engine } = options;
  if (device.kind !== "script" && underlay.kind !== "script") {
    const { latency, clampMss, onOffloadRefused = () => {}, onPathMtu = () => {} } = options as TunDatapathOptions;
    const onNotice = (notice: PumpNotice) => {
      switch (notice.notice) {
        case "segmentation-refused":
          onOffloadRefused({ offload: "udp-gso", local: notice.local, reason: notice.message });
          return;
        case "path-mtu":
          onPathMtu({
            vni: notice.vni,
            pathMtuBytes: notice.pathMtu ?? undefined,
            innerMtuBytes: notice.innerMtu ?? undefined,
            reason: notice.reason,
          });
          return;
      }
    };
    return new ThreadPump({ device, underlay, engine, latency, clampMss, onNotice });
  }
  if ((device.kind !== "script" || underlay.kind !== "script") && engine.obstacle !== undefined) {
    throw new DatapathError(`Cannot move packets of a native end through the engine as ${engine.obstacle}`, {
      code: "wrong-state",
      operation: "open the tun datapath",
    });
  }
  return new ScriptPump({ device, underlay, engine, clock: "clock" in options ? options.clock : undefined });
}
