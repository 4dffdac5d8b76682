import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { PacketBatch } from "./packet_batch.ts";

Deno.test("PacketBatch gives back what was appended, in order, until it is full", () => {
  const batch = new PacketBatch({ capacity: 3, bufferBytes: 10 });
  ok(batch.append(new Uint8Array([1, 2, 3])));
  ok(batch.append(new Uint8Array(0)));
  ok(!batch.append(new Uint8Array(8)), "the buffer has 7 bytes left");
  ok(batch.append(new Uint8Array([4, 5, 6, 7, 8, 9, 10])));
  ok(!batch.append(new Uint8Array(0)), "it holds three packets");
  strictEqual(batch.length, 3);
  deepStrictEqual([0, 1, 2].map((i) => [...batch.packet(i)]), [[1, 2, 3], [], [4, 5, 6, 7, 8, 9, 10]]);
  batch.clear();
  strictEqual(batch.length, 0);
  ok(batch.append(new Uint8Array(10)));
});

Deno.test("PacketBatch keeps endpoints of both families", () => {
  const batch = new PacketBatch();
  const sixteen = Uint8Array.from({ length: 16 }, (_, i) => i);
  batch.append(new Uint8Array(1), { address: new Uint8Array([192, 0, 2, 1]), port: 65535 });
  batch.append(new Uint8Array(1), { address: sixteen, port: 1 });
  deepStrictEqual(batch.endpoint(0), { address: new Uint8Array([192, 0, 2, 1]), port: 65535 });
  deepStrictEqual(batch.endpoint(1), { address: sixteen, port: 1 });
  throws(() => batch.append(new Uint8Array(1), { address: new Uint8Array(5), port: 1 }), RangeError);
});

Deno.test("PacketBatch keeps the traffic class of what came with one", () => {
  const batch = new PacketBatch();
  const [address, port] = [new Uint8Array([192, 0, 2, 1]), 6081];
  batch.append(new Uint8Array(1), { address, port, trafficClass: 255 });
  batch.append(new Uint8Array(1), { address, port });
  batch.append(new Uint8Array(1));
  deepStrictEqual([0, 1, 2].map((i) => batch.trafficClass(i)), [255, 0, 0]);
  deepStrictEqual(batch.endpoint(0), { address, port });
  for (const trafficClass of [-1, 256, 1.5, NaN]) {
    throws(() => batch.append(new Uint8Array(1), { address, port, trafficClass }), RangeError);
  }
  strictEqual(batch.length, 3);
});

Deno.test("PacketBatch lets a read write straight into its rest", () => {
  const batch = new PacketBatch({ capacity: 2, bufferBytes: 8 });
  batch.reserve()?.set([1, 2, 3, 4]);
  batch.commit(3);
  batch.reserve()?.set([9]);
  batch.commit(1);
  deepStrictEqual([...batch.packet(0)], [1, 2, 3]);
  deepStrictEqual([...batch.packet(1)], [9]);
  strictEqual(batch.reserve(), undefined);
  throws(() => batch.commit(0), RangeError);
});

Deno.test("PacketBatch.fill() shows the call its packets and takes the results in their place", () => {
  const input = new PacketBatch({ capacity: 4, bufferBytes: 16 });
  for (const byte of [1, 2, 3]) input.append(new Uint8Array([byte, byte]));
  const output = new PacketBatch({ capacity: 4, bufferBytes: 16 });
  const processed = output.fill("rx", { batch: input, from: 1 }, (bytes, descriptors, count, results) => {
    strictEqual(count, 2);
    deepStrictEqual([...bytes], [1, 1, 2, 2, 3, 3]);
    const words = new Int32Array(descriptors.buffer, descriptors.byteOffset, 24);
    strictEqual(words[0], 2);
    results.set([7, 7, 7]);
    words.set([0, 3, 0], 0);
    words.set([0, 0, -9], 12);
    return 2;
  });
  strictEqual(processed, 2);
  strictEqual(output.verdict(0), "forward");
  deepStrictEqual([...output.packet(0)], [7, 7, 7]);
  strictEqual(output.verdict(1), "rx_replayed");
  ok(output.append(new Uint8Array(13)), "the rest of the buffer is free");
  ok(!output.append(new Uint8Array(1)));
});

Deno.test("PacketBatch.retain() keeps order, bytes and endpoints, and room behind the last packet", () => {
  const batch = new PacketBatch({ capacity: 5, bufferBytes: 16 });
  for (const n of [1, 2, 3, 4]) {
    batch.append(new Uint8Array(n).fill(n), { address: new Uint8Array(4).fill(n), port: n });
  }
  const heard: number[] = [];
  batch.retain((i) => {
    heard.push(batch.packetBytes(i));
    return i % 2 === 1;
  });
  deepStrictEqual(heard, [1, 2, 3, 4]);
  deepStrictEqual([0, 1].map((i) => [...batch.packet(i)]), [[2, 2], [4, 4, 4, 4]]);
  deepStrictEqual(batch.endpoint(1), { address: new Uint8Array(4).fill(4), port: 4 });
  throws(() => batch.packet(2), RangeError);
  ok(batch.append(new Uint8Array(6).fill(9)), "the buffer's rest is still 6 bytes");
  deepStrictEqual([...batch.packet(1)], [4, 4, 4, 4]);
  batch.retain(() => false);
  strictEqual(batch.length, 0);
});

Deno.test("PacketBatch refuses what makes no sense", () => {
  throws(() => new PacketBatch({ capacity: 0 }), RangeError);
  throws(() => new PacketBatch({ capacity: 65537 }), RangeError);
  throws(() => new PacketBatch({ bufferBytes: 0 }), RangeError);
  const batch = new PacketBatch();
  for (const index of [-1, 0, 0.5]) throws(() => batch.packet(index), RangeError);
  throws(() => batch.fill("tx", { batch, from: 0 }, () => 0), TypeError);
  throws(() => batch.fill("tx", { batch: new PacketBatch(), from: 1 }, () => 0), RangeError);
});
