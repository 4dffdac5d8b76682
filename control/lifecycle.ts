/**
 * The life of one peer's tunnel as a state machine without input, output or time of its own.
 *
 * @module
 */

import { Backoff } from "../datapath/backoff.ts";
import { MAX_DELAY_MS } from "../datapath/clock.ts";
import { requireObject, requirePositive, requireType } from "../native/arguments.ts";

/** Who dials: the node whose public key sorts lower is the initiator. */
export type TunnelRole = "initiator" | "responder";

/**
 * Where a tunnel stands.
 *
 * - `idle`: not started.
 * - `listening`: responder; waits for the peer to dial.
 * - `resolving`: initiator; looks up the peer's name.
 * - `dialing`: initiator; a handshake is under way.
 * - `exchanging`: a session stands, its first key exchange is under way. Nothing confirms the keys before that is done.
 * - `up`: keys are agreed on and are renewed in time.
 * - `rekeying`: initiator; as `up`, with an exchange under way.
 * - `closing`: initiator; the session has failed and is being closed.
 * - `waiting`: initiator; the next try follows after a delay.
 * - `stopped`: ended.
 */
export type TunnelState =
  | "idle"
  | "listening"
  | "resolving"
  | "dialing"
  | "exchanging"
  | "up"
  | "rekeying"
  | "closing"
  | "waiting"
  | "stopped";

/** What a {@linkcode Lifecycle} is told. */
export type LifecycleInput =
  | { readonly type: "resolved"; readonly addresses: readonly string[] }
  | { readonly type: "resolve-failed"; readonly reason: string }
  | { readonly type: "dial-failed"; readonly reason: string }
  | { readonly type: "session-up"; readonly session: number; readonly remote: string }
  | { readonly type: "session-lost"; readonly session: number; readonly reason: string; readonly superseded: boolean }
  | {
    readonly type: "exchange-done";
    readonly session: number;
    readonly rxSpi: number;
    readonly txSpi: number;
  }
  | { readonly type: "exchange-failed"; readonly session: number; readonly reason: string };

/** What a {@linkcode Lifecycle} wants done. */
export type LifecycleAction =
  /** Look up the peer's control addresses; answer with `resolved` or `resolve-failed`. */
  | { readonly type: "resolve" }
  /** Start a handshake; answer with `session-up` or `dial-failed`. */
  | {
    readonly type: "dial";
    readonly address: string;
    readonly answerTimeoutMs: number;
    /** Begin another handshake beside those under way after each such time, until one is answered. */
    readonly repeatAfterMs: number | undefined;
  }
  /** Start a key exchange; answer with `exchange-done` or `exchange-failed`. */
  | { readonly type: "exchange"; readonly timeoutMs: number }
  /** Close the session; answer with `session-lost`. */
  | { readonly type: "disconnect" }
  /** Find out whether the peer still knows the session. */
  | { readonly type: "probe" };

/** What happened to a tunnel, for people and programs to see. */
export type TunnelEvent =
  /** The state changed. */
  | { readonly type: "state"; readonly state: TunnelState; readonly previous: TunnelState }
  /** A handshake is done. `sessions` counts them. */
  | { readonly type: "session-up"; readonly remote: string; readonly sessions: number }
  /** A session ended without being asked to. Installed keys keep forwarding until they expire. */
  | { readonly type: "session-lost"; readonly reason: string; readonly superseded: boolean }
  /** An exchange is done: new keys are installed. `exchanges` counts them over all sessions. */
  | { readonly type: "keys"; readonly rxSpi: number; readonly txSpi: number; readonly exchanges: number }
  /** The peer is still not reached; the tries go on. `attempts` in a row failed, the next follows in `delayMs`. */
  | { readonly type: "unreachable"; readonly reason: string; readonly attempts: number; readonly delayMs: number }
  /**
   * The handshake worked, packets were sent, and none of the peer's opened for `afterMs`. Likely causes: the data port
   * is blocked on the way, or the two nodes differ in VNI or data port.
   */
  | { readonly type: "no-return-traffic"; readonly afterMs: number };

