import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { ManualClock } from "./clock.ts";
import { DatapathError } from "./errors.ts";
import { ImpairedUnderlay, type ImpairedUnderlayOptions } from "./impaired_underlay.ts";
import { MemoryDevice } from "./memory_device.ts";
import { MemoryUnderlay } from "./memory_underlay.ts";
import { PacketBatch } from "./packet_batch.ts";
import { RecordingDevice } from "./recording_device.ts";
import type { ScriptUnderlay } from "./underlay.ts";

const isClosed = (error: unknown) => error instanceof DatapathError && error.code === "closed";

function batchOf(...numbers: number[]): PacketBatch {
  const batch = new PacketBatch({ capacity: Math.max(numbers.length, 1) });
  for (const number of numbers) batch.append(new Uint8Array([number >> 8, number & 255]));
  return batch;
}

const numberOf = (bytes: Uint8Array) => (bytes[0] ?? 0) << 8 | (bytes[1] ?? 0);

Deno.test("MemoryDevice keeps order, and a write takes what there is room for", async () => {
  const [left, right] = MemoryDevice.pair({ capacity: 3 });
  strictEqual(await left.write(batchOf(1, 2, 3, 4, 5)), 3);
  const waiting = left.write(batchOf(1, 2, 3, 4, 5), { from: 3 });
  strictEqual(numberOf(await right.pull() ?? new Uint8Array()), 1);
  strictEqual(await waiting, 1);
  const batch = new PacketBatch({ capacity: 2 });
  strictEqual(await right.read(batch), 2);
  deepStrictEqual([0, 1].map((i) => numberOf(batch.packet(i))), [2, 3]);
});

Deno.test("MemoryDevice keeps its packets apart from the batch", async () => {
  const [left, right] = MemoryDevice.pair();
  const batch = batchOf(1);
  await left.write(batch);
  batch.packet(0).fill(9);
  deepStrictEqual([...await right.pull() ?? []], [0, 1]);
});

Deno.test("MemoryDevice ends waits on abort and on close", async () => {
  const [left, right] = MemoryDevice.pair({ capacity: 1 });
  const controller = new AbortController();
  const { signal } = controller;
  await left.write(batchOf(1));
  const waits = [
    left.read(new PacketBatch(), { signal }),
    left.push(new Uint8Array(1), { signal }),
    left.pull({ signal }),
  ];
  const reason = new Error("enough");
  controller.abort(reason);
  for (const wait of waits) await rejects(wait, reason);
  await rejects(left.read(new PacketBatch(), { signal }), reason);

  const [reading, writing] = [left.read(new PacketBatch()), left.write(batchOf(1))];
  const refused = rejects(writing, isClosed);
  await left.close();
  await left.close();
  strictEqual(await reading, 0);
  await refused;
  await rejects(left.write(batchOf(1)), isClosed);
  // The other side stays as it is, and what it writes vanishes.
  for (let i = 0; i < 5; i++) await right.push(new Uint8Array(1));
  ok(await right.pull());
});

Deno.test("MemoryDevice refuses what is larger than its MTU, and no part of that batch is written", async () => {
  const [left, right] = MemoryDevice.pair({ mtuBytes: 100 });
  const batch = batchOf(1);
  batch.clear();
  batch.append(new Uint8Array(101));
  await rejects(left.write(batch), RangeError);
  await rejects(left.push(new Uint8Array(101)), RangeError);
  await left.push(new Uint8Array(100));
  await rejects(right.read(new PacketBatch({ bufferBytes: 99 })), RangeError);
  strictEqual((await right.pull())?.length, 100);
  for (const options of [{ mtuBytes: 19 }, { mtuBytes: 65_536 }, { capacity: 0 }]) {
    throws(() => MemoryDevice.pair(options), RangeError);
  }
});

