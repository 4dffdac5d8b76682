/**
 * A TCP/IP stack in this process as a native inner side.
 *
 * @module
 */

import { isIP } from "node:net";
import { parsePrefix, socketAddress } from "../control/prefix.ts";
import { requireInteger, requireNumber, requireObject, requireText } from "../native/arguments.ts";
import { type Library, libraryOf } from "../native/library.ts";
import { type Congestion, NativeNetstack, type NetstackCounters } from "../native/netstack.ts";
import { Resource, toSocketError } from "./_netstack_resource.ts";
import { MAX_DELAY_MS } from "./clock.ts";
import { guarded } from "./errors.ts";
import { NetstackConn } from "./netstack_conn.ts";
import { NetstackDatagramConn } from "./netstack_datagram.ts";
import { NetstackListener, type NetstackWaitOptions } from "./netstack_listener.ts";

export type { Congestion, NetstackCounters } from "../native/netstack.ts";

/** What a {@linkcode Netstack} is made of. */
export interface NetstackOptions {
  /** The library; it must stay open as long as the stack. */
  readonly library: Library;
  /** Addresses with prefix length, such as `10.9.0.1/24` or `fd00::1/64`: 1 to 8. */
  readonly addresses: readonly string[];
  /** The largest packet, in bytes: 68 to 65535, at least 1280 with an IPv6 address. @default 1392 */
  readonly mtuBytes?: number | undefined;
  /** Threads that may open packets for it, 1 to 256, as many as the underlay has sockets. It sends on the first. @default 1 */
  readonly queues?: number | undefined;
  /** Bytes that a connection receives before they are read, 4 KiB to 64 MiB. @default 524288 */
  readonly receiveBufferBytes?: number | undefined;
  /** Bytes that a connection takes before they are acknowledged, 4 KiB to 64 MiB. @default 524288 */
  readonly sendBufferBytes?: number | undefined;
  /**
   * What limits how much a connection has under way, besides the receiver's window: CUBIC (RFC 9438), Reno (RFC 5681), or nothing, for a path
   * that nobody else uses. @default "cubic"
   */
  readonly congestion?: Congestion | undefined;
  /** Connections at the same time, those that are yet to be accepted or end by themselves included: 1 to 65536. @default 4096 */
  readonly maxConnections?: number | undefined;
  /** How long a peer may take to answer the first packet of a connection, in milliseconds. @default 15000 */
  readonly connectTimeoutMs?: number | undefined;
  /** How long a connection with something to acknowledge hears nothing before it is given up, in milliseconds. @default 120000 */
  readonly userTimeoutMs?: number | undefined;
  /** How long a connection is silent before its peer is asked whether it is still there, in milliseconds; 0: for ever. @default 30000 */
  readonly keepAliveMs?: number | undefined;
  /** Name servers on the inner side, as IP addresses, at most 4. @default none */
  readonly nameServers?: readonly string[] | undefined;
}

/** Where {@linkcode Netstack.connect} connects to. */
export interface NetstackConnectOptions extends NetstackWaitOptions {
  /** An IP address, or a name for the stack's name servers. */
  readonly hostname: string;
  /** The port, 1 to 65535. */
  readonly port: number;
}

/** Where {@linkcode Netstack.listen} and {@linkcode Netstack.listenDatagram} listen. */
export interface NetstackListenOptions {
  /** The port; 0 for any that is free. */
  readonly port: number;
}

/** How {@linkcode Netstack.ping} asks. */
export interface NetstackPingOptions extends NetstackWaitOptions {
  /** Bytes of payload, 0 to 1200. @default 56 */
  readonly payloadBytes?: number | undefined;
  /** How long to wait for the answer, in milliseconds. @default 1000 */
  readonly timeoutMs?: number | undefined;
}

/** An answer to {@linkcode Netstack.ping}. */
export interface NetstackPing {
  /** Who answered. */
  readonly address: string;
  /** From the request to the answer, in milliseconds. */
  readonly rttMs: number;
  /** Bytes of payload that came back. */
  readonly payloadBytes: number;
}

