/**
 * One peer's tunnel: sessions, keys and their renewal for as long as it runs.
 *
 * @module
 */

import { type Clock, systemClock } from "../datapath/clock.ts";
import { requireFunction, requireObject } from "../native/arguments.ts";
import {
  Lifecycle,
  type LifecycleAction,
  type LifecycleInput,
  type LifecycleOptions,
  TRAFFIC_SAMPLE_MS,
  type TrafficSample,
  type TunnelEvent,
  type TunnelRole,
  type TunnelState,
} from "./lifecycle.ts";

/**
 * What a control-plane peer reports: the answers to what it was asked, and on the responder what the peer did. `gone` is
 * the last event: the control plane cannot report any more.
 */
export type TunnelPeerEvent =
  | Exclude<LifecycleInput, { type: "resolved" | "resolve-failed" }>
  | { readonly type: "gone"; readonly reason: string };

/** How long, and how eagerly, to wait for a peer's first answer. */
export interface DialOptions {
  /** How long the peer may leave the dial unanswered, in milliseconds. */
  readonly answerTimeoutMs: number;
  /**
   * Begin another handshake beside those under way each time that so many milliseconds have passed; the first to be answered
   * goes on. @default never
   */
  readonly repeatAfterMs?: number | undefined;
}

/** What a {@linkcode Tunnel} needs of the control plane. `ControlPeer` is one; a test brings its own. */
export interface TunnelPeer {
  /** Which side we are. */
  readonly role: TunnelRole;
  /**
   * Starts a handshake with `address` (`ip:port`), which the peer has to answer within `answerTimeoutMs`; another one beside
   * it after each `repeatAfterMs`, if that is given. Reports `session-up` or `dial-failed` once.
   */
  dial(address: string, options: DialOptions): void;
  /** Starts a key exchange on the session. Reports `exchange-done` or `exchange-failed`. */
  exchange(options: { readonly timeoutMs: number }): void;
  /** Makes the peer answer on the session, if there is one. */
  probe(): void;
  /** Closes the session or gives up the handshake. Reports `session-lost` if there was a session. */
  disconnect(): void;
  /**
   * Reports to `listener` until the returned function is called. A session that came up while nobody listened is
   * reported, with its last exchange, to the first one who does.
   */
  subscribe(listener: (event: TunnelPeerEvent) => void): () => void;
}

/** What a {@linkcode Tunnel} is made of. */
export interface TunnelOptions extends Omit<LifecycleOptions, "role"> {
  /** The peer. It stays its owner's: the tunnel ends its session, and does not close it. */
  readonly peer: TunnelPeer;
  /**
   * Looks up the peer's control addresses, as `ip:port`; asked again before each try. Only initiators need it.
   *
   * @default there are none
   */
  readonly resolve?: ((options: { readonly signal: AbortSignal }) => Promise<readonly string[]>) | undefined;
  /** Reads the engine's counters of the tunnel's VNI. */
  readonly sampleTraffic: () => TrafficSample;
  /** Hears of everything that happens, in order. What it throws ends the run. @default none */
  readonly onEvent?: ((event: TunnelEvent) => void) | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/** Options of {@linkcode Tunnel.run}. */
export interface RunOptions {
  /** Ends the run cleanly. @default none */
  readonly signal?: AbortSignal | undefined;
}

/** A tunnel as it stands. */
export interface TunnelStatus {
  /** Which side we are. */
  readonly role: TunnelRole;
  /** Where it stands. */
  readonly state: TunnelState;
  /** The peer's address of the current session, as `ip:port`; `undefined` without one. */
  readonly remote: string | undefined;
  /** Handshakes finished so far. */
  readonly sessions: number;
  /** Key exchanges finished so far. */
  readonly exchanges: number;
  /** Time since the last finished handshake, in milliseconds; `undefined` before the first. */
  readonly sinceHandshakeMs: number | undefined;
  /** Time since the last finished key exchange, in milliseconds; `undefined` before the first. */
  readonly sinceExchangeMs: number | undefined;
}

/**
 * Keeps one peer's tunnel alive: dials and dials again as the initiator, answers as the responder, renews keys.
 *
 * `run` works once. It goes on until its signal aborts, whatever the network and the peer do; it rejects only when the
 * control plane itself is gone. At its end the session is closed; keys that are installed stay with the engine.
 */
export class Tunnel {
  /**
   * Resolves when the first key exchange is done: nothing can pass before. Rejects when the run ends without one. It is
   * safe to ignore.
   */
  readonly ready: Promise<void>;
  readonly #options: TunnelOptions;
  readonly #clock: Clock;
  readonly #lifecycle: Lifecycle;
  readonly #resolveReady: () => void;
  readonly #rejectReady: (reason: unknown) => void;
  #started = false;
  #handshakeAt: number | undefined;
  #exchangeAt: number | undefined;

