import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { addressBytes } from "../control/prefix.ts";
import { counterNames } from "../native/engine.ts";
import { Library } from "../native/library.ts";
import { COUNTER_NAMES } from "./counters.ts";
import { Engine } from "./engine.ts";
import { DatapathError, type DatapathErrorCode } from "./errors.ts";
import { PacketBatch } from "./packet_batch.ts";

const ROUTES = [{ src: "10.1.0.0/16", dst: "10.2.0.0/16" }];
const KEYS = {
  rxSpi: 1,
  txSpi: 0x40000001,
  rxKey: "00112233445566778899aabbccddeeff",
  txKey: "ffeeddccbbaa99887766554433221100",
  expiresAtNs: 1000n,
};

function create(library: Library, options: Partial<Parameters<typeof Engine.create>[0]> = {}): Engine {
  return Engine.create({ library, dangerManualClock: true, dangerIsolatedKeyHistory: true, ...options });
}

function withCode(code: DatapathErrorCode): (error: unknown) => boolean {
  return (error) => {
    ok(error instanceof DatapathError, String(error));
    strictEqual(error.code, code, error.message);
    return true;
  };
}

/** A bare IPv4 packet of `length` bytes from 10.1.0.1 to 10.2.0.1. */
function packet(length = 40): Uint8Array {
  const bytes = new Uint8Array(length);
  bytes.set([0x45, 0, length >> 8, length & 255, 0, 0, 0, 0, 64, 253, 0, 0]);
  bytes.set([...addressBytes("10.1.0.1"), ...addressBytes("10.2.0.1")], 12);
  return bytes;
}

Deno.test("Engine.addNetwork() refuses what is not acceptable and changes nothing", async () => {
  await using library = Library.open();
  using engine = create(library);
  engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: ROUTES });
  const rows: [string, () => void, DatapathErrorCode, RegExp][] = [
    [
      "a network that exists",
      () => engine.addNetwork({ vni: 1, peer: "192.0.2.3:6081", routes: [] }),
      "exists",
      /VNI 1 exists/,
    ],
    [
      "a route of another network",
      () => engine.addNetwork({ vni: 2, peer: "192.0.2.3:6081", routes: ROUTES }),
      "invalid-argument",
      /belongs to VNI 1/,
    ],
    [
      "host bits",
      () => engine.addNetwork({ vni: 2, peer: "192.0.2.3:6081", routes: [{ src: "10.1.0.1/16", dst: "10.3.0.0/16" }] }),
      "invalid-argument",
      /10\.1\.0\.0\/16/,
    ],
    [
      "a name for an address",
      () => engine.addNetwork({ vni: 2, peer: "host:6081", routes: [] }),
      "invalid-argument",
      /'host:6081'/,
    ],
    [
      "a VNI of 25 bits",
      () => engine.addNetwork({ vni: 2 ** 24, peer: "192.0.2.3:6081", routes: [] }),
      "invalid-argument",
      /16777215/,
    ],
    [
      "no network to update",
      () => engine.updateNetwork({ vni: 2, peer: "192.0.2.3:1", routes: [] }),
      "not-found",
      /VNI 2/,
    ],
    ["no network to remove", () => engine.removeNetwork(2), "not-found", /VNI 2/],
    ["no network to count for", () => engine.counters(2), "not-found", /./],
  ];
  for (const [name, call, code, message] of rows) {
    throws(call, withCode(code), name);
    throws(call, message, name);
  }
  deepStrictEqual(engine.networks, [1]);
  engine.removeNetwork(1);
  deepStrictEqual(engine.networks, []);
});

Deno.test("Engine transforms a whole batch, and goes on where a small output ended", async () => {
  await using library = Library.open();
  using engine = create(library);
  engine.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: ROUTES });
  engine.dangerInstall({ vni: 7, ...KEYS });
  const input = new PacketBatch({ capacity: 5 });
  for (let i = 0; i < 5; i++) input.append(packet(100 + i));
  const output = new PacketBatch({ capacity: 5, bufferBytes: 600 });
  const lengths: number[] = [];
  let from = 0;
  let calls = 0;
  while (from < input.length) {
    const processed = engine.virtToPhy(input, output, { from });
    ok(processed > 0);
    calls += 1;
    for (let i = 0; i < processed; i++) {
      strictEqual(output.verdict(i), "forward");
      strictEqual(output.vni(i), 7);
      deepStrictEqual(output.endpoint(i), { address: new Uint8Array([192, 0, 2, 2]), port: 6081 });
      strictEqual(output.sourcePort(i), 0);
      lengths.push(output.packet(i).length);
    }
    from += processed;
  }
  ok(calls > 1);
  deepStrictEqual(lengths, [148, 149, 150, 151, 152]);
  const { tx_packets, tx_bytes } = engine.counters(7);
  deepStrictEqual([tx_packets, tx_bytes], [5n, 510n]);
  strictEqual(engine.saStatus(7).tx?.sealed, 5n);
});

Deno.test("Engine drops with the reason's counter, and keys fail closed at their expiry", async () => {
  await using library = Library.open();
  using engine = create(library, { innerMtuBytes: 1392 });
  engine.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: ROUTES });
  const input = new PacketBatch();
  const output = new PacketBatch();
  const seal = (bytes: Uint8Array) => {
    input.clear();
    input.append(bytes);
    engine.virtToPhy(input, output);
    return output.verdict(0);
  };
  strictEqual(seal(packet()), "tx_no_key");
  engine.dangerInstall({ vni: 7, ...KEYS });
  strictEqual(seal(packet(1392)), "forward");
  strictEqual(seal(packet(1393)), "tx_too_big");
  engine.setInnerMtu(0);
  strictEqual(seal(packet(1393)), "forward");
  const stray = packet();
  stray[16] = 11;
  strictEqual(seal(stray), "tx_no_route");
  strictEqual(seal(new Uint8Array(3)), "tx_malformed");
  engine.dangerSetClock(1000n);
  strictEqual(seal(packet()), "forward");
  engine.dangerSetClock(1001n);
  strictEqual(seal(packet()), "tx_expired_key");
  const { tx_no_key, tx_too_big, tx_expired_key, tx_packets } = engine.counters(7);
  deepStrictEqual([tx_no_key, tx_too_big, tx_expired_key, tx_packets], [1n, 1n, 1n, 3n]);
  deepStrictEqual([engine.counters().tx_no_route, engine.counters().tx_malformed], [1n, 1n]);
});

