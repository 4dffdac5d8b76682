import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Engine } from "../datapath/engine.ts";
import { PacketBatch } from "../datapath/packet_batch.ts";
import { NativeError } from "../native/errors.ts";
import { Library } from "../native/library.ts";
import { ControlEndpoint, type RejectedPeer } from "./endpoint.ts";
import { Identity } from "./identity.ts";
import type { TunnelEvent } from "./lifecycle.ts";
import { addressBytes } from "./prefix.ts";
import { Tunnel } from "./tunnel.ts";

const LOCALHOST = "127.0.0.1";
/** How long something that takes milliseconds may take on a machine that is busy. */
const PATIENCE_MS = 30_000;

/** Waits for what is bound to happen; fails when it does not. */
async function soon<T>(what: string, promise: Promise<T>): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`${what} did not happen in ${PATIENCE_MS} ms`)), PATIENCE_MS);
  try {
    return await Promise.race([promise, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Parts that tests share, closed in the reverse order. */
class Bench implements AsyncDisposable {
  readonly #parts = new AsyncDisposableStack();
  readonly #folder = mkdtempSync(join(tmpdir(), "icx-control-"));
  readonly library: Library;
  #identities = 0;

  constructor() {
    this.library = Library.open();
    this.#parts.defer(() => rmSync(this.#folder, { recursive: true }));
    this.#parts.use(this.library);
  }

  /** An endpoint on loopback, with an engine and an identity. */
  side(options: { identity?: Identity; port?: number; onRejected?: (rejected: RejectedPeer) => void } = {}): Side {
    const { library } = this;
    const identity = options.identity ??
      this.#parts.use(Identity.generate(join(this.#folder, `${this.#identities++}.key`), { library }));
    const engine = this.#parts.use(Engine.create({ library }));
    const { port = 0, onRejected } = options;
    const endpoint = this.#parts.use(
      ControlEndpoint.open({ library, identity, localAddress: LOCALHOST, port, onRejected }),
    );
    return { identity, engine, endpoint };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#parts.disposeAsync();
  }
}

interface Side {
  readonly identity: Identity;
  readonly engine: Engine;
  readonly endpoint: ControlEndpoint;
}

/** A tunnel of `side` to `peer` that runs until it is stopped. */
class Running implements AsyncDisposable {
  readonly tunnel: Tunnel;
  readonly events: TunnelEvent[] = [];
  readonly #controller = new AbortController();
  readonly #run: Promise<void>;
  readonly #watchers = new Set<() => void>();

  constructor(side: Side, options: { peer: Side; vni: number; rekeyIntervalMs?: number }) {
    const { peer, vni, rekeyIntervalMs } = options;
    const route = { src: "0.0.0.0/0", dst: `10.${vni}.0.0/16` };
    side.engine.addNetwork({ vni, peer: `${LOCALHOST}:6081`, routes: [route, { src: route.dst, dst: route.src }] });
    this.tunnel = new Tunnel({
      peer: side.endpoint.addPeer({ engine: side.engine, vni, publicKey: peer.identity.publicKey }),
      resolve: () => Promise.resolve([`${LOCALHOST}:${peer.endpoint.port}`]),
      sampleTraffic: () => {
        const { tx_packets, rx_packets, last_keepalive } = side.engine.counters(vni);
        return { txPackets: tx_packets, rxPackets: rx_packets, lastKeepalive: last_keepalive };
      },
      onEvent: (event) => {
        this.events.push(event);
        for (const watcher of this.#watchers) watcher();
      },
      rekeyIntervalMs,
    });
    this.#run = this.tunnel.run({ signal: this.#controller.signal });
    this.#run.catch(() => {});
  }

  /** Resolves when `count` exchanges are done. */
  async exchanges(count: number): Promise<void> {
    const reached = Promise.withResolvers<void>();
    const watcher = () => {
      if (this.tunnel.status().exchanges >= count) reached.resolve();
    };
    this.#watchers.add(watcher);
    watcher();
    await soon(`exchange ${count}`, reached.promise);
    this.#watchers.delete(watcher);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#controller.abort();
    await this.#run;
  }
}

/** Whether a packet that one engine seals for `vni` opens in the other one. */
function passes(from: Engine, to: Engine, vni: number): boolean {
  const [input, sealed, received, opened] = Array.from({ length: 4 }, () => new PacketBatch({ capacity: 1 }));
  if (!(input && sealed && received && opened)) return false;
  const header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
  input.append(new Uint8Array([...header, ...addressBytes("10.0.0.1"), ...addressBytes(`10.${vni}.0.1`)]));
  from.virtToPhy(input, sealed);
  if (sealed.verdict(0) !== "forward" || sealed.vni(0) !== vni) return false;
  received.append(sealed.packet(0), { address: addressBytes(LOCALHOST), port: 6081 });
  to.phyToVirt(received, opened);
  return opened.verdict(0) === "forward";
}

Deno.test("two tunnels agree on keys, in whichever order they start, and packets pass both ways", async () => {
  await using bench = new Bench();
  const [a, b] = [bench.side(), bench.side()];
  await using left = new Running(a, { peer: b, vni: 5 });
  await using right = new Running(b, { peer: a, vni: 5 });
  await soon("the first exchange", Promise.all([left.tunnel.ready, right.tunnel.ready]));
  strictEqual(a.engine.saStatus(5).tx?.spi, b.engine.saStatus(5).rx[0]?.spi);
  strictEqual(b.engine.saStatus(5).tx?.spi, a.engine.saStatus(5).rx[0]?.spi);
  ok(passes(a.engine, b.engine, 5));
  ok(passes(b.engine, a.engine, 5));
  deepStrictEqual([left.tunnel.status().role, right.tunnel.status().role].toSorted(), ["initiator", "responder"]);
  deepStrictEqual([left, right].map(({ tunnel }) => tunnel.status().sessions), [1, 1]);
});

Deno.test("keys are renewed on one session, and packets pass throughout", async () => {
  await using bench = new Bench();
  const [a, b] = [bench.side(), bench.side()];
  await using left = new Running(a, { peer: b, vni: 5, rekeyIntervalMs: 20 });
  await using right = new Running(b, { peer: a, vni: 5, rekeyIntervalMs: 20 });
  for (let count = 1; count <= 10; count++) {
    await Promise.all([left.exchanges(count), right.exchanges(count)]);
    ok(passes(a.engine, b.engine, 5), `after exchange ${count}`);
    ok(passes(b.engine, a.engine, 5), `after exchange ${count}`);
  }
  strictEqual(left.tunnel.status().sessions, 1);
});

Deno.test("two peers with two networks share one endpoint and one engine", async () => {
  await using bench = new Bench();
  const [hub, b, c] = [bench.side(), bench.side(), bench.side()];
  await using toB = new Running(hub, { peer: b, vni: 5 });
  await using toC = new Running(hub, { peer: c, vni: 6 });
  await using fromB = new Running(b, { peer: hub, vni: 5 });
  await using fromC = new Running(c, { peer: hub, vni: 6 });
  await soon("the first exchanges", Promise.all([toB, toC, fromB, fromC].map(({ tunnel }) => tunnel.ready)));
  ok(passes(hub.engine, b.engine, 5));
  ok(passes(hub.engine, c.engine, 6));
  ok(!passes(hub.engine, c.engine, 5), "one network's packets do not open in another");
});

Deno.test("a tunnel comes back when the other side restarts, whichever role that has", async () => {
  await using bench = new Bench();
  const [a, b] = [bench.side(), bench.side()];
  await using left = new Running(a, { peer: b, vni: 5 });
  {
    await using right = new Running(b, { peer: a, vni: 5 });
    await soon("the first exchange", Promise.all([left.tunnel.ready, right.tunnel.ready]));
  }
  const { port } = b.endpoint;
  await b.endpoint.close();
  const again = bench.side({ identity: b.identity, port });
  await using right = new Running(again, { peer: a, vni: 5 });
  await soon("the exchange after the restart", right.tunnel.ready);
  await left.exchanges(2);
  ok(passes(a.engine, again.engine, 5));
  ok(passes(again.engine, a.engine, 5));
});

Deno.test("an initiator without a peer says so, and stops at once when it is told to", async () => {
  await using bench = new Bench();
  const sides = [bench.side(), bench.side()] as const;
  const peer = (at: number) => sides[at === 0 ? 1 : 0];
  const roles = sides.map((side, at) => {
    side.engine.addNetwork({ vni: 9, peer: `${LOCALHOST}:6081`, routes: [] });
    return side.endpoint.addPeer({ engine: side.engine, vni: 9, publicKey: peer(at).identity.publicKey }).role;
  });
  const initiator = sides[roles.indexOf("initiator")] ?? sides[0];
  const other = sides[roles.indexOf("responder")] ?? sides[1];
  await other.endpoint.close();
  await initiator.endpoint.close();
  const fresh = bench.side({ identity: initiator.identity });
  const startedAt = performance.now();
  {
    await using running = new Running(fresh, { peer: other, vni: 9 });
    await rejects(
      Promise.race([
        running.tunnel.ready,
        new Promise((_, reject) => setTimeout(() => reject(new Error("enough")), 300)),
      ]),
      /enough/,
    );
    ok(["resolving", "dialing", "waiting"].includes(running.tunnel.status().state));
  }
  ok(performance.now() - startedAt < PATIENCE_MS);
});

Deno.test("an endpoint turns away those it does not know, and reports them", async () => {
  await using bench = new Bench();
  const rejected = Promise.withResolvers<RejectedPeer>();
  const known = bench.side();
  // A stranger that has the key of the side it dials, whose own key that side does not have.
  for (let i = 0; i < 64; i++) {
    const guarded = bench.side({ onRejected: rejected.resolve });
    guarded.engine.addNetwork({ vni: 1, peer: `${LOCALHOST}:6081`, routes: [] });
    guarded.endpoint.addPeer({ engine: guarded.engine, vni: 1, publicKey: known.identity.publicKey });
    const stranger = bench.side();
    const running = new Running(stranger, { peer: guarded, vni: 1 });
    if (running.tunnel.status().role === "responder") {
      await running[Symbol.asyncDispose]();
      continue;
    }
    const { reason, count } = await soon("the report", rejected.promise);
    ok(reason.length > 0);
    strictEqual(count, 1);
    strictEqual(running.tunnel.status().exchanges, 0);
    await running[Symbol.asyncDispose]();
    return;
  }
  throw new Error("64 strangers in a row had the higher key");
});

Deno.test("an endpoint refuses its own key, a port that is taken, and calls after close()", async () => {
  await using bench = new Bench();
  const side = bench.side();
  side.engine.addNetwork({ vni: 1, peer: `${LOCALHOST}:6081`, routes: [] });
  const own = { engine: side.engine, vni: 1, publicKey: side.identity.publicKey };
  throws(() => side.endpoint.addPeer(own), (error) => error instanceof NativeError && error.code === "EKEY");
  throws(() => bench.side({ port: side.endpoint.port }), NativeError);
  await side.endpoint.close();
  await side.endpoint.close();
  throws(() => side.endpoint.addPeer(own), (error) => error instanceof NativeError && error.code === "ECLOSED");
});