/**
 * A TCP/IP stack in this process: the inner side of a tunnel that needs no device, and so no rights. It is the device of a
 * {@linkcode NetstackDatapath}, which owns it from then on; programs connect and listen through it. It answers echo requests.
 *
 * Nothing moves until the datapath runs: connections then get on. When the datapath ends, so do the stack and everything that is open on it.
 *
 * Any number of connections shares the library's one wait for events. What goes wrong with them has the classes of Deno's own sockets.
 *
 * @example A connection between two stacks, through a tunnel over memory
 * ```ts
 * import { Engine, Library, MemoryUnderlay, Netstack, NetstackDatapath } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * const underlays = MemoryUnderlay.pair();
 * const keys = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
 * const sides = [];
 * for (const [at, underlay] of underlays.entries()) {
 *   const engine = Engine.create({ library, dangerIsolatedKeyHistory: true });
 *   const routes = [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }];
 *   engine.addNetwork({ vni: 7, peer: at === 0 ? "192.0.2.2:6081" : "192.0.2.1:6081", routes });
 *   const [rxKey = "", txKey = ""] = at === 0 ? keys : keys.toReversed();
 *   engine.dangerInstall({ vni: 7, rxSpi: 1 + at, txSpi: 2 - at, rxKey, txKey, expiresAtNs: 2n ** 63n });
 *   const stack = Netstack.open({ library, addresses: [`10.9.0.${1 + at}/24`] });
 *   const datapath = await NetstackDatapath.open({ stack, underlay, engine });
 *   sides.push({ stack, engine, datapath, running: datapath.run() });
 * }
 * const [left, right] = sides;
 * if (left === undefined || right === undefined) throw new Error("There are two sides");
 *
 * const listener = right.stack.listen({ port: 80 });
 * const accepting = listener.accept();
 * const client = await left.stack.connect({ hostname: "10.9.0.2", port: 80 });
 * const server = await accepting;
 * await client.writable.getWriter().write(new TextEncoder().encode("hello"));
 * const { value } = await server.readable.getReader().read();
 * strictEqual(new TextDecoder().decode(value), "hello");
 *
 * for (const { datapath, running, engine } of sides) {
 *   await datapath.close();
 *   await running;
 *   engine.close();
 * }
 * ```
 */
export class Netstack implements AsyncDisposable {
  /** Tells it from other devices. */
  readonly kind = "netstack";
  /** Its addresses with prefix length. */
  readonly addresses: readonly string[];
  readonly #native: NativeNetstack;
  #mtuBytes: number;
  #lastStats: NetstackCounters;

  private constructor(native: NativeNetstack) {
    const { addresses, mtu } = native.info();
    this.addresses = addresses;
    this.#mtuBytes = mtu;
    this.#native = native;
    this.#lastStats = native.counters();
  }

  /**
   * Makes a stack.
   *
   * @param options What it is made of.
   * @throws {DatapathError} `invalid-argument` when an option is not acceptable.
   * @throws {TypeError} When the library is none.
   */
  static open(options: NetstackOptions): Netstack {
    const operation = "open the network stack";
    const library = libraryOf(options, operation);
    const { library: _library, mtuBytes: mtu = 1392, ...rest } = options;
    return guarded(operation, () => new Netstack(NativeNetstack.open(library, { ...rest, mtu })));
  }

