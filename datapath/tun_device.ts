/**
 * The kernel's TUN device as a native inner side.
 *
 * @module
 */

import { type Library, libraryOf } from "../native/library.ts";
import { NativeTun, type TunOffload } from "../native/tun.ts";
import { guarded } from "./errors.ts";

export type { TunOffload } from "../native/tun.ts";

/** What a {@linkcode TunDevice} is made of. */
export interface TunDeviceOptions {
  /** The library; it must stay open as long as the device. */
  readonly library: Library;
  /** The interface's name, 1 to 15 bytes. @default "icx0" */
  readonly name?: string | undefined;
  /** The largest packet, in bytes. @default 1392 */
  readonly mtuBytes?: number | undefined;
  /** Addresses with prefix length, such as `10.9.0.1/24`. @default none */
  readonly addresses?: readonly string[] | undefined;
  /** Queues over which the kernel spreads the flows, each with a thread of its own; the underlay needs as many sockets. @default 1 */
  readonly queues?: number | undefined;
  /** What passes the device in one piece, where the kernel can. @default everything */
  readonly offload?: Partial<TunOffload> | undefined;
}

/**
 * A TUN device: up, with its addresses, and gone when it is closed or the process ends. It needs the right to administer
 * the network (CAP_NET_ADMIN) and `/dev/net/tun`.
 *
 * A datapath that takes it over owns it from then on.
 */
export class TunDevice implements AsyncDisposable {
  /** Tells it from other devices. */
  readonly kind = "tun";
  /** The interface's name. */
  readonly name: string;
  /** The interface's index. */
  readonly index: number;
  /** The largest packet, in bytes. */
  readonly mtuBytes: number;
  /** Queues. */
  readonly queues: number;
  /** What passes in one piece: what was asked for, as far as the kernel can. */
  readonly offload: TunOffload;
  readonly #native: NativeTun;

  private constructor(native: NativeTun) {
    const { name, index, mtu, queues, offload } = native.info();
    this.name = name;
    this.index = index;
    this.mtuBytes = mtu;
    this.queues = queues;
    this.offload = offload;
    this.#native = native;
  }

  /**
   * Makes the device.
   *
   * @param options What it is made of.
   * @throws {DatapathError} When the name is taken, the right is missing, or an option is not acceptable; nothing is left
   * behind then.
   * @throws {TypeError} When the library is none.
   */
  static open(options: TunDeviceOptions): TunDevice {
    const library = libraryOf(options, "open a TUN device");
    const { name = "icx0", mtuBytes = 1392, addresses = [], queues, offload } = options;
    return guarded(
      `open the TUN device "${name}"`,
      () => new TunDevice(NativeTun.open(library, { name, mtu: mtuBytes, addresses, queues, offload })),
    );
  }

  /**
   * The native device, for the pump that takes it over.
   *
   * @internal
   */
  get native(): NativeTun {
    return this.#native;
  }

  /**
   * Removes the device. May be called again. During a run, closing the datapath is the way: between native ends this does nothing then, beside an end
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
