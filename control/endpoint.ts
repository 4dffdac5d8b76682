/**
 * The control plane's socket, and the peers behind it.
 *
 * @module
 */

import { Engine } from "../datapath/engine.ts";
import {
  type Argument,
  requireFunction,
  requireInteger,
  requireObject,
  requirePositive,
  requireText,
  requireType,
  shown,
} from "../native/arguments.ts";
import {
  ControlEndpoint as NativeEndpoint,
  type ControlPeer as NativePeer,
  type PeerEvent as NativePeerEvent,
} from "../native/control.ts";
import { NativeError } from "../native/errors.ts";
import { type Library, libraryOf } from "../native/library.ts";
import { Identity } from "./identity.ts";
import type { TunnelRole } from "./lifecycle.ts";
import type { DialOptions, TunnelPeer, TunnelPeerEvent } from "./tunnel.ts";

/** Somebody who is not one of the peers tried to connect. */
export interface RejectedPeer {
  /** From where, `ip:port`. */
  readonly remote: string;
  /** Why it was turned away. */
  readonly reason: string;
  /** How many were since the last report: the first is told at once, later ones ever less often. */
  readonly count: number;
}

/** What a {@linkcode ControlEndpoint} is made of. */
export interface ControlEndpointOptions {
  /** The library; it must stay open as long as the endpoint. */
  readonly library: Library;
  /** Who we are. It may be closed once the endpoint is open. */
  readonly identity: Identity;
  /** The address to bind. @default all addresses */
  readonly localAddress?: string | undefined;
  /** The UDP port to bind; 0 for any free one. @default 6082 */
  readonly port?: number | undefined;
  /** Hears of those who are turned away. @default none */
  readonly onRejected?: ((rejected: RejectedPeer) => void) | undefined;
}

/** What a {@linkcode ControlPeer} is made of. */
export interface ControlPeerOptions {
  /** The engine that gets the keys; it must stay open as long as the endpoint. */
  readonly engine: Engine;
  /** The network that the keys are for; the engine has it already. */
  readonly vni: number;
  /** The peer's public key, base64 of the SPKI DER. */
  readonly publicKey: string;
  /** How long a negotiated key works, in whole milliseconds from 1 to 4294967295. @default 3600000 */
  readonly keyLifetimeMs?: number | undefined;
}

/** A peer of a {@linkcode ControlEndpoint}: what a {@linkcode Tunnel} runs on. It is closed with its endpoint. */
export class ControlPeer implements TunnelPeer {
  /** Which side we are. */
  readonly role: TunnelRole;
  /** The fingerprint of the peer's key. */
  readonly fingerprint: string;
  readonly #native: NativePeer;
  readonly #listeners = new Set<(event: TunnelPeerEvent) => void>();
  /** What a listener would have to know of the current session; kept while there is none. */
  #missed: TunnelPeerEvent[] = [];
  #session = 0;

  /** Wraps a native peer: only endpoints do so. */
  constructor(native: NativePeer) {
    const { role, fingerprint } = native.info();
    this.role = role;
    this.fingerprint = fingerprint;
    this.#native = native;
    native.onEvent((event) => this.#take(event));
  }

  dial(address: string, options: DialOptions): void {
    const operation = "dial a peer";
    requireText(address, { operation, name: "address" });
    requireObject(options, { operation, name: "options" });
    const answerTimeoutMs = wholeMs(options.answerTimeoutMs, { operation, name: "answerTimeoutMs" });
    const repeatAfterMs = options.repeatAfterMs === undefined
      ? undefined
      : wholeMs(options.repeatAfterMs, { operation, name: "repeatAfterMs" });
    this.#attempt(
      () => this.#native.dial({ addr: address, answerTimeoutMs, repeatAfterMs }),
      (reason) => ({ type: "dial-failed", reason }),
    );
  }

  exchange(options: { readonly timeoutMs: number }): void {
    const operation = "exchange keys";
    requireObject(options, { operation, name: "options" });
    const timeoutMs = wholeMs(options.timeoutMs, { operation, name: "timeoutMs" });
    this.#attempt(
      () => this.#native.exchange({ timeoutMs }),
      (reason) => ({ type: "exchange-failed", session: this.#session, reason }),
    );
  }

  probe(): void {
    this.#attempt(() => this.#native.probe());
  }

  disconnect(): void {
    this.#attempt(() => this.#native.disconnect());
  }

  /** Where the session's packets come from now, as `ip:port`; `undefined` without a session. A peer may move within one. */
  get remote(): string | undefined {
    return this.#native.status().remote ?? undefined;
  }

  subscribe(listener: (event: TunnelPeerEvent) => void): () => void {
    this.#listeners.add(listener);
    for (const event of this.#missed.splice(0)) listener(event);
    return () => this.#listeners.delete(listener);
  }

  #take(event: NativePeerEvent): void {
    switch (event.type) {
      case "sessionUp":
        this.#session = event.session;
        this.#report({ type: "session-up", session: event.session, remote: event.remote });
        return;
      case "sessionLost":
        this.#report({
          type: "session-lost",
          session: event.session,
          reason: event.reason,
          superseded: event.superseded,
        });
        return;
      case "dialFailed":
        this.#report({ type: "dial-failed", reason: event.reason });
        return;
      case "exchangeDone":
        this.#report({ type: "exchange-done", session: event.session, rxSpi: event.rxSpi, txSpi: event.txSpi });
        return;
      case "exchangeFailed":
        this.#report({ type: "exchange-failed", session: event.session, reason: event.reason });
        return;
      case "eventsLost":
        this.#report({ type: "gone", reason: event.reason });
        return;
    }
  }

  #report(event: TunnelPeerEvent): void {
    if (this.#listeners.size === 0) this.#remember(event);
    for (const listener of this.#listeners) listener(event);
  }

  /** Keeps at most the session and its last exchange. */
  #remember(event: TunnelPeerEvent): void {
    switch (event.type) {
      case "session-up":
      case "gone":
        this.#missed = [event];
        return;
      case "exchange-done":
        this.#missed = [...this.#missed.filter(({ type }) => type === "session-up"), event];
        return;
      case "session-lost":
        this.#missed = [];
        return;
    }
  }

  /**
   * Makes a call. When the control plane refuses it for now, that is the answer, given as an event like every other; when
   * the control plane is gone, the call throws.
   */
  #attempt(call: () => void, answer?: (reason: string) => TunnelPeerEvent): void {
    try {
      call();
    } catch (error) {
      if (!(error instanceof NativeError) || GONE.has(error.code)) throw error;
      if (answer !== undefined) queueMicrotask(() => this.#report(answer(error.message)));
    }
  }
}

