import assert from "node:assert/strict";
import { counterNames, innerMtu, NativeEngine, type NativeEngineOptions } from "./engine.ts";
import { BAD_HANDLE, NativeError } from "./errors.ts";
import { Library } from "./library.ts";
import { LITTLE_ENDIAN } from "./marshal.ts";

const VNI = 7;
const PACKET_BYTES = 48;

const OPTIONS: NativeEngineOptions = {
  mode: "l3",
  underlay: "udp",
  keepaliveMs: 25_000,
  dangerManualClock: true,
  dangerIsolatedKeyHistory: true,
};

function withKeys(library: Library, side: "a" | "b"): NativeEngine {
  const engine = NativeEngine.create(library, OPTIONS);
  const [own, peer] = side === "a" ? ["10.1.0.0/16", "10.2.0.0/16"] : ["10.2.0.0/16", "10.1.0.0/16"];
  const [rx, tx] = side === "a" ? ["11", "22"] : ["22", "11"];
  engine.addNetwork({ vni: VNI, peer: "192.0.2.1:6081", routes: [{ src: own, dst: peer }] });
  engine.dangerInstall({
    vni: VNI,
    rxSpi: side === "a" ? 1 : 0x40000001,
    txSpi: side === "a" ? 0x40000001 : 1,
    rxKey: rx.repeat(16),
    txKey: tx.repeat(16),
    expiresAtNs: 2n ** 64n - 1n,
  });
  return engine;
}

/** A bare IPv4 header from 10.1.0.1 to 10.2.0.1. */
function ipv4(): Uint8Array<ArrayBuffer> {
  return Uint8Array.from([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1]);
}

Deno.test("NativeEngine carries a packet to another one", async () => {
  await using library = Library.open();
  using a = withKeys(library, "a");
  using b = withKeys(library, "b");
  const packets = new Uint8Array(PACKET_BYTES);
  const view = new DataView(packets.buffer);
  view.setUint32(4, 20, LITTLE_ENDIAN);
  const sealed = new Uint8Array(256);
  assert.equal(a.virtToPhy(ipv4(), packets, 1, sealed), 1);
  assert.deepEqual([
    view.getUint32(4, LITTLE_ENDIAN),
    view.getInt32(8, LITTLE_ENDIAN),
    view.getUint32(12, LITTLE_ENDIAN),
  ], [68, 0, VNI]);
  assert.equal(a.saStatus(VNI).tx?.sealed, 1n);

  packets.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1], 16);
  const opened = new Uint8Array(256);
  assert.equal(b.phyToVirt(sealed, packets, 1, opened), 1);
  assert.deepEqual([view.getUint32(4, LITTLE_ENDIAN), view.getInt32(8, LITTLE_ENDIAN)], [20, 0]);
  assert.deepEqual(opened.subarray(0, 20), ipv4());

  const names = counterNames(library);
  const values = new BigUint64Array(names.length);
  assert.equal(b.readCounters(VNI, values), names.length);
  assert.equal(values[names.indexOf("rx_packets")], 1n);
  assert.equal(b.readCounters(undefined, values), names.length);
  assert.equal(values[names.indexOf("rx_packets")], 0n);
});

Deno.test("NativeEngine takes empty buffers", async () => {
  await using library = Library.open();
  using engine = withKeys(library, "a");
  const none = new Uint8Array(0);
  assert.equal(engine.virtToPhy(none, none, 0, none), 0);
  assert.equal(engine.phyToVirt(none, none, 0, none), 0);
  assert.throws(() => engine.toPhy(none, none), { code: "EBUFFER" });
  // A packet of no bytes is a drop, not a misuse.
  const packets = new Uint8Array(PACKET_BYTES);
  assert.equal(engine.virtToPhy(none, packets, 1, none), 1);
  assert(new DataView(packets.buffer).getInt32(8, LITTLE_ENDIAN) < 0);
  assert.throws(() => engine.readCounters(VNI, new BigUint64Array(0)), { code: "EBUFFER" });
});

