/**
 * Engines: networks, keys for tests, counters, and packets in batches.
 *
 * @module
 */

import { SyncHandle } from "./handle.ts";
import type { Library } from "./library.ts";
import { type Buffer, callJson, check, errBuffer, queryJson } from "./marshal.ts";

/** One of our own addresses on a raw underlay. */
export interface LocalEndpointOptions {
  /** `ip:port`. */
  readonly addr: string;
  /** Hardware address. */
  readonly mac: string;
}

/** An underlay of whole Ethernet frames. */
export interface RawUnderlayOptions {
  /** Our own addresses. */
  readonly local: readonly LocalEndpointOptions[];
  /** Whether the outer UDP checksum is computed over IPv4 too. @default false */
  readonly outerUdpChecksum?: boolean | undefined;
  /** Whether the outer IPv4 header forbids fragmentation. @default true */
  readonly dontFragment?: boolean | undefined;
}

/** What {@linkcode NativeEngine.create} takes. */
export interface NativeEngineOptions {
  /** What the virtual side carries: Ethernet frames or bare IP packets. */
  readonly mode: "l2" | "l3";
  /** The host's hardware address; `l2` needs it. @default none */
  readonly hostMac?: string | undefined;
  /** The hardware address that answers for every peer; `l2` needs it. @default none */
  readonly gatewayMac?: string | undefined;
  /** What the physical side carries: UDP payloads, or whole frames. */
  readonly underlay: "udp" | { readonly raw: RawUnderlayOptions };
  /** Whether the outer source address must be the peer's. @default true */
  readonly peerFilter?: boolean | undefined;
  /** Whether the outer source port follows the inner flow. @default false */
  readonly sourcePortHashing?: boolean | undefined;
  /** Whether the outer header takes the inner ECN field over (RFC 6040); the peer must take marks over, too. @default false */
  readonly copyEcn?: boolean | undefined;
  /** Whether the outer header takes the inner DSCP over. @default false */
  readonly copyDscp?: boolean | undefined;
  /** Time between keepalives in milliseconds; 0 for none. @default 0 */
  readonly keepaliveMs?: number | undefined;
  /** The largest inner packet in bytes; 0 for no bound. @default 0 */
  readonly innerMtu?: number | undefined;
  /** For tests: the flow hash's key, 16 hexadecimal digits. @default a random one */
  readonly dangerFlowHashKey?: string | undefined;
  /** For tests: a clock that is set by `setClock`. @default false */
  readonly dangerManualClock?: boolean | undefined;
  /** For tests: keys that other engines of the process have used are allowed. @default false */
  readonly dangerIsolatedKeyHistory?: boolean | undefined;
}

/** An allowed route as seen from this node. */
export interface RouteOptions {
  /** The prefix on this side. */
  readonly src: string;
  /** The prefix on the peer's side. */
  readonly dst: string;
}

/** One network: its peer, and what may pass. */
export interface NativeNetworkOptions {
  /** 0 to 16777215. */
  readonly vni: number;
  /** `ip:port`. */
  readonly peer: string;
  /** The next hop's hardware address, for raw underlays. @default none yet */
  readonly peerMac?: string | undefined;
  /** What may pass. */
  readonly routes: readonly RouteOptions[];
  /** Frames per second that reach the AEAD; 0 for no limit. @default 0 */
  readonly rxRateLimitPps?: number | undefined;
}

/** Keys that are handed in, for tests. */
export interface DangerInstallOptions {
  /** The network. */
  readonly vni: number;
  /** SPI of the receive key. */
  readonly rxSpi: number;
  /** SPI of the transmit key. */
  readonly txSpi: number;
  /** 32 or 64 hexadecimal digits. */
  readonly rxKey: string;
  /** 32 or 64 hexadecimal digits. */
  readonly txKey: string;
  /** The last instant at which they work, in nanoseconds on the engine's clock. */
  readonly expiresAtNs: bigint;
}

/** Keys that are handed in with one epoch for both directions, for tests. */
export interface DangerInstallEpochOptions extends Omit<DangerInstallOptions, "rxSpi" | "txSpi"> {
  /** Above that of the last keys. */
  readonly epoch: number;
}

/** Where a transmit key is to continue. */
export interface SkipTxCounterOptions {
  /** The network. */
  readonly vni: number;
  /** The last counter that counts as used. */
  readonly last: bigint;
}

