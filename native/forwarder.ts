/**
 * Forwarders over AF_XDP. Only the artifact `afxdp` of the library has them.
 *
 * @module
 */

import type { NativeEngine } from "./engine.ts";
import { NativeError } from "./errors.ts";
import { EVENT_KIND } from "./events.ts";
import type { Library } from "./library.ts";
import { callJson, check, encodeJson, errBuffer, queryJson } from "./marshal.ts";
import { type Latency, PUMP_COUNTERS, type PumpCounters } from "./pump.ts";
import type { Symbols } from "./symbols.ts";
import type { NativeTun } from "./tun.ts";
import { namedCounters, type WorkerCalls, WorkerHandle } from "./worker_handle.ts";

/** The functions that the core artifact lacks. */
type ForwarderSymbols = { readonly [Name in keyof Symbols]: NonNullable<Symbols[Name]> };

/** How XDP programs are attached: in the driver, in the kernel's stack behind it, or in the driver where that is possible. */
export type XdpAttach = "auto" | "native" | "generic";

/** Whether the interface's driver reads and writes frames in the forwarder's memory itself. */
export type ZeroCopy = "auto" | "require" | "off";

/** Preferred busy polling: workers drive the interface's queues by system calls instead of interrupts. */
export interface BusyPoll {
  /** How long one call polls at most, in microseconds. */
  readonly microseconds: number;
  /** Packets that it handles at most. */
  readonly budget: number;
}

/** A veth pair to make. */
export interface VethOptions {
  /** Of the host's end, 1 to 11 bytes; the other one is `<name>-xdp`. */
  readonly name: string;
  /** The largest IP packet in bytes. */
  readonly mtu: number;
  /** Addresses with prefix length. */
  readonly addresses: readonly string[];
}

/** What {@linkcode NativeForwarder.open} takes. */
export interface ForwarderOptions {
  /** The engine, with a raw underlay. It stays its owner's. */
  readonly engine: NativeEngine;
  /** The network interface. */
  readonly interface: string;
  /** The inner side. A TUN device is taken over. */
  readonly device: { readonly veth: VethOptions } | { readonly tun: NativeTun };
  /** `ip:port` of the datagrams that are taken from the interface, 1 to 16. */
  readonly bound: readonly string[];
  readonly attach?: XdpAttach | undefined;
  readonly zeroCopy?: ZeroCopy | undefined;
  readonly queues?: number | undefined;
  readonly cpuPin?: boolean | undefined;
  readonly busyPoll?: BusyPoll | undefined;
  readonly latency?: Latency | undefined;
  readonly clampMss?: boolean | undefined;
  readonly pcapFile?: string | undefined;
}

/** A forwarder as it was opened. */
export interface ForwarderInfo {
  /** The network interface. */
  readonly interface: string;
  /** Its index. */
  readonly interfaceIndex: number;
  /** Its hardware address. */
  readonly mac: string;
  /** Its driver, where that has a name. */
  readonly driver: string | null;
  /** Queues, each with a worker. */
  readonly queues: number;
  /** How its XDP program is attached. */
  readonly attached: "native" | "generic";
  /** Whether its driver reads and writes frames itself. */
  readonly zeroCopy: boolean;
  /** The inner side. */
  readonly device: {
    readonly kind: "veth" | "tun";
    readonly name: string;
    readonly index: number;
    readonly mtu: number;
    readonly queues: number;
  };
  /** Bytes of a frame in the shared memory. */
  readonly frameBytes: number;
  /** The largest IP packet of the underlay that a frame holds, in bytes. */
  readonly maxPathMtu: number;
  /** Settings of the interface that were changed until the end, in words. */
  readonly settings: readonly string[];
}

/** The way to a peer. */
export interface NextHopInfo {
  /** The peer's address. */
  readonly peer: string;
  /** The hardware address that its frames go to; `null` while that is not known, and they are dropped. */
  readonly mac: string | null;
  /** Why it is not known. */
  readonly reason: string | null;
}

/** A forwarder at one moment. */
export interface ForwarderState {
  /** The network interface: `removed` where there is none of that name; packets move again when it is back. */
  readonly link: "up" | "down" | "removed" | "stopped";
  /** Its name now. */
  readonly interface: string;
  /** The ways to the peers. */
  readonly nextHops: readonly NextHopInfo[];
}

