/** The example on loopback, without rights: memory stands for the devices. */

import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { addressBytes, DatapathError, Engine, Library, MemoryDevice, TunDatapath } from "@icx/icx";
import { dial, listen, PEER, type WebSocketUnderlay } from "./websocket_relay.ts";

const VNI = 1;
const [LEFT, RIGHT] = ["10.1.0.1", "10.2.0.1"];
const KEYS = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"] as const;

function packet(from: string, to: string, tag: number): Uint8Array {
  const bytes = new Uint8Array(60).fill(tag);
  bytes.set([0x45, 0, 0, 60, 0, 0, 0, 0, 64, 253, 0, 0, ...addressBytes(from), ...addressBytes(to)]);
  return bytes;
}

/** One side of the tunnel, and the host behind it. */
async function side(library: Library, at: 0 | 1, underlay: WebSocketUnderlay) {
  const other = at === 0 ? 1 : 0;
  const engine = Engine.create({ library, dangerIsolatedKeyHistory: true });
  const address = [`${LEFT}/32`, `${RIGHT}/32`] as const;
  engine.addNetwork({ vni: VNI, peer: PEER, routes: [{ src: address[at], dst: address[other] }] });
  const expiresAtNs = 2n ** 63n;
  engine.dangerInstall({ vni: VNI, rxSpi: 1 + at, txSpi: 2 - at, rxKey: KEYS[at], txKey: KEYS[other], expiresAtNs });
  const [device, host] = MemoryDevice.pair();
  return { engine, host, datapath: await TunDatapath.open({ device, underlay, engine }) };
}

/** Two tunnel ends with a WebSocket between them. */
async function connect() {
  const parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const server = listen({ hostname: "127.0.0.1", port: 0 });
  parts.defer(server.stop);
  const [near, far] = await Promise.all([dial(`ws://127.0.0.1:${server.port}`), server.connected]);
  const sides = [await side(library, 0, near), await side(library, 1, far)] as const;
  for (const { engine, host } of sides) {
    parts.use(engine);
    parts.use(host);
  }
  // Both at once, as either end of a WebSocket waits for the other one to say goodbye.
  parts.defer(async () => {
    await Promise.all(sides.map(({ datapath }) => datapath.close()));
  });
  return { sides, near, [Symbol.asyncDispose]: () => parts.disposeAsync() };
}

Deno.test("packets pass a WebSocket both ways, whole and in order", async () => {
  await using set = await connect();
  const [left, right] = set.sides;
  const runs = set.sides.map(({ datapath }) => datapath.run());
  for (let i = 0; i < 300; i++) {
    await left.host.push(packet(LEFT, RIGHT, i & 255));
    await right.host.push(packet(RIGHT, LEFT, i & 255));
    deepStrictEqual(await right.host.pull(), packet(LEFT, RIGHT, i & 255));
    deepStrictEqual(await left.host.pull(), packet(RIGHT, LEFT, i & 255));
  }
  await Promise.all(set.sides.map(({ datapath }) => datapath.close()));
  await Promise.all(runs);
  for (const { engine, datapath } of set.sides) {
    const { rx_packets, tx_packets } = engine.counters(VNI);
    deepStrictEqual([rx_packets, tx_packets], [300n, 300n]);
    strictEqual(datapath.stats().ends.underlaySendErrors, 0);
  }
});

Deno.test("a WebSocket that closes ends the runs of both sides", async () => {
  await using set = await connect();
  const runs = set.sides.map(({ datapath }) => datapath.run());
  for (const run of runs) run.catch(() => {});
  await set.near.close();
  for (const run of runs) {
    await rejects(run, (error) => {
      ok(error instanceof DatapathError);
      strictEqual(error.code, "closed");
      return true;
    });
  }
});
