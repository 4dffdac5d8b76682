import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { ManualClock } from "../datapath/clock.ts";
import type { TrafficSample, TunnelEvent, TunnelRole } from "./lifecycle.ts";
import { Tunnel, type TunnelPeer, type TunnelPeerEvent } from "./tunnel.ts";

/** A peer whose answers the test decides on. */
class FakePeer implements TunnelPeer {
  readonly role: TunnelRole;
  readonly calls: string[] = [];
  readonly #listeners = new Set<(event: TunnelPeerEvent) => void>();
  /** What the next call throws. */
  failure: Error | undefined;

  constructor(role: TunnelRole = "initiator") {
    this.role = role;
  }

  get listeners(): number {
    return this.#listeners.size;
  }

  dial(address: string): void {
    this.#call(`dial ${address}`);
  }

  exchange(): void {
    this.#call("exchange");
  }

  probe(): void {
    this.#call("probe");
  }

  disconnect(): void {
    this.#call("disconnect");
  }

  subscribe(listener: (event: TunnelPeerEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  emit(event: TunnelPeerEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  #call(what: string): void {
    this.calls.push(what);
    if (this.failure !== undefined) throw this.failure;
  }
}

function setUp(role: TunnelRole = "initiator") {
  const clock = new ManualClock();
  const peer = new FakePeer(role);
  const events: TunnelEvent[] = [];
  const traffic = { txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n };
  const tunnel = new Tunnel({
    peer,
    clock,
    resolve: () => Promise.resolve(["192.0.2.1:6082"]),
    sampleTraffic: (): TrafficSample => ({ ...traffic }),
    onEvent: (event) => events.push(event),
    rekeyIntervalMs: 1000,
    random: () => 0,
  });
  const controller = new AbortController();
  const run = tunnel.run({ signal: controller.signal });
  run.catch(() => {});
  return { clock, peer, events, traffic, tunnel, controller, run };
}

const UP = { type: "session-up", session: 1, remote: "192.0.2.1:6082" } as const;
const DONE = { type: "exchange-done", session: 1, rxSpi: 1, txSpi: 2 } as const;

Deno.test("Tunnel.ready resolves with the first exchange, not with the handshake", async () => {
  const { clock, peer, tunnel, controller, run, events } = setUp();
  let ready = false;
  tunnel.ready.then(() => ready = true);
  await clock.advance(0);
  deepStrictEqual(peer.calls, ["dial 192.0.2.1:6082"]);
  await clock.advance(10);
  peer.emit(UP);
  await clock.advance(0);
  deepStrictEqual(peer.calls.slice(1), ["exchange"]);
  ok(!ready);
  peer.emit(DONE);
  await clock.advance(5);
  ok(ready);
  deepStrictEqual(tunnel.status(), {
    role: "initiator",
    state: "up",
    remote: "192.0.2.1:6082",
    sessions: 1,
    exchanges: 1,
    sinceHandshakeMs: 5,
    sinceExchangeMs: 5,
  });
  controller.abort();
  await run;
  deepStrictEqual(events.filter(({ type }) => type !== "state").map(({ type }) => type), ["session-up", "keys"]);
});

Deno.test("Tunnel.run() closes the session on abort, resolves, and leaves no timer or listener", async () => {
  const { clock, peer, controller, run, tunnel } = setUp();
  await clock.advance(0);
  peer.emit(UP);
  peer.emit(DONE);
  controller.abort();
  await run;
  strictEqual(peer.calls.at(-1), "disconnect");
  strictEqual(peer.listeners, 0);
  strictEqual(clock.pending, 0);
  strictEqual(tunnel.status().state, "stopped");
});

Deno.test("Tunnel.run() rekeys by the clock and probes by the traffic", async () => {
  const { clock, peer, traffic, controller, run } = setUp();
  await clock.advance(0);
  peer.emit(UP);
  peer.emit(DONE);
  peer.calls.length = 0;
  traffic.txPackets += 5n;
  await clock.advance(1000);
  deepStrictEqual(peer.calls, ["probe", "exchange"]);
  controller.abort();
  await run;
});

Deno.test("Tunnel.run() rejects when the control plane is gone, and so does ready", async () => {
  const { clock, peer, tunnel, run } = setUp();
  peer.failure = new Error("the endpoint is closed");
  await clock.advance(0);
  await rejects(run, /endpoint is closed/);
  await rejects(tunnel.ready, /stopped before its first key exchange/);
  strictEqual(peer.listeners, 0);
  strictEqual(clock.pending, 0);
});

Deno.test("Tunnel.run() rejects with what an observer throws", async () => {
  const clock = new ManualClock();
  const tunnel = new Tunnel({
    peer: new FakePeer("responder"),
    clock,
    sampleTraffic: () => ({ txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n }),
    onEvent: () => {
      throw new TypeError("observer");
    },
  });
  await rejects(tunnel.run(), new TypeError("observer"));
  strictEqual(clock.pending, 0);
});

Deno.test("Tunnel.run() works once", async () => {
  const { tunnel, controller, run } = setUp("responder");
  await rejects(tunnel.run(), /has been run before/);
  controller.abort();
  await run;
  await rejects(tunnel.run(), /has been run before/);
});

Deno.test("Tunnel.run() does nothing when its signal has aborted", async () => {
  const peer = new FakePeer();
  const tunnel = new Tunnel({ peer, sampleTraffic: () => ({ txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n }) });
  await tunnel.run({ signal: AbortSignal.abort() });
  deepStrictEqual(peer.calls, []);
  strictEqual(peer.listeners, 0);
});

Deno.test("Tunnel.run() ignores a look-up that ends after the run", async () => {
  const clock = new ManualClock();
  const peer = new FakePeer();
  const lookup = Promise.withResolvers<string[]>();
  const controller = new AbortController();
  const tunnel = new Tunnel({
    peer,
    clock,
    resolve: () => lookup.promise,
    sampleTraffic: () => ({ txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n }),
  });
  const run = tunnel.run({ signal: controller.signal });
  await clock.advance(1000);
  controller.abort();
  await run;
  lookup.resolve(["192.0.2.1:6082"]);
  await clock.advance(10);
  deepStrictEqual(peer.calls, []);
  strictEqual(clock.pending, 0);
});