/** An action or an event, in the order in which they belong. */
export type LifecycleOutput =
  | { readonly kind: "action"; readonly action: LifecycleAction }
  | { readonly kind: "event"; readonly event: TunnelEvent };

/** The engine's counters of one VNI, as far as a lifecycle looks at them. */
export interface TrafficSample {
  /** Packets sealed, keepalives included. */
  readonly txPackets: bigint;
  /** Packets opened, keepalives included. */
  readonly rxPackets: bigint;
  /** When the last keepalive was sealed; any unit, 0 for never. */
  readonly lastKeepalive: bigint;
}

/** Timers and limits of a tunnel. */
export interface LifecycleOptions {
  /** Which side this is. */
  readonly role: TunnelRole;
  /** Time between two key exchanges, in milliseconds. @default 120000 */
  readonly rekeyIntervalMs?: number | undefined;
  /**
   * How long the first exchange on a session may take, in milliseconds. There are peers that serve one session after
   * another and first sit out a dead one: a completed handshake is worth keeping. @default 60000
   */
  readonly firstExchangeTimeoutMs?: number | undefined;
  /** How long an exchange on a session that worked before may take, in milliseconds. @default 10000 */
  readonly rekeyTimeoutMs?: number | undefined;
  /** The shortest time between the starts of two tries, in milliseconds. It doubles with each. @default 100 */
  readonly retryBaseMs?: number | undefined;
  /** The longest time between the starts of two tries that fail at once, in milliseconds. @default 5000 */
  readonly retryMaxMs?: number | undefined;
  /** Time between two `unreachable` events, in milliseconds. @default 10000 */
  readonly reportEveryMs?: number | undefined;
  /** Numbers from 0 (included) to 1 (excluded), for jitter. @default Math.random */
  readonly random?: (() => number) | undefined;
}

/** How often {@linkcode Lifecycle.handleTraffic} wants to be called, in milliseconds. */
export const TRAFFIC_SAMPLE_MS: number = 250;

/**
 * How long a try waits for the peer's first answer. Within one handshake the first packet is repeated after 0.3 s and then in
 * doubling steps; a fresh try begins again with short ones, and so finds a peer that is back after at most 2.4 s.
 */
const MIN_ANSWER_TIMEOUT_MS = 1000;
const MAX_ANSWER_TIMEOUT_MS = 5000;
/**
 * While data waits for the peer, the handshakes of a try begin so soon after one another: at most 0.6 s pass between two
 * packets, about three leave in a second. Only data makes a try so eager, so that a peer which is gone for good is not called
 * that often, nor one that comes back by all of its idle peers.
 */
const EAGER_REPEAT_MS = 1000;
/** How long data that was sent makes the tries eager. */
const EAGER_AFTER_DATA_MS = 30_000;
const CLOSE_TIMEOUT_MS = 1000;
const PROBE_AFTER_MS = 500;
const NO_RETURN_AFTER_MS = 5000;
/** Once packets of the peer have opened, its keepalives (25 s) tell a one-way flow from a blocked one. */
const NO_RETURN_LATER_MS = 30_000;

/**
 * Decides what one peer's tunnel does next.
 *
 * Feed it with {@linkcode Lifecycle.start}, {@linkcode Lifecycle.handle}, {@linkcode Lifecycle.handleTraffic} and, when
 * the time of {@linkcode Lifecycle.pollTimeout} has come, {@linkcode Lifecycle.handleTimeout}; after each of them take
 * {@linkcode Lifecycle.poll} until it gives `undefined`. `now` is milliseconds on any monotonic clock, always the same.
 *
 * The initiator dials for ever: a try that fails is repeated 100 ms after its start, doubling with jitter to 5 s; while
 * data is sent, a try that gets no answer begins further handshakes beside its first. It
 * offers keys as soon as a handshake is done, and again every rekey interval. When an exchange fails or the session is
 * lost, a fresh handshake follows; the keys that are installed keep working meanwhile. The responder does as it is told.
 */
