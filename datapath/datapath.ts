/**
 * The seam: what every datapath is to those who run it.
 *
 * @module
 */

import type { ForwarderOwnCounters, ForwarderState } from "../native/forwarder.ts";
import type { NetstackCounters } from "../native/netstack.ts";
import type { Counters } from "./counters.ts";

export type { ForwarderOwnCounters, ForwarderState, NextHopInfo } from "../native/forwarder.ts";

/** Options of {@linkcode Datapath.run}. */
export interface DatapathRunOptions {
  /** Stops the datapath cleanly. @default none */
  readonly signal?: AbortSignal | undefined;
}

/**
 * What moved between the two ends, outside of the engine. All counted since the start. Packets and datagrams are those that
 * the engine sees: what passes an end in one piece, to be cut or merged, counts as all that it is.
 */
export interface EndCounters {
  /** Packets read from the device. */
  readonly deviceReadPackets: number;
  /** Packets written to the device. */
  readonly deviceWritePackets: number;
  /** Packets that the device refused. */
  readonly deviceWriteErrors: number;
  /** Datagrams sent. */
  readonly underlaySent: number;
  /** Datagrams received. */
  readonly underlayReceived: number;
  /** Datagrams that the operating system refused to send. */
  readonly underlaySendErrors: number;
  /** Datagrams sent from the base port because their hashed port is taken. */
  readonly portFallbacks: number;
  /** Datagrams larger than any that the protocol knows; dropped. */
  readonly underlayTruncated: number;
  /** Pieces in which the packets were read from the device; fewer than the packets where it offloads. */
  readonly deviceReads: number;
  /** Pieces in which packets were written to the device, those that it refused included. */
  readonly deviceWrites: number;
  /** Pieces in which the datagrams were sent. */
  readonly underlaySends: number;
  /** Pieces in which the datagrams were received. */
  readonly underlayReceives: number;
  /** Reports that a datagram did not fit its path, by routers or by this host, that were believed; between native ends only. */
  readonly pathMtuUpdates: number;
  /** Such reports that proved nothing, as forged ones do, or said nothing new. */
  readonly pathMtuIgnored: number;
  /** Reports that a datagram did not arrive for another reason. They change nothing, and anybody can send them. */
  readonly underlayLostReports: number;
}

/** A datapath's counters at one moment. */
export interface DatapathStats {
  /** What belongs to no network. */
  readonly engine: Counters;
  /** What belongs to one, by its VNI. */
  readonly networks: ReadonlyMap<number, Counters>;
  /** The two ends. */
  readonly ends: EndCounters;
  /** What a forwarder over AF_XDP counts besides. */
  readonly forwarder?: ForwarderOwnCounters;
  /** What a stack in the process has done. */
  readonly stack?: NetstackCounters;
  /** How a forwarder's network interface is, and the ways to its peers. */
  readonly state?: ForwarderState;
}

/**
 * Moves packets between a device, an engine and an underlay.
 *
 * - It is made by the `open` function of its class, which acquires what it needs or throws and has changed nothing.
 * - `run` moves packets until its signal aborts: then it resolves. It rejects with a {@linkcode DatapathError} when the
 *   datapath cannot go on; the first real failure is what it rejects with. It works once: a second call, also during the
 *   first one, rejects and does no harm to that, and so does a call after `close`.
 * - `close` may be called at any moment, from anywhere and any number of times, also during `run`, which then resolves.
 *   All calls resolve when everything is given back: devices, sockets, threads, memory. It does not reject.
 * - When `run` has ended, nothing moves any more, but what the datapath holds is given back by `close` only.
 * - The device and the underlay belong to the datapath from `open` on, also those that were handed in. The engine does
 *   not: it outlives the datapath if its owner wants that.
 * - `stats` works at any time. After `close` it gives the last figures of the ends.
 */
export interface Datapath extends AsyncDisposable {
  /** Which one it is. */
  readonly kind: "tun" | "afxdp" | "netstack";
  /** Moves packets until the signal aborts. */
  run(options?: DatapathRunOptions): Promise<void>;
  /** Stops, and gives everything back. */
  close(): Promise<void>;
  /** The counters. */
  stats(): DatapathStats;
}
