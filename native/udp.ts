/**
 * UDP sockets of an underlay.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { type Buffer, callJson, queryJson } from "./marshal.ts";
import { type Moved, PacketHandle } from "./packet_handle.ts";

/** What the kernel does for many datagrams at once. */
export interface UdpOffload {
  /** It cuts a run of datagrams that is sent in one call. */
  readonly segment: boolean;
  /** It hands datagrams of one sender over in one call. */
  readonly merge: boolean;
}

/** What {@linkcode NativeUdp.open} takes. */
export interface UdpOptions {
  /** The address to bind. @default all of the family */
  readonly localAddress?: string | undefined;
  /** The port to receive on; 0 for any free one. */
  readonly port: number;
  /** Whether a datagram may leave from a port that follows its inner flow. */
  readonly sourcePortHashing: boolean;
  /** The IP versions; must include `localAddress`. */
  readonly family: "ipv4" | "ipv6" | "dual";
  /** Receiving sockets that share the port: as many as the device has queues. @default 1 */
  readonly sockets?: number | undefined;
  /** What to offload, where the kernel can. @default everything */
  readonly offload?: Partial<UdpOffload> | undefined;
}

/** What the sockets are bound to. */
export interface UdpInfo {
  /** The address. */
  readonly localAddress: string;
  /** The port. */
  readonly port: number;
  /** Receiving sockets. */
  readonly sockets: number;
  /** What is offloaded. */
  readonly offload: UdpOffload;
}

/** The UDP sockets of one node's underlay. */
export class NativeUdp extends PacketHandle {
  protected override readonly kind = "UDP underlay";

  /**
   * Binds the sockets.
   *
   * @throws {NativeError} `EBUSY` for a port that is taken, `EPERM`, `EINVAL`, `ESYS`.
   */
  static open(library: Library, options: UdpOptions): NativeUdp {
    const { symbols } = library;
    const id = callJson(symbols, "icx_udp_open", options, (...text) => symbols.icx_udp_open(...text));
    return new NativeUdp(library, id);
  }

  /** Address and port. */
  info(): UdpInfo {
    const { symbols, id } = this.use("icx_udp_info");
    return queryJson(symbols, "icx_udp_info", (out, outBytes) => symbols.icx_udp_info(id, out, outBytes));
  }

  /** Receives datagrams. @throws {NativeError} `ESYS`. */
  override take(packets: Buffer, output: Buffer): Moved {
    return this.fill("icx_udp_receive", packets, output, (symbols, ...call) => symbols.icx_udp_receive(...call));
  }

  /** Sends datagrams. The source port of one that left from the base port although it has one becomes 0. @throws {NativeError} `ESYS`. */
  override give(input: Buffer, packets: Buffer, count: number): Moved {
    return this.hand("icx_udp_send", input, packets, count, (symbols, ...call) => symbols.icx_udp_send(...call));
  }

  /** For pumps: the library has taken the sockets over, so that there is nothing to close here any more. */
  releaseToPump(): void {
    this.closed();
  }
}