Deno.test("MemoryUnderlay tells each side where a datagram came from and was sent to", async () => {
  const [left, right] = MemoryUnderlay.pair();
  const elsewhere = { address: new Uint8Array([198, 51, 100, 1]), port: 7 };
  const batch = new PacketBatch();
  batch.append(new Uint8Array([1]), elsewhere);
  strictEqual(await left.send(batch), 1);
  deepStrictEqual(await right.pull(), { bytes: new Uint8Array([1]), source: left.endpoint, destination: elsewhere });
  await right.push(new Uint8Array([2]), left.endpoint);
  batch.clear();
  strictEqual(await left.receive(batch), 1);
  deepStrictEqual(batch.endpoint(0), right.endpoint);
  await rejects(right.push(new Uint8Array(65_536), left.endpoint), RangeError);
  await left.close();
  await rejects(left.send(batch), isClosed);
  strictEqual(await left.pull(), undefined);
});

Deno.test("RecordingDevice keeps the first packets of both directions, and counts the rest", async () => {
  const clock = new ManualClock();
  const [inner, host] = MemoryDevice.pair({ capacity: 2, mtuBytes: 100 });
  const device = new RecordingDevice({ device: inner, capacity: 3, clock });
  strictEqual(device.mtuBytes, 100);
  await host.push(new Uint8Array([0, 1]));
  const batch = new PacketBatch();
  await device.read(batch);
  await clock.advance(5);
  strictEqual(await device.write(batchOf(7, 8, 9, 10), { from: 1 }), 2, "a short write");
  deepStrictEqual(device.packets.map(({ direction, atMs, bytes }) => [direction, atMs, numberOf(bytes)]), [
    ["read", 0, 1],
    ["write", 5, 8],
    ["write", 5, 9],
  ]);
  await host.pull();
  await device.write(batchOf(11));
  deepStrictEqual([device.packets.length, device.missed], [3, 1]);
  await device.close();
  await rejects(inner.write(batchOf(1)), isClosed);
});

/** Sends `count` numbered datagrams, one a millisecond, and gives the numbers in the order in which they arrived. */
async function arrivals(count: number, options: Partial<ImpairedUnderlayOptions>, everyMs = 1) {
  const clock = new ManualClock();
  const [left, right] = MemoryUnderlay.pair({ capacity: 4 * count });
  await using underlay = new ImpairedUnderlay({ underlay: left, seed: 42, clock, ...options });
  for (let i = 0; i < count; i++) {
    strictEqual(await underlay.send(batchOf(i)), 1);
    await clock.advance(everyMs);
  }
  await clock.advance(1000);
  strictEqual(underlay.pending, 0);
  const counters = underlay.counters();
  strictEqual(counters.taken, count);
  strictEqual(counters.sent + counters.lost + counters.overflowed, counters.taken + counters.duplicated);
  const got: Uint8Array[] = [];
  for (let i = 0; i < counters.sent; i++) got.push((await right.pull())?.bytes ?? new Uint8Array());
  return { got, numbers: got.map(numberOf), counters, clock };
}

const near = (value: number, expected: number) => ok(Math.abs(value - expected) < 0.4 * expected, `${value}`);

Deno.test("ImpairedUnderlay without impairments changes nothing", async () => {
  const { numbers } = await arrivals(200, {});
  deepStrictEqual(numbers, Array.from({ length: 200 }, (_, i) => i));
});

Deno.test("ImpairedUnderlay does the same again with the same seed, and something else with another", async () => {
  const options = { lossRate: 0.1, duplicateRate: 0.1, reorderRate: 0.1, corruptRate: 0.1 };
  const [first, again, other] = [
    await arrivals(100, options),
    await arrivals(100, options),
    await arrivals(100, { ...options, seed: 43 }),
  ];
  deepStrictEqual(first.got, again.got);
  deepStrictEqual(first.counters, again.counters);
  ok(JSON.stringify(first.numbers) !== JSON.stringify(other.numbers));
});

Deno.test("ImpairedUnderlay loses, doubles and damages as often as it is told to", async () => {
  const lost = await arrivals(250, { lossRate: 0.2 });
  near(lost.counters.lost, 50);
  strictEqual(new Set(lost.numbers).size, 250 - lost.counters.lost);

  const doubled = await arrivals(250, { duplicateRate: 0.2 });
  near(doubled.counters.duplicated, 50);
  deepStrictEqual([...new Set(doubled.numbers)], Array.from({ length: 250 }, (_, i) => i));

  const damaged = await arrivals(250, { corruptRate: 0.2 });
  near(damaged.counters.corrupted, 50);
  const flipped = damaged.numbers.map((number, i) => number ^ i).filter((difference) => difference !== 0);
  strictEqual(flipped.length, damaged.counters.corrupted);
  for (const difference of flipped) strictEqual(difference & (difference - 1), 0, "one bit");
});

