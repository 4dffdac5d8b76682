/**
 * TUN devices.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { callJson, queryJson } from "./marshal.ts";
import { DeviceHandle } from "./packet_handle.ts";

/** What passes between the kernel and the device's reader in one piece. */
export interface TunOffload {
  /** The kernel hands TCP over uncut. */
  readonly tso: boolean;
  /** The kernel hands UDP over uncut, of senders that give it many datagrams at once. */
  readonly uso: boolean;
  /** The kernel is handed TCP, and UDP where it knows `uso`, merged. */
  readonly gro: boolean;
}

/** What {@linkcode NativeTun.open} takes. */
export interface TunOptions {
  /** The interface's name, 1 to 15 bytes. */
  readonly name: string;
  /** The largest packet in bytes. */
  readonly mtu: number;
  /** Addresses with prefix length, such as `10.9.0.1/24`. */
  readonly addresses: readonly string[];
  /** Queues, and with them threads of the pump, 1 to 256. @default 1 */
  readonly queues?: number | undefined;
  /** What to offload, where the kernel can. @default everything */
  readonly offload?: Partial<TunOffload> | undefined;
}

/** A TUN device as it was made. */
export interface TunInfo {
  /** The interface's name. */
  readonly name: string;
  /** The interface's index. */
  readonly index: number;
  /** The largest packet in bytes. */
  readonly mtu: number;
  /** Queues. */
  readonly queues: number;
  /** What is offloaded. */
  readonly offload: TunOffload;
}

/** A TUN device. It goes away when it is closed, or with the pump that has taken it over. */
export class NativeTun extends DeviceHandle {
  protected override readonly kind = "TUN device";

  /**
   * Makes the device and sets it up.
   *
   * @throws {NativeError} `EPERM` without CAP_NET_ADMIN, `EBUSY`, `EUNSUPPORTED` without a TUN driver, `EINVAL`, `ESYS`.
   */
  static open(library: Library, options: TunOptions): NativeTun {
    const { symbols } = library;
    const id = callJson(symbols, "icx_tun_open", options, (...text) => symbols.icx_tun_open(...text));
    return new NativeTun(library, id);
  }

  /** Name, index and MTU. */
  info(): TunInfo {
    const { symbols, id } = this.use("icx_tun_info");
    return queryJson(symbols, "icx_tun_info", (out, outBytes) => symbols.icx_tun_info(id, out, outBytes));
  }

  override releaseToPump(): void {
    this.closed();
  }
}
