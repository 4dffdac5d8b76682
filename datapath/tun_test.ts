import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { NativeError } from "../native/errors.ts";
import { Library } from "../native/library.ts";
import { interfaceLookup } from "../native/network.ts";
import { DEVICE_NAME, privilegedTest } from "./privileged.ts";
import { Engine } from "./engine.ts";
import { DatapathError, type DatapathErrorCode } from "./errors.ts";
import { TunDatapath } from "./tun.ts";
import { TunDevice } from "./tun_device.ts";
import { UdpUnderlay } from "./udp_underlay.ts";

/** An open datapath on a device without addresses, and what it stands on. */
async function setUp() {
  const parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const engine = parts.use(Engine.create({ library }));
  engine.addNetwork({ vni: 1, peer: "127.0.0.1:9", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
  const datapath = parts.use(
    await TunDatapath.open({
      device: { library, name: DEVICE_NAME },
      underlay: { library, localAddress: "127.0.0.1", port: 0 },
      engine,
    }),
  );
  return { library, engine, datapath, [Symbol.asyncDispose]: () => parts.disposeAsync() };
}

function withCode(code: DatapathErrorCode): (error: unknown) => boolean {
  return (error) => {
    ok(error instanceof DatapathError);
    strictEqual(error.code, code, error.message);
    return true;
  };
}

function deviceExists(library: Library): boolean {
  try {
    return interfaceLookup(library, DEVICE_NAME).up;
  } catch (error) {
    if (error instanceof NativeError && error.code === "ENOENT") return false;
    throw error;
  }
}

privilegedTest("TunDatapath.run() resolves on abort, and the device stays until close()", async () => {
  await using set = await setUp();
  const controller = new AbortController();
  const run = set.datapath.run({ signal: controller.signal });
  setTimeout(() => controller.abort(), 20);
  await run;
  await set.datapath.close();
  ok(!deviceExists(set.library));
});

privilegedTest("TunDatapath.run() works once, and a second call does no harm to the first", async () => {
  await using set = await setUp();
  const controller = new AbortController();
  const run = set.datapath.run({ signal: controller.signal });
  await rejects(set.datapath.run(), withCode("already-run"));
  ok(deviceExists(set.library));
  controller.abort();
  await run;
  await rejects(set.datapath.run(), withCode("already-run"));
});

privilegedTest("TunDatapath.run() with an aborted signal resolves and counts as the one run", async () => {
  await using set = await setUp();
  await set.datapath.run({ signal: AbortSignal.abort() });
  await rejects(set.datapath.run(), withCode("already-run"));
});

privilegedTest("TunDatapath.run() after close() is an error", async () => {
  await using set = await setUp();
  await set.datapath.close();
  ok(!deviceExists(set.library));
  await rejects(set.datapath.run(), withCode("closed"));
});

privilegedTest("TunDatapath.close() during run() ends it cleanly, from anywhere and any number of times", async () => {
  await using set = await setUp();
  const run = set.datapath.run();
  await Promise.all([set.datapath.close(), set.datapath.close(), run]);
  await set.datapath.close();
  ok(!deviceExists(set.library));
});

privilegedTest("TunDatapath.stats() works before, during and after a run", async () => {
  await using set = await setUp();
  const { datapath } = set;
  deepStrictEqual([...datapath.stats().networks.keys()], [1]);
  const run = datapath.run();
  strictEqual(datapath.stats().networks.get(1)?.rx_packets, 0n);
  await datapath.close();
  await run;
  strictEqual(datapath.stats().ends.underlaySendErrors, 0);
});

privilegedTest("a TunDevice has the name, MTU and addresses it was given, and is gone after close()", async () => {
  await using library = Library.open();
  const device = TunDevice.open({ library, name: DEVICE_NAME, mtuBytes: 1280 });
  deepStrictEqual([device.kind, device.name, device.mtuBytes], ["tun", DEVICE_NAME, 1280]);
  ok(deviceExists(library));
  await device.close();
  await device.close();
  ok(!deviceExists(library));
});

privilegedTest("a device that exists cannot be opened again, and the underlay handed in is closed", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library });
  await using _device = TunDevice.open({ library, name: DEVICE_NAME });
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await rejects(TunDatapath.open({ device: { library, name: DEVICE_NAME }, underlay, engine }), DatapathError);
  await using again = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: underlay.port });
  strictEqual(again.port, underlay.port);
});

Deno.test("TunDatapath.open() closes the underlay handed in when there is no device", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library });
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await rejects(
    TunDatapath.open({ device: { library, name: "a/name/that/no/device/has" }, underlay, engine }),
    DatapathError,
  );
  await using again = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: underlay.port });
  strictEqual(again.port, underlay.port);
});

Deno.test("UdpUnderlay refuses a port that is taken, and says so", async () => {
  await using library = Library.open();
  await using first = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await rejects(async () => {
    await using _second = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: first.port });
  }, (error) => error instanceof DatapathError && error.message.includes(String(first.port)));
});