/** What a forwarder tells while it runs. */
export type ForwarderNotice =
  | { readonly notice: "link"; readonly link: ForwarderState["link"]; readonly interface: string }
  | ({ readonly notice: "next-hop" } & NextHopInfo)
  | { readonly notice: "oversize"; readonly hint: string }
  | { readonly notice: "capture-failed"; readonly message: string };

/** What only a forwarder counts. */
export interface ForwarderOwnCounters {
  /** Frames for a bound address and port, taken from the kernel's stack. */
  readonly filterRedirected: number;
  /** Frames left to the kernel's stack. */
  readonly filterPassed: number;
  /** Frames as those redirected, on a queue without a socket. */
  readonly filterDropped: number;
  /** Frames longer than fits the shared memory, as merged or uncut ones are. */
  readonly rxOversize: number;
  /** Frames that found the receive ring full. */
  readonly rxRingFull: number;
  /** Times that there was no frame to receive into. */
  readonly rxFillEmpty: number;
  /** The same three on the device's side. */
  readonly deviceOversize: number;
  /** Frames from the device that found the ring full. */
  readonly deviceRingFull: number;
  /** Times that there was no frame to receive from the device into. */
  readonly deviceFillEmpty: number;
  /** Descriptors that made no sense. */
  readonly invalidDescriptors: number;
  /** Sealed frames dropped as the hardware address of the next hop is not known. */
  readonly nextHopUnknown: number;
  /** Sealed frames dropped as they are larger than the interface's MTU. */
  readonly txOversize: number;
  /** Times that the kernel refused to transmit; it is asked again. */
  readonly txRefused: number;
  /** Frames counted as sent that were given up since the kernel took none for a second, or at the end. */
  readonly txAbandoned: number;
  /** Frames, or batches from a TUN device, dropped by a defect that was caught. */
  readonly transformPanics: number;
  /** ARP requests and neighbour solicitations from the device that were answered. */
  readonly neighborReplies: number;
  /** Frames that the capture could not keep up with. */
  readonly captureMissed: number;
}

/** Order of a forwarder's own counters in the C interface, behind those of a pump; a test compares it. */
export const FORWARDER_COUNTERS = [
  "filterRedirected",
  "filterPassed",
  "filterDropped",
  "rxOversize",
  "rxRingFull",
  "rxFillEmpty",
  "deviceOversize",
  "deviceRingFull",
  "deviceFillEmpty",
  "invalidDescriptors",
  "nextHopUnknown",
  "txOversize",
  "txRefused",
  "txAbandoned",
  "transformPanics",
  "neighborReplies",
  "captureMissed",
] as const;

/** What a host can do for a forwarder on an interface. */
export interface XdpSupport {
  /** The driver, where it has a name. */
  readonly driver: string | null;
  /** Queues that the interface receives on, if it says so. */
  readonly queues: number | null;
  /** Whether the driver runs XDP programs itself; `null`: it does not say. */
  readonly native: boolean | null;
  /** Whether it reads and writes frames in shared memory itself; `null`: it does not say. */
  readonly zeroCopy: boolean | null;
  /** What stands in the way of any forwarder. */
  readonly missing: readonly XdpLack[];
}

/** Something without which no forwarder opens. */
export interface XdpLack {
  /** A right of this process, a part of this kernel, or what else a system call said. */
  readonly kind: "permission" | "kernel" | "system";
  /** What it is, in words. */
  readonly what: string;
}

const CALLS: WorkerCalls = {
  endedEvent: EVENT_KIND.forwarderEnded,
  noticeEvent: EVENT_KIND.forwarderNotice,
  stop: "icx_forwarder_stop",
};

/** A forwarder. */
export class NativeForwarder extends WorkerHandle<ForwarderNotice> {
  protected override readonly kind = "forwarder";
  readonly #values = new BigUint64Array(PUMP_COUNTERS.length + FORWARDER_COUNTERS.length);