Deno.test("Engine.toPhy() makes keepalives that the peer consumes", async () => {
  await using library = Library.open();
  using engine = create(library, { keepaliveMs: 1 });
  using peer = create(library);
  const [left, right] = ["192.0.2.1:6081", "192.0.2.2:6081"];
  engine.addNetwork({ vni: 7, peer: right, routes: ROUTES });
  peer.addNetwork({ vni: 7, peer: left, routes: [] });
  const { rxSpi, txSpi, rxKey, txKey } = KEYS;
  const expiresAtNs = 10_000_000n;
  engine.dangerInstall({ vni: 7, ...KEYS, expiresAtNs });
  peer.dangerInstall({ vni: 7, rxSpi: txSpi, txSpi: rxSpi, rxKey: txKey, txKey: rxKey, expiresAtNs });
  const [output, received, opened] = [new PacketBatch(), new PacketBatch(), new PacketBatch()];
  strictEqual(engine.toPhy(output), 1);
  received.append(output.packet(0), { address: addressBytes("192.0.2.1"), port: 1 });
  received.append(output.packet(0), { address: addressBytes("192.0.2.1"), port: 1 });
  received.append(output.packet(0), { address: addressBytes("192.0.2.9"), port: 1 });
  strictEqual(peer.phyToVirt(received, opened), 3);
  deepStrictEqual([0, 1, 2].map((i) => opened.verdict(i)), ["consumed", "rx_replayed", "rx_bad_peer"]);
  strictEqual(engine.toPhy(output), 0);
  engine.dangerSetClock(1_000_000n);
  strictEqual(engine.toPhy(output), 1);
});

Deno.test("Engine.dangerInstall() refuses a transmit key that was used before, and equal keys", async () => {
  await using library = Library.open();
  using engine = create(library);
  engine.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: ROUTES });
  engine.dangerInstall({ vni: 7, ...KEYS });
  engine.dangerInstall({ vni: 7, ...KEYS, txSpi: 5, txKey: "01".repeat(16) });
  throws(() => engine.dangerInstall({ vni: 7, ...KEYS }), withCode("key-reused"));
  throws(() => engine.dangerInstall({ vni: 7, ...KEYS, txSpi: 6, txKey: KEYS.rxKey }), withCode("key-refused"));
  throws(() => engine.dangerInstall({ vni: 8, ...KEYS, txSpi: 6 }), withCode("not-found"));
  strictEqual(engine.saStatus(7).tx?.spi, 5);
});

Deno.test("Engine names a bad key without showing it", async () => {
  await using library = Library.open();
  using engine = create(library);
  engine.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: ROUTES });
  throws(() => engine.dangerInstall({ vni: 7, ...KEYS, rxKey: "5ec4e75ec4e7" }), (error) => {
    ok(error instanceof DatapathError);
    ok(error.message.includes("rxKey"), error.message);
    ok(!error.message.includes("5ec4e7"), error.message);
    return true;
  });
});

Deno.test("an engine that is closed says so", async () => {
  await using library = Library.open();
  const engine = create(library);
  engine.close();
  engine.close();
  throws(() => engine.counters(), withCode("closed"));
  throws(() => engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [] }), withCode("closed"));
});

Deno.test("an engine call that is refused leaves its batches as they were", async () => {
  await using library = Library.open();
  const engine = create(library);
  engine.addNetwork({ vni: 7, peer: "192.0.2.2:6081", routes: ROUTES });
  engine.dangerInstall({ vni: 7, ...KEYS });
  const [input, output, other] = [new PacketBatch(), new PacketBatch(), new PacketBatch()];
  input.append(packet());
  input.append(packet(60));
  strictEqual(engine.virtToPhy(input, output), 2);
  const sealed = [0, 1].map((i) => output.packet(i).slice());
  const unchanged = () => {
    deepStrictEqual(
      [0, 1].map((i) => [output.verdict(i), output.packet(i)]),
      sealed.map((bytes) => ["forward", bytes]),
    );
    deepStrictEqual([0, 1].map((i) => input.packet(i)), [packet(), packet(60)]);
    strictEqual(engine.counters(7).tx_packets, 2n);
  };
  for (const call of ["virtToPhy", "phyToVirt"] as const) {
    throws(() => engine[call](output, output), TypeError);
    unchanged();
    throws(() => engine[call](input, output, { from: 3 }), RangeError);
    unchanged();
  }
  // What the refused calls left is still good for the next one.
  strictEqual(engine.virtToPhy(input, other, { from: 1 }), 1);
  strictEqual(other.verdict(0), "forward");
  engine.close();
  for (
    const call of [
      () => engine.virtToPhy(input, output),
      () => engine.phyToVirt(input, output),
      () => engine.toPhy(output),
    ]
  ) {
    throws(call, withCode("closed"));
    deepStrictEqual([0, 1].map((i) => output.packet(i)), sealed);
  }
});

Deno.test("COUNTER_NAMES are those of the library", async () => {
  await using library = Library.open();
  deepStrictEqual(COUNTER_NAMES, counterNames(library));
});