/** A receive key as it stands. */
export interface RxSaInfo {
  readonly spi: number;
  /** Time left in milliseconds. */
  readonly expiresInMs: number;
  /** Whether a newer one has taken over. */
  readonly superseded: boolean;
}

/** A transmit key as it stands. */
export interface TxSaInfo {
  readonly spi: number;
  /** Time left in milliseconds. */
  readonly expiresInMs: number;
  /** Packets sealed. */
  readonly sealed: bigint;
}

/** A network's keys as they stand. */
export interface SaInfo {
  readonly rx: readonly RxSaInfo[];
  readonly tx: TxSaInfo | undefined;
  /** SPI of a transmit key that takes over soon. */
  readonly pendingTxSpi: number | undefined;
}

/** What stands for the engine itself where the C interface asks for a VNI. */
const WHOLE_ENGINE = 0xffff_ffff;

/** Bytes of an `IcxPacket`. */
export const PACKET_BYTES = 48;

/** Seals and opens packets for any number of networks. */
export class NativeEngine extends SyncHandle {
  protected override readonly kind = "engine";

  /**
   * Makes an engine without networks.
   *
   * @throws {NativeError} `EINVAL`.
   */
  static create(library: Library, options: NativeEngineOptions): NativeEngine {
    const { symbols } = library;
    const id = callJson(symbols, "icx_engine_create", options, (...text) => symbols.icx_engine_create(...text));
    return new NativeEngine(library, id);
  }

  /** Adds a network. @throws {NativeError} `EEXIST`, or `EINVAL`, also for a route of another network. */
  addNetwork(options: NativeNetworkOptions): void {
    this.#callJson("icx_engine_add_network", options);
  }

  /** Replaces peer, routes and rate limit. @throws {NativeError} `ENOENT`, or `EINVAL` as `addNetwork`. */
  updateNetwork(options: NativeNetworkOptions): void {
    this.#callJson("icx_engine_update_network", options);
  }

  /** Removes a network and erases its keys. @throws {NativeError} `ENOENT`. */
  removeNetwork(vni: number): void {
    const { symbols, id } = this.use("icx_engine_remove_network");
    const err = errBuffer();
    const result = symbols.icx_engine_remove_network(id, vni, err, err.byteLength);
    check(symbols, "icx_engine_remove_network", result, err);
  }

  /** Sets the largest inner packet in bytes; 0 for no bound. */
  setInnerMtu(bytes: number): void {
    const { symbols, id } = this.use("icx_engine_set_inner_mtu");
    check(symbols, "icx_engine_set_inner_mtu", symbols.icx_engine_set_inner_mtu(id, bytes));
  }

  /** Sets the clock of an engine with `dangerManualClock`. @throws {NativeError} `ESTATE` for another one. */
  setClock(nowNs: bigint): void {
    const { symbols, id } = this.use("icx_engine_set_clock");
    const [lo, hi] = [Number(nowNs & 0xffff_ffffn), Number(nowNs >> 32n & 0xffff_ffffn)];
    check(symbols, "icx_engine_set_clock", symbols.icx_engine_set_clock(id, lo, hi));
  }

  /** Installs keys that are handed in. @throws {NativeError} `ENOENT`, `EKEY`, `EREUSED`, `EINVAL`. */
  dangerInstall(options: DangerInstallOptions): void {
    this.#callJson("icx_engine_danger_install", { ...options, expiresAtNs: String(options.expiresAtNs) });
  }

  /** As `dangerInstall`, with an epoch that must be above the last one. */
  dangerInstallEpoch(options: DangerInstallEpochOptions): void {
    this.#callJson("icx_engine_danger_install_epoch", { ...options, expiresAtNs: String(options.expiresAtNs) });
  }

  /** Lets the transmit key continue after a counter. Returns whether it moved: it never goes back. */
  skipTxCounter(options: SkipTxCounterOptions): boolean {
    return this.#callJson("icx_engine_skip_tx_counter", { ...options, last: String(options.last) }) === 1;
  }

  /** A network's keys. @throws {NativeError} `ENOENT`. */
  saStatus(vni: number): SaInfo {
    const { symbols, id } = this.use("icx_engine_sa_status");
    const { rx, tx, pendingTxSpi } = queryJson<{
      readonly rx: readonly RxSaInfo[];
      readonly tx: (Omit<TxSaInfo, "sealed"> & { readonly sealed: string }) | null;
      readonly pendingTxSpi: number | null;
    }>(symbols, "icx_engine_sa_status", (out, outBytes) => symbols.icx_engine_sa_status(id, vni, out, outBytes));
    return {
      rx,
      tx: tx === null ? undefined : { ...tx, sealed: BigInt(tx.sealed) },
      pendingTxSpi: pendingTxSpi ?? undefined,
    };
  }

