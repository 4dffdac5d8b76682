/**
 * The outer side: what carries sealed datagrams.
 *
 * @module
 */

import type { PacketBatch } from "./packet_batch.ts";
import type { UdpUnderlay } from "./udp_underlay.ts";

/**
 * An outer side whose datagrams the native library moves: they never enter JavaScript. Only the kinds listed here exist,
 * and only the library makes them.
 */
export type NativeUnderlay = UdpUnderlay;

/**
 * An outer side written in TypeScript: datagrams come and go in batches, each with the endpoint of the other side.
 *
 * Whoever receives or sends waits for one call of a kind at a time; the two may overlap.
 */
export interface ScriptUnderlay {
  /** Tells it from a native one. */
  readonly kind: "script";
  /**
   * Waits for datagrams and appends them to `batch` with their source, at least one unless the underlay is closed.
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
