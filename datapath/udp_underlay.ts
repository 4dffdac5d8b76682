/**
 * UDP sockets as a native outer side.
 *
 * @module
 */

import { type Library, libraryOf } from "../native/library.ts";
import { NativeUdp, type UdpOffload } from "../native/udp.ts";
import { guarded } from "./errors.ts";

export type { UdpOffload } from "../native/udp.ts";

/** What a {@linkcode UdpUnderlay} is made of. */
export interface UdpUnderlayOptions {
  /** The library; it must stay open as long as the underlay. */
  readonly library: Library;
  /** The address to bind. @default all addresses of `family` */
  readonly localAddress?: string | undefined;
  /** The port to bind; 0 for any free one. @default 6081 */
  readonly port?: number | undefined;
  /** The IP versions. @default that of `localAddress`, or both */
  readonly family?: "ipv4" | "ipv6" | "dual" | undefined;
  /** Whether a datagram may leave from a port that follows its inner flow; the engine decides. @default false */
  readonly sourcePortHashing?: boolean | undefined;
  /** Receiving sockets that share the port: as many as the device has queues. @default 1 */
  readonly sockets?: number | undefined;
  /** What the kernel does for many datagrams at once, where it can. @default everything */
  readonly offload?: Partial<UdpOffload> | undefined;
}

/**
 * UDP sockets that serve any number of peers.
 *
 * A datapath that takes it over owns it from then on.
 */
export class UdpUnderlay implements AsyncDisposable {
  /** Tells it from other underlays. */
  readonly kind = "udp";
  /** The bound address. */
  readonly localAddress: string;
  /** The bound port. */
  readonly port: number;
  /** What the kernel does for many datagrams at once: what was asked for, as far as it can. */
  readonly offload: UdpOffload;
  readonly #native: NativeUdp;

  private constructor(native: NativeUdp) {
    const { localAddress, port, offload } = native.info();
    this.localAddress = localAddress;
    this.port = port;
    this.offload = offload;
    this.#native = native;
  }

  /**
   * Binds the sockets.
   *
   * @param options What it is made of.
   * @throws {DatapathError} When the address is not ours, the port is taken, or an option is not acceptable.
   * @throws {TypeError} When the library is none.
   */
  static open(options: UdpUnderlayOptions): UdpUnderlay {
    const library = libraryOf(options, "open UDP sockets");
    const { localAddress, port = 6081, sourcePortHashing = false, sockets, offload } = options;
    const family = options.family ??
      (localAddress === undefined ? "dual" : String(localAddress).includes(":") ? "ipv6" : "ipv4");
    return guarded(
      `bind UDP port ${port}`,
      () =>
        new UdpUnderlay(NativeUdp.open(library, { localAddress, port, family, sourcePortHashing, sockets, offload })),
    );
  }

  /**
   * The native sockets, for the pump that takes them over.
   *
   * @internal
   */
  get native(): NativeUdp {
    return this.#native;
  }

  /**
   * Closes the sockets. May be called again. During a run, closing the datapath is the way: between native ends this does nothing then, beside an end
   * written in TypeScript it makes the run fail with `closed`.
   */
  close(): Promise<void> {
    this.#native.close();
    return Promise.resolve();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