  /**
   * Opens a forwarder.
   *
   * @param options What it is made of.
   * @param onNotice Hears what it has to tell while it runs. What it throws is an uncaught error of the process.
   * @throws {NativeError} `EPERM`, `EBUSY`, `EEXIST`, `EUNSUPPORTED`, `EINVAL`, `ESYS`. A TUN device is closed then.
   */
  static open(options: ForwarderOptions, onNotice?: (notice: ForwarderNotice) => void): NativeForwarder {
    const operation = "icx_forwarder_open";
    const { engine, device, ...rest } = options;
    const { library } = engine;
    const symbols = forwarderSymbols(library, operation);
    const tun = "tun" in device ? device.tun : undefined;
    try {
      const id = callJson(
        library.symbols,
        operation,
        {
          ...rest,
          engine: engine.unsafeId(operation),
          device: "tun" in device ? { tun: device.tun.unsafeId(operation) } : device,
        },
        (...text) => symbols.icx_forwarder_open(...text),
      );
      tun?.releaseToPump();
      return new NativeForwarder(library, id, CALLS, onNotice);
    } catch (error) {
      tun?.close();
      throw error;
    }
  }

  /** What it was opened with. */
  info(): ForwarderInfo {
    const { symbols, id } = this.#use("icx_forwarder_info");
    return queryJson(
      this.library.symbols,
      "icx_forwarder_info",
      (out, outBytes) => symbols.icx_forwarder_info(id, out, outBytes),
    );
  }

  /**
   * Starts moving packets. Once only.
   *
   * @throws {NativeError} `ESTATE` the second time, `ESYS` when there are no threads to be had.
   */
  start(): void {
    const operation = "icx_forwarder_start";
    const { symbols, id } = this.#use(operation);
    const err = errBuffer();
    check(this.library.symbols, operation, symbols.icx_forwarder_start(id, err, err.byteLength), err);
  }

  /** How the interface is, and the ways to the peers. */
  status(): ForwarderState {
    const { symbols, id } = this.#use("icx_forwarder_state");
    return queryJson(
      this.library.symbols,
      "icx_forwarder_state",
      (out, outBytes) => symbols.icx_forwarder_state(id, out, outBytes),
    );
  }

  /** The counters as they stand, also after `stop`. */
  counters(): { readonly ends: PumpCounters; readonly own: ForwarderOwnCounters } {
    const { symbols, id } = this.#use("icx_forwarder_counters");
    const result = symbols.icx_forwarder_counters(id, this.#values, this.#values.length);
    check(this.library.symbols, "icx_forwarder_counters", result);
    return {
      ends: namedCounters(PUMP_COUNTERS, this.#values),
      own: namedCounters(FORWARDER_COUNTERS, this.#values, PUMP_COUNTERS.length),
    };
  }

  #use(operation: string): { readonly symbols: ForwarderSymbols; readonly id: number } {
    const { id } = this.use(operation);
    return { symbols: forwarderSymbols(this.library, operation), id };
  }
}

/**
 * Finds out what this host can do for a forwarder, and changes nothing.
 *
 * @throws {NativeError} `EUNSUPPORTED` where the library is the core artifact.
 */
export function xdpSupport(library: Library, interfaceName: string): XdpSupport {
  const operation = "icx_afxdp_support";
  const symbols = forwarderSymbols(library, operation);
  const json = encodeJson({ interface: interfaceName });
  const err = errBuffer();
  return queryJson(
    library.symbols,
    operation,
    (out, outBytes) => symbols.icx_afxdp_support(json, json.byteLength, out, outBytes, err, err.byteLength),
    err,
  );
}

/** Names of the forwarder's counters as the library has them, in order. */
export function forwarderCounterNames(library: Library): readonly string[] {
  const symbols = forwarderSymbols(library, "icx_forwarder_counter_names");
  return queryJson(
    library.symbols,
    "icx_forwarder_counter_names",
    (out, outBytes) => symbols.icx_forwarder_counter_names(out, outBytes),
  );
}

/** The functions of the library, all of them. */
function forwarderSymbols(library: Library, operation: string): ForwarderSymbols {
  const { symbols } = library;
  if (symbols.icx_forwarder_open !== null) return symbols as ForwarderSymbols;
  throw new NativeError(
    'Cannot use AF_XDP with the core artifact of the icx library: open it with artifact "afxdp"',
    { code: "EUNSUPPORTED", operation },
  );
}
