import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import fc from "fast-check";
import { Lifecycle, type LifecycleOptions, type TrafficSample, type TunnelEvent } from "./lifecycle.ts";

/** Drives a lifecycle in virtual time and writes down what it wants and tells, in short. */
class Bench {
  now = 0;
  readonly lifecycle: Lifecycle;
  readonly log: string[] = [];
  #traffic: TrafficSample = { txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n };

  constructor(options: Partial<LifecycleOptions> = {}) {
    this.lifecycle = new Lifecycle({ role: "initiator", random: () => 0, ...options });
    this.lifecycle.start(this.now);
    this.#drain();
  }

  handle(...[input]: Parameters<Lifecycle["handle"]> extends [number, infer I] ? [I] : never): void {
    this.lifecycle.handle(this.now, input);
    this.#drain();
  }

  /** Moves the time, with every timeout on the way at its moment. */
  advance(ms: number): void {
    const end = this.now + ms;
    for (let at = this.lifecycle.pollTimeout(); at !== undefined && at <= end; at = this.lifecycle.pollTimeout()) {
      this.now = at;
      this.lifecycle.handleTimeout(this.now);
      this.#drain();
    }
    this.now = end;
  }

  /** Moves the time with a traffic sample every 250 ms; each sees `tx` and `rx` more packets. */
  traffic(ms: number, { tx = 0n, rx = 0n, keepalives = 0n } = {}): void {
    for (let left = ms; left > 0; left -= 250) {
      this.advance(250);
      this.#traffic = {
        txPackets: this.#traffic.txPackets + tx + keepalives,
        rxPackets: this.#traffic.rxPackets + rx,
        lastKeepalive: this.#traffic.lastKeepalive + keepalives,
      };
      this.lifecycle.handleTraffic(this.now, this.#traffic);
      this.#drain();
    }
  }

  /** What was written since the last call. */
  take(): string[] {
    return this.log.splice(0);
  }

  /** Through a handshake and the first exchange of `session`. */
  connect(session = 1): void {
    this.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
    this.handle({ type: "session-up", session, remote: "192.0.2.1:6082" });
    this.handle({ type: "exchange-done", session, rxSpi: 1, txSpi: 2 });
    this.lifecycle.handleTraffic(this.now, this.#traffic);
    this.take();
  }

  #drain(): void {
    for (let output = this.lifecycle.poll(); output !== undefined; output = this.lifecycle.poll()) {
      if (output.kind === "event") {
        if (output.event.type !== "state") this.log.push(`! ${describe(output.event)}`);
        continue;
      }
      const { action } = output;
      const detail = action.type === "dial"
        ? ` ${action.address} within ${action.answerTimeoutMs}` +
          (action.repeatAfterMs === undefined ? "" : `, again after ${action.repeatAfterMs}`)
        : action.type === "exchange"
        ? ` within ${action.timeoutMs}`
        : "";
      this.log.push(`${this.now} ${action.type}${detail}`);
    }
  }
}

function describe(event: TunnelEvent): string {
  switch (event.type) {
    case "unreachable":
      return `unreachable: ${event.reason} (${event.attempts}, ${event.delayMs} ms)`;
    case "session-lost":
      return `session-${event.superseded ? "replaced" : "lost"}: ${event.reason}`;
    case "no-return-traffic":
      return `no-return-traffic for ${event.afterMs} ms`;
    default:
      return event.type;
  }
}

Deno.test("an initiator resolves, dials, and offers keys as soon as the handshake is done", () => {
  const bench = new Bench();
  deepStrictEqual(bench.take(), ["0 resolve"]);
  bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
  deepStrictEqual(bench.take(), ["0 dial 192.0.2.1:6082 within 1000"]);
  bench.handle({ type: "session-up", session: 7, remote: "192.0.2.1:6082" });
  deepStrictEqual(bench.take(), ["! session-up", "0 exchange within 60000"]);
  strictEqual(bench.lifecycle.state, "exchanging");
  bench.handle({ type: "exchange-done", session: 7, rxSpi: 5, txSpi: 6 });
  deepStrictEqual(bench.take(), ["! keys"]);
  strictEqual(bench.lifecycle.state, "up");
  strictEqual(bench.lifecycle.remote, "192.0.2.1:6082");
});

