/**
 * The inner side: where packets in the clear come from and go to.
 *
 * @module
 */

import type { Netstack } from "./netstack_device.ts";
import type { PacketBatch } from "./packet_batch.ts";
import type { TunDevice } from "./tun_device.ts";

/**
 * An inner side of the native library. Between two native ends packets never enter JavaScript. Only the kinds of devices listed here
 * exist, and only the library makes them.
 */
export type NativeDevice = TunDevice | Netstack;

/**
 * An inner side written in TypeScript: packets come and go in batches, each a bare IP packet. {@linkcode MemoryDevice} is one,
 * {@linkcode RecordingDevice} keeps what passes through one.
 *
 * - Whoever reads or writes waits for one call of a kind at a time; a read and a write may overlap.
 * - A call that waits ends when its signal aborts, with the signal's reason. A datapath does not wait for one that does not.
 * - A call that fails for a passing reason rejects, and is made again; what it took or gave until then counts as not taken and
 *   as given. A packet that the device never wants it takes and drops, lest it come again.
 * - The batch is the caller's: the device copies what it keeps.
 */
export interface ScriptDevice {
  /** Tells it from a native one. */
  readonly kind: "script";
  /** The largest packet that it gives and takes, in bytes. */
  readonly mtuBytes: number;
  /**
   * Waits for packets and appends them to `batch`, at least one unless the device is closed. The batch comes in empty, with room for
   * a packet of any size.
   *
   * @returns How many were appended; 0 when the device is closed.
   */
  read(batch: PacketBatch, options?: { readonly signal?: AbortSignal | undefined }): Promise<number>;
  /**
   * Takes the packets of `batch` from index `from` on, as many as it can at once, at least one.
   *
   * @returns How many it took.
   */
  write(
    batch: PacketBatch,
    options?: { readonly from?: number; readonly signal?: AbortSignal | undefined },
  ): Promise<number>;
  /** Gives everything back. A read that waits ends. May be called again. */
  close(): Promise<void>;
}

/** An inner side of any kind, told apart by `kind`. */
export type Device = NativeDevice | ScriptDevice;
