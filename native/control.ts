/**
 * The native control plane: endpoints, pinned peers, and what they report.
 *
 * @module
 */

import type { NativeEngine } from "./engine.ts";
import { EVENT_KIND, type NativeEvent } from "./events.ts";
import { AsyncHandle, SyncHandle } from "./handle.ts";
import type { NativeIdentity, Role } from "./identity.ts";
import type { Library } from "./library.ts";
import { callJson, check, errBuffer, queryJson } from "./marshal.ts";

/** What {@linkcode ControlEndpoint.open} takes. */
export interface ControlEndpointOptions {
  /** Who we are. It may be closed once the endpoint is open. */
  readonly identity: NativeIdentity;
  /** The address to bind. @default all addresses of both families */
  readonly localAddress?: string | undefined;
  /** The UDP port to bind; 0 for any free one. */
  readonly port: number;
}

/** What an endpoint is bound to. */
export interface ControlEndpointInfo {
  /** The address. */
  readonly localAddress: string;
  /** The port. */
  readonly port: number;
}

/** Someone's handshake did not complete. */
export interface PeerRejectedEvent {
  readonly type: "peerRejected";
  /** From where, `ip:port`. */
  readonly remote: string;
  /** Why it was turned away. */
  readonly reason: string;
  /** How many were since the last of these: the first is told at once, later ones ever less often. */
  readonly count: number;
}

/** What {@linkcode ControlEndpoint.addPeer} takes. */
export interface AddPeerOptions {
  /** Gets the keys. */
  readonly engine: NativeEngine;
  /** The network that the keys are for. */
  readonly vni: number;
  /** The peer's public key, base64 of the SPKI DER. */
  readonly peerKey: string;
  /** How long a negotiated key works, in milliseconds. */
  readonly lifetimeMs: number;
}

/** Where and for how long to try. */
export interface DialOptions {
  /** `ip:port`. */
  readonly addr: string;
  /** How long the peer may leave the handshake unanswered, in milliseconds. An answered one gets 10 s without progress. */
  readonly answerTimeoutMs: number;
  /** Begin another handshake beside those under way each time that so many milliseconds have passed. @default 0, never */
  readonly repeatAfterMs?: number | undefined;
}

/** How long to try. */
export interface ExchangeOptions {
  /** In milliseconds. */
  readonly timeoutMs: number;
}

/** Who a peer is. */
export interface PeerInfo {
  /** This node's role towards it. */
  readonly role: Role;
  /** The fingerprint of its key. */
  readonly fingerprint: string;
}

/** What a peer is doing; `null` for what is not known. */
export interface PeerStatus {
  /** This node's role towards it. */
  readonly role: Role;
  readonly state: "idle" | "dialing" | "connected";
  /** The other side of the session, `ip:port`. */
  readonly remote: string | null;
  /** Sessions that have come up so far. */
  readonly sessions: number;
  /** Exchanges that have finished so far. */
  readonly exchanges: number;
  /** Of the last exchange. */
  readonly rxSpi: number | null;
  /** Of the last exchange. */
  readonly txSpi: number | null;
  /** Round-trip time of the session in milliseconds, with fractions. */
  readonly rttMs: number | null;
}

/** Why a dial failed. */
export type DialFailureKind = "timeout" | "unreachable" | "refused" | "auth" | "protocol" | "local" | "cancelled";

/**
 * What a peer reports. Each dial ends in `sessionUp` or `dialFailed`, each session in `sessionLost`, each exchange before that in
 * `exchangeDone` or `exchangeFailed`.
 */
export type PeerEvent =
  | { readonly type: "sessionUp"; readonly remote: string; readonly session: number }
  | {
    readonly type: "sessionLost";
    readonly session: number;
    readonly reason: string;
    /** By a newer session of the same peer. */
    readonly superseded: boolean;
    /** The peer no longer knows it: it has restarted. */
    readonly reset: boolean;
  }
  | { readonly type: "dialFailed"; readonly reason: string; readonly kind: DialFailureKind }
  | {
    readonly type: "exchangeDone";
    readonly session: number;
    readonly rxSpi: number;
    readonly txSpi: number;
    /** Of this peer so far. */
    readonly exchanges: number;
  }
  | { readonly type: "exchangeFailed"; readonly session: number; readonly reason: string }
  | {
    /** No more events can come, as waiting for them failed. */
    readonly type: "eventsLost";
    readonly reason: string;
  };

const PEER_EVENT_TYPES: ReadonlyMap<number, Exclude<PeerEvent["type"], "eventsLost">> = new Map([
  [EVENT_KIND.sessionUp, "sessionUp"],
  [EVENT_KIND.sessionLost, "sessionLost"],
  [EVENT_KIND.dialFailed, "dialFailed"],
  [EVENT_KIND.exchangeDone, "exchangeDone"],
  [EVENT_KIND.exchangeFailed, "exchangeFailed"],
]);

/** One control socket: any number of peers, in both roles. */
export class ControlEndpoint extends AsyncHandle {
  protected override readonly kind = "control endpoint";
  readonly #id: number;
  readonly #subscriptions = new Set<() => void>();
  readonly #peers = new Set<ControlPeer>();

  private constructor(library: Library, id: number) {
    super(library, id);
    this.#id = id;
  }

  /**
   * Binds the socket and listens.
   *
   * @throws {NativeError} `EBUSY` for a port that is taken, `EPERM`, `EINVAL`, `ESYS`.
   */
  static open(library: Library, options: ControlEndpointOptions): ControlEndpoint {
    const operation = "icx_control_open";
    const { symbols } = library;
    const json = { ...options, identity: options.identity.unsafeId(operation) };
    const id = callJson(symbols, operation, json, (...text) => symbols.icx_control_open(...text));
    return new ControlEndpoint(library, id);
  }