  /**
   * Reads the counters into `out`, in the order of {@linkcode counterNames}.
   *
   * @param vni The network; `undefined` for what belongs to none.
   * @returns How many there are.
   * @throws {NativeError} `ENOENT`; `EBUFFER` when `out` is too short.
   */
  readCounters(vni: number | undefined, out: BigUint64Array<ArrayBuffer>): number {
    const { symbols, id } = this.use("icx_engine_counters");
    const result = symbols.icx_engine_counters(id, vni ?? WHOLE_ENGINE, out, out.length);
    return check(symbols, "icx_engine_counters", result);
  }

  /** Counts sealed packets that an underlay outside of the library then refused. */
  countTxErrors(vni: number, packets: number): void {
    const { symbols, id } = this.use("icx_engine_count_tx_errors");
    check(symbols, "icx_engine_count_tx_errors", symbols.icx_engine_count_tx_errors(id, vni, packets));
  }

  /**
   * Seals virtual-side frames.
   *
   * @param input The frames' bytes.
   * @param packets `count` descriptors (`IcxPacket`); they are overwritten with the results.
   * @param output Gets what came of them.
   * @returns How many packets were processed: from the first on, as many as the output is sure to hold, and at least one.
   */
  virtToPhy(input: Buffer, packets: Buffer, count: number, output: Buffer): number {
    return this.#transform("icx_engine_virt_to_phy", { input, packets, count, output });
  }

  /** Opens frames or datagrams. As {@linkcode NativeEngine.virtToPhy}. */
  phyToVirt(input: Buffer, packets: Buffer, count: number, output: Buffer): number {
    return this.#transform("icx_engine_phy_to_virt", { input, packets, count, output });
  }

  /**
   * Carries out what is due by the clock, and makes the frames that are due of themselves.
   *
   * @param packets Descriptors to fill, 48 bytes each.
   * @param output At least 128 bytes for each.
   * @returns How many there are.
   */
  toPhy(packets: Buffer, output: Buffer): number {
    const { symbols, id } = this.use("icx_engine_to_phy");
    const capacity = Math.floor(packets.byteLength / PACKET_BYTES);
    const result = symbols.icx_engine_to_phy(id, packets, capacity, output, output.byteLength);
    return check(symbols, "icx_engine_to_phy", result);
  }

  #transform(operation: "icx_engine_virt_to_phy" | "icx_engine_phy_to_virt", batch: Transformed): number {
    const { symbols, id } = this.use(operation);
    const { input, packets, count, output } = batch;
    requireDescriptors(packets, count);
    const result = symbols[operation](id, input, input.byteLength, packets, count, output, output.byteLength);
    return check(symbols, operation, result);
  }

  #callJson(operation: EngineJsonFunction, options: unknown): number {
    const { symbols, id } = this.use(operation);
    return callJson(symbols, operation, options, (...text) => symbols[operation](id, ...text));
  }
}

/** The buffers of one transform. */
interface Transformed {
  readonly input: Buffer;
  readonly packets: Buffer;
  readonly count: number;
  readonly output: Buffer;
}

type EngineJsonFunction =
  | "icx_engine_add_network"
  | "icx_engine_update_network"
  | "icx_engine_danger_install"
  | "icx_engine_danger_install_epoch"
  | "icx_engine_skip_tx_counter";

/** The C function trusts the count. */
function requireDescriptors(packets: Buffer, count: number): void {
  if (!(Number.isInteger(count) && count >= 0 && count * PACKET_BYTES <= packets.byteLength)) {
    throw new RangeError(
      `Cannot transform ${count} packets as there must be ${PACKET_BYTES} bytes of descriptors for each: ` +
        `there are ${packets.byteLength}`,
    );
  }
}

/** Names of the engine's counters, in order. */
export function counterNames(library: Library): readonly string[] {
  const { symbols } = library;
  return queryJson(symbols, "icx_counter_names", (out, outBytes) => symbols.icx_counter_names(out, outBytes));
}

/** The largest inner packet in bytes for a path MTU in bytes. @throws {NativeError} `EINVAL` when none fits. */
export function innerMtu(library: Library, pathMtuBytes: number): number {
  const { symbols } = library;
  return check(symbols, "icx_inner_mtu", symbols.icx_inner_mtu(pathMtuBytes));
}
