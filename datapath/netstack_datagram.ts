/**
 * UDP sockets of a network stack.
 *
 * @module
 */

import { addressBytes, addressText, socketAddress } from "../control/prefix.ts";
import { requireInteger, requireObject, requireText, requireType } from "../native/arguments.ts";
import type { NativeDatagram } from "../native/netstack.ts";
import { Resource } from "./_netstack_resource.ts";
import type { NetstackAddr } from "./netstack_address.ts";
import type { NetstackWaitOptions } from "./netstack_listener.ts";
import { MAX_PACKET_BYTES, PacketBatch } from "./packet_batch.ts";

/** Datagrams that one call brings at most. */
const BATCH = 64;

/**
 * A UDP socket of a {@linkcode Netstack} on one port of all its addresses, in the shape of `Deno.DatagramConn`. It holds 256 datagrams in each
 * direction; further ones that come are dropped, and a send waits for room.
 */
export class NetstackDatagramConn implements AsyncIterable<[Uint8Array<ArrayBuffer>, NetstackAddr]>, Disposable {
  /** Where it receives. */
  readonly addr: NetstackAddr;
  readonly #resource: Resource<NativeDatagram>;
  readonly #received = new PacketBatch({ capacity: BATCH, bufferBytes: 4 * MAX_PACKET_BYTES });
  /** The first of those received that was not handed out. */
  #next = 0;

  /**
   * A socket on all addresses.
   *
   * @internal
   */
  constructor(native: NativeDatagram, hostname: string) {
    this.#resource = new Resource(native, "datagram socket");
    this.addr = { transport: "udp", hostname, port: native.info().port };
  }

  /**
   * Waits for the next datagram.
   *
   * @returns Its payload, and where it came from.
   * @throws {Deno.errors.Interrupted} When the socket is closed meanwhile; `BadResource` when it is closed, `ConnectionAborted` when the stack
   * was.
   */
  async receive({ signal }: NetstackWaitOptions = {}): Promise<[Uint8Array<ArrayBuffer>, NetstackAddr]> {
    const batch = this.#received;
    await this.#resource.until("receive a datagram", {
      ready: "readable",
      call: (native) => {
        if (this.#next < batch.length) return true;
        this.#next = 0;
        const take = () =>
          batch.fill("rx", undefined, (_input, descriptors, _count, output) => native.take(descriptors, output).count);
        return take() > 0 ? true : undefined;
      },
      signal,
    });
    const index = this.#next++;
    const { address, port } = batch.endpoint(index);
    return [batch.packet(index).slice(), { transport: "udp", hostname: addressText(address), port }];
  }

  /**
   * Sends a datagram, waiting for room.
   *
   * @param p Its payload: at most 65507 bytes to an IPv4 address, in fragments where it is longer than a packet, and to an IPv6 address what one
   * packet holds.
   * @param addr Where to: an IP address and a port.
   * @returns How many bytes it has.
   * @throws {Deno.errors.InvalidData} When it cannot be sent: it is too long, or the stack has no address of the family, or the
   * address is none of a host.
   */
  async send(
    p: Uint8Array,
    addr: { readonly hostname: string; readonly port: number },
    { signal }: NetstackWaitOptions = {},
  ): Promise<number> {
    const operation = "send the datagram";
    requireType(p instanceof Uint8Array, p, { operation, name: "p", allowed: "a Uint8Array" });
    requireObject(addr, { operation, name: "addr" });
    const { hostname, port } = addr;
    requireText(hostname, { operation, name: "addr.hostname" });
    requireInteger(port, { operation, name: "addr.port", min: 1, max: 65535 });
    const batch = new PacketBatch({ capacity: 1, bufferBytes: Math.max(1, p.length) });
    batch.append(p, { address: addressBytes(hostname), port });
    const refused = await this.#resource.until(operation, {
      ready: "writable",
      call: (native) => {
        const { count, bad } = batch.hand(0, (...packets) => native.give(...packets));
        return count > 0 ? bad.length > 0 : undefined;
      },
      signal,
    });
    if (!refused) return p.length;
    throw new Deno.errors.InvalidData(
      `Cannot ${operation} of ${p.length} bytes to ${
        socketAddress(hostname, port)
      }: it must fit a datagram, or over IPv6 a ` +
        "packet, and the address must be a host's, of a family that the stack has",
    );
  }

  /** Gives the port back. May be called again. */
  close(): void {
    this.#resource.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The datagrams that come. Leaving the loop closes the socket. */
  async *[Symbol.asyncIterator](): AsyncGenerator<[Uint8Array<ArrayBuffer>, NetstackAddr], void, undefined> {
    try {
      while (!this.#resource.isClosed) yield await this.receive();
    } catch (error) {
      if (!this.#resource.isClosed) throw error;
    } finally {
      this.close();
    }
  }
}
