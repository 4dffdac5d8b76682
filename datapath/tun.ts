/**
 * The tun datapath: a TUN device, UDP sockets, and native threads between them.
 *
 * @module
 */

import { NativePump } from "../native/pump.ts";
import type { Datapath, DatapathRunOptions, DatapathStats, EndCounters } from "./datapath.ts";
import type { NativeDevice } from "./device.ts";
import type { Engine } from "./engine.ts";
import { DatapathError, toDatapathError } from "./errors.ts";
import { TunDevice, type TunDeviceOptions } from "./tun_device.ts";
import { UdpUnderlay, type UdpUnderlayOptions } from "./udp_underlay.ts";
import type { NativeUnderlay } from "./underlay.ts";

/** What a {@linkcode TunDatapath} is made of. */
export interface TunDatapathOptions {
  /** The inner side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly device: NativeDevice | TunDeviceOptions;
  /** The outer side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly underlay: NativeUnderlay | UdpUnderlayOptions;
  /** The engine, with bare IP packets inside and UDP outside. It stays its owner's, who closes it after the datapath. */
  readonly engine: Engine;
}

const NO_END_COUNTERS: EndCounters = {
  deviceReadPackets: 0,
  deviceWritePackets: 0,
  deviceWriteErrors: 0,
  underlaySent: 0,
  underlayReceived: 0,
  underlaySendErrors: 0,
  portFallbacks: 0,
  underlayTruncated: 0,
};

/**
 * Moves packets between a TUN device and UDP sockets. They never enter JavaScript: native threads move them, this class
 * starts, watches and stops those. {@linkcode Datapath} says what each call does when.
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
 */
export class TunDatapath implements Datapath {
  readonly kind = "tun";
  readonly #device: NativeDevice;
  readonly #underlay: NativeUnderlay;
  readonly #engine: Engine;
  readonly #closing = new AbortController();
  #hasRun = false;
  #pump: NativePump | undefined;
  #running: Promise<void> | undefined;
  #closed: Promise<void> | undefined;
  #lastEndCounters = NO_END_COUNTERS;

  private constructor(device: NativeDevice, underlay: NativeUnderlay, engine: Engine) {
    this.#device = device;
    this.#underlay = underlay;
    this.#engine = engine;
  }

  /**
   * Makes the device and binds the sockets, where they are not handed in. Nothing moves yet.
   *
   * @param options The parts.
   * @throws {DatapathError} When one of them cannot be had. Those that were made or handed in are closed then.
   */
  static async open(options: TunDatapathOptions): Promise<TunDatapath> {
    await using parts = new AsyncDisposableStack();
    const { device: deviceOption, underlay: underlayOption, engine } = options;
    if ("kind" in underlayOption) parts.use(underlayOption);
    const device = parts.use("kind" in deviceOption ? deviceOption : TunDevice.open(deviceOption));
    const underlay = "kind" in underlayOption ? underlayOption : parts.use(UdpUnderlay.open(underlayOption));
    parts.move();
    return new TunDatapath(device, underlay, engine);
  }

  /** The device, to look at. */
  get device(): NativeDevice {
    return this.#device;
  }

  /** The sockets, to look at. */
  get underlay(): NativeUnderlay {
    return this.#underlay;
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
    this.#running = this.#pumpUntil(signal, operation);
    await this.#running;
  }

  stats(): DatapathStats {
    return {
      engine: this.#engine.counters(),
      networks: new Map(this.#engine.networks.map((vni) => [vni, this.#engine.counters(vni)])),
      ends: this.#readEndCounters(),
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

  async #pumpUntil(signal: AbortSignal | undefined, operation: string): Promise<void> {
    const stopped = Promise.withResolvers<void>();
    const onAbort = () => stopped.resolve();
    this.#closing.signal.addEventListener("abort", onAbort, { once: true });
    signal?.addEventListener("abort", onAbort, { once: true });
    if (signal?.aborted || this.#closing.signal.aborted) onAbort();
    try {
      const pump = NativePump.start({
        engine: this.#engine.native,
        tun: this.#device.native,
        udp: this.#underlay.native,
      });
      this.#pump = pump;
      try {
        await Promise.race([pump.ended, stopped.promise]);
      } finally {
        await pump.stop();
        this.#lastEndCounters = pump.counters();
      }
    } catch (error) {
      throw toDatapathError(error, operation);
    } finally {
      this.#closing.signal.removeEventListener("abort", onAbort);
      signal?.removeEventListener("abort", onAbort);
    }
  }

  async #close(): Promise<void> {
    this.#closing.abort();
    // What went wrong there is for the caller of `run` to hear.
    await this.#running?.catch(() => {});
    const pump = this.#pump;
    this.#pump = undefined;
    await pump?.close();
    await this.#device.close();
    await this.#underlay.close();
  }

  #readEndCounters(): EndCounters {
    if (this.#pump !== undefined) this.#lastEndCounters = this.#pump.counters();
    return this.#lastEndCounters;
  }
}
