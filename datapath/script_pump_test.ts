import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { addressBytes } from "../control/prefix.ts";
import { Library } from "../native/library.ts";
import { NativeUdp } from "../native/udp.ts";
import { addsUp } from "./_adds_up.ts";
import { delay, ManualClock } from "./clock.ts";
import type { ScriptDevice } from "./device.ts";
import { Engine, type EngineOptions } from "./engine.ts";
import { DatapathError } from "./errors.ts";
import { MemoryDevice } from "./memory_device.ts";
import { MemoryUnderlay } from "./memory_underlay.ts";
import { PacketBatch } from "./packet_batch.ts";
import { FailureStreak } from "./script_pump.ts";
import { TunDatapath } from "./tun.ts";
import { UdpUnderlay } from "./udp_underlay.ts";
import type { ScriptUnderlay } from "./underlay.ts";

const VNI = 7;
const [HERE, THERE] = ["10.1.0.1", "10.2.0.1"];
const RX_KEY = "00112233445566778899aabbccddeeff";
const TX_KEY = "ffeeddccbbaa99887766554433221100";

/** An IPv4 packet; its last byte is `tag`. */
function packet(from: string, to: string, bytes = 40, tag = 0): Uint8Array {
  const packet = new Uint8Array(bytes);
  packet.set([0x45, 0, bytes >> 8, bytes & 255, 0, 0, 0, 0, 64, 253, 0, 0, ...addressBytes(from), ...addressBytes(to)]);
  packet[bytes - 1] = tag;
  return packet;
}

/** An engine and its mirror image, for the other side of the wire. */
function engines(
  library: Library,
  options: Partial<EngineOptions> = {},
  [toPeer, toHere]: readonly [string, string] = ["192.0.2.2:6081", "192.0.2.1:6081"],
): [Engine, Engine] {
  const here = Engine.create({ library, dangerIsolatedKeyHistory: true, ...options });
  const there = Engine.create({ library, dangerIsolatedKeyHistory: true });
  const [src, dst] = ["10.1.0.0/16", "10.2.0.0/16"];
  const expiresAtNs = 2n ** 63n;
  here.addNetwork({ vni: VNI, peer: toPeer, routes: [{ src, dst }] });
  there.addNetwork({ vni: VNI, peer: toHere, routes: [{ src: dst, dst: src }] });
  here.dangerInstall({ vni: VNI, rxSpi: 1, txSpi: 2, rxKey: RX_KEY, txKey: TX_KEY, expiresAtNs });
  there.dangerInstall({ vni: VNI, rxSpi: 2, txSpi: 1, rxKey: TX_KEY, txKey: RX_KEY, expiresAtNs });
  return [here, there];
}

interface SetUpOptions {
  readonly engine?: Partial<EngineOptions>;
  readonly capacity?: number;
  /** Methods of the ends that are other than those in memory. */
  readonly device?: Partial<ScriptDevice>;
  readonly underlay?: Partial<ScriptUnderlay>;
}

/** A datapath over memory, some methods of whose ends are replaced; `host` and `wire` are the far sides. */
async function setUp(options: SetUpOptions = {}) {
  const parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const clock = new ManualClock();
  const [engine, peer] = engines(library, options.engine);
  parts.use(engine);
  parts.use(peer);
  const capacity = options.capacity ?? 256;
  const [near, host] = MemoryDevice.pair({ capacity });
  const [left, wire] = MemoryUnderlay.pair({ capacity });
  const device: ScriptDevice = {
    kind: "script",
    mtuBytes: near.mtuBytes,
    read: (...args) => near.read(...args),
    write: (...args) => near.write(...args),
    close: () => near.close(),
    ...options.device,
  };
  const underlay: ScriptUnderlay = {
    kind: "script",
    receive: (...args) => left.receive(...args),
    send: (...args) => left.send(...args),
    close: () => left.close(),
    ...options.underlay,
  };
  const datapath = parts.use(await TunDatapath.open({ device, underlay, engine, clock }));
  /** Seals a packet on the other side and puts it on the wire. */
  const transmit = async (bytes: Uint8Array) => {
    const [input, output] = [new PacketBatch({ bufferBytes: 1 << 17 }), new PacketBatch({ bufferBytes: 1 << 17 })];
    input.append(bytes);
    peer.virtToPhy(input, output);
    strictEqual(output.verdict(0), "forward");
    await wire.push(output.packet(0), left.endpoint);
  };
  return {
    library,
    clock,
    engine,
    near,
    left,
    host,
    wire,
    datapath,
    transmit,
    [Symbol.asyncDispose]: () => parts.disposeAsync(),
  };
}

