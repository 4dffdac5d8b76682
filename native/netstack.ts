/**
 * Network stacks in this process, and what is open on them.
 *
 * No call waits: one that finds nothing to do says so, and {@linkcode ReadinessHandle.readable} or
 * {@linkcode ReadinessHandle.writable} resolves when it is worth calling again.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { type Buffer, callJson, check, decodeJson, errBuffer, queryJson } from "./marshal.ts";
import { DeviceHandle, type Moved, PacketHandle } from "./packet_handle.ts";
import { ReadinessHandle } from "./readiness.ts";
import type { Symbols } from "./symbols.ts";

/** What {@linkcode NativeNetstack.open} takes. */
export interface NetstackConfig {
  /** Addresses with prefix length, such as `10.9.0.1/24`: 1 to 8. */
  readonly addresses: readonly string[];
  /** The largest packet in bytes. */
  readonly mtu: number;
  /** Threads of a pump that may open packets for it, 1 to 65535. @default 1 */
  readonly queues?: number | undefined;
  /** Bytes that a connection receives before they are read. @default 524288 */
  readonly receiveBufferBytes?: number | undefined;
  /** Bytes that a connection takes before they are acknowledged. @default 524288 */
  readonly sendBufferBytes?: number | undefined;
  /** What limits how much a connection has under way, besides the receiver's window. @default "cubic" */
  readonly congestion?: Congestion | undefined;
  /** Connections at the same time. @default 4096 */
  readonly maxConnections?: number | undefined;
  /** How long a peer may take to answer, in milliseconds. @default 15000 */
  readonly connectTimeoutMs?: number | undefined;
  /** How long a connection with something to acknowledge hears nothing before it is given up, in milliseconds. @default 120000 */
  readonly userTimeoutMs?: number | undefined;
  /** How long a connection is silent before its peer is asked whether it is there, in milliseconds; 0: for ever. @default 30000 */
  readonly keepAliveMs?: number | undefined;
  /** Name servers on the inner side, at most 4. @default none */
  readonly nameServers?: readonly string[] | undefined;
}

/** What limits how much a connection has under way: RFC 9438, RFC 5681, or nothing, for a path that nobody else uses. */
export type Congestion = "cubic" | "reno" | "none";

/** A stack as it was made. */
export interface NetstackInfo {
  /** Its addresses with prefix length. */
  readonly addresses: readonly string[];
  /** The largest packet in bytes. */
  readonly mtu: number;
}

/** What a stack has done since it was made. */
export interface NetstackCounters {
  /** Connections that are there now, in whatever state. */
  readonly connections: number;
  /** Connections that were opened from here. */
  readonly connects: number;
  /** Connections that were opened from elsewhere. */
  readonly accepts: number;
  /** Connections that ended otherwise than by being closed. */
  readonly failures: number;
  /** First packets of connections for which a listener, or the stack, had no room. */
  readonly refused: number;
  /** Packets that are no IP, for or from an address that cannot be, fragments of TCP, or have a wrong checksum. */
  readonly badPackets: number;
  /** Answers and datagrams for which there was no room on the way out. */
  readonly overflows: number;
}

/** Order of the counters in the C interface; a test compares it with `icx_netstack_counter_names`. */
export const NETSTACK_COUNTERS = [
  "connections",
  "connects",
  "accepts",
  "failures",
  "refused",
  "badPackets",
  "overflows",
] as const;

/** An answer to an echo request. */
export interface EchoReply {
  /** Who sent it. */
  readonly from: string;
  /** The number of the request. */
  readonly sequence: number;
  /** Bytes that came back. */
  readonly payloadBytes: number;
}

/** `ICX_EAGAIN`. */
const WOULD_BLOCK = -17;

/** Enough for an echo reply, and for as many addresses as a name may have. */
const ANSWER_BYTES = 1024;

/** For the calls of this thread, none of which waits. */
const err = errBuffer();

/** What a call came to: its result, or `undefined` when it has to be made again later. */
function unlessBlocked(symbols: Symbols, operation: string, result: number): number | undefined {
  return result === WOULD_BLOCK ? undefined : check(symbols, operation, result, err);
}

/** A TCP/IP stack. It ends when it is closed, or with the pump that has taken it over, and everything on it does. */
export class NativeNetstack extends DeviceHandle {
  protected override readonly kind = "network stack";
  readonly #values = new BigUint64Array(NETSTACK_COUNTERS.length);

  /**
   * Makes a stack.
   *
   * @throws {NativeError} `EINVAL`, `ESYS`.
   */
  static open(library: Library, config: NetstackConfig): NativeNetstack {
    const { symbols } = library;
    const id = callJson(symbols, "icx_netstack_open", config, (...text) => symbols.icx_netstack_open(...text));
    return new NativeNetstack(library, id);
  }