  /** Address and port. */
  info(): ControlEndpointInfo {
    const { symbols, id } = this.use("icx_control_info");
    return queryJson(symbols, "icx_control_info", (out, outBytes) => symbols.icx_control_info(id, out, outBytes));
  }

  /** Reports to `listener` until the endpoint is closed or the returned function called. */
  onEvent(listener: (event: PeerRejectedEvent) => void): () => void {
    this.use("onEvent");
    const unsubscribe = this.library.events.subscribe(this.#id, {
      onEvent: ({ kind, payload }) => {
        if (kind === EVENT_KIND.peerRejected) {
          listener({ ...payload as Omit<PeerRejectedEvent, "type">, type: "peerRejected" });
        }
      },
      onError: () => {},
    });
    this.#subscriptions.add(unsubscribe);
    return () => {
      unsubscribe();
      this.#subscriptions.delete(unsubscribe);
    };
  }

  /**
   * Pins a peer. Whether it or we dial follows from the keys; where it does, it is accepted and answered from here on.
   *
   * @throws {NativeError} `EKEY` for our own key, `EEXIST`, `ESTATE`, `EINVAL`, `ECLOSED`.
   */
  addPeer(options: AddPeerOptions): ControlPeer {
    const operation = "icx_control_add_peer";
    const { symbols, id: control } = this.use(operation);
    const json = { ...options, control, engine: options.engine.unsafeId(operation) };
    const id = callJson(symbols, operation, json, (...text) => symbols.icx_control_add_peer(...text));
    const peer = ControlPeer.unsafeAdopt(this.library, id, () => this.#peers.delete(peer));
    this.#peers.add(peer);
    return peer;
  }

  protected override onClosed(): void {
    for (const unsubscribe of this.#subscriptions) unsubscribe();
    this.#subscriptions.clear();
    for (const peer of [...this.#peers]) peer.close();
  }
}

/** A pinned peer of an endpoint. It closes with the endpoint at the latest. */
export class ControlPeer extends SyncHandle {
  protected override readonly kind = "control peer";
  readonly #id: number;
  readonly #subscriptions = new Set<() => void>();
  readonly #onClosed: () => void;

  private constructor(library: Library, id: number, onClosed: () => void) {
    super(library, id);
    this.#id = id;
    this.#onClosed = onClosed;
  }

  /** Wraps what the library gave to an endpoint: only that does so. */
  static unsafeAdopt(library: Library, id: number, onClosed: () => void): ControlPeer {
    return new ControlPeer(library, id, onClosed);
  }

  /** Role and fingerprint. */
  info(): PeerInfo {
    const { symbols, id } = this.use("icx_peer_info");
    return queryJson(symbols, "icx_peer_info", (out, outBytes) => symbols.icx_peer_info(id, out, outBytes));
  }

  /** What it is doing. @throws {NativeError} `ECLOSED`. */
  status(): PeerStatus {
    const { symbols, id } = this.use("icx_peer_status");
    return queryJson(symbols, "icx_peer_status", (out, outBytes) => symbols.icx_peer_status(id, out, outBytes));
  }

  /** Starts a handshake; `sessionUp` or `dialFailed` follows. @throws {NativeError} `ESTATE`, `EINVAL`, `ECLOSED`. */
  dial(options: DialOptions): void {
    const { symbols, id } = this.use("icx_peer_dial");
    callJson(symbols, "icx_peer_dial", options, (...text) => symbols.icx_peer_dial(id, ...text));
  }

  /**
   * Starts an exchange of new keys; `exchangeDone` or `exchangeFailed` follows.
   *
   * @throws {NativeError} `ESTATE`, `EINVAL`, `ECLOSED`.
   */
  exchange(options: ExchangeOptions): void {
    const { symbols, id } = this.use("icx_peer_exchange");
    callJson(symbols, "icx_peer_exchange", options, (...text) => symbols.icx_peer_exchange(id, ...text));
  }

  /** Asks for a sign of life if a session is up, at most once in 500 ms. @throws {NativeError} `ECLOSED`. */
  probe(): void {
    const { symbols, id } = this.use("icx_peer_probe");
    const err = errBuffer();
    check(symbols, "icx_peer_probe", symbols.icx_peer_probe(id, err, err.byteLength), err);
  }

  /** Ends the session or dial that is under way, if any. @throws {NativeError} `ECLOSED`. */
  disconnect(): void {
    const { symbols, id } = this.use("icx_peer_disconnect");
    const err = errBuffer();
    check(symbols, "icx_peer_disconnect", symbols.icx_peer_disconnect(id, err, err.byteLength), err);
  }

  /** Reports to `listener` until the peer is closed or the returned function called. */
  onEvent(listener: (event: PeerEvent) => void): () => void {
    this.use("onEvent");
    const unsubscribe = this.library.events.subscribe(this.#id, {
      onEvent: (event) => {
        const known = toPeerEvent(event);
        if (known !== undefined) listener(known);
      },
      onError: (error) => listener({ type: "eventsLost", reason: error.message }),
    });
    this.#subscriptions.add(unsubscribe);
    return () => {
      unsubscribe();
      this.#subscriptions.delete(unsubscribe);
    };
  }

  override close(): void {
    super.close();
    for (const unsubscribe of this.#subscriptions) unsubscribe();
    this.#subscriptions.clear();
    this.#onClosed();
  }
}

function toPeerEvent({ kind, payload }: NativeEvent): PeerEvent | undefined {
  const type = PEER_EVENT_TYPES.get(kind);
  // The C interface says what the payload of each kind is.
  return type === undefined ? undefined : { ...payload as object, type } as PeerEvent;
}