/** Lets everything run that does not wait for the clock. */
function settle(clock: ManualClock): Promise<void> {
  return clock.advance(0);
}

Deno.test("traffic classes go out and come in between a device in TypeScript and UDP sockets", async () => {
  await using parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const far = NativeUdp.open(library, { localAddress: "127.0.0.1", port: 0, family: "ipv4", sourcePortHashing: false });
  parts.adopt(far, (far) => far.close());
  const peerAt = `127.0.0.1:${far.info().port}`;
  const [engine, peer] = engines(library, { copyEcn: true, copyDscp: true }, [peerAt, "127.0.0.1:6081"]);
  parts.use(engine);
  parts.use(peer);
  const [device, host] = MemoryDevice.pair();
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  const { port } = underlay.native.info();
  const datapath = parts.use(await TunDatapath.open({ device, underlay, engine }));
  const controller = new AbortController();
  const run = datapath.run({ signal: controller.signal });
  const marked = (from: string, to: string, trafficClass: number) => {
    const bytes = packet(from, to);
    bytes[1] = trafficClass;
    return bytes;
  };

  // Out: expedited forwarding with each ECN field, then none.
  const classes = [0xb8, 0xb9, 0xba, 0xbb, 0x00];
  for (const trafficClass of classes) await host.push(marked(HERE, THERE, trafficClass));
  const seen: number[] = [];
  const arrived = new PacketBatch({ bufferBytes: 1 << 17 });
  while (seen.length < classes.length) {
    arrived.fill("rx", undefined, (_input, descriptors, _count, output) => far.take(descriptors, output).count);
    for (let i = 0; i < arrived.length; i++) seen.push(arrived.trafficClass(i));
    if (arrived.length === 0) await far.readable();
  }
  deepStrictEqual(seen, classes);

  // In: marked on the way, as far as the kernel of the sender can do that.
  const [input, sealed] = [new PacketBatch(), new PacketBatch()];
  for (const trafficClass of [0x00, 0x02, 0x49]) input.append(marked(THERE, HERE, trafficClass));
  peer.virtToPhy(input, sealed);
  const sending = new PacketBatch();
  const address = addressBytes("127.0.0.1");
  for (let i = 0; i < 3; i++) sending.append(sealed.packet(i), { address, port, trafficClass: 0x03 });
  deepStrictEqual(sending.hand(0, (...batch) => far.give(...batch)), { count: 3, bad: [] });
  deepStrictEqual([(await host.pull())?.[1], (await host.pull())?.[1]], [0x03, 0x4b]);
  const { rx_packets, rx_bad_ecn } = engine.counters(VNI);
  deepStrictEqual([rx_packets, rx_bad_ecn], [2n, 1n]);
  controller.abort();
  await run;
});

const CALLS = ["read", "write", "receive", "send"] as const;

