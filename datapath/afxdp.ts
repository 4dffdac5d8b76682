/**
 * The afxdp datapath: a forwarder that moves packets between a network interface and a device in shared memory, past the kernel's
 * network stack on the outer side, and what makes a {@linkcode Datapath} of it.
 *
 * @module
 */

import { requireObject, requireType } from "../native/arguments.ts";
import {
  type BusyPoll,
  type ForwarderInfo,
  type ForwarderNotice,
  type ForwarderState,
  NativeForwarder,
  type XdpAttach,
  type XdpSupport,
  xdpSupport,
  type ZeroCopy,
} from "../native/forwarder.ts";
import { type Library, libraryOf } from "../native/library.ts";
import type { Latency } from "../native/pump.ts";
import type { Datapath, DatapathRunOptions, DatapathStats } from "./datapath.ts";
import { Engine } from "./engine.ts";
import { DatapathError, guarded, toDatapathError } from "./errors.ts";
import { TunDevice } from "./tun_device.ts";

export type {
  BusyPoll,
  ForwarderInfo,
  ForwarderNotice,
  ForwarderOwnCounters,
  ForwarderState,
  NextHopInfo,
  XdpAttach,
  XdpLack,
  XdpSupport,
  ZeroCopy,
} from "../native/forwarder.ts";

/** A veth pair to make, whose one end is the host's. */
export interface VethDeviceOptions {
  /** The name of the host's end, 1 to 11 bytes; the other one is `<name>-xdp`. @default "icx0" */
  readonly name?: string | undefined;
  /** The largest packet, in bytes. @default 1392 */
  readonly mtuBytes?: number | undefined;
  /** Addresses with prefix length, such as `10.9.0.1/24`. @default none */
  readonly addresses?: readonly string[] | undefined;
}

/** What a {@linkcode Forwarder} is made of. */
export interface ForwarderOptions {
  /**
   * The engine, with a raw underlay that has the interface's hardware address; with `ethernet` for a veth pair, without for a TUN device. It
   * stays its owner's, who closes it after the forwarder.
   */
  readonly engine: Engine;
  /** The network interface of the outer side. */
  readonly interface: string;
  /** The inner side: a veth pair to make, or a TUN device with as many queues, which belongs to the forwarder from `open` on. */
  readonly device: VethDeviceOptions | TunDevice;
  /** `ip:port` of the datagrams to take from the interface, 1 to 16; an unspecified address is all of its IP version. */
  readonly bound: readonly string[];
  /** Where XDP programs run. @default "auto" */
  readonly attach?: XdpAttach | undefined;
  /** Whether the driver reads and writes frames itself; a veth pair shares the memory, and excludes that. @default "auto" */
  readonly zeroCopy?: ZeroCopy | undefined;
  /** How many of the interface's queues are served, with a thread each. @default all */
  readonly queues?: number | undefined;
  /** Whether each thread has a processor of its own. @default false */
  readonly cpuPin?: boolean | undefined;
  /** Whether threads drive the interface's queues instead of interrupts. @default none */
  readonly busyPoll?: BusyPoll | undefined;
  /** How long threads look for more before they sleep. @default "balanced" */
  readonly latency?: Latency | undefined;
  /** Lower the segment size that passing TCP connections announce to what fits. @default false */
  readonly clampMss?: boolean | undefined;
  /** A file for frames of both sides, in pcapng. @default none */
  readonly pcapFile?: string | undefined;
  /** Hears what it has to tell while it runs. What it throws is an uncaught error. @default none */
  readonly onNotice?: ((notice: ForwarderNotice) => void) | undefined;
}

/**
 * A forwarder over AF_XDP. Library: artifact `afxdp`. It needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON.
 *
 * It is opened with everything that it needs, or throws and has changed nothing. `start` moves packets until its signal aborts, and has
 * given everything back when it returns, however it does; it works once. `close` may come at any moment and again.
 *
 * @example Packets flow until the process is told to stop
 * ```ts ignore
 * import { afxdp, Engine, Library } from "@icx/icx";
 *
 * await using library = Library.open({ artifact: "afxdp" });
 * using engine = Engine.create({
 *   library,
 *   ethernet: { hostMac: "02:00:00:00:00:01", gatewayMac: "02:00:00:00:00:02" },
 *   rawUnderlay: { local: [{ addr: "192.0.2.1:6081", mac: "52:54:00:12:34:56" }] },
 * });
 * engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
 * const forwarder = afxdp.Forwarder.open({
 *   engine,
 *   interface: "eth0",
 *   device: { addresses: ["10.9.0.1/24"] },
 *   bound: ["192.0.2.1:6081"],
 * });
 * await using datapath = afxdp.wrap(forwarder);
 * await datapath.run({ signal: AbortSignal.timeout(60_000) });
 * ```
 */
export class Forwarder implements AsyncDisposable {
  /** What it was opened with. */
  readonly info: ForwarderInfo;
  readonly #native: NativeForwarder;
  readonly #engine: Engine;
  readonly #closing = new AbortController();
  #hasStarted = false;
  #running: Promise<void> | undefined;
  #closed: Promise<void> | undefined;
  #last: Pick<DatapathStats, "ends" | "forwarder" | "state">;

  private constructor(native: NativeForwarder, engine: Engine) {
    this.#native = native;
    this.#engine = engine;
    this.info = native.info();
    this.#last = this.#look();
  }