  /** The largest packet, in bytes: that of the start, or what {@linkcode DeviceDatapath.setDeviceMtu} made of it. */
  get mtuBytes(): number {
    if (this.#native.state === "open") this.#mtuBytes = this.#native.info().mtu;
    return this.#mtuBytes;
  }

  /**
   * The native device, for the pump that takes it over.
   *
   * @internal
   */
  get native(): NativeNetstack {
    return this.#native;
  }

  /**
   * Opens a TCP connection. Where the name has several addresses they are tried in turn.
   *
   * @param options Where to.
   * @returns The connection, once the peer has answered.
   * @throws {Deno.errors.ConnectionRefused} `TimedOut`, `NetworkUnreachable` without an address of the family, `AddrNotAvailable` where
   * nothing can be connected to or no port is free, `Busy` with as many connections as there may be, `NotFound` and `NotSupported` as
   * {@linkcode Netstack.resolve}, `BadResource` when the stack is closed.
   */
  async connect(options: NetstackConnectOptions): Promise<NetstackConn> {
    const operation = "connect";
    requireObject(options, { operation, name: "options" });
    const { hostname, port, signal } = options;
    requireText(hostname, { operation, name: "hostname" });
    requireInteger(port, { operation, name: "port", min: 1, max: 65535 });
    signal?.throwIfAborted();
    let failure: unknown;
    for (const address of await this.resolve(hostname, { signal })) {
      try {
        return await this.#connectTo(socketAddress(address, port), signal);
      } catch (error) {
        failure = error;
        signal?.throwIfAborted();
      }
    }
    throw failure;
  }

  /**
   * Listens for TCP connections on all addresses.
   *
   * @throws {Deno.errors.AddrInUse} `AddrNotAvailable` when no port is free, `BadResource` when the stack is closed.
   */
  listen(options: NetstackListenOptions): NetstackListener {
    const operation = "listen";
    const port = portOf(options, operation);
    return new NetstackListener(this.#call(operation, (native) => native.listen(port)), this.#any);
  }

  /**
   * Opens a UDP socket on all addresses.
   *
   * @throws {Deno.errors.AddrInUse} `AddrNotAvailable` when no port is free, `BadResource` when the stack is closed.
   */
  listenDatagram(options: NetstackListenOptions): NetstackDatagramConn {
    const operation = "listen for datagrams";
    const port = portOf(options, operation);
    return new NetstackDatagramConn(this.#call(operation, (native) => native.datagram(port)), this.#any);
  }

  /**
   * Sends an echo request and waits for the answer.
   *
   * @param hostname An IP address, or a name for the stack's name servers.
   * @throws {Deno.errors.TimedOut} Without an answer in time. `AddrNotAvailable` where it cannot be sent to, `NotFound` and `NotSupported` as
   * {@linkcode Netstack.resolve}, `BadResource` when the stack is closed.
   */
  async ping(hostname: string, options: NetstackPingOptions = {}): Promise<NetstackPing> {
    const operation = "send an echo request";
    requireText(hostname, { operation, name: "hostname" });
    requireObject(options, { operation, name: "options" });
    const { payloadBytes = 56, timeoutMs = 1000, signal } = options;
    requireInteger(payloadBytes, { operation, name: "payloadBytes", min: 0, max: 1200 });
    requireNumber(timeoutMs, { operation, name: "timeoutMs", min: 0, max: MAX_DELAY_MS });
    signal?.throwIfAborted();
    const [address = hostname] = await this.resolve(hostname, { signal });
    const echo = new Resource(this.#call(operation, (native) => native.echo()), "echo socket");
    const late = new AbortController();
    const timer = setTimeout(() => {
      late.abort(new Deno.errors.TimedOut(`Cannot reach ${address}: there was no echo reply within ${timeoutMs} ms`));
    }, timeoutMs);
    try {
      const sentMs = performance.now();
      echo.now(operation, (native) => native.send({ to: address, sequence: 0, payloadBytes }));
      const reply = await echo.until("receive an echo reply", {
        ready: "readable",
        call: (native) => native.receive(),
        signal: signal === undefined ? late.signal : AbortSignal.any([signal, late.signal]),
      });
      return { address: reply.from, rttMs: performance.now() - sentMs, payloadBytes: reply.payloadBytes };
    } finally {
      clearTimeout(timer);
      echo.close();
    }
  }

  /**
   * Asks the name servers for the addresses of a name, of the families that the stack has addresses of. An IP address is its own answer.
   *
   * @returns The addresses, IPv4 first; at least one.
   * @throws {Deno.errors.NotFound} When no name server has one, or none answers. `NotSupported` without name servers, `InvalidData` for
   * what is no name, `BadResource` when the stack is closed.
   */
  async resolve(name: string, options: NetstackWaitOptions = {}): Promise<readonly string[]> {
    const operation = "resolve the name";
    requireText(name, { operation, name: "name" });
    const bare = name.replace(/^\[(.*)\]$/, "$1");
    if (isIP(bare) !== 0) return [bare];
    const families = new Set(this.addresses.map((address) => parsePrefix(address).family));
    const answers = await Promise.allSettled(
      ([4, 6] as const).filter((family) => families.has(family)).map((family) => this.#ask(name, family, options)),
    );
    const addresses = answers.flatMap((answer) => answer.status === "fulfilled" ? answer.value : []);
    if (addresses.length > 0) return addresses;
    throw answers.find((answer) => answer.status === "rejected")?.reason ??
      new Deno.errors.NotFound(`Cannot ${operation} "${name}": it has no address`);
  }

  /** The counters as they stand; after `close` the last ones. */
  stats(): NetstackCounters {
    if (this.#native.state === "open") this.#lastStats = this.#native.counters();
    return this.#lastStats;
  }

  /** Ends the stack and everything that is open on it, without telling the peers. May be called again. */
  close(): Promise<void> {
    this.stats();
    this.#native.close();
    return Promise.resolve();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** The address that stands for all. */
  get #any(): string {
    return this.addresses.some((address) => address.includes(":")) ? "::" : "0.0.0.0";
  }

  #call<T>(operation: string, call: (native: NativeNetstack) => T): T {
    if (this.#native.state !== "open") {
      throw new Deno.errors.BadResource(`Cannot ${operation} as the network stack is closed: open another one`);
    }
    try {
      return call(this.#native);
    } catch (error) {
      throw toSocketError(error);
    }
  }

  async #connectTo(remote: string, signal: AbortSignal | undefined): Promise<NetstackConn> {
    const operation = `connect to ${remote}`;
    const native = this.#call(operation, (native) => native.connect(remote));
    try {
      await new Resource(native, "connection").until(operation, {
        ready: "writable",
        call: (native) => native.isConnected() ? true : undefined,
        signal,
      });
      return new NetstackConn(native);
    } catch (error) {
      native.close();
      throw error;
    }
  }

  async #ask(name: string, family: 4 | 6, { signal }: NetstackWaitOptions): Promise<readonly string[]> {
    const operation = `resolve "${name}"`;
    const query = new Resource(this.#call(operation, (native) => native.resolve(name, `ipv${family}`)), "name query");
    try {
      return await query.until(operation, { ready: "readable", call: (native) => native.answer(), signal });
    } finally {
      query.close();
    }
  }
}

function portOf(options: NetstackListenOptions, operation: string): number {
  requireObject(options, { operation, name: "options" });
  const { port } = options;
  requireInteger(port, { operation, name: "port", min: 0, max: 65535 });
  return port;
}