export class Lifecycle {
  readonly #role: TunnelRole;
  readonly #rekeyIntervalMs: number;
  readonly #firstExchangeTimeoutMs: number;
  readonly #rekeyTimeoutMs: number;
  readonly #reportEveryMs: number;
  readonly #backoff: Backoff;
  readonly #outputs: LifecycleOutput[] = [];
  #state: TunnelState = "idle";
  /** When the state ends of itself. */
  #deadline: number | undefined;
  #addresses: readonly string[] = [];
  #nextAddress = 0;
  #attemptAt = 0;
  #intervalMs = 0;
  #reportedAt: number | undefined;
  #reason = "";
  #session: number | undefined;
  /** Whether an exchange was finished on the current session. */
  #proven = false;
  /** The peer gave our session to another node with our key, and no session since then has lasted to its rekey. */
  #contended = false;
  #remote: string | undefined;
  #sessions = 0;
  #exchanges = 0;

  #sample: TrafficSample | undefined;
  #everOpened = false;
  /** Since when data has been sent without anything opening. */
  #unansweredSince: number | undefined;
  /** When data was last sent. */
  #dataSentAt: number | undefined;
  #sentSinceProbe = false;
  #probedAt: number | undefined;
  /** Since when anything that counts was sent on this session without anything opening. */
  #silentSince: number | undefined;
  #silenceReported = false;

  /**
   * Makes a lifecycle that has not started.
   *
   * @param options Role, timers and limits.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When a time is not above 0, or longer than
   * a timer takes.
   */
  constructor(options: LifecycleOptions) {
    const operation = "run a tunnel";
    requireObject(options, { operation, name: "options" });
    requireType(options.role === "initiator" || options.role === "responder", options.role, {
      operation,
      name: "role",
      allowed: '"initiator" or "responder"',
    });
    const {
      role,
      rekeyIntervalMs = 120_000,
      firstExchangeTimeoutMs = 60_000,
      rekeyTimeoutMs = 10_000,
      retryBaseMs = 100,
      retryMaxMs = 5000,
      reportEveryMs = 10_000,
      random,
    } = options;
    for (
      const [name, value] of Object.entries({ rekeyIntervalMs, firstExchangeTimeoutMs, rekeyTimeoutMs, reportEveryMs })
    ) {
      requirePositive(value, { operation, name, max: MAX_DELAY_MS });
    }
    this.#role = role;
    this.#rekeyIntervalMs = rekeyIntervalMs;
    this.#firstExchangeTimeoutMs = firstExchangeTimeoutMs;
    this.#rekeyTimeoutMs = rekeyTimeoutMs;
    this.#reportEveryMs = reportEveryMs;
    this.#backoff = new Backoff({ baseMs: retryBaseMs, maxMs: retryMaxMs, random });
  }

  /** Where the tunnel stands. */
  get state(): TunnelState {
    return this.#state;
  }

  /** Handshakes finished so far. */
  get sessions(): number {
    return this.#sessions;
  }

  /** Key exchanges finished so far, over all sessions. */
  get exchanges(): number {
    return this.#exchanges;
  }

  /** The peer's address of the current session, `undefined` without one. */
  get remote(): string | undefined {
    return this.#remote;
  }

  /** When {@linkcode Lifecycle.handleTimeout} wants to be called next; `undefined` for not at all. */
  pollTimeout(): number | undefined {
    return this.#deadline;
  }

  /** The next thing to do or to tell. */
  poll(): LifecycleOutput | undefined {
    return this.#outputs.shift();
  }