Deno.test("an initiator renews keys every rekey interval, counted from the last exchange", () => {
  const bench = new Bench({ rekeyIntervalMs: 5000 });
  bench.connect();
  bench.advance(4999);
  deepStrictEqual(bench.take(), []);
  bench.advance(1);
  deepStrictEqual(bench.take(), ["5000 exchange within 10000"]);
  strictEqual(bench.lifecycle.state, "rekeying");
  bench.advance(300);
  bench.handle({ type: "exchange-done", session: 1, rxSpi: 3, txSpi: 4 });
  bench.advance(5000);
  deepStrictEqual(bench.take(), ["! keys", "10300 exchange within 10000"]);
  strictEqual(bench.lifecycle.exchanges, 2);
});

Deno.test("handshakes without an answer are repeated for ever, from 100 ms doubling to 5 s", () => {
  const bench = new Bench({ reportEveryMs: 1e9 });
  const starts: number[] = [];
  for (let i = 0; i < 10; i++) {
    strictEqual(bench.take().at(-1), `${bench.now} resolve`);
    starts.push(bench.now);
    bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
    bench.handle({ type: "dial-failed", reason: "refused" });
    bench.advance(bench.lifecycle.pollTimeout() as number - bench.now);
  }
  deepStrictEqual(starts.slice(1).map((at, i) => at - (starts[i] as number)), [
    100,
    200,
    400,
    800,
    1600,
    3200,
    5000,
    5000,
    5000,
  ]);
});

Deno.test("a try that took longer than the pause between two is repeated at once, with more time", () => {
  const bench = new Bench();
  const limits: (string | undefined)[] = [];
  for (let i = 0; i < 8; i++) {
    bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
    const dial = bench.take().find((line) => line.includes("dial"));
    limits.push(dial?.split(" ").at(-1));
    bench.advance(Number(limits.at(-1)));
    bench.handle({ type: "dial-failed", reason: "timeout" });
    strictEqual(bench.lifecycle.pollTimeout(), bench.now);
    bench.advance(0);
  }
  deepStrictEqual(limits, ["1000", "1000", "1000", "1600", "3200", "5000", "5000", "5000"]);
});

Deno.test("a try is eager while data is sent, and for 30 s after", () => {
  const bench = new Bench();
  bench.connect();
  bench.traffic(500, { tx: 1n });
  bench.handle({ type: "session-lost", session: 1, reason: "reset", superseded: false });
  const dials: (string | undefined)[] = [];
  const fail = () => {
    dials.push(bench.take().findLast((line) => line.includes(" dial ")));
    bench.handle({ type: "dial-failed", reason: "timeout" });
    bench.advance(5000);
    bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
  };
  for (let round = 0; round < 8; round++) fail();
  const times = [500, 5500, 10_500, 15_500, 20_500, 25_500];
  const waits = [1000, 1000, 1000, 1600, 3200, 5000];
  deepStrictEqual(dials, [
    ...times.map((at, index) => `${at} dial 192.0.2.1:6082 within ${waits[index]}, again after 1000`),
    "30500 dial 192.0.2.1:6082 within 5000",
    "35500 dial 192.0.2.1:6082 within 5000",
  ]);
  bench.traffic(5000, { keepalives: 1n });
  bench.take();
  fail();
  bench.traffic(250, { tx: 1n });
  fail();
  fail();
  deepStrictEqual(dials.slice(-2).map((dial) => dial?.includes("again")), [false, true]);
});

Deno.test("an initiator tries the addresses of a name in turn, and asks for them each time", () => {
  const bench = new Bench();
  const dialled: string[] = [];
  for (let i = 0; i < 3; i++) {
    bench.handle({ type: "resolved", addresses: ["[2001:db8::1]:6082", "192.0.2.1:6082"] });
    dialled.push(...bench.take().filter((line) => line.includes("dial")).map((line) => line.split(" ")[2] ?? ""));
    bench.handle({ type: "dial-failed", reason: "timeout" });
    bench.advance(5000);
  }
  deepStrictEqual(dialled, ["[2001:db8::1]:6082", "192.0.2.1:6082", "[2001:db8::1]:6082"]);
});

