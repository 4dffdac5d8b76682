/**
 * The transform that every datapath shares: inner packets to sealed datagrams and back, for many networks.
 *
 * @module
 */

import { type Argument, requireInteger, requireType, VNI_RANGE } from "../native/arguments.ts";
import { NativeEngine } from "../native/engine.ts";
import { NativeError } from "../native/errors.ts";
import { type Library, libraryOf } from "../native/library.ts";
import { COUNTER_NAMES, type Counters } from "./counters.ts";
import { DatapathError, guarded } from "./errors.ts";
import { type Direction, PacketBatch } from "./packet_batch.ts";

/** Which part of a batch a transform begins with. */
export interface TransformOptions {
  /** The index of the first packet of the input. @default 0 */
  readonly from?: number | undefined;
}

/**
 * The transform itself, as datapaths see it. Calls do not wait and do not allocate; a drop is a verdict, not an error.
 *
 * Both directions take the packets of `input` from `from` on and write what becomes of them into `output`, which is
 * emptied first: packet `i` of the output belongs to packet `from + i` of the input. They return how many they processed,
 * fewer than there are when the output is full: take the results out, and call again for the rest.
 */
export interface EngineXfrm {
  /** Opens what the underlay received. Results: `forward` (deliver to the device), `consumed`, or a drop. */
  phyToVirt(input: PacketBatch, output: PacketBatch, options?: TransformOptions): number;
  /**
   * Seals what the device gave. Results: `forward` (send to {@linkcode PacketBatch.endpoint}), `handled` (a local reply:
   * back to the device with it), or a drop.
   */
  virtToPhy(input: PacketBatch, output: PacketBatch, options?: TransformOptions): number;
  /**
   * Makes what is due of itself, keepalives, into `output`, which is emptied first.
   *
   * @returns How many packets were made; as long as it is the output's capacity there may be more.
   */
  toPhy(output: PacketBatch): number;
  /** Counts `packets` sealed packets of a network as `tx_errors`: the underlay refused them. */
  countTxErrors(vni: number, packets: number): void;
}

/** One of the engine's own addresses on a raw underlay. */
export interface LocalEndpoint {
  /** `ip:port`. */
  readonly addr: string;
  /** Hardware address, `02:00:00:00:00:01`. */
  readonly mac: string;
}

/** An underlay of whole Ethernet frames. */
export interface RawUnderlayOptions {
  /** The own addresses; the one nearest to the peer's is used. */
  readonly local: readonly LocalEndpoint[];
  /** Whether the outer UDP checksum is computed over IPv4 too. @default false */
  readonly outerUdpChecksum?: boolean | undefined;
  /** Whether the outer IPv4 header forbids fragmentation. @default true */
  readonly dontFragment?: boolean | undefined;
}

/** An inner side of Ethernet frames. */
export interface EthernetOptions {
  /** The hardware address of the host's interface. */
  readonly hostMac: string;
  /** The hardware address that answers for every peer. */
  readonly gatewayMac: string;
}

/** What an {@linkcode Engine} is made of. */
export interface EngineOptions {
  /** The library; it must stay open as long as the engine. */
  readonly library: Library;
  /** Set for an inner side of Ethernet frames. @default bare IP packets */
  readonly ethernet?: EthernetOptions | undefined;
  /** Set for an underlay of Ethernet frames. @default datagrams of UDP sockets */
  readonly rawUnderlay?: RawUnderlayOptions | undefined;
  /** Whether the outer source address of a frame must be the peer's. @default true */
  readonly peerFilter?: boolean | undefined;
  /** Whether the outer source port follows the inner flow. @default false */
  readonly sourcePortHashing?: boolean | undefined;
  /** Whether the outer header takes the inner ECN field over (RFC 6040); the peer must take marks over, too. @default false */
  readonly copyEcn?: boolean | undefined;
  /** Whether the outer header takes the inner DSCP over. @default false */
  readonly copyDscp?: boolean | undefined;
  /** Time between two keepalives, in milliseconds; 0 for none. @default 0 */
  readonly keepaliveMs?: number | undefined;
  /** The largest inner packet, in bytes; 0 for no limit of its own. @default 0 */
  readonly innerMtuBytes?: number | undefined;
  /** For tests: the key of the flow hash, 16 hexadecimal digits, instead of a random one. @default none */
  readonly dangerFlowHashKey?: string | undefined;
  /** For tests: time stands still and is set by `dangerSetClock`. Such an engine moves no real traffic. @default false */
  readonly dangerManualClock?: boolean | undefined;
  /**
   * For tests: this engine alone remembers which keys it sealed with, instead of the process. The same keys in two such
   * engines repeat nonces. @default false
   */
  readonly dangerIsolatedKeyHistory?: boolean | undefined;
}

