import { deepStrictEqual, match, ok, rejects, strictEqual } from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatapathError } from "../datapath/errors.ts";
import { DEVICE_NAME, privilegedTest } from "../datapath/privileged.ts";
import { UdpUnderlay } from "../datapath/udp_underlay.ts";
import { Library } from "../native/library.ts";
import { Identity } from "./identity.ts";
import { keyLifetimeMs, Node, type NodeEvent } from "./node.ts";
import { parseNodeConfig } from "./node_config.ts";

const LOCALHOST = "127.0.0.1";
/** How long something that takes milliseconds may take on a machine that is busy. */
const PATIENCE_MS = 30_000;

/** Key files of nodes `a`, `b` and so on, and ports that were free a moment ago. */
class Bench implements AsyncDisposable {
  readonly library: Library = Library.open();
  readonly #folder = mkdtempSync(join(tmpdir(), "icx-node-"));
  readonly #keys = new Map<string, string>();
  readonly #ports = new Map<string, number>();

  async add(name: string): Promise<void> {
    const identity = Identity.generate(join(this.#folder, name), { library: this.library });
    this.#keys.set(name, identity.publicKey);
    identity.close();
    for (const use of ["data", "control"]) {
      await using probe = UdpUnderlay.open({ library: this.library, localAddress: LOCALHOST, port: 0 });
      this.#ports.set(`${name} ${use}`, probe.port);
    }
  }

  /** The configuration of `name` with peers as pairs of name and VNI. */
  config(name: string, peers: readonly (readonly [name: string, vni: number])[], more: object = {}): object {
    return {
      identityKeyFile: join(this.#folder, name),
      localAddress: LOCALHOST,
      port: this.#ports.get(`${name} data`),
      controlPort: this.#ports.get(`${name} control`),
      device: { name: `${DEVICE_NAME}${name}` },
      keepaliveMs: 50,
      peers: peers.map(([peer, vni]) => ({
        host: LOCALHOST,
        port: this.#ports.get(`${peer} data`),
        controlPort: this.#ports.get(`${peer} control`),
        publicKey: this.#keys.get(peer),
        vni,
        allowedRoutes: [{ src: "10.0.0.0/16", dst: `10.${vni}.0.0/16` }],
      })),
      ...more,
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.library.close();
    rmSync(this.#folder, { recursive: true });
  }
}

/** Waits until `condition` holds. */
async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS;
  while (!condition()) {
    ok(performance.now() < deadline, `${what} did not happen in ${PATIENCE_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

privilegedTest("one node serves two peers with two networks over one socket, and stops cleanly", async () => {
  await using bench = new Bench();
  for (const name of ["a", "b", "c"]) await bench.add(name);
  const configs = [
    bench.config("a", [["b", 5], ["c", 6]]),
    bench.config("b", [["a", 5]]),
    bench.config("c", [["a", 6]]),
  ];
  await using parts = new AsyncDisposableStack();
  const controller = new AbortController();
  const nodes: Node[] = [];
  const events: NodeEvent[] = [];
  for (const config of configs) {
    const options = { library: bench.library, onEvent: (event: NodeEvent) => events.push(event) };
    nodes.push(parts.use(await Node.open(parseNodeConfig(config), options)));
  }
  const runs = nodes.map((node) => node.run({ signal: controller.signal }));
  await until(
    "keepalives both ways in both networks",
    () =>
      nodes.every((node) => [...node.stats().datapath.networks.values()].every(({ rx_packets }) => rx_packets > 1n)),
  );

  deepStrictEqual(nodes.map((node) => node.info().peers.map(({ vni }) => vni)), [[5, 6], [5], [6]]);
  const [info] = nodes.map((node) => node.info());
  strictEqual(info?.device.name, `${DEVICE_NAME}a`);
  strictEqual(info?.device.mtuBytes, 65_440, "the loopback interface carries 65536 bytes");
  strictEqual(info?.peers[0]?.interface, "lo");
  for (const node of nodes) {
    for (const { tunnel, keys } of node.stats().peers.values()) {
      strictEqual(tunnel.state, "up");
      ok(keys.tx !== undefined && keys.rx.length > 0);
    }
  }
  strictEqual(events.filter(({ type }) => type === "forwarding").length, 3);

  await rejects(nodes[0]?.run() ?? Promise.resolve(), /has been run before/);
  controller.abort();
  await Promise.all(runs);
  for (const node of nodes) await node.close();
  await rejects(nodes[0]?.run() ?? Promise.resolve(), /is closed/);
  strictEqual(bench.library.handleCount(), 0);
});

privilegedTest("close() during run() ends it cleanly, also before there are keys", async () => {
  await using bench = new Bench();
  for (const name of ["a", "b"]) await bench.add(name);
  const node = await Node.open(parseNodeConfig(bench.config("a", [["b", 5]])), { library: bench.library });
  const run = node.run();
  await Promise.all([node.close(), node.close(), run]);
  strictEqual(bench.library.handleCount(), 0);
});

privilegedTest("a node that cannot be opened leaves nothing behind", async () => {
  await using bench = new Bench();
  for (const name of ["a", "b"]) await bench.add(name);
  const { library } = bench;
  await using _first = await Node.open(parseNodeConfig(bench.config("a", [["b", 5]])), { library });
  const handles = library.handleCount();
  await rejects(Node.open(parseNodeConfig(bench.config("a", [["b", 5]])), { library }), DatapathError);
  strictEqual(library.handleCount(), handles);
});

Deno.test("Node.open() refuses our own key as the peer's before it touches the network", async () => {
  await using bench = new Bench();
  await bench.add("a");
  const config = parseNodeConfig(bench.config("a", [["a", 5]]));
  await rejects(Node.open(config, { library: bench.library }), { name: "NativeError", code: "EKEY" });
  strictEqual(bench.library.handleCount(), 0);
});

Deno.test("Node.open() goes on looking for a peer, says so, and gives up when it is told to", async () => {
  await using bench = new Bench();
  for (const name of ["a", "b"]) await bench.add(name);
  const base = bench.config("a", [["b", 5]]) as { peers: object[] };
  const config = parseNodeConfig({ ...base, peers: [{ ...base.peers[0], host: "no-such-host.invalid" }] });
  const controller = new AbortController();
  const events: NodeEvent[] = [];
  const opening = Node.open(config, {
    library: bench.library,
    signal: controller.signal,
    onEvent(event) {
      events.push(event);
      controller.abort(new Error("enough"));
    },
  });
  await rejects(opening, /enough/);
  const [event] = events;
  ok(event?.type === "locating");
  strictEqual(event.host, "no-such-host.invalid");
  match(event.reason, /no-such-host\.invalid/);
  strictEqual(bench.library.handleCount(), 0);
});

privilegedTest("what an observer throws ends the run", async () => {
  await using bench = new Bench();
  for (const name of ["a", "b"]) await bench.add(name);
  const { library } = bench;
  await using node = await Node.open(parseNodeConfig(bench.config("a", [["b", 5]])), {
    library,
    onEvent: () => {
      throw new TypeError("observer");
    },
  });
  await rejects(node.run(), new TypeError("observer"));
});

Deno.test("Node.open() does nothing when its signal has aborted", async () => {
  const config = parseNodeConfig({ identityKeyFile: "missing", peers: [{ host: LOCALHOST, publicKey: "missing" }] });
  await rejects(Node.open(config, { signal: AbortSignal.abort(new Error("enough")) }), /enough/);
});

Deno.test("keys live four rekey intervals, at least an hour, at most a day", () => {
  const rows = [[1000, 3_600_000], [900_000, 3_600_000], [1_800_000, 7_200_000], [43_200_000, 86_400_000]] as const;
  for (const [rekey, lifetime] of rows) strictEqual(keyLifetimeMs(rekey), lifetime);
});