/** The most milliseconds that the library takes, about 49 days. */
const MAX_NATIVE_MS = 2 ** 32 - 1;

/** The library takes whole milliseconds: a fraction is one more. */
function wholeMs(ms: number, argument: Argument): number {
  requirePositive(ms, { ...argument, max: MAX_NATIVE_MS });
  return Math.ceil(ms);
}

/** Failures after which nothing works any more. */
const GONE: ReadonlySet<string> = new Set(["ECLOSED", "EBADHANDLE", "EPANIC"]);

/**
 * The UDP socket of the control plane. One serves any number of peers, in both roles.
 *
 * It belongs to whoever opened it. Closing it says goodbye to the peers and takes up to a second for that.
 *
 * @example Two peers behind one socket
 * ```ts ignore
 * import { ControlEndpoint, Engine, Identity, Library, Tunnel } from "@icx/icx";
 *
 * await using library = Library.open();
 * using identity = Identity.load("node.key", { library });
 * using engine = Engine.create({ library });
 * await using endpoint = ControlEndpoint.open({ library, identity });
 * const peers = [{ vni: 1, publicKey: "MFkw…", host: "192.0.2.2" }, { vni: 2, publicKey: "MFkw…", host: "192.0.2.3" }];
 * const tunnels = peers.map(({ vni, publicKey, host }) => {
 *   engine.addNetwork({ vni, peer: `${host}:6081`, routes: [{ src: "10.9.0.0/24", dst: `10.${vni}.0.0/16` }] });
 *   return new Tunnel({
 *     peer: endpoint.addPeer({ engine, vni, publicKey }),
 *     resolve: () => Promise.resolve([`${host}:6082`]),
 *     sampleTraffic: () => {
 *       const { tx_packets, rx_packets, last_keepalive } = engine.counters(vni);
 *       return { txPackets: tx_packets, rxPackets: rx_packets, lastKeepalive: last_keepalive };
 *     },
 *   });
 * });
 * await Promise.all(tunnels.map((tunnel) => tunnel.run({ signal: AbortSignal.timeout(60_000) })));
 * ```
 */
export class ControlEndpoint implements AsyncDisposable {
  /** The bound address. */
  readonly localAddress: string;
  /** The bound port. */
  readonly port: number;
  readonly #native: NativeEndpoint;

  private constructor(native: NativeEndpoint) {
    const { localAddress, port } = native.info();
    this.localAddress = localAddress;
    this.port = port;
    this.#native = native;
  }

  /**
   * Binds the socket and listens.
   *
   * @param options What it is made of.
   * @throws {NativeError} When the address is not ours, the port is taken, or an option is not acceptable.
   */
  static open(options: ControlEndpointOptions): ControlEndpoint {
    const operation = "open a control endpoint";
    const library = libraryOf(options, operation);
    const { identity, localAddress, port = 6082, onRejected } = options;
    requireType(identity instanceof Identity, identity, { operation, name: "identity", allowed: "an Identity" });
    if (onRejected !== undefined) requireFunction(onRejected, { operation, name: "onRejected" });
    const native = NativeEndpoint.open(library, { identity: identity.native, localAddress, port });
    if (onRejected !== undefined) {
      // On a turn of its own, so that what it throws does not end the events of everybody.
      native.onEvent(({ remote, reason, count }) => queueMicrotask(() => onRejected({ remote, reason, count })));
    }
    return new ControlEndpoint(native);
  }

  /**
   * Adds a peer: pins its key, and accepts it if it is the one to dial.
   *
   * @param options What it is made of.
   * @throws {NativeError} When the key is our own or that of another peer, or an option is not acceptable.
   */
  addPeer(options: ControlPeerOptions): ControlPeer {
    const operation = "add a peer";
    requireObject(options, { operation, name: "options" });
    const { engine, vni, publicKey, keyLifetimeMs = 3_600_000 } = options;
    requireType(engine instanceof Engine, engine, { operation, name: "engine", allowed: "an Engine" });
    if (!engine.networks.includes(vni)) {
      throw new NativeError(
        `Cannot ${operation} as "vni" must be a network of the engine, ${
          engine.networks.join(", ") || "which has none"
        }: current value is ${shown(vni)}; add the network first`,
        { code: "ENOENT", operation },
      );
    }
    requireInteger(keyLifetimeMs, { operation, name: "keyLifetimeMs", min: 1, max: MAX_NATIVE_MS });
    return new ControlPeer(
      this.#native.addPeer({ engine: engine.native, vni, peerKey: publicKey, lifetimeMs: keyLifetimeMs }),
    );
  }

  /** Closes all sessions and the socket. May be called again. */
  close(): Promise<void> {
    return this.#native.close();
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