Deno.test("an initiator that cannot resolve the name says so at intervals and goes on", () => {
  const bench = new Bench({ reportEveryMs: 1000 });
  bench.handle({ type: "resolve-failed", reason: "no such host" });
  deepStrictEqual(bench.take(), ["0 resolve", "! unreachable: no such host (1, 100 ms)"]);
  bench.advance(100);
  bench.handle({ type: "resolved", addresses: [] });
  bench.advance(200);
  bench.handle({ type: "resolve-failed", reason: "no such host" });
  bench.advance(700);
  deepStrictEqual(bench.take(), ["100 resolve", "300 resolve", "700 resolve"]);
  bench.handle({ type: "resolve-failed", reason: "no such host" });
  deepStrictEqual(bench.take(), ["! unreachable: no such host (4, 500 ms)"]);
});

Deno.test("a completed handshake is kept with its offer for 60 s, then closed and tried anew", () => {
  const bench = new Bench();
  bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
  bench.handle({ type: "session-up", session: 1, remote: "192.0.2.1:6082" });
  bench.take();
  bench.advance(59_999);
  deepStrictEqual(bench.take(), []);
  strictEqual(bench.lifecycle.state, "exchanging");
  bench.advance(1);
  bench.handle({ type: "exchange-failed", session: 1, reason: "timed out" });
  deepStrictEqual(bench.take(), ["! session-lost: timed out", "60000 disconnect"]);
  strictEqual(bench.lifecycle.state, "closing");
  bench.handle({ type: "session-lost", session: 1, reason: "closed", superseded: false });
  strictEqual(bench.lifecycle.state, "waiting");
  bench.advance(0);
  deepStrictEqual(bench.take(), ["! unreachable: timed out (1, 0 ms)", "60000 resolve"]);
});

Deno.test("a session that worked is dialled again at once, at the address that worked", () => {
  const bench = new Bench();
  bench.connect();
  bench.advance(1000);
  bench.handle({ type: "session-lost", session: 1, reason: "reset by peer", superseded: false });
  deepStrictEqual(bench.take(), ["! session-lost: reset by peer", "1000 dial 192.0.2.1:6082 within 1000"]);
  bench.handle({ type: "dial-failed", reason: "refused" });
  bench.advance(100);
  deepStrictEqual(bench.take(), ["! unreachable: refused (1, 100 ms)", "1100 resolve"]);
});

Deno.test("a failed rekey tears the session down and a fresh handshake follows", () => {
  const bench = new Bench({ rekeyIntervalMs: 1000 });
  bench.connect();
  bench.advance(1000);
  bench.take();
  bench.advance(10_000);
  bench.handle({ type: "exchange-failed", session: 1, reason: "timed out" });
  deepStrictEqual(bench.take(), ["! session-lost: timed out", "11000 disconnect"]);
  bench.advance(999);
  deepStrictEqual(bench.take(), []);
  bench.advance(1);
  deepStrictEqual(bench.take(), ["12000 dial 192.0.2.1:6082 within 1000"]);
  bench.handle({ type: "session-lost", session: 1, reason: "closed", superseded: false });
  bench.handle({ type: "session-up", session: 2, remote: "192.0.2.1:6082" });
  deepStrictEqual(bench.take(), ["! session-up", "12000 exchange within 60000"]);
});

Deno.test("an initiator whose session went to another node with its key does not hurry", () => {
  const bench = new Bench();
  bench.connect();
  bench.handle({ type: "session-lost", session: 1, reason: "superseded", superseded: true });
  strictEqual(bench.lifecycle.state, "waiting");
  ok(bench.take().includes("! session-lost: superseded"), "a loss, not a replacement");
});