Deno.test("ImpairedUnderlay reorders within its span, and sends a last one though none follows", async () => {
  const { numbers, counters } = await arrivals(250, { reorderRate: 0.1 });
  near(counters.reordered, 25);
  deepStrictEqual(numbers.toSorted((a, b) => a - b), Array.from({ length: 250 }, (_, i) => i));
  numbers.forEach((number, at) => ok(Math.abs(number - at) <= 8 + 8, `${number} at ${at}`));
  ok(numbers.some((number, at) => number !== at));
  deepStrictEqual((await arrivals(1, { reorderRate: 1 })).numbers, [0]);
});

Deno.test("ImpairedUnderlay delays by what it is told to, and jitter reorders", async () => {
  const clock = new ManualClock();
  const [left, right] = MemoryUnderlay.pair();
  await using underlay = new ImpairedUnderlay({ underlay: left, seed: 1, delayMs: 100, clock });
  await underlay.send(batchOf(1));
  const pulled = right.pull();
  let atMs = -1;
  pulled.then(() => atMs = clock.now());
  await clock.advance(99);
  strictEqual(atMs, -1);
  await clock.advance(1);
  await pulled;
  strictEqual(atMs, 100);
  const { numbers } = await arrivals(200, { delayMs: 10, jitterMs: 20 });
  ok(numbers.some((number, at) => number !== at));
  strictEqual(new Set(numbers).size, 200);
});

Deno.test("ImpairedUnderlay holds no more than its capacity", async () => {
  const { counters } = await arrivals(100, { delayMs: 500, capacity: 10 }, 0);
  deepStrictEqual([counters.sent, counters.overflowed], [10, 90]);
});

Deno.test("ImpairedUnderlay tells of an underlay that fails, sends nothing twice, and nothing after close()", async () => {
  const clock = new ManualClock();
  const [left, right] = MemoryUnderlay.pair();
  let works = false;
  const flaky: ScriptUnderlay = {
    kind: "script",
    receive: (...args) => left.receive(...args),
    send: (...args) => works ? left.send(...args) : Promise.reject(new Error("no route")),
    close: () => left.close(),
  };
  const underlay = new ImpairedUnderlay({ underlay: flaky, seed: 1, clock });
  strictEqual(await underlay.send(batchOf(1)), 1);
  for (let i = 0; i < 3; i++) await rejects(underlay.send(batchOf(2)), /no route/);
  works = true;
  await clock.advance(10);
  strictEqual(numberOf((await right.pull())?.bytes ?? new Uint8Array()), 1);
  await underlay.send(batchOf(2));
  strictEqual(numberOf((await right.pull())?.bytes ?? new Uint8Array()), 2);
  deepStrictEqual([underlay.counters().sent, underlay.pending], [2, 0]);

  works = false;
  await underlay.send(batchOf(3));
  await underlay.close();
  works = true;
  await clock.advance(1000);
  strictEqual(clock.pending, 0);
  strictEqual(underlay.counters().sent, 2);
});

Deno.test("ImpairedUnderlay receives what the underlay receives", async () => {
  const [left, right] = MemoryUnderlay.pair();
  await using underlay = new ImpairedUnderlay({ underlay: left, seed: 1, lossRate: 1 });
  await right.push(new Uint8Array([5]), left.endpoint);
  const batch = new PacketBatch();
  strictEqual(await underlay.receive(batch), 1);
  strictEqual(await underlay.send(batch), 1);
  await rejects(right.pull({ signal: AbortSignal.timeout(10) }));
});

Deno.test("ImpairedUnderlay refuses what makes no sense", () => {
  const [underlay] = MemoryUnderlay.pair();
  const rows = [
    { lossRate: -0.1 },
    { corruptRate: 1.1 },
    { duplicateRate: NaN },
    { reorderRate: Infinity },
    { delayMs: -1 },
    { jitterMs: 60_001 },
    { capacity: 0 },
    { seed: 0.5 },
  ];
  for (const row of rows) throws(() => new ImpairedUnderlay({ underlay, seed: 1, ...row }), RangeError);
});