  /**
   * Makes a tunnel that does nothing yet.
   *
   * @param options What it is made of.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When a time is not above 0, or longer than
   * a timer takes.
   */
  constructor(options: TunnelOptions) {
    const operation = "run a tunnel";
    requireObject(options, { operation, name: "options" });
    requireObject(options.peer, { operation, name: "peer" });
    requireFunction(options.sampleTraffic, { operation, name: "sampleTraffic" });
    if (options.resolve !== undefined) requireFunction(options.resolve, { operation, name: "resolve" });
    if (options.onEvent !== undefined) requireFunction(options.onEvent, { operation, name: "onEvent" });
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#lifecycle = new Lifecycle({ ...options, role: options.peer.role });
    const ready = Promise.withResolvers<void>();
    this.ready = ready.promise;
    this.#resolveReady = ready.resolve;
    this.#rejectReady = ready.reject;
    ready.promise.catch(() => {});
  }

  /** The tunnel as it stands. */
  status(): TunnelStatus {
    const since = (at: number | undefined) => at === undefined ? undefined : this.#clock.now() - at;
    return {
      role: this.#options.peer.role,
      state: this.#lifecycle.state,
      remote: this.#lifecycle.remote,
      sessions: this.#lifecycle.sessions,
      exchanges: this.#lifecycle.exchanges,
      sinceHandshakeMs: since(this.#handshakeAt),
      sinceExchangeMs: since(this.#exchangeAt),
    };
  }

  /**
   * Runs the tunnel until `signal` aborts.
   *
   * @param options The signal.
   * @throws {TypeError} When it was called before.
   */
  async run(options: RunOptions = {}): Promise<void> {
    if (this.#started) throw new TypeError("Cannot run the tunnel as it has been run before: make a new one");
    this.#started = true;
    const { signal } = options;
    const { peer, resolve = () => Promise.resolve([]), sampleTraffic, onEvent } = this.#options;
    const lifecycle = this.#lifecycle;
    const clock = this.#clock;
    const end = Promise.withResolvers<void>();
    const stopped = new AbortController();
    let cancelTimer = () => {};
    let cancelSample = () => {};

    const perform = (action: LifecycleAction): void => {
      switch (action.type) {
        case "resolve":
          resolve({ signal: stopped.signal }).then(
            (addresses) => feed({ type: "resolved", addresses }),
            (error) => feed({ type: "resolve-failed", reason: messageOf(error) }),
          );
          return;
        case "dial":
          peer.dial(action.address, action);
          return;
        case "exchange":
          peer.exchange({ timeoutMs: action.timeoutMs });
          return;
        case "disconnect":
          peer.disconnect();
          return;
        case "probe":
          peer.probe();
          return;
      }
    };
    const tell = (event: TunnelEvent): void => {
      if (event.type === "session-up") this.#handshakeAt = clock.now();
      if (event.type === "keys") this.#exchangeAt = clock.now();
      onEvent?.(event);
      if (event.type === "keys") this.#resolveReady();
    };
    const drain = (): void => {
      for (let output = lifecycle.poll(); output !== undefined; output = lifecycle.poll()) {
        if (output.kind === "action") perform(output.action);
        else tell(output.event);
      }
    };
    /** Lets the machine take a step, does what it asks for, and sets the timer for what is due next. */
    const step = (change: (now: number) => void): void => {
      if (stopped.signal.aborted) return;
      try {
        change(clock.now());
        drain();
      } catch (error) {
        end.reject(error);
        return;
      }
      cancelTimer();
      const at = lifecycle.pollTimeout();
      if (at !== undefined) {
        cancelTimer = clock.schedule(
          Math.max(0, at - clock.now()),
          () => step((now) => lifecycle.handleTimeout(now)),
        );
      }
    };
    const feed = (input: LifecycleInput): void => step((now) => lifecycle.handle(now, input));
    const sample = (): void => {
      step((now) => lifecycle.handleTraffic(now, sampleTraffic()));
      cancelSample = clock.schedule(TRAFFIC_SAMPLE_MS, sample);
    };

    const take = (event: TunnelPeerEvent): void => {
      if (event.type === "gone") end.reject(new Error(`The control plane is gone: ${event.reason}`));
      else feed(event);
    };
    let unsubscribe = () => {};
    const onAbort = () => end.resolve();
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      if (!signal?.aborted) {
        sample();
        step((now) => lifecycle.start(now));
        unsubscribe = peer.subscribe(take);
        await end.promise;
      }
      lifecycle.stop();
      drain();
    } finally {
      stopped.abort();
      cancelTimer();
      cancelSample();
      unsubscribe();
      signal?.removeEventListener("abort", onAbort);
      this.#rejectReady(new Error("The tunnel was stopped before its first key exchange was done"));
    }
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