/** A pair of prefixes between which packets may pass, seen from this node. */
export interface EngineRoute {
  /** The prefix on this side. */
  readonly src: string;
  /** The prefix on the peer's side. */
  readonly dst: string;
}

/** A network: its peer and what may pass. */
export interface NetworkOptions {
  /** The network's number, 0 to 16777215. */
  readonly vni: number;
  /** The peer's data address, `ip:port`. */
  readonly peer: string;
  /** What may pass. The same pair may not belong to two networks. */
  readonly routes: readonly EngineRoute[];
  /** Frames per second that reach the AEAD; 0 for no limit. @default 0 */
  readonly rxRateLimitPps?: number | undefined;
  /** The next hop's hardware address, for raw underlays; a forwarder finds it out itself. @default none yet */
  readonly peerMac?: string | undefined;
}

/** A receive key as it stands. */
export interface RxSaStatus {
  /** Its security parameter index. */
  readonly spi: number;
  /** Time left, in milliseconds. */
  readonly expiresInMs: number;
  /** Whether a newer key has taken over and this one is on its way out. */
  readonly superseded: boolean;
}

/** A transmit key as it stands. */
export interface TxSaStatus {
  /** Its security parameter index. */
  readonly spi: number;
  /** Time left, in milliseconds. */
  readonly expiresInMs: number;
  /** How many packets it has sealed. */
  readonly sealed: bigint;
}

/** The keys of a network as they stand; no key bytes. */
export interface SaStatus {
  /** Receive keys. */
  readonly rx: readonly RxSaStatus[];
  /** The transmit key; `undefined` as long as there is none. */
  readonly tx: TxSaStatus | undefined;
  /** The index of a transmit key that takes over soon. */
  readonly pendingTxSpi: number | undefined;
}

/** A pair of keys, handed in. */
export interface DangerKeys {
  /** The network. */
  readonly vni: number;
  /** The receive key, 32 hexadecimal digits. */
  readonly rxKey: string;
  /** The transmit key, 32 hexadecimal digits. */
  readonly txKey: string;
  /** The last instant at which they work, on the engine's clock in nanoseconds. */
  readonly expiresAtNs: bigint;
}

/** A pair of keys with an index for each direction, handed in. */
export interface DangerInstallOptions extends DangerKeys {
  /** The index of the receive key. */
  readonly rxSpi: number;
  /** The index of the transmit key. */
  readonly txSpi: number;
}

/** A pair of keys with one epoch for both directions, handed in. */
export interface DangerInstallEpochOptions extends DangerKeys {
  /** Above that of the last pair. */
  readonly epoch: number;
}

/**
 * The native engine: networks, keys, counters, and the transform.
 *
 * Keys come from the control plane, inside the library; the `danger…` functions are for tests and known answers. It
 * belongs to whoever made it, and is closed after the datapaths and control endpoints that use it.
 *
 * @example A network without keys seals nothing
 * ```ts
 * import { addressBytes, Engine, Library, PacketBatch } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * using engine = Engine.create({ library });
 * engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
 * const [input, output] = [new PacketBatch(), new PacketBatch()];
 * const header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
 * input.append(new Uint8Array([...header, ...addressBytes("10.9.0.1"), ...addressBytes("10.9.0.2")]));
 * engine.virtToPhy(input, output);
 * strictEqual(output.verdict(0), "tx_no_key");
 * strictEqual(engine.counters(1).tx_no_key, 1n);
 * ```
 */
export class Engine implements EngineXfrm, Disposable {
  readonly #native: NativeEngine;
  readonly #manualClock: boolean;
  readonly #networks = new Set<number>();
  readonly #counterValues = new BigUint64Array(COUNTER_NAMES.length);

