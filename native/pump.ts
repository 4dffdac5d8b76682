/**
 * The native threads between a device, an engine and an underlay.
 *
 * @module
 */

import type { NativeEngine } from "./engine.ts";
import { BAD_HANDLE } from "./errors.ts";
import { EVENT_KIND } from "./events.ts";
import type { Library } from "./library.ts";
import { callJson, check, errBuffer, queryJson } from "./marshal.ts";
import type { DeviceHandle } from "./packet_handle.ts";
import type { NativeUdp } from "./udp.ts";
import { namedCounters, type WorkerCalls, WorkerHandle } from "./worker_handle.ts";

/** What a pump is made of. All are of the same library. */
export interface PumpOptions {
  /** The engine. It stays its owner's. */
  readonly engine: NativeEngine;
  /** The device. The pump takes it over. */
  readonly device: DeviceHandle;
  /** The sockets. The pump takes them over. */
  readonly udp: NativeUdp;
  /** How long threads look for more before they sleep. @default "balanced" */
  readonly latency?: Latency | undefined;
  /** Lower the segment size that passing TCP connections announce to what fits. @default false */
  readonly clampMss?: boolean | undefined;
  /** Hears what the pump has to tell while it runs. What it throws is an uncaught error of the process. @default none */
  readonly onNotice?: ((notice: PumpNotice) => void) | undefined;
}

/** How much processor time the threads of a pump give for answering sooner. */
export type Latency = "low" | "balanced" | "idle";

/** What a pump tells while it runs. */
export type PumpNotice = SegmentationNotice | PathMtuNotice;

/** The kernel would not cut. */
export interface SegmentationNotice {
  /** The kernel would not cut datagrams that were sent from one socket, which sends them one by one from then on. */
  readonly notice: "segmentation-refused";
  /** The socket's address and port. */
  readonly local: string;
  /** What the kernel said. */
  readonly message: string;
  /** Its error number. */
  readonly errno: number | null;
}

/** The largest packets to a network's peer are others now. */
export interface PathMtuNotice {
  /** Which notice it is. */
  readonly notice: "path-mtu";
  /** The network. */
  readonly vni: number;
  /** The largest IP packet on the underlay, in bytes; `null` when nothing is known of the path any more. */
  readonly pathMtu: number | null;
  /** The largest inner packet, in bytes; `null` likewise. */
  readonly innerMtu: number | null;
  /** A router said so, an interface of this host does, what was known is too old, or the peer has another address. */
  readonly reason: PathMtuReason;
}

/** Why the largest packets are others. */
export type PathMtuReason = "router" | "interface" | "expired" | "peer-changed";

/** What a pump has moved since its start. */
export interface PumpCounters {
  /** Inner packets read from the device. */
  readonly deviceReadPackets: number;
  /** Inner packets written to the device. */
  readonly deviceWritePackets: number;
  /** Inner packets that the device refused. */
  readonly deviceWriteErrors: number;
  /** Datagrams sent. */
  readonly underlaySent: number;
  /** Datagrams received. */
  readonly underlayReceived: number;
  /** Datagrams that the operating system refused to send. */
  readonly underlaySendErrors: number;
  /** Datagrams that left from the base port as their hashed one was taken. */
  readonly portFallbacks: number;
  /** Datagrams that were longer than any that can be sent. */
  readonly underlayTruncated: number;
  /** Reads from the device, each of one packet or of one that is yet to be cut. */
  readonly deviceReads: number;
  /** Writes to the device, each of one packet or of several merged. */
  readonly deviceWrites: number;
  /** Messages sent, each of one datagram or of several. */
  readonly underlaySends: number;
  /** Messages received, each of one datagram or of several. */
  readonly underlayReceives: number;
  /** Reports that a datagram did not fit its path that were believed. */
  readonly pathMtuUpdates: number;
  /** Such reports that proved nothing, or said nothing new. */
  readonly pathMtuIgnored: number;
  /** Reports that a datagram did not arrive for another reason. */
  readonly underlayLostReports: number;
}

/** Order of the counters in the C interface; a test compares it with `icx_pump_counter_names`. */
export const PUMP_COUNTERS = [
  "deviceReadPackets",
  "deviceWritePackets",
  "deviceWriteErrors",
  "underlaySent",
  "underlayReceived",
  "underlaySendErrors",
  "portFallbacks",
  "underlayTruncated",
  "deviceReads",
  "deviceWrites",
  "underlaySends",
  "underlayReceives",
  "pathMtuUpdates",
  "pathMtuIgnored",
  "underlayLostReports",
] as const;

const CALLS: WorkerCalls = {
  endedEvent: EVENT_KIND.pumpEnded,
  noticeEvent: EVENT_KIND.pumpNotice,
  stop: "icx_pump_stop",
};

/** A running pump. */
export class NativePump extends WorkerHandle<PumpNotice> {
  protected override readonly kind = "pump";
  readonly #values = new BigUint64Array(PUMP_COUNTERS.length);

  /**
   * Starts the threads.
   *
   * @throws {NativeError} `ESTATE` for an engine that cannot move real traffic over UDP; device and sockets stay their owner's then. `ESYS` when
   * there are no threads to be had, or the device has another number of queues than the underlay sockets; they are closed
   * then.
   */
  static start(options: PumpOptions): NativePump {
    const operation = "icx_pump_start";
    const { engine, device, udp, latency, clampMss, onNotice } = options;
    const { library } = engine;
    const { symbols } = library;
    const ids = {
      engine: engine.unsafeId(operation),
      device: device.unsafeId(operation),
      udp: udp.unsafeId(operation),
    };
    try {
      const id = callJson(
        symbols,
        operation,
        { ...ids, latency, clampMss },
        (...text) => symbols.icx_pump_start(...text),
      );
      device.releaseToPump();
      udp.releaseToPump();
      return new NativePump(library, id, CALLS, onNotice);
    } catch (error) {
      // Where the start failed late, both are gone.
      if (device.state === "open" && symbols.icx_device_read(ids.device, null, 0, null, 0, null, 0) === BAD_HANDLE) {
        device.releaseToPump();
      }
      if (udp.state === "open" && symbols.icx_udp_info(ids.udp, null, 0) === BAD_HANDLE) udp.releaseToPump();
      throw error;
    }
  }

  /** The counters as they stand, also after `stop`. */
  counters(): PumpCounters {
    const { symbols, id } = this.use("icx_pump_counters");
    check(symbols, "icx_pump_counters", symbols.icx_pump_counters(id, this.#values, this.#values.length));
    return namedCounters(PUMP_COUNTERS, this.#values);
  }

  /**
   * Gives the device another MTU. Where the threads have ended there is no device, and nothing happens.
   *
   * @throws {NativeError} `EINVAL` for what the device cannot have, `EPERM`, `ESYS`.
   */
  setDeviceMtu(bytes: number): void {
    const operation = "icx_pump_set_device_mtu";
    const { symbols, id } = this.use(operation);
    const err = errBuffer();
    check(symbols, operation, symbols.icx_pump_set_device_mtu(id, bytes, err, err.byteLength), err);
  }
}

/** Names of the pump counters as the library has them, in order. */
export function pumpCounterNames(library: Library): readonly string[] {
  const { symbols } = library;
  return queryJson(symbols, "icx_pump_counter_names", (out, outBytes) => symbols.icx_pump_counter_names(out, outBytes));
}