for (const call of CALLS) {
  const end = call === "read" || call === "write" ? "device" : "underlay";

  Deno.test(`the ${end} whose ${call}() always fails ends the run with the 16th failure`, async () => {
    let calls = 0;
    const fail = () => Promise.reject(new Error(`failure ${++calls}`));
    await using set = await setUp({ [end]: { [call]: fail } });
    const { clock, datapath } = set;
    const run = datapath.run();
    run.catch(() => {});
    if (call === "send") await set.host.push(packet(HERE, THERE));
    if (call === "write") await set.transmit(packet(THERE, HERE));
    // 10 + 20 + … + 150 ms lie between the first and the last.
    await clock.advance(1199);
    strictEqual(calls, 15);
    await clock.advance(1);
    await rejects(run, (error) => {
      ok(error instanceof DatapathError);
      strictEqual(error.code, "end-failed");
      ok(error.cause instanceof Error && error.cause.message === "failure 16", String(error.cause));
      ok(error.message.includes("16 times") && error.message.includes(end), error.message);
      return true;
    });
    strictEqual(calls, 16);
    addsUp(datapath);
    const { underlaySendErrors, deviceWriteErrors } = datapath.stats().ends;
    deepStrictEqual([underlaySendErrors, deviceWriteErrors], [Number(call === "send"), Number(call === "write")]);
  });

  Deno.test(`a ${call}() that fails 15 times in a row, throwing or rejecting, recovers and loses nothing`, async () => {
    let failures = 0;
    const memory: { device?: MemoryDevice; underlay?: MemoryUnderlay } = {};
    // deno-lint-ignore no-explicit-any -- one wrapper for the four signatures
    const flaky = (...args: any[]): Promise<number> => {
      if (failures++ % 16 < 15) {
        if (failures % 2 === 0) throw new Error("thrown");
        return Promise.reject(new Error("rejected"));
      }
      // deno-lint-ignore no-explicit-any -- as above
      return (memory[end] as any)[call](...args);
    };
    await using set = await setUp({ [end]: { [call]: flaky } });
    memory.device = set.near;
    memory.underlay = set.left;
    const run = set.datapath.run();
    for (let i = 0; i < 5; i++) {
      await set.host.push(packet(HERE, THERE, 40, i));
      await set.transmit(packet(THERE, HERE, 40, i));
      await set.clock.advance(1200);
      strictEqual((await set.host.pull())?.at(-1), i);
      ok(await set.wire.pull());
    }
    await set.datapath.close();
    await run;
    strictEqual(set.engine.counters(VNI).rx_packets, 5n);
    addsUp(set.datapath);
  });
}

Deno.test("a delay between failures is a second at most", () => {
  const streak = new FailureStreak(200);
  const delays = Array.from({ length: 199 }, () => streak.fail());
  deepStrictEqual([delays[0], delays[98], delays[99], delays[150]], [10, 990, 1000, 1000]);
  strictEqual(streak.fail(), undefined);
  streak.reset();
  strictEqual(streak.fail(), 10);
});

for (const call of ["write", "send"] as const) {
  Deno.test(`a ${call}() that takes one packet at a time gets all, in order`, async () => {
    const sizes: number[] = [];
    // deno-lint-ignore no-explicit-any -- one wrapper for both signatures
    const one = async (batch: PacketBatch, options: any): Promise<number> => {
      const single = new PacketBatch();
      single.append(batch.packet(options.from), batch.endpoint(options.from));
      sizes.push(batch.length - options.from);
      // deno-lint-ignore no-explicit-any -- as above
      return await ((call === "write" ? set.near : set.left) as any)[call](single, { signal: options.signal });
    };
    await using set = await setUp(call === "write" ? { device: { write: one } } : { underlay: { send: one } });
    for (let i = 0; i < 50; i++) {
      if (call === "send") await set.host.push(packet(HERE, THERE, 40 + i));
      else await set.transmit(packet(THERE, HERE, 40 + i));
    }
    const run = set.datapath.run();
    for (let i = 0; i < 50; i++) {
      const bytes = call === "send" ? (await set.wire.pull())?.bytes.length : (await set.host.pull())?.length;
      strictEqual(bytes, (call === "send" ? 48 : 0) + 40 + i);
    }
    deepStrictEqual(sizes, Array.from({ length: 50 }, (_, i) => 50 - i), "they came as one batch");
    await set.datapath.close();
    await run;
    addsUp(set.datapath);
  });

  for (const count of [2, -1, 0.5, NaN]) {
    Deno.test(`a ${call}() that says it took ${count} of one packet ends the run`, async () => {
      const lie = { [call]: () => Promise.resolve(count) };
      await using set = await setUp(call === "write" ? { device: lie } : { underlay: lie });
      const run = set.datapath.run();
      run.catch(() => {});
      if (call === "send") await set.host.push(packet(HERE, THERE));
      else await set.transmit(packet(THERE, HERE));
      await rejects(run, (error) => error instanceof DatapathError && error.code === "end-failed");
      addsUp(set.datapath);
    });
  }
}

