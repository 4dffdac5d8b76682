/**
 * What the conformance suite needs to know of a datapath: how one is made around an engine, and what is on both sides of it.
 *
 * @module
 */

import type { Artifact, Datapath, Device, Engine, EngineOptions, Library, Underlay } from "../../mod.ts";

/** The host behind the device, and one on the other side of the tunnel. */
export const HOST = "10.77.0.1";
export const REMOTE = "10.77.0.2";

/** On the device's network, but not in the tunnel's. */
export const OUTSIDE = "10.77.9.9";

/** What may pass. */
export const TUNNEL_PREFIX = "10.77.0.0/24";

/** The prefix length of the device's network. */
export const DEVICE_PREFIX_LENGTH = 16;

/** The UDP port of both inner hosts. */
export const INNER_PORT = 5005;

/** The largest packet of the device, and of the tunnel, in bytes. */
export const DEVICE_MTU_BYTES = 1500;
export const INNER_MTU_BYTES = 1392;

/** How long something that must come may take. Other work may keep the machine busy. */
export const PATIENCE_MS = 20_000;

/** A datagram as the peer got it. */
export interface WireDatagram {
  /** Its payload. */
  readonly bytes: Uint8Array;
  /** The port that it was sent to. */
  readonly port: number;
}

/** A device, and the host behind it. */
export interface Inside<D extends Device = Device> extends AsyncDisposable {
  /** The device, where the datapath is made of one. The datapath closes it. */
  readonly device: D | undefined;
  /** Sends a UDP datagram from the host's inner address; waits while the device takes no more. */
  send(payload: Uint8Array, options?: { readonly to?: string; readonly signal?: AbortSignal }): Promise<void>;
  /** The next UDP payload that came out of the tunnel for the host; `undefined` when there is none in time. */
  receive(timeoutMs?: number): Promise<Uint8Array | undefined>;
  /** Ways to break the device for good, each with what does it. */
  readonly breakages: Readonly<Record<string, () => Promise<void>>>;
}

/** An underlay, and the peer at its other end. */
export interface Outside extends AsyncDisposable {
  /** The underlay, where the datapath is made of one. The datapath closes it. */
  readonly underlay: Underlay | undefined;
  /** The address that the peer has. */
  readonly address: string;
  /** The port that the peer receives on. */
  readonly peerPort: number;
  /** Sends a datagram to the datapath from the peer's address. */
  send(bytes: Uint8Array, options?: { readonly signal?: AbortSignal }): Promise<void>;
  /** The next datagram that the peer got; `undefined` when there is none in time. */
  receive(timeoutMs?: number): Promise<WireDatagram | undefined>;
  /** Ways to break the underlay for good, each with what does it. */
  readonly breakages: Readonly<Record<string, () => Promise<void>>>;
}

/** A datapath that has not run yet, with the world around it. */
export interface Rig extends AsyncDisposable {
  /** The engine of the datapath under test. */
  readonly engine: Engine;
  /** The datapath under test. */
  readonly datapath: Datapath;
  readonly inside: Inside;
  readonly outside: Outside;
}

/** What an engine carries inside and outside. */
export type EngineSides = Pick<EngineOptions, "ethernet" | "rawUnderlay">;

/** A kind of datapath. */
export interface Bench {
  /** What it is called in the tests' names. */
  readonly name: string;
  /** Which artifact of the library it takes. @default "core" */
  readonly artifact?: Artifact;
  /** Whether a host behind the device is told with ICMP of a packet that is too large for the tunnel. */
  readonly answersTooBig: boolean;
  /** Whether what is no Geneve is left to the host's own stack, and so never read. @default false */
  readonly leavesOthers?: boolean;
  /** The ways in which ends can be broken, by what the rig calls them. */
  readonly breakages: readonly string[];
  /**
   * Opens a datapath.
   *
   * @param library The library.
   * @param makeEngine Makes the engine for a peer at `ip:port`, with the sides that the datapath needs; it is closed after the rig.
   */
  open(library: Library, makeEngine: (peer: string, sides?: EngineSides) => Engine): Promise<Rig>;
}

/** Gives what `wait` gives, or `undefined` when it takes longer than `timeoutMs`. */
export async function within<T>(timeoutMs: number, wait: (signal: AbortSignal) => Promise<T>): Promise<T | undefined> {
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), timeoutMs);
  try {
    return await wait(late.signal);
  } catch (error) {
    if (late.signal.aborted) return undefined;
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