  /**
   * Why it cannot move real traffic over UDP, with what to do; `undefined` when it can.
   *
   * @internal
   */
  readonly obstacle: string | undefined;

  /**
   * Why it cannot move real traffic at all, with what to do; `undefined` when it can.
   *
   * @internal
   */
  readonly clockObstacle: string | undefined;

  private constructor(native: NativeEngine, options: EngineOptions) {
    this.#native = native;
    this.#manualClock = options.dangerManualClock === true;
    this.clockObstacle = this.#manualClock
      ? "its clock is set by hand, and keys would never expire: create it with the system's"
      : undefined;
    this.obstacle = options.rawUnderlay === undefined
      ? this.clockObstacle
      : "it has a raw underlay: create it without one";
  }

  /**
   * Makes an engine without networks.
   *
   * @param options What it is made of.
   * @throws {DatapathError} When an option is not acceptable, or the library is closed.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When the inner MTU is out of its range.
   */
  static create(options: EngineOptions): Engine {
    const operation = "create the engine";
    const library = libraryOf(options, operation);
    const { library: _, ethernet, rawUnderlay, innerMtuBytes, ...rest } = options;
    if (innerMtuBytes !== undefined) requireInnerMtu(innerMtuBytes, { operation, name: "innerMtuBytes" });
    return guarded(operation, () =>
      new Engine(
        NativeEngine.create(library, {
          ...rest,
          ...(ethernet === undefined ? { mode: "l3" } : { mode: "l2", ...ethernet }),
          underlay: rawUnderlay === undefined ? "udp" : { raw: rawUnderlay },
          innerMtu: innerMtuBytes,
        }),
        options,
      ));
  }

  /**
   * The native engine, for other parts that work on it: datapaths and control endpoints.
   *
   * @internal
   */
  get native(): NativeEngine {
    return this.#native;
  }