  /**
   * Opens a forwarder. What comes for the bound addresses is dropped until it is started.
   *
   * @param options What it is made of.
   * @throws {DatapathError} When something of it cannot be had; a TUN device that was handed in is closed then. `unsupported` where the
   * library is the core artifact.
   * @throws {TypeError} When one of them is something else.
   */
  static open(options: ForwarderOptions): Forwarder {
    const operation = "open the forwarder";
    requireObject(options, { operation, name: "options" });
    const { engine, device, onNotice, ...rest } = options;
    requireType(engine instanceof Engine, engine, { operation, name: "engine", allowed: "an Engine" });
    requireObject(device, { operation, name: "device" });
    if (engine.clockObstacle !== undefined) {
      throw new DatapathError(`Cannot ${operation} as ${engine.clockObstacle}`, { code: "wrong-state", operation });
    }
    return guarded(operation, () => {
      const inner = device instanceof TunDevice ? { tun: device.native } : { veth: vethOf(device) };
      return new Forwarder(NativeForwarder.open({ ...rest, engine: engine.native, device: inner }, onNotice), engine);
    });
  }

  /**
   * Moves packets until the signal aborts, then resolves. Everything has been given back when it returns.
   *
   * @param options The signal.
   * @throws {DatapathError} The first real failure; `already-run`, `closed`.
   */
  async start(options: DatapathRunOptions = {}): Promise<void> {
    const operation = "run the forwarder";
    if (this.#hasStarted) {
      const message = `Cannot ${operation} as it has been run before: open a new one`;
      throw new DatapathError(message, { code: "already-run", operation });
    }
    if (this.#closed !== undefined) {
      throw new DatapathError(`Cannot ${operation} as it is closed: open a new one`, { code: "closed", operation });
    }
    this.#hasStarted = true;
    const { signal } = options;
    const stop = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
    this.#running = this.#run(stop).catch((error) => {
      throw toDatapathError(error, operation);
    });
    try {
      await this.#running;
    } finally {
      await this.close();
    }
  }

  /** How the interface is, and the ways to the peers; after `close` as they were. */
  state(): ForwarderState {
    if (this.#native.state === "open") this.#last = this.#look();
    return this.#last.state ?? { link: "stopped", interface: this.info.interface, nextHops: [] };
  }

  /** The counters; after `close` the last figures. */
  stats(): DatapathStats {
    if (this.#native.state === "open") this.#last = this.#look();
    return {
      engine: this.#engine.counters(),
      networks: new Map(this.#engine.networks.map((vni) => [vni, this.#engine.counters(vni)])),
      ...this.#last,
    };
  }

  /** Stops, and gives everything back. Does not reject. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #run(stop: AbortSignal): Promise<void> {
    if (stop.aborted) return;
    const stopped = Promise.withResolvers<void>();
    const onAbort = () => stopped.resolve();
    stop.addEventListener("abort", onAbort, { once: true });
    try {
      this.#native.start();
      await Promise.race([this.#native.ended, stopped.promise]);
    } finally {
      stop.removeEventListener("abort", onAbort);
      await this.#native.stop();
      if (this.#native.state === "open") this.#last = this.#look();
    }
  }

  async #close(): Promise<void> {
    this.#closing.abort();
    // What went wrong there is for the caller of `start` to hear.
    await this.#running?.catch(() => {});
    if (this.#native.state === "open") {
      await this.#native.stop();
      this.#last = this.#look();
    }
    await this.#native.close();
  }

  #look(): Pick<DatapathStats, "ends" | "forwarder" | "state"> {
    const { ends, own } = this.#native.counters();
    return { ends, forwarder: own, state: this.#native.status() };
  }
}

/** A forwarder as a {@linkcode Datapath}: it adds nothing, and the bytes on the wire are those of the forwarder. */
class ForwarderDatapath implements Datapath {
  readonly kind = "afxdp";
  readonly #forwarder: Forwarder;

  constructor(forwarder: Forwarder) {
    this.#forwarder = forwarder;
  }

  run(options?: DatapathRunOptions): Promise<void> {
    return this.#forwarder.start(options);
  }

  close(): Promise<void> {
    return this.#forwarder.close();
  }

  stats(): DatapathStats {
    return this.#forwarder.stats();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/**
 * Makes a {@linkcode Datapath} of a forwarder, which belongs to it from then on.
 *
 * @param forwarder The forwarder, not yet started.
 * @returns The datapath: `run` is the forwarder's `start`, `close` its `close`.
 * @throws {TypeError} When it is none.
 */
export function wrap(forwarder: Forwarder): Datapath {
  requireType(forwarder instanceof Forwarder, forwarder, {
    operation: "make a datapath",
    name: "forwarder",
    allowed: "what Forwarder.open() gave",
  });
  return new ForwarderDatapath(forwarder);
}

/**
 * Finds out what this host can do for a forwarder on an interface, and changes nothing.
 *
 * @param library The library, artifact `afxdp`.
 * @param interfaceName The network interface.
 * @throws {DatapathError} `unsupported` where the library is the core artifact.
 */
export function support(library: Library, interfaceName: string): XdpSupport {
  libraryOf({ library }, "look for AF_XDP");
  return guarded("look for AF_XDP", () => xdpSupport(library, interfaceName));
}

function vethOf({ name = "icx0", mtuBytes = 1392, addresses = [] }: VethDeviceOptions) {
  return { name, mtu: mtuBytes, addresses };
}