  /** Addresses and MTU. */
  info(): NetstackInfo {
    const { symbols, id } = this.use("icx_netstack_info");
    return queryJson(symbols, "icx_netstack_info", (out, outBytes) => symbols.icx_netstack_info(id, out, outBytes));
  }

  /** The counters as they stand. */
  counters(): NetstackCounters {
    const operation = "icx_netstack_counters";
    const { symbols, id } = this.use(operation);
    check(symbols, operation, symbols.icx_netstack_counters(id, this.#values, this.#values.length));
    const counters = NETSTACK_COUNTERS.map((name, index) => [name, Number(this.#values[index] ?? 0n)]);
    return Object.fromEntries(counters);
  }

  /**
   * Begins a connection.
   *
   * @param remote `ip:port`.
   * @throws {NativeError} `EADDRNOTAVAIL`, `ENETUNREACH`, `EBUSY`, `ECLOSED`.
   */
  connect(remote: string): NativeStream {
    const operation = "icx_netstack_connect";
    const { symbols, id } = this.use(operation);
    const stream = callJson(symbols, operation, { remote }, (...text) => symbols.icx_netstack_connect(id, ...text));
    return new NativeStream(this.library, stream);
  }

  /** Listens on a port; 0 for any free one. @throws {NativeError} `EADDRINUSE`, `EADDRNOTAVAIL`, `ECLOSED`. */
  listen(port: number): NativeListener {
    const operation = "icx_netstack_listen";
    const { symbols, id } = this.use(operation);
    const listener = callJson(symbols, operation, { port }, (...text) => symbols.icx_netstack_listen(id, ...text));
    return new NativeListener(this.library, listener);
  }

  /** Opens a UDP socket on a port; 0 for any free one. @throws {NativeError} `EADDRINUSE`, `EADDRNOTAVAIL`, `ECLOSED`. */
  datagram(port: number): NativeDatagram {
    const operation = "icx_netstack_datagram";
    const { symbols, id } = this.use(operation);
    const socket = callJson(symbols, operation, { port }, (...text) => symbols.icx_netstack_datagram(id, ...text));
    return new NativeDatagram(this.library, socket);
  }

  /** Opens what sends echo requests and hears the replies. @throws {NativeError} `ECLOSED`. */
  echo(): NativeEcho {
    const operation = "icx_netstack_echo";
    const { symbols, id } = this.use(operation);
    const echo = check(symbols, operation, symbols.icx_netstack_echo(id, err, err.byteLength), err);
    return new NativeEcho(this.library, echo);
  }

  /** Begins to ask the name servers. */
  resolve(name: string, family: "ipv4" | "ipv6"): NativeResolution {
    const operation = "icx_netstack_resolve";
    const { symbols, id } = this.use(operation);
    const query = callJson(
      symbols,
      operation,
      { name, family },
      (...text) => symbols.icx_netstack_resolve(id, ...text),
    );
    return new NativeResolution(this.library, query);
  }

  /** For pumps: the stack stays for those who use it. */
  override releaseToPump(): void {}
}

/** A TCP connection. Closing it delivers what was written, unless something has come that was not read. */
export class NativeStream extends ReadinessHandle {
  protected override readonly kind = "connection";

  /** Both ends, as `ip:port`. */
  info(): { readonly local: string; readonly remote: string } {
    const { symbols, id } = this.use("icx_stream_info");
    return queryJson(symbols, "icx_stream_info", (out, outBytes) => symbols.icx_stream_info(id, out, outBytes));
  }

  /**
   * Whether the connection is there. If not yet: wait for `writable`.
   *
   * @throws {NativeError} `ECONNREFUSED`, `ETIMEDOUT`, `ECONNRESET`, `ENOTCONN`, `ECLOSED`.
   */
  isConnected(): boolean {
    const { symbols, id } = this.use("icx_stream_connected");
    const result = symbols.icx_stream_connected(id, err, err.byteLength);
    return unlessBlocked(symbols, "icx_stream_connected", result) !== undefined;
  }

  /**
   * Reads what has come, 0 bytes at the end. `undefined`: wait for `readable`.
   *
   * @throws {NativeError} `ECONNRESET`, `ETIMEDOUT`, `ECONNREFUSED`, `ENOTCONN`, `ECLOSED`.
   */
  read(into: Buffer): number | undefined {
    const { symbols, id } = this.use("icx_stream_read");
    const result = symbols.icx_stream_read(id, into, into.byteLength, err, err.byteLength);
    return unlessBlocked(symbols, "icx_stream_read", result);
  }

  /**
   * Takes bytes to be sent, from the first on. `undefined`: wait for `writable`.
   *
   * @throws {NativeError} `EPIPE`, `ECONNRESET`, `ETIMEDOUT`, `ECONNREFUSED`, `ENOTCONN`, `ECLOSED`.
   */
  write(bytes: Buffer): number | undefined {
    const { symbols, id } = this.use("icx_stream_write");
    const result = symbols.icx_stream_write(id, bytes, bytes.byteLength, err, err.byteLength);
    return unlessBlocked(symbols, "icx_stream_write", result);
  }

  /** Ends the sending side behind what was written. @throws {NativeError} As `isConnected`. */
  closeSend(): void {
    const { symbols, id } = this.use("icx_stream_close_send");
    check(symbols, "icx_stream_close_send", symbols.icx_stream_close_send(id, err, err.byteLength), err);
  }

  /** Ends the connection at once, and resets it at the peer. */
  abort(): void {
    const { symbols, id } = this.use("icx_stream_abort");
    check(symbols, "icx_stream_abort", symbols.icx_stream_abort(id));
  }
}

/** Hears connections on a port. Closing it resets those that were not accepted. */
export class NativeListener extends ReadinessHandle {
  protected override readonly kind = "listener";

  /** The port. */
  info(): { readonly port: number } {
    const { symbols, id } = this.use("icx_listener_info");
    return queryJson(symbols, "icx_listener_info", (out, outBytes) => symbols.icx_listener_info(id, out, outBytes));
  }

  /** The next connection. `undefined`: wait for `readable`. @throws {NativeError} `ECLOSED`. */
  accept(): NativeStream | undefined {
    const { symbols, id } = this.use("icx_listener_accept");
    const result = symbols.icx_listener_accept(id, err, err.byteLength);
    const stream = unlessBlocked(symbols, "icx_listener_accept", result);
    return stream === undefined ? undefined : new NativeStream(this.library, stream);
  }
}

/** A UDP socket on all addresses of a stack. */
export class NativeDatagram extends PacketHandle {
  protected override readonly kind = "datagram socket";

  /** The port. */
  info(): { readonly port: number } {
    const { symbols, id } = this.use("icx_datagram_info");
    return queryJson(symbols, "icx_datagram_info", (out, outBytes) => symbols.icx_datagram_info(id, out, outBytes));
  }

  /** Receives datagrams. @throws {NativeError} `ECLOSED`. */
  override take(packets: Buffer, output: Buffer): Moved {
    return this.fill(
      "icx_datagram_receive",
      packets,
      output,
      (symbols, ...call) => symbols.icx_datagram_receive(...call),
    );
  }

  /** Sends datagrams; those that are too long or cannot be sent are refused. @throws {NativeError} `ECLOSED`. */
  override give(input: Buffer, packets: Buffer, count: number): Moved {
    return this.hand(
      "icx_datagram_send",
      input,
      packets,
      count,
      (symbols, ...call) => symbols.icx_datagram_send(...call),
    );
  }
}

/** Sends echo requests of one identifier and hears their replies. */
export class NativeEcho extends ReadinessHandle {
  protected override readonly kind = "echo socket";

  /**
   * Sends a request with up to 1200 bytes of payload.
   *
   * @throws {NativeError} `EADDRNOTAVAIL`, `EINVAL`, `EBUSY` when there is no room for it, `ECLOSED`.
   */
  send(request: { readonly to: string; readonly sequence: number; readonly payloadBytes: number }): void {
    const { symbols, id } = this.use("icx_echo_send");
    callJson(symbols, "icx_echo_send", request, (...text) => symbols.icx_echo_send(id, ...text));
  }

  /** The next reply. `undefined`: wait for `readable`. @throws {NativeError} `ECLOSED`. */
  receive(): EchoReply | undefined {
    const { symbols, id } = this.use("icx_echo_receive");
    return answer(symbols, "icx_echo_receive", (...out) => symbols.icx_echo_receive(id, ...out, err, err.byteLength));
  }
}

/** A name that is being asked for. */
export class NativeResolution extends ReadinessHandle {
  protected override readonly kind = "name query";

  /**
   * The addresses, once. `undefined`: wait for `readable`.
   *
   * @throws {NativeError} `ENOENT`, `ESTATE` without name servers, `EINVAL` for what is no name, `ECLOSED`.
   */
  answer(): readonly string[] | undefined {
    const operation = "icx_resolution_answer";
    const { symbols, id } = this.use(operation);
    return answer(symbols, operation, (...out) => symbols.icx_resolution_answer(id, ...out, err, err.byteLength));
  }
}

function answer<T>(
  symbols: Symbols,
  operation: string,
  call: (out: Buffer, outBytes: number) => number,
): T | undefined {
  const out = new Uint8Array(ANSWER_BYTES);
  const lengthBytes = unlessBlocked(symbols, operation, call(out, out.byteLength));
  return lengthBytes === undefined ? undefined : decodeJson(out, lengthBytes);
}

/** Names of the counters of stacks as the library has them, in order. */
export function netstackCounterNames(library: Library): readonly string[] {
  const { symbols } = library;
  return queryJson(
    symbols,
    "icx_netstack_counter_names",
    (out, outBytes) => symbols.icx_netstack_counter_names(out, outBytes),
  );
}