Deno.test("an end that closes of itself ends the run", async () => {
  for (const end of ["near", "left"] as const) {
    await using set = await setUp();
    const run = set.datapath.run();
    run.catch(() => {});
    await settle(set.clock);
    await set[end].close();
    await rejects(run, (error) => error instanceof DatapathError && error.code === "closed");
  }
});

Deno.test("a read() that appends nothing and says otherwise ends the run", async () => {
  await using set = await setUp({ device: { read: () => Promise.resolve(3) } });
  await rejects(set.datapath.run(), (error) => error instanceof DatapathError && error.code === "end-failed");
});

Deno.test("packets that a read() appended before it failed are not lost", async () => {
  let calls = 0;
  await using set = await setUp({
    device: {
      read(batch, options) {
        calls += 1;
        if (calls > 1) return new Promise((_, reject) => options?.signal?.addEventListener("abort", () => reject()));
        batch.append(packet(HERE, THERE));
        throw new Error("after the first");
      },
    },
  });
  const run = set.datapath.run();
  ok(await set.wire.pull());
  await set.datapath.close();
  await run;
  addsUp(set.datapath);
});

Deno.test("ends that never answer and hear no signal hold neither abort nor close up", async () => {
  const never = () => new Promise<number>(() => {});
  const ends: SetUpOptions[] = [
    { device: { read: never }, underlay: { receive: never } },
    { device: { write: never }, underlay: { send: never } },
  ];
  for (const options of ends) {
    for (const how of ["abort", "close"] as const) {
      await using set = await setUp(options);
      const controller = new AbortController();
      const run = set.datapath.run({ signal: controller.signal });
      await set.host.push(packet(HERE, THERE));
      await set.transmit(packet(THERE, HERE));
      await settle(set.clock);
      if (how === "abort") controller.abort();
      else await set.datapath.close();
      await run;
      addsUp(set.datapath);
      strictEqual(set.clock.pending, 0, "no timer is left");
    }
  }
});

Deno.test("close() closes both ends, once, also when they fail to", async () => {
  const closed: string[] = [];
  await using set = await setUp({
    device: {
      close() {
        closed.push("device");
        throw new Error("thrown");
      },
    },
    underlay: {
      close() {
        closed.push("underlay");
        return Promise.reject(new Error("rejected"));
      },
    },
  });
  await Promise.all([set.datapath.close(), set.datapath.close()]);
  await set.datapath.close();
  deepStrictEqual(closed, ["device", "underlay"]);
});

Deno.test("ends that always have packets leave timers their turn", async () => {
  const full = (batch: PacketBatch): Promise<number> => {
    while (batch.append(packet(HERE, THERE)));
    return Promise.resolve(batch.length);
  };
  await using set = await setUp({
    device: { read: full },
    underlay: { send: (batch, options) => Promise.resolve(batch.length - (options?.from ?? 0)) },
  });
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 50);
  await set.datapath.run({ signal: controller.signal });
  ok(set.datapath.stats().ends.underlaySent > 64);
  addsUp(set.datapath);
});

