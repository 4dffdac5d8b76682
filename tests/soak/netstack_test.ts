/** Network stacks for minutes: many connections one after the other, all the ports that there are, and many bytes. */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import process from "node:process";
import { netstackPair } from "../../datapath/_netstack_pair.ts";
import type { NetstackConn } from "../../datapath/netstack_conn.ts";
import { figure, progress } from "./_report.ts";

const MIB = 1 << 20;
const HOSTNAME = "10.9.0.2";
const PORT = 80;

/** How many ports there are to choose from. */
const EPHEMERAL = 16_384;

Deno.test("10 000 connections in sequence leave no handle, no connection and no memory behind", async () => {
  await using pair = await netstackPair();
  const handles = pair.library.handleCount();
  const listener = pair.right.listen({ port: PORT });
  const serving = (async () => {
    for await (const conn of listener) await conn.readable.pipeTo(conn.writable);
  })();
  const payload = new Uint8Array(10_000).fill(7);
  const exchange = async (): Promise<void> => {
    using conn = await pair.left.connect({ hostname: HOSTNAME, port: PORT });
    const back = new Response(conn.readable).bytes();
    const writer = conn.writable.getWriter();
    await writer.write(payload);
    await writer.close();
    assert.deepEqual(await back, payload);
  };
  const count = 10_000;
  let residentBytes = 0;
  const startMs = performance.now();
  for (let i = 1; i <= count; i++) {
    await exchange();
    // From here on what is kept for reuse is there.
    if (i === count / 5) residentBytes = process.memoryUsage.rss();
    if (i % 1000 === 0) progress(`${i} connections, ${pair.left.stats().connections} are left`);
  }
  const grownBytes = process.memoryUsage.rss() - residentBytes;
  figure("connections in sequence", {
    perSecond: Math.round(count / (performance.now() - startMs) * 1000),
    grownMiB: Math.round(grownBytes / MIB),
  });
  listener.close();
  await serving;
  assert.equal(pair.library.handleCount(), handles);
  assert.equal(pair.left.stats().failures, 0);
  assert(pair.left.stats().connections <= 256, `${pair.left.stats().connections} connections are left`);
  assert(grownBytes < 64 * MIB, `${grownBytes} bytes more than after a fifth`);
});

Deno.test("when every port is in use the next connection says so, and one that ends makes room", async () => {
  const bufferBytes = 4096;
  await using pair = await netstackPair({
    receiveBufferBytes: bufferBytes,
    sendBufferBytes: bufferBytes,
    maxConnections: 65_536,
  });
  const listener = pair.right.listen({ port: PORT });
  const accepted: NetstackConn[] = [];
  const accepting = (async () => {
    for await (const conn of listener) accepted.push(conn);
  })();
  const conns: NetstackConn[] = [];
  const connect = () => pair.left.connect({ hostname: HOSTNAME, port: PORT });
  while (conns.length < EPHEMERAL) {
    conns.push(...await Promise.all(Array.from({ length: 128 }, connect)));
    if (conns.length % 2048 === 0) progress(`${conns.length} connections are open`);
  }
  await assert.rejects(connect(), Deno.errors.AddrNotAvailable);
  // Another port there has ports of its own here.
  const other = pair.right.listen({ port: PORT + 1 });
  (await pair.left.connect({ hostname: HOSTNAME, port: PORT + 1 })).close();
  other.close();
  // A reset leaves nothing to wait for, once it has been sent.
  await conns.pop()?.writable.abort();
  const deadlineMs = performance.now() + 20_000;
  while (conns.length < EPHEMERAL) {
    try {
      conns.push(await connect());
    } catch (error) {
      if (!(error instanceof Deno.errors.AddrNotAvailable) || performance.now() > deadlineMs) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }
  for (const conn of conns) conn.close();
  listener.close();
  await accepting;
  for (const conn of accepted) conn.close();
});

Deno.test("1 GiB through one connection arrives whole", async () => {
  await using pair = await netstackPair();
  const listener = pair.right.listen({ port: PORT });
  const accepting = listener.accept();
  const near = await pair.left.connect({ hostname: HOSTNAME, port: PORT });
  const far = await accepting;
  const chunk = Uint8Array.from({ length: 256 << 10 }, (_, i) => i * 31 + (i >> 8));
  const total = 1 << 30;
  const startMs = performance.now();
  const writing = (async () => {
    for (let sent = 0; sent < total;) sent += await near.write(chunk.subarray(sent % chunk.length));
    await near.closeWrite();
  })();
  const buffer = new Uint8Array(chunk.length);
  let received = 0;
  for (let count; (count = await far.read(buffer)) !== null; received += count) {
    const start = received % chunk.length;
    const first = Math.min(count, chunk.length - start);
    assert(Buffer.compare(buffer.subarray(0, first), chunk.subarray(start, start + first)) === 0, `at ${received}`);
    assert(Buffer.compare(buffer.subarray(first, count), chunk.subarray(0, count - first)) === 0, `behind ${received}`);
  }
  await writing;
  assert.equal(received, total);
  figure("one connection", { gbitPerSecond: Number((total * 8 / (performance.now() - startMs) / 1e6).toFixed(2)) });
  near.close();
  far.close();
  listener.close();
});