  /** Begins: the initiator with its first try, the responder by waiting. Only the first call does anything. */
  start(now: number): void {
    if (this.#state !== "idle") return;
    if (this.#role === "responder") this.#enter("listening");
    else this.#attempt(now);
  }

  /** Ends: closes what is open. Inputs change nothing afterwards. */
  stop(): void {
    if (this.#state === "stopped") return;
    if (this.#session !== undefined || this.#state === "dialing") this.#act({ type: "disconnect" });
    this.#forgetSession();
    this.#enter("stopped");
  }

  /** Takes what the outside answered. */
  handle(now: number, input: LifecycleInput): void {
    if (this.#state === "idle" || this.#state === "stopped") return;
    switch (input.type) {
      case "resolved":
        if (this.#state !== "resolving") return;
        if (input.addresses.length === 0) {
          this.#retry(now, "The peer's name has no address");
          return;
        }
        this.#addresses = input.addresses;
        this.#dial(now);
        return;
      case "resolve-failed":
        if (this.#state === "resolving") this.#retry(now, input.reason);
        return;
      case "dial-failed":
        if (this.#state === "dialing") this.#retry(now, input.reason);
        return;
      case "session-up":
        this.#sessionUp(input);
        return;
      case "session-lost":
        this.#sessionLost(now, input);
        return;
      case "exchange-done":
        this.#exchangeDone(now, input);
        return;
      case "exchange-failed":
        // A responder's session is ended by the control plane, which reports that next; ours to end it would be the
        // newer one that has taken its place meanwhile.
        if (this.#role === "responder" || input.session !== this.#session || this.#state === "closing") return;
        this.#close(now, input.reason);
        return;
    }
  }

  /** Does what is due. A call that comes too early does nothing. */
  handleTimeout(now: number): void {
    if (this.#deadline === undefined || now < this.#deadline) return;
    switch (this.#state) {
      case "waiting":
        this.#attempt(now);
        return;
      case "up":
        this.#enter("rekeying");
        this.#act({ type: "exchange", timeoutMs: this.#rekeyTimeoutMs });
        return;
      case "closing":
        this.#closed(now);
        return;
    }
  }

  /** Looks at the traffic: call it every {@linkcode TRAFFIC_SAMPLE_MS} with the counters of the tunnel's VNI. */
  handleTraffic(now: number, sample: TrafficSample): void {
    const last = this.#sample;
    this.#sample = sample;
    if (last === undefined) return;
    const opened = sample.rxPackets !== last.rxPackets;
    const keepalives = sample.lastKeepalive === last.lastKeepalive ? 0n : 1n;
    const sent = sample.txPackets - last.txPackets;
    const sentData = sent > keepalives;
    if (sentData) this.#dataSentAt = now;
    if (opened) {
      this.#everOpened = true;
      this.#unansweredSince = undefined;
      this.#silentSince = undefined;
      this.#silenceReported = true;
      return;
    }
    if (sentData) {
      this.#unansweredSince ??= now;
      this.#sentSinceProbe = true;
    }
    if (this.#session === undefined) return;
    if (this.#proven && (this.#everOpened ? sentData : sent > 0n)) this.#silentSince ??= now;
    this.#probe(now);
    this.#reportSilence(now);
  }

  #probe(now: number): void {
    if (this.#role !== "initiator" || this.#state === "closing" || !this.#sentSinceProbe) return;
    if (this.#unansweredSince === undefined || now - this.#unansweredSince < PROBE_AFTER_MS) return;
    if (this.#probedAt !== undefined && now - this.#probedAt < PROBE_AFTER_MS) return;
    this.#probedAt = now;
    this.#sentSinceProbe = false;
    this.#act({ type: "probe" });
  }

  #reportSilence(now: number): void {
    if (this.#silenceReported || this.#silentSince === undefined) return;
    const afterMs = now - this.#silentSince;
    if (afterMs < (this.#everOpened ? NO_RETURN_LATER_MS : NO_RETURN_AFTER_MS)) return;
    this.#silenceReported = true;
    this.#tell({ type: "no-return-traffic", afterMs });
  }

  #attempt(now: number): void {
    this.#attemptAt = now;
    this.#intervalMs = this.#backoff.next();
    this.#enter("resolving");
    this.#act({ type: "resolve" });
  }

  #dial(now: number): void {
    const address = this.#addresses[this.#nextAddress++ % this.#addresses.length];
    if (address === undefined) {
      this.#attempt(now);
      return;
    }
    this.#enter("dialing");
    const answerTimeoutMs = Math.round(
      Math.min(MAX_ANSWER_TIMEOUT_MS, Math.max(MIN_ANSWER_TIMEOUT_MS, 2 * this.#intervalMs)),
    );
    const eager = this.#dataSentAt !== undefined && now - this.#dataSentAt < EAGER_AFTER_DATA_MS;
    this.#act({ type: "dial", address, answerTimeoutMs, repeatAfterMs: eager ? EAGER_REPEAT_MS : undefined });
  }

  /** Dials again without delay and without a look-up, which might itself depend on a network that is gone. */
  #redial(now: number): void {
    this.#backoff.reset();
    this.#attemptAt = now;
    this.#intervalMs = this.#backoff.next();
    this.#nextAddress -= 1;
    this.#dial(now);
  }

  #retry(now: number, reason: string): void {
    const at = Math.max(now, this.#attemptAt + this.#intervalMs);
    if (this.#reportedAt === undefined || now - this.#reportedAt >= this.#reportEveryMs) {
      this.#reportedAt = now;
      this.#tell({ type: "unreachable", reason, attempts: this.#backoff.attempts, delayMs: at - now });
    }
    this.#enter("waiting", at);
  }

  #sessionUp(input: LifecycleInput & { type: "session-up" }): void {
    this.#forgetSession();
    this.#session = input.session;
    this.#remote = input.remote;
    this.#sessions += 1;
    this.#silenceReported = false;
    this.#tell({ type: "session-up", remote: input.remote, sessions: this.#sessions });
    this.#enter("exchanging");
    if (this.#role === "initiator") this.#act({ type: "exchange", timeoutMs: this.#firstExchangeTimeoutMs });
  }

  #exchangeDone(now: number, input: LifecycleInput & { type: "exchange-done" }): void {
    if (input.session !== this.#session || this.#state === "closing") return;
    if (this.#proven) this.#contended = false;
    this.#proven = true;
    this.#exchanges += 1;
    if (!this.#contended) this.#backoff.reset();
    this.#reportedAt = undefined;
    this.#enter("up", this.#role === "initiator" ? now + this.#rekeyIntervalMs : undefined);
    this.#tell({ type: "keys", rxSpi: input.rxSpi, txSpi: input.txSpi, exchanges: this.#exchanges });
  }

  #sessionLost(now: number, input: LifecycleInput & { type: "session-lost" }): void {
    if (input.session !== this.#session) return;
    if (this.#state === "closing") {
      this.#closed(now);
      return;
    }
    // A responder's session was replaced by a newer one of the same peer; an initiator's is lost to someone else.
    const replaced = input.superseded && this.#role === "responder";
    this.#tell({ type: "session-lost", reason: input.reason, superseded: replaced });
    this.#reason = input.reason;
    // The other node with our key takes the session back as we did: whoever hurries makes both go round in circles.
    if (input.superseded) {
      this.#proven = false;
      this.#contended = true;
    }
    this.#closed(now);
  }

  #close(now: number, reason: string): void {
    this.#reason = reason;
    this.#tell({ type: "session-lost", reason, superseded: false });
    this.#enter("closing", now + CLOSE_TIMEOUT_MS);
    this.#act({ type: "disconnect" });
  }

  /** The session is gone: what follows depends on whether it had worked. */
  #closed(now: number): void {
    const proven = this.#proven;
    this.#forgetSession();
    if (this.#role === "responder") this.#enter("listening");
    else if (proven) this.#redial(now);
    else this.#retry(now, this.#reason);
  }

  #forgetSession(): void {
    this.#session = undefined;
    this.#remote = undefined;
    this.#proven = false;
    this.#silentSince = undefined;
  }

  #enter(state: TunnelState, deadline?: number): void {
    const previous = this.#state;
    this.#deadline = deadline;
    if (state === previous) return;
    this.#state = state;
    this.#tell({ type: "state", state, previous });
  }

  #act(action: LifecycleAction): void {
    this.#outputs.push({ kind: "action", action });
  }

  #tell(event: TunnelEvent): void {
    this.#outputs.push({ kind: "event", event });
  }
}