Deno.test("a slow underlay holds the device up, and no more than a batch is under way", async () => {
  await using set = await setUp({ capacity: 16 });
  const controller = new AbortController();
  const run = set.datapath.run({ signal: controller.signal });
  let pushed = 0;
  const pushing = (async () => {
    for (; pushed < 1000; pushed++) await set.host.push(packet(HERE, THERE), { signal: controller.signal });
  })().catch(() => {});
  await settle(set.clock);
  // 16 on each side of the datapath, and two reads' worth within.
  ok(pushed <= 16 + 16 + 32, `${pushed} packets were taken in`);
  const before = pushed;
  await set.clock.advance(10_000);
  strictEqual(pushed, before, "time alone lets no more in");
  for (let i = 0; i < 10; i++) ok(await set.wire.pull());
  await settle(set.clock);
  ok(pushed > before);
  controller.abort();
  await Promise.all([run, pushing]);
  addsUp(set.datapath);
  strictEqual(set.engine.counters(VNI).tx_packets, BigInt(set.datapath.stats().ends.deviceReadPackets));
});

Deno.test("a device that is slower than the wire holds the underlay up", async () => {
  await using set = await setUp({ capacity: 16 });
  const controller = new AbortController();
  const run = set.datapath.run({ signal: controller.signal });
  let pushed = 0;
  const pushing = (async () => {
    for (; pushed < 1000; pushed++) await set.transmit(packet(THERE, HERE));
  })().catch(() => {});
  await settle(set.clock);
  ok(pushed <= 16 + 16 + 32, `${pushed} datagrams were taken in`);
  controller.abort();
  await run;
  await set.wire.close();
  await Promise.all([set.left.close(), pushing]);
  addsUp(set.datapath);
});

Deno.test("what is too large is counted where it stops, inbound and outbound", async () => {
  await using set = await setUp({ engine: { innerMtuBytes: 1000 } });
  const run = set.datapath.run();
  await set.host.push(packet(HERE, THERE, 1001));
  await set.host.push(packet(HERE, THERE, 1000));
  strictEqual((await set.wire.pull())?.bytes.length, 1048);
  strictEqual(set.engine.counters(VNI).tx_too_big, 1n);
  // The device's MTU is 1392 bytes.
  await set.transmit(packet(THERE, HERE, 1393));
  await set.transmit(packet(THERE, HERE, 65_459));
  await set.transmit(packet(THERE, HERE, 1392));
  strictEqual((await set.host.pull())?.length, 1392);
  strictEqual(set.datapath.stats().ends.deviceWriteErrors, 2);
  await set.datapath.close();
  await run;
  addsUp(set.datapath);
});

// 65507 bytes of UDP over IPv4, less 48 of header and tag.
Deno.test("the largest packets go through a datapath whose device takes them", async () => {
  await using library = Library.open();
  const [engine, peer] = engines(library);
  using _engine = engine;
  using _peer = peer;
  const [device, host] = MemoryDevice.pair({ mtuBytes: 65_535 });
  const [underlay, wire] = MemoryUnderlay.pair();
  await using datapath = await TunDatapath.open({ device, underlay, engine });
  const run = datapath.run();
  for (let i = 0; i < 3; i++) await host.push(packet(HERE, THERE, 65_459, i));
  for (let i = 0; i < 3; i++) {
    const datagram = await wire.pull();
    strictEqual(datagram?.bytes.length, 65_459 + 48);
    const [received, opened] = [new PacketBatch({ bufferBytes: 1 << 17 }), new PacketBatch({ bufferBytes: 1 << 17 })];
    received.append(datagram.bytes, datagram.source);
    peer.phyToVirt(received, opened);
    deepStrictEqual(opened.packet(0), packet(HERE, THERE, 65_459, i));
  }
  await datapath.close();
  await run;
});