Deno.test("NativeEngine does not trust a count of packets", async () => {
  await using library = Library.open();
  using engine = withKeys(library, "a");
  for (const count of [2, -1, 0.5, NaN, 2 ** 32]) {
    const call = () => engine.virtToPhy(ipv4(), new Uint8Array(PACKET_BYTES), count, new Uint8Array(256));
    assert.throws(call, RangeError, String(count));
  }
});

Deno.test("NativeEngine keeps its clock and its counters in 64 bits", async () => {
  await using library = Library.open();
  using engine = withKeys(library, "a");
  engine.setClock(2n ** 63n + 5n);
  const left = engine.saStatus(VNI).rx[0]?.expiresInMs;
  assert.equal(left, Number((2n ** 63n - 6n) / 1_000_000n));
  assert(engine.skipTxCounter({ vni: VNI, last: 2n ** 53n + 1n }));
  assert(!engine.skipTxCounter({ vni: VNI, last: 5n }));
  engine.setClock(0n);
  assert.equal(engine.toPhy(new Uint8Array(PACKET_BYTES), new Uint8Array(128)), 1);
  assert.equal(engine.saStatus(VNI).tx?.sealed, 2n ** 53n + 2n);
});

Deno.test("NativeEngine reports what the library has against an option", async () => {
  await using library = Library.open();
  using engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
  const cases: readonly [() => void, string, RegExp][] = [
    [
      () => engine.addNetwork({ vni: 2 ** 24, peer: "192.0.2.1:1", routes: [] }),
      "EINVAL",
      /option 'vni': 16777216 is out of/,
    ],
    [
      () => engine.addNetwork({ vni: 1, peer: "example.org:1", routes: [] }),
      "EINVAL",
      /'example.org:1' is not an address/,
    ],
    [() => engine.updateNetwork({ vni: 1, peer: "192.0.2.1:1", routes: [] }), "ENOENT", /no VNI 1/],
    [() => engine.removeNetwork(1), "ENOENT", /no VNI 1/],
    [() => engine.saStatus(1), "ENOENT", /icx_engine_sa_status/],
    [() => engine.setClock(1n), "ESTATE", /icx_engine_set_clock/],
    [() => innerMtu(library, 100), "EINVAL", /icx_inner_mtu/],
  ];
  for (const [call, code, message] of cases) {
    assert.throws(call, (error) => {
      assert(error instanceof NativeError);
      assert.equal(error.code, code);
      assert.match(error.message, message);
      return true;
    });
  }
  assert.equal(innerMtu(library, 1500), 1392);
});

Deno.test("a panic inside the library is an error of its handle alone", async () => {
  await using library = Library.open();
  using broken = NativeEngine.create(library, OPTIONS);
  using sound = NativeEngine.create(library, OPTIONS);
  assert.equal(library.symbols.icx_danger_panic(broken.unsafeId("test"), null, 0), -4);
  assert.throws(() => broken.setInnerMtu(1), { name: "NativeError", code: "EPANIC" });
  sound.setInnerMtu(1);
  broken.close();
  assert.equal(library.handleCount(), 1);
});

Deno.test("a number that is no open handle is an error, not a crash", async () => {
  await using library = Library.open();
  const engine = NativeEngine.create(library, OPTIONS);
  const stale = engine.unsafeId("test");
  engine.close();
  const { symbols } = library;
  for (const handle of [stale, 0, 1, 2 ** 32 - 1]) {
    assert.equal(symbols.icx_close(handle), BAD_HANDLE);
    assert.equal(await symbols.icx_close_wait(handle), BAD_HANDLE);
    assert.equal(symbols.icx_engine_set_inner_mtu(handle, 1), BAD_HANDLE);
    assert.equal(await symbols.icx_pump_stop(handle), BAD_HANDLE);
    assert.equal(symbols.icx_engine_virt_to_phy(handle, null, 0, null, 0, null, 0), BAD_HANDLE);
  }
});