  /** The numbers of its networks. */
  get networks(): readonly number[] {
    return [...this.#networks];
  }

  /**
   * Adds a network.
   *
   * @throws {DatapathError} When the network exists, a value is out of its range, a prefix has bits set behind its length,
   * or a route belongs to another network. Then nothing has changed.
   */
  addNetwork(options: NetworkOptions): void {
    guarded("add a network", () => this.#native.addNetwork(options));
    this.#networks.add(options.vni);
  }

  /** Replaces peer, routes and rate limit of a network in one step. Keys and counters stay. Throws as `addNetwork`. */
  updateNetwork(options: NetworkOptions): void {
    guarded("update a network", () => this.#native.updateNetwork(options));
  }

  /**
   * Removes a network and erases its keys.
   *
   * @throws {DatapathError} When there is no such network.
   */
  removeNetwork(vni: number): void {
    this.#requireNetwork(vni, "remove a network");
    guarded("remove a network", () => this.#native.removeNetwork(vni));
    this.#networks.delete(vni);
  }

  /** Sets the largest inner packet, in bytes, up to 65535; 0 for no limit of its own. @throws {RangeError} */
  setInnerMtu(bytes: number): void {
    requireInnerMtu(bytes, { operation: "set the inner MTU", name: "bytes" });
    guarded("set the inner MTU", () => this.#native.setInnerMtu(bytes));
  }

  /**
   * Reads counters.
   *
   * @param vni The network; without one, what belongs to none.
   * @throws {DatapathError} When there is no such network.
   */
  counters(vni?: number): Counters {
    if (vni !== undefined) this.#requireNetwork(vni, "read the counters of a network");
    guarded("read counters", () => this.#native.readCounters(vni, this.#counterValues));
    return Object.fromEntries(COUNTER_NAMES.map((name, i) => [name, this.#counterValues[i] ?? 0n])) as Counters;
  }

  /**
   * Tells which keys a network has.
   *
   * @throws {DatapathError} When there is no such network.
   */
  saStatus(vni: number): SaStatus {
    this.#requireNetwork(vni, "read the keys of a network");
    return guarded("read the key status", () => this.#native.saStatus(vni));
  }

  phyToVirt(input: PacketBatch, output: PacketBatch, options: TransformOptions = {}): number {
    return this.#transform("rx", input, output, options);
  }

  virtToPhy(input: PacketBatch, output: PacketBatch, options: TransformOptions = {}): number {
    return this.#transform("tx", input, output, options);
  }

  toPhy(output: PacketBatch): number {
    const operation = "make packets";
    requireBatch(output, { operation, name: "output" });
    return guarded(operation, () =>
      output.fill(
        "tx",
        undefined,
        (_input, descriptors, _count, bytes) => {
          try {
            return this.#native.toPhy(descriptors, bytes);
          } catch (cause) {
            if (!(cause instanceof NativeError && cause.code === "EBUFFER")) throw cause;
            throw new RangeError(
              `Cannot ${operation} as the output must have room for one packet at least: it has ${bytes.length} bytes; ` +
                'make the batch with a larger "bufferBytes"',
              { cause },
            );
          }
        },
      ));
  }

  countTxErrors(vni: number, packets: number): void {
    const operation = "count refused packets";
    requireInteger(vni, { operation, name: "vni", ...VNI_RANGE });
    requireInteger(packets, { operation, name: "packets", min: 0, max: 2 ** 32 - 1 });
    guarded(operation, () => this.#native.countTxErrors(vni, packets));
  }

  /** For tests and known answers: installs keys that are handed in. */
  dangerInstall(options: DangerInstallOptions): void {
    guarded("install keys", () => this.#native.dangerInstall(options));
  }

  /** For tests and known answers: installs keys with one strictly increasing epoch for both directions. */
  dangerInstallEpoch(options: DangerInstallEpochOptions): void {
    guarded("install keys", () => this.#native.dangerInstallEpoch(options));
  }

  /**
   * For tests and known answers: makes the transmit key of a network continue after `last`. Only forward.
   *
   * @returns Whether it moved.
   */
  dangerSkipTxCounter(vni: number, last: bigint): boolean {
    return guarded("move the transmit counter", () => this.#native.skipTxCounter({ vni, last }));
  }

  /**
   * For tests and known answers: sets the clock of an engine with `dangerManualClock`, in nanoseconds.
   *
   * @throws {DatapathError} When the engine was made without it.
   */
  dangerSetClock(nowNs: bigint): void {
    const operation = "set the clock";
    requireType(typeof nowNs === "bigint" && nowNs >= 0n && nowNs < 2n ** 64n, nowNs, {
      operation,
      name: "nowNs",
      allowed: "a bigint from 0n to 2n ** 64n - 1n",
    });
    if (!this.#manualClock) {
      throw new DatapathError(
        'Cannot set the clock as the engine runs by the system\'s: create it with "dangerManualClock"',
        { code: "wrong-state", operation },
      );
    }
    guarded(operation, () => this.#native.setClock(nowNs));
  }

  /** Closes the engine and erases its keys. May be called again. */
  close(): void {
    this.#native.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  #requireNetwork(vni: number, operation: string): void {
    requireInteger(vni, { operation, name: "vni", ...VNI_RANGE });
    // A closed engine says so instead.
    if (this.#networks.has(vni) || this.#native.state !== "open") return;
    const there = this.#networks.size === 0 ? "there is none" : `there is ${this.networks.join(", ")}`;
    throw new DatapathError(`Cannot ${operation} as VNI ${vni} is none of the engine's: ${there}; add it first`, {
      code: "not-found",
      operation,
    });
  }

  #transform(direction: Direction, input: PacketBatch, output: PacketBatch, { from = 0 }: TransformOptions): number {
    const operation = "transform packets";
    requireBatch(input, { operation, name: "input" });
    requireBatch(output, { operation, name: "output" });
    const native = this.#native;
    return guarded(operation, () =>
      output.fill(
        direction,
        { batch: input, from },
        (bytes, descriptors, count, results) =>
          direction === "rx"
            ? native.phyToVirt(bytes, descriptors, count, results)
            : native.virtToPhy(bytes, descriptors, count, results),
      ));
  }
}

function requireBatch(value: unknown, argument: Argument): void {
  requireType(value instanceof PacketBatch, value, { ...argument, allowed: "a PacketBatch" });
}

function requireInnerMtu(bytes: number, argument: Argument): void {
  requireInteger(bytes, { ...argument, min: 0, max: 65535 });
}