Deno.test("an initiator that shares its key with another node takes its session back ever more slowly, and is reset by a rekey", () => {
  const bench = new Bench({ rekeyIntervalMs: 60_000 });
  bench.connect();
  const dials: number[] = [];
  let session = 1;
  const contest = () => {
    bench.handle({ type: "session-lost", session, reason: "superseded", superseded: true });
    while (bench.lifecycle.state === "waiting") bench.advance((bench.lifecycle.pollTimeout() ?? bench.now) - bench.now);
    dials.push(bench.now);
    bench.handle({ type: "resolved", addresses: ["192.0.2.1:6082"] });
    session += 1;
    bench.handle({ type: "session-up", session, remote: "192.0.2.1:6082" });
    bench.handle({ type: "exchange-done", session, rxSpi: session, txSpi: session });
  };
  for (let round = 0; round < 10; round++) contest();
  const gaps = dials.slice(1).map((dial, index) => dial - (dials[index] ?? 0));
  deepStrictEqual(gaps, [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);

  bench.advance(60_000);
  bench.handle({ type: "exchange-done", session, rxSpi: 99, txSpi: 99 });
  contest();
  contest();
  strictEqual((dials.at(-1) ?? 0) - (dials.at(-2) ?? 0), 100);
});

Deno.test("events of another session change nothing", () => {
  const bench = new Bench();
  bench.connect(2);
  bench.handle({ type: "session-lost", session: 1, reason: "late", superseded: false });
  bench.handle({ type: "exchange-failed", session: 1, reason: "late" });
  bench.handle({ type: "exchange-done", session: 1, rxSpi: 9, txSpi: 9 });
  deepStrictEqual(bench.take(), []);
  strictEqual(bench.lifecycle.state, "up");
  strictEqual(bench.lifecycle.exchanges, 1);
});

Deno.test("a responder waits, and takes a newer session for the older one", () => {
  const bench = new Bench({ role: "responder" });
  strictEqual(bench.lifecycle.state, "listening");
  bench.handle({ type: "session-up", session: 1, remote: "192.0.2.1:40000" });
  strictEqual(bench.lifecycle.state, "exchanging");
  bench.handle({ type: "exchange-done", session: 1, rxSpi: 1, txSpi: 2 });
  strictEqual(bench.lifecycle.state, "up");
  bench.handle({ type: "session-up", session: 2, remote: "192.0.2.1:40001" });
  bench.handle({ type: "session-lost", session: 1, reason: "superseded", superseded: true });
  strictEqual(bench.lifecycle.state, "exchanging");
  bench.handle({ type: "exchange-done", session: 2, rxSpi: 3, txSpi: 4 });
  bench.advance(1e6);
  deepStrictEqual(bench.take(), ["! session-up", "! keys", "! session-up", "! keys"]);
  bench.handle({ type: "session-lost", session: 2, reason: "idle", superseded: false });
  deepStrictEqual(bench.take(), ["! session-lost: idle"]);
  strictEqual(bench.lifecycle.state, "listening");
});

Deno.test("a responder leaves it to the control plane to end a session whose exchange failed", () => {
  const bench = new Bench({ role: "responder" });
  bench.handle({ type: "session-up", session: 1, remote: "192.0.2.1:40000" });
  bench.handle({ type: "exchange-failed", session: 1, reason: "wrong suite" });
  deepStrictEqual(bench.take(), ["! session-up"]);
  bench.handle({ type: "session-lost", session: 1, reason: "an exchange failed", superseded: false });
  deepStrictEqual(bench.take(), ["! session-lost: an exchange failed"]);
  strictEqual(bench.lifecycle.state, "listening");
});

Deno.test("an initiator probes when data was sent and nothing opened for 500 ms, once for each time data was sent", () => {
  const bench = new Bench();
  bench.connect();
  bench.traffic(250, { tx: 1n });
  bench.traffic(250);
  deepStrictEqual(bench.take(), []);
  bench.traffic(250);
  deepStrictEqual(bench.take(), ["750 probe"]);
  bench.traffic(2000);
  deepStrictEqual(bench.take(), []);
  bench.traffic(1000, { tx: 3n });
  deepStrictEqual(bench.take(), ["3000 probe", "3500 probe"]);
});

Deno.test("an initiator does not probe while packets open or only keepalives are sent", () => {
  const bench = new Bench();
  bench.connect();
  bench.traffic(5000, { tx: 10n, rx: 1n });
  bench.traffic(250, { keepalives: 1n });
  bench.traffic(2000);
  deepStrictEqual(bench.take(), []);
});

Deno.test("a responder never probes", () => {
  const bench = new Bench({ role: "responder" });
  bench.connect();
  bench.traffic(3000, { tx: 10n });
  deepStrictEqual(bench.take(), []);
});

Deno.test("a tunnel on which nothing opens within 5 s of sending says so once for each session", () => {
  const bench = new Bench({ role: "responder" });
  bench.connect();
  bench.traffic(250, { keepalives: 1n });
  bench.traffic(4750, { tx: 1n });
  deepStrictEqual(bench.take(), []);
  bench.traffic(250);
  deepStrictEqual(bench.take(), ["! no-return-traffic for 5000 ms"]);
  bench.traffic(60_000, { tx: 1n });
  deepStrictEqual(bench.take(), []);
  bench.handle({ type: "session-up", session: 2, remote: "192.0.2.1:40001" });
  bench.handle({ type: "exchange-done", session: 2, rxSpi: 3, txSpi: 4 });
  bench.take();
  bench.traffic(5250, { tx: 1n });
  deepStrictEqual(bench.take(), ["! no-return-traffic for 5000 ms"]);
});

Deno.test("a tunnel on which packets opened before does not take a one-way flow for a fault", () => {
  const bench = new Bench({ role: "responder" });
  bench.connect();
  bench.traffic(250, { rx: 1n });
  bench.handle({ type: "session-up", session: 2, remote: "192.0.2.1:40001" });
  bench.handle({ type: "exchange-done", session: 2, rxSpi: 3, txSpi: 4 });
  bench.take();
  bench.traffic(29_000, { tx: 1n });
  deepStrictEqual(bench.take(), []);
  bench.traffic(1500, { tx: 1n });
  deepStrictEqual(bench.take(), ["! no-return-traffic for 30000 ms"]);
});

Deno.test("stop() closes the session and nothing follows", () => {
  const bench = new Bench();
  bench.connect();
  bench.lifecycle.stop();
  bench.lifecycle.stop();
  bench.handle({ type: "session-lost", session: 1, reason: "closed", superseded: false });
  bench.advance(1e6);
  strictEqual(bench.lifecycle.state, "stopped");
  strictEqual(bench.lifecycle.pollTimeout(), undefined);
  deepStrictEqual(bench.take(), [`0 disconnect`]);
});

Deno.test("a time that is not above 0 is refused by name", () => {
  for (const name of ["rekeyIntervalMs", "firstExchangeTimeoutMs", "rekeyTimeoutMs", "reportEveryMs"] as const) {
    throws(() => new Lifecycle({ role: "initiator", [name]: 0 }), new RegExp(`"${name}" must be a number above 0`));
  }
});

Deno.test("whatever happens in whatever order, an initiator always has something under way", () => {
  const session = fc.integer({ min: 1, max: 3 });
  const text = fc.constant("reason");
  const operation = fc.oneof(
    fc.record({ type: fc.constant("resolved" as const), addresses: fc.constantFrom([], ["192.0.2.1:1"]) }),
    fc.record({ type: fc.constant("resolve-failed" as const), reason: text }),
    fc.record({ type: fc.constant("dial-failed" as const), reason: text }),
    fc.record({ type: fc.constant("session-up" as const), session, remote: fc.constant("192.0.2.1:1") }),
    fc.record({ type: fc.constant("session-lost" as const), session, reason: text, superseded: fc.boolean() }),
    fc.record({
      type: fc.constant("exchange-done" as const),
      session,
      rxSpi: fc.constant(1),
      txSpi: fc.constant(2),
    }),
    fc.record({ type: fc.constant("exchange-failed" as const), session, reason: text }),
    fc.record({ type: fc.constant("advance" as const), ms: fc.integer({ min: 0, max: 10_000 }) }),
  );
  fc.assert(fc.property(fc.array(operation, { maxLength: 40 }), (operations) => {
    const bench = new Bench();
    for (const input of operations) {
      if (input.type === "advance") bench.advance(input.ms);
      else bench.handle(input);
      const { state } = bench.lifecycle;
      // Either the native side owes an answer, or a timer is set.
      const answerOwed = state === "resolving" || state === "dialing" || state === "exchanging" || state === "rekeying";
      ok(answerOwed || bench.lifecycle.pollTimeout() !== undefined, `nothing is under way in state ${state}`);
    }
  }));
});
