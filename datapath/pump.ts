/**
 * What a datapath runs between its two ends, and the one for native ends: the library's own threads.
 *
 * @module
 */

import { type Latency, NativePump, type PumpNotice } from "../native/pump.ts";
import type { EndCounters } from "./datapath.ts";
import type { NativeDevice } from "./device.ts";
import type { Engine } from "./engine.ts";
import type { NativeUnderlay } from "./underlay.ts";

/** Moves packets between a device, an engine and an underlay. It owns the two ends, and not the engine. */
export interface Pump {
  /** Moves packets until `signal` aborts, then resolves. Called once at most. */
  run(signal: AbortSignal): Promise<void>;
  /** What has moved; after `close` the last figures. */
  counters(): EndCounters;
  /** Gives the ends back. Called once, after `run` has ended; does not reject. */
  close(): Promise<void>;
}

/** The counters of ends between which nothing has moved. */
export const NO_END_COUNTERS: EndCounters = {
  deviceReadPackets: 0,
  deviceWritePackets: 0,
  deviceWriteErrors: 0,
  underlaySent: 0,
  underlayReceived: 0,
  underlaySendErrors: 0,
  portFallbacks: 0,
  underlayTruncated: 0,
  deviceReads: 0,
  deviceWrites: 0,
  underlaySends: 0,
  underlayReceives: 0,
  pathMtuUpdates: 0,
  pathMtuIgnored: 0,
  underlayLostReports: 0,
};

/** Native threads between native ends: packets do not enter JavaScript. */
export class ThreadPump implements Pump {
  readonly #device: NativeDevice;
  readonly #underlay: NativeUnderlay;
  readonly #engine: Engine;
  readonly #latency: Latency | undefined;
  readonly #clampMss: boolean | undefined;
  readonly #onNotice: ((notice: PumpNotice) => void) | undefined;
  #native: NativePump | undefined;
  #lastCounters = NO_END_COUNTERS;

  constructor(parts: {
    readonly device: NativeDevice;
    readonly underlay: NativeUnderlay;
    readonly engine: Engine;
    readonly latency?: Latency | undefined;
    readonly clampMss?: boolean | undefined;
    readonly onNotice?: ((notice: PumpNotice) => void) | undefined;
  }) {
    this.#device = parts.device;
    this.#underlay = parts.underlay;
    this.#engine = parts.engine;
    this.#latency = parts.latency;
    this.#clampMss = parts.clampMss;
    this.#onNotice = parts.onNotice;
  }

  async run(signal: AbortSignal): Promise<void> {
    const stopped = Promise.withResolvers<void>();
    const onAbort = () => stopped.resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    try {
      const native = NativePump.start({
        engine: this.#engine.native,
        device: this.#device.native,
        udp: this.#underlay.native,
        latency: this.#latency,
        clampMss: this.#clampMss,
        onNotice: this.#onNotice,
      });
      this.#native = native;
      try {
        await Promise.race([native.ended, stopped.promise]);
      } finally {
        await native.stop();
        this.#lastCounters = native.counters();
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  counters(): EndCounters {
    if (this.#native !== undefined) this.#lastCounters = this.#native.counters();
    return this.#lastCounters;
  }

  /** Gives the device another MTU. It does nothing but during `run`. */
  setDeviceMtu(bytes: number): void {
    this.#native?.setDeviceMtu(bytes);
  }

  async close(): Promise<void> {
    const native = this.#native;
    this.#native = undefined;
    await native?.close();
    await this.#device.close();
    await this.#underlay.close();
  }
}