Deno.test("what the engine answers itself goes back to the device", async () => {
  await using library = Library.open();
  const macs = { hostMac: "02:00:00:00:00:01", gatewayMac: "02:00:00:00:00:02" };
  const [engine, peer] = engines(library, { ethernet: macs });
  using _engine = engine;
  using _peer = peer;
  const [device, host] = MemoryDevice.pair();
  const [underlay] = MemoryUnderlay.pair();
  await using datapath = await TunDatapath.open({ device, underlay, engine });
  const run = datapath.run();
  const [asking, gateway] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
  const arp = [0, 1, 8, 0, 6, 4, 0, 1, ...asking, ...addressBytes(HERE), 0, 0, 0, 0, 0, 0, ...addressBytes(THERE)];
  await host.push(new Uint8Array([255, 255, 255, 255, 255, 255, ...asking, 8, 6, ...arp]));
  const reply = await host.pull();
  strictEqual(reply?.length, 42);
  deepStrictEqual([...reply.subarray(0, 12), ...reply.subarray(22, 28)], [...asking, ...gateway, ...gateway]);
  await datapath.close();
  await run;
});

Deno.test("keepalives go out by the timer, also while the device is idle", async () => {
  await using set = await setUp({ engine: { keepaliveMs: 1, dangerManualClock: true } });
  const run = set.datapath.run();
  for (const nowMs of [0, 1, 2]) {
    set.engine.dangerSetClock(BigInt(nowMs) * 1_000_000n);
    await set.clock.advance(100);
    strictEqual((await set.wire.pull())?.bytes.length, 48);
  }
  await set.datapath.close();
  await run;
  strictEqual(set.datapath.stats().ends.underlaySent, 3);
});

Deno.test("an engine that cannot move real traffic is refused where an end is native, and both ends are closed", async () => {
  await using library = Library.open();
  const local = { addr: "192.0.2.1:6081", mac: "02:00:00:00:00:01" };
  for (const options of [{ dangerManualClock: true }, { rawUnderlay: { local: [local] } }]) {
    using engine = Engine.create({ library, ...options });
    const [device, host] = MemoryDevice.pair();
    const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
    await rejects(
      TunDatapath.open({ device, underlay, engine }),
      (error) => error instanceof DatapathError && error.code === "wrong-state",
    );
    await rejects(
      device.push(packet(HERE, THERE)),
      (error) => error instanceof DatapathError && error.code === "closed",
    );
    await using again = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: underlay.port });
    strictEqual(again.port, underlay.port);
    await host.close();
  }
});

Deno.test("a native end that somebody closes during the run ends it", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library });
  const [device, host] = MemoryDevice.pair();
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await using datapath = await TunDatapath.open({ device, underlay, engine });
  const run = datapath.run();
  await new Promise((resolve) => setTimeout(resolve, 0));
  await underlay.close();
  await rejects(run, (error) => error instanceof DatapathError && error.code === "closed");
  await host.close();
});

Deno.test("what a native end refuses is counted and does not end the run", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library, dangerIsolatedKeyHistory: true });
  const [src, dst] = ["10.1.0.0/16", "10.2.0.0/16"];
  // The kernel sends nothing to this address on a socket that has not asked for broadcasts.
  engine.addNetwork({ vni: VNI, peer: "255.255.255.255:6081", routes: [{ src, dst }] });
  const keys = { vni: VNI, rxSpi: 1, txSpi: 2, rxKey: RX_KEY, txKey: TX_KEY };
  engine.dangerInstall({ ...keys, expiresAtNs: 2n ** 63n });
  const [device, host] = MemoryDevice.pair();
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await using datapath = await TunDatapath.open({ device, underlay, engine });
  const run = datapath.run();
  const late = AbortSignal.timeout(20_000);
  for (let i = 1; i <= 3; i++) {
    await host.push(packet(HERE, THERE));
    while (datapath.stats().ends.underlaySendErrors < i) await delay(1, { signal: late });
  }
  await datapath.close();
  await run;
  await host.close();
  deepStrictEqual([engine.counters(VNI).tx_packets, engine.counters(VNI).tx_errors], [3n, 3n]);
  strictEqual(datapath.stats().ends.underlaySent, 0);
  addsUp(datapath);
});
