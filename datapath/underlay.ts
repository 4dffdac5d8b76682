/**
 * The outer side: what carries sealed datagrams.
 *
 * @module
 */

import type { PacketBatch } from "./packet_batch.ts";
import type { UdpUnderlay } from "./udp_underlay.ts";

/**
 * An outer side of the native library. Between two native ends datagrams never enter JavaScript. Only the kinds listed here exist, and
 * only the library makes them.
 */
export type NativeUnderlay = UdpUnderlay;

/**
 * An outer side written in TypeScript: datagrams come and go in batches, each with the endpoint of the other side.
 * {@linkcode MemoryUnderlay} is one, {@linkcode ImpairedUnderlay} makes a bad one of it.
 *
 * - Whoever receives or sends waits for one call of a kind at a time; the two may overlap.
 * - A call that waits ends when its signal aborts, with the signal's reason. A datapath does not wait for one that does not.
 * - A call that fails for a passing reason rejects, and is made again; what it took or gave until then counts as not taken and
 *   as given. A datagram that can never be sent it takes and drops, lest it come again.
 * - The batch is the caller's: the underlay copies what it keeps. A datagram of more than {@linkcode MAX_PACKET_BYTES} bytes is its to drop.
 */
export interface ScriptUnderlay {
  /** Tells it from a native one. */
  readonly kind: "script";
  /**
   * Waits for datagrams and appends them to `batch` with their source, at least one unless the underlay is closed. The batch
   * comes in empty, with room for a datagram of any size.
   *
   * @returns How many were appended; 0 when the underlay is closed.
   */
  receive(batch: PacketBatch, options?: { readonly signal?: AbortSignal | undefined }): Promise<number>;
  /**
   * Sends the packets of `batch` from index `from` on to their endpoints, as many as it can at once, at least one.
   *
   * @returns How many it sent.
   */
  send(
    batch: PacketBatch,
    options?: { readonly from?: number; readonly signal?: AbortSignal | undefined },
  ): Promise<number>;
  /** Gives everything back. A receive that waits ends. May be called again. */
  close(): Promise<void>;
}

/** An outer side of any kind, told apart by `kind`. */
export type Underlay = NativeUnderlay | ScriptUnderlay;
