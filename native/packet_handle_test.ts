import assert from "node:assert/strict";
import { decodeText, LITTLE_ENDIAN } from "./marshal.ts";
import { Library } from "./library.ts";
import { NativeUdp } from "./udp.ts";

const PACKET_BYTES = 48;
const OPTIONS = { localAddress: "127.0.0.1", sourcePortHashing: false, family: "ipv4", port: 0 } as const;

interface Addressed {
  readonly text: string;
  readonly port: number;
}

/** Datagrams for 127.0.0.1, in the form that the C interface takes. */
function batch(datagrams: readonly Addressed[]): [Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>, number] {
  const input = new TextEncoder().encode(datagrams.map(({ text }) => text).join(""));
  const packets = new Uint8Array(datagrams.length * PACKET_BYTES);
  const view = new DataView(packets.buffer);
  let offset = 0;
  for (const [i, { text, port }] of datagrams.entries()) {
    const at = i * PACKET_BYTES;
    view.setUint32(at, offset, LITTLE_ENDIAN);
    view.setUint32(at + 4, text.length, LITTLE_ENDIAN);
    packets.set([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1], at + 16);
    view.setUint16(at + 32, port, LITTLE_ENDIAN);
    offset += text.length;
  }
  return [input, packets, datagrams.length];
}

/** What a read gave, as text and source port. */
function received(udp: NativeUdp, capacity = 8): Addressed[] {
  const [packets, output] = [new Uint8Array(capacity * PACKET_BYTES), new Uint8Array(1 << 16)];
  const { count, bad } = udp.take(packets, output);
  assert.deepEqual(bad, []);
  const view = new DataView(packets.buffer);
  return Array.from({ length: count }, (_, i) => {
    const at = i * PACKET_BYTES;
    const [start, length] = [view.getUint32(at, LITTLE_ENDIAN), view.getUint32(at + 4, LITTLE_ENDIAN)];
    return { text: decodeText(output.subarray(start), length), port: view.getUint16(at + 32, LITTLE_ENDIAN) };
  });
}

Deno.test("datagrams go and come in batches, in order, and those refused are named", async () => {
  await using library = Library.open();
  using near = NativeUdp.open(library, OPTIONS);
  using far = NativeUdp.open(library, OPTIONS);
  const { port } = far.info();
  assert.deepEqual(received(far), []);
  const readable = far.readable();
  // Nobody can be reached at port 0.
  const sent = batch([{ text: "one", port }, { text: "", port }, { text: "lost", port: 0 }, { text: "three", port }]);
  assert.deepEqual(near.give(...sent), { count: 4, bad: [2] });
  await readable;
  const from = near.info().port;
  // What does not fit the caller's descriptors comes with the next read.
  assert.deepEqual(received(far, 2), [{ text: "one", port: from }, { text: "", port: from }]);
  assert.deepEqual(received(far, 2), [{ text: "three", port: from }]);
  assert.deepEqual(received(far), []);
});

Deno.test("a datagram that does not fit the rest of the output comes with the next read", async () => {
  await using library = Library.open();
  using near = NativeUdp.open(library, OPTIONS);
  using far = NativeUdp.open(library, OPTIONS);
  const { port } = far.info();
  const texts = ["a", "b", "c"].map((letter) => letter.repeat(30_000));
  assert.equal(near.give(...batch(texts.map((text) => ({ text, port })))).count, 3);
  const got: string[] = [];
  while (got.length < 3) {
    const some = received(far).map(({ text }) => text);
    assert(some.length <= 2, "two of them fit 64 KiB");
    if (some.length === 0) await far.readable();
    got.push(...some);
  }
  assert.deepEqual(got, texts);
});

Deno.test("readable() is told of each time that there is something again", async () => {
  await using library = Library.open();
  using near = NativeUdp.open(library, OPTIONS);
  using far = NativeUdp.open(library, OPTIONS);
  const { port } = far.info();
  for (let round = 0; round < 50; round++) {
    assert.deepEqual(received(far), []);
    const readable = far.readable();
    near.give(...batch([{ text: String(round), port }]));
    await readable;
    assert.equal(received(far)[0]?.text, String(round));
  }
});

Deno.test("whoever waits for a handle that closes goes on, and hears that it is closed", async () => {
  await using library = Library.open();
  for (const how of ["handle", "library"] as const) {
    await using own = Library.open();
    const udp = NativeUdp.open(own, OPTIONS);
    assert.deepEqual(received(udp), []);
    const [readable, writable] = [udp.readable(), udp.writable()];
    if (how === "handle") udp.close();
    else await own.close();
    await Promise.all([readable, writable]);
    assert.throws(() => received(udp), { code: "ECLOSED" });
    assert.throws(() => udp.readable(), { code: "ECLOSED" });
    assert.throws(() => udp.give(...batch([])), { code: "ECLOSED" });
  }
  await library.events.idle();
});

Deno.test("a read needs room for the largest packet, and a write packets within its input", async () => {
  await using library = Library.open();
  using udp = NativeUdp.open(library, OPTIONS);
  assert.throws(() => udp.take(new Uint8Array(PACKET_BYTES), new Uint8Array(65_534)), { code: "EBUFFER" });
  const [input, packets, count] = batch([{ text: "text", port: 9 }]);
  assert.throws(() => udp.give(input.subarray(1), packets, count), { code: "EINVAL" });
});
