import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { NETSTACK_COUNTERS, netstackCounterNames } from "../native/netstack.ts";
import { Library } from "../native/library.ts";
import { netstackPair, type StackChoice } from "./_netstack_pair.ts";
import { Engine } from "./engine.ts";
import { DatapathError } from "./errors.ts";
import { NetstackDatapath } from "./netstack.ts";
import type { NetstackConn } from "./netstack_conn.ts";
import { Netstack } from "./netstack_device.ts";
import type { NetstackDatagramConn } from "./netstack_datagram.ts";
import type { NetstackListener } from "./netstack_listener.ts";
import { UdpUnderlay } from "./udp_underlay.ts";

const LEFT = ["10.9.0.1", "fd09::1"] as const;
const RIGHT = ["10.9.0.2", "fd09::2"] as const;
const PORT = 80;

/** Nobody is there. */
const NOBODY = "10.9.0.77";

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Bytes of which each part differs from the others. */
function pattern(bytes: number): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: bytes }, (_, i) => i * 31 + (i >> 8));
}

async function readAll(conn: NetstackConn): Promise<Uint8Array<ArrayBuffer>> {
  return await new Response(conn.readable).bytes();
}

async function writeAll(conn: NetstackConn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await conn.write(bytes.subarray(at));
}

/** Both ends of a connection. */
async function connected({ left, right }: { readonly left: Netstack; readonly right: Netstack }) {
  using listener = right.listen({ port: 0 });
  const accepting = listener.accept();
  const near = await left.connect({ hostname: RIGHT[0], port: listener.addr.port });
  return { near, far: await accepting };
}

/** What has the shape of Deno's own, for the compiler to check. */
type Like<T, K extends keyof T> = Pick<T, K>;
type ConnLike = Like<
  Deno.TcpConn,
  "read" | "write" | "closeWrite" | "close" | "readable" | "writable" | "localAddr" | "remoteAddr"
>;
type ListenerLike = Like<Deno.TcpListener, "addr" | "close">;
type DatagramLike = Like<Deno.DatagramConn, "addr" | "close">;
const _conn = (conn: NetstackConn): Omit<ConnLike, "readable"> => conn;
const _listener = (listener: NetstackListener): ListenerLike => listener;
const _datagram = (socket: NetstackDatagramConn): DatagramLike => socket;

Deno.test("NETSTACK_COUNTERS are those of the library", async () => {
  await using library = Library.open();
  const names = netstackCounterNames(library).map((name) => name.replace(/_([a-z])/g, (_, c) => c.toUpperCase()));
  deepStrictEqual(names, NETSTACK_COUNTERS);
});

for (const underlay of ["udp", "memory"] as const) {
  Deno.test(`a connection over ${underlay} carries bytes both ways, in either family, and knows its addresses`, async () => {
    await using pair = await netstackPair({ underlay });
    const handles = pair.library.handleCount();
    for (const [index, hostname] of RIGHT.entries()) {
      using listener = pair.right.listen({ port: PORT });
      deepStrictEqual(listener.addr, { transport: "tcp", hostname: "::", port: PORT });
      const accepting = listener.accept();
      using near = await pair.left.connect({ hostname, port: PORT });
      using far = await accepting;
      deepStrictEqual(near.remoteAddr, { transport: "tcp", hostname, port: PORT });
      strictEqual(near.localAddr.hostname, LEFT[index]);
      deepStrictEqual([far.localAddr, far.remoteAddr], [near.remoteAddr, near.localAddr]);
      const sent = pattern(1 << 20);
      const [received, back] = await Promise.all([
        readAll(far),
        readAll(near),
        writeAll(near, sent).then(() => near.closeWrite()),
        writeAll(far, sent).then(() => far.closeWrite()),
      ]);
      deepStrictEqual(received, sent);
      deepStrictEqual(back, sent);
    }
    strictEqual(pair.library.handleCount(), handles);
    const { connects, failures } = pair.left.stats();
    deepStrictEqual([connects, failures], [2, 0]);
  });
}

Deno.test("one direction ends before the other, and a connection whose streams have ended closes by itself", async () => {
  await using pair = await netstackPair();
  const handles = pair.library.handleCount();
  const { near, far } = await connected(pair);
  const echoed = far.readable.pipeTo(far.writable);
  const writer = near.writable.getWriter();
  await writer.write(encoder.encode("question"));
  await writer.close();
  await rejects(near.write(encoder.encode("late")), Deno.errors.BrokenPipe);
  strictEqual(decoder.decode(await readAll(near)), "question");
  await echoed;
  strictEqual(pair.library.handleCount(), handles);
  await rejects(near.read(new Uint8Array(1)), Deno.errors.BadResource);
});

Deno.test("read() gives null at the end, and 0 for no room", async () => {
  await using pair = await netstackPair();
  const { near, far } = await connected(pair);
  await writeAll(far, encoder.encode("ab"));
  await far.closeWrite();
  strictEqual(await near.read(new Uint8Array(0)), 0);
  const buffer = new Uint8Array(9);
  strictEqual(await near.read(buffer.subarray(3, 4)), 1);
  strictEqual(await near.read(buffer.subarray(4)), 1);
  deepStrictEqual([...buffer.subarray(2, 6)], [0, 97, 98, 0]);
  strictEqual(await near.read(buffer), null);
  strictEqual(await near.read(buffer), null);
  near.close();
  far.close();
});

Deno.test("a stream fills its reader's own buffers", async () => {
  await using pair = await netstackPair();
  const { near, far } = await connected(pair);
  const sent = pattern(300_000);
  const writing = writeAll(far, sent).then(() => far.closeWrite());
  const reader = near.readable.getReader({ mode: "byob" });
  let buffer = new Uint8Array(sent.length);
  let length = 0;
  while (true) {
    const { value, done } = await reader.read(buffer.subarray(length));
    ok(value !== undefined);
    buffer = new Uint8Array(value.buffer);
    if (done) break;
    length += value.length;
    if (length === sent.length) break;
  }
  await writing;
  deepStrictEqual(buffer, sent);
  near.close();
  far.close();
});

Deno.test("who does not read stalls the writer of that connection alone", async () => {
  const bufferBytes = 64 << 10;
  await using pair = await netstackPair({ receiveBufferBytes: bufferBytes, sendBufferBytes: bufferBytes });
  const stalled = await connected(pair);
  const lively = await connected(pair);
  const sent = pattern(1 << 20);
  let written = 0;
  const writing = (async () => {
    while (written < sent.length) written += await stalled.near.write(sent.subarray(written));
    await stalled.near.closeWrite();
  })();
  const echoed = lively.far.readable.pipeTo(lively.far.writable);
  const back = readAll(lively.near);
  await writeAll(lively.near, sent);
  await lively.near.closeWrite();
  deepStrictEqual(await back, sent);
  await echoed;
  ok(written <= 2 * bufferBytes, `${written} bytes were taken that nobody reads`);
  deepStrictEqual(await readAll(stalled.far), sent);
  await writing;
  lively.near.close();
  stalled.near.close();
  stalled.far.close();
});

Deno.test("a reset in the middle of a transfer ends reading and writing", async () => {
  await using pair = await netstackPair();
  const { near, far } = await connected(pair);
  const flood = (async () => {
    while (true) await near.write(pattern(65_536));
  })();
  await far.read(new Uint8Array(1000));
  const reading = near.read(new Uint8Array(1));
  await Promise.all([
    rejects(flood, Deno.errors.ConnectionReset),
    rejects(reading, Deno.errors.ConnectionReset),
    far.writable.abort(),
  ]);
  await rejects(near.read(new Uint8Array(1)), Deno.errors.ConnectionReset);
  await rejects(far.read(new Uint8Array(1)), Deno.errors.BadResource);
  near.close();
});

Deno.test("writable.abort() does not wait for a write that nobody takes", async () => {
  await using pair = await netstackPair({ receiveBufferBytes: 4096, sendBufferBytes: 4096 });
  const { near, far } = await connected(pair);
  const writer = near.writable.getWriter();
  const writing = writer.write(pattern(1 << 20));
  await far.read(new Uint8Array(1));
  const reason = new Error("enough");
  await Promise.all([rejects(writing, reason), writer.abort(reason)]);
  await rejects(readAll(far), Deno.errors.ConnectionReset);
  far.close();
});

Deno.test("close() delivers what was written", async () => {
  await using pair = await netstackPair();
  const { near, far } = await connected(pair);
  const sent = pattern(200_000);
  await writeAll(near, sent);
  near.close();
  near.close();
  deepStrictEqual(await readAll(far), sent);
  far.close();
});

Deno.test("calls that wait when something closes are interrupted, and later ones refused", async () => {
  await using pair = await netstackPair();
  const { near, far } = await connected(pair);
  const listener = pair.left.listen({ port: PORT });
  const socket = pair.left.listenDatagram({ port: PORT });
  const waiting = [
    rejects(near.read(new Uint8Array(1)), Deno.errors.Interrupted),
    rejects(listener.accept(), Deno.errors.Interrupted),
    rejects(socket.receive(), Deno.errors.Interrupted),
  ];
  // They are on their way before anything is closed.
  await Promise.resolve();
  for (const open of [near, listener, socket]) open.close();
  await Promise.all(waiting);
  await rejects(near.read(new Uint8Array(1)), Deno.errors.BadResource);
  await rejects(near.closeWrite(), Deno.errors.BadResource);
  await rejects(listener.accept(), Deno.errors.BadResource);
  await rejects(socket.receive(), Deno.errors.BadResource);
  // What comes for them from now on is nobody's.
  await far.write(encoder.encode("late")).catch(() => {});
  far.close();
});

Deno.test("a listener is iterated over until it is closed, and leaving the loop closes it", async () => {
  await using pair = await netstackPair();
  const listener = pair.right.listen({ port: PORT });
  throws(() => pair.right.listen({ port: PORT }), Deno.errors.AddrInUse);
  const served = (async () => {
    let count = 0;
    for await (const conn of listener) {
      conn.close();
      count += 1;
      if (count === 3) listener.close();
    }
    return count;
  })();
  for (let i = 0; i < 3; i++) (await pair.left.connect({ hostname: RIGHT[0], port: PORT })).close();
  strictEqual(await served, 3);

  const again = pair.right.listen({ port: PORT });
  const first = (async () => {
    for await (const conn of again) return conn;
    throw new Error("No connection came");
  })();
  using _near = await pair.left.connect({ hostname: RIGHT[0], port: PORT });
  using _far = await first;
  await rejects(again.accept(), Deno.errors.BadResource);
  await rejects(pair.left.connect({ hostname: RIGHT[0], port: PORT }), Deno.errors.ConnectionRefused);
});

Deno.test("a connection that does not come about has its own error", async () => {
  await using pair = await netstackPair({ connectTimeoutMs: 200, addresses: ["10.9.0.1/24"] });
  const { left } = pair;
  await rejects(left.connect({ hostname: NOBODY, port: PORT }), Deno.errors.TimedOut);
  await rejects(left.connect({ hostname: "fd09::2", port: PORT }), Deno.errors.NetworkUnreachable);
  await rejects(left.connect({ hostname: "224.0.0.1", port: PORT }), Deno.errors.AddrNotAvailable);
  await rejects(left.connect({ hostname: LEFT[0], port: PORT }), Deno.errors.AddrNotAvailable);
  await rejects(left.connect({ hostname: "host.example", port: PORT }), Deno.errors.NotSupported);
});

Deno.test("a signal ends what waits, with its reason", async () => {
  await using pair = await netstackPair();
  const { left } = pair;
  const handles = pair.library.handleCount();
  const reason = new Error("enough");
  using listener = left.listen({ port: PORT });
  using socket = left.listenDatagram({ port: PORT });
  const calls: readonly ((signal: AbortSignal) => Promise<unknown>)[] = [
    (signal) => left.connect({ hostname: NOBODY, port: PORT, signal }),
    (signal) => left.ping(NOBODY, { signal }),
    (signal) => listener.accept({ signal }),
    (signal) => socket.receive({ signal }),
  ];
  for (const call of calls) {
    await rejects(call(AbortSignal.abort(reason)), reason);
    const controller = new AbortController();
    const waiting = rejects(call(controller.signal), reason);
    setTimeout(() => controller.abort(reason), 5);
    await waiting;
  }
  // The two that stay.
  strictEqual(pair.library.handleCount(), handles + 2);
});

Deno.test("a peer that is gone is given up", async () => {
  await using pair = await netstackPair({ userTimeoutMs: 300 });
  const { near } = await connected(pair);
  await pair.stopRight();
  await near.write(encoder.encode("anybody?"));
  await rejects(near.read(new Uint8Array(1)), Deno.errors.TimedOut);
  near.close();
});

Deno.test("a stack that is closed ends everything on it", async () => {
  await using pair = await netstackPair();
  const { left } = pair;
  const { near, far } = await connected(pair);
  const listener = left.listen({ port: PORT });
  const waiting = [
    rejects(near.read(new Uint8Array(1)), Deno.errors.ConnectionAborted),
    rejects(listener.accept(), Deno.errors.ConnectionAborted),
    rejects(left.connect({ hostname: NOBODY, port: PORT }), Deno.errors.ConnectionAborted),
  ];
  await Promise.resolve();
  await left.close();
  await left.close();
  await Promise.all(waiting);
  await rejects(near.write(encoder.encode("late")), Deno.errors.ConnectionAborted);
  await rejects(left.connect({ hostname: RIGHT[0], port: PORT }), Deno.errors.BadResource);
  throws(() => left.listen({ port: 1 }), Deno.errors.BadResource);
  ok(left.stats().connects > 0);
  for (const open of [near, far, listener]) open.close();
});

Deno.test("datagrams pass in either family, and longer than a packet over IPv4", async () => {
  await using pair = await netstackPair();
  using near = pair.left.listenDatagram({ port: 0 });
  using far = pair.right.listenDatagram({ port: PORT });
  throws(() => pair.right.listenDatagram({ port: PORT }), Deno.errors.AddrInUse);
  deepStrictEqual(far.addr, { transport: "udp", hostname: "::", port: PORT });
  for (const [index, hostname] of RIGHT.entries()) {
    for (const bytes of [0, 1, 1300, ...(index === 0 ? [9000] : [])]) {
      strictEqual(await near.send(pattern(bytes), { hostname, port: PORT }), bytes);
      const [payload, from] = await far.receive();
      deepStrictEqual(payload, pattern(bytes));
      deepStrictEqual(from, { transport: "udp", hostname: LEFT[index], port: near.addr.port });
    }
  }
  await rejects(near.send(pattern(65_508), { hostname: RIGHT[0], port: PORT }), Deno.errors.InvalidData);
  await rejects(near.send(pattern(2000), { hostname: RIGHT[1], port: PORT }), Deno.errors.InvalidData);
  const [payload] = await Promise.all([
    (async () => {
      for await (const [payload] of far) return payload;
      return undefined;
    })(),
    near.send(encoder.encode("last"), { hostname: RIGHT[0], port: PORT }),
  ]);
  strictEqual(decoder.decode(payload), "last");
  await rejects(far.receive(), Deno.errors.BadResource);
});

Deno.test("ping() hears the answer, or that there is none", async () => {
  await using pair = await netstackPair();
  for (const address of RIGHT) {
    const { address: from, rttMs, payloadBytes } = await pair.left.ping(address, {
      payloadBytes: 1200,
      timeoutMs: 20_000,
    });
    deepStrictEqual([from, payloadBytes], [address, 1200]);
    ok(rttMs > 0);
  }
  await rejects(pair.left.ping(NOBODY, { timeoutMs: 50 }), Deno.errors.TimedOut);
  await rejects(pair.left.ping("0.0.0.0"), Deno.errors.AddrNotAvailable);
  await rejects(pair.left.ping("host.example"), Deno.errors.NotSupported);
});

/** Answers queries for the addresses of one name (RFC 1035 section 4.1); that others do not exist. */
async function serveNames(socket: NetstackDatagramConn, name: string, address: string): Promise<void> {
  for await (const [query, from] of socket) {
    const labels: string[] = [];
    let at = 12;
    for (let length; (length = query[at] ?? 0) > 0; at += length + 1) {
      labels.push(decoder.decode(query.subarray(at + 1, at + 1 + length)));
    }
    const isIPv4 = query[at + 2] === 1;
    const found = labels.join(".") === name;
    const question = query.subarray(12, at + 5);
    const answer = found && isIPv4 ? [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split(".").map(Number)] : [];
    const header = [...query.subarray(0, 2), 0x81, found ? 0x80 : 0x83, 0, 1, 0, answer.length > 0 ? 1 : 0, 0, 0, 0, 0];
    await socket.send(new Uint8Array([...header, ...question, ...answer]), from);
  }
}

Deno.test("names are asked for through the tunnel", async () => {
  await using pair = await netstackPair({ nameServers: [RIGHT[0]] });
  const socket = pair.right.listenDatagram({ port: 53 });
  const serving = serveNames(socket, "host.example", RIGHT[0]);
  const { left } = pair;
  deepStrictEqual(await left.resolve("host.example"), [RIGHT[0]]);
  deepStrictEqual(await left.resolve("host.example."), [RIGHT[0]]);
  deepStrictEqual(await left.resolve("[fd09::9]"), ["fd09::9"]);
  await rejects(left.resolve("other.example"), Deno.errors.NotFound);
  await rejects(left.resolve(""), Deno.errors.InvalidData);
  using listener = pair.right.listen({ port: PORT });
  const accepting = listener.accept();
  using near = await left.connect({ hostname: "host.example", port: PORT });
  using _far = await accepting;
  strictEqual(near.remoteAddr.hostname, RIGHT[0]);
  socket.close();
  await serving;
});

/** Small ones, so that many of them fit into memory. */
const SMALL: StackChoice = { receiveBufferBytes: 8192, sendBufferBytes: 8192 };

Deno.test("500 connections are open at once, and nothing is left of them", async () => {
  await using pair = await netstackPair(SMALL);
  const handles = pair.library.handleCount();
  using listener = pair.right.listen({ port: PORT });
  const count = 500;
  const serving = (async () => {
    const echoes: Promise<void>[] = [];
    while (echoes.length < count) {
      const conn = await listener.accept();
      echoes.push(conn.readable.pipeTo(conn.writable));
    }
    await Promise.all(echoes);
  })();
  const conns = await Promise.all(
    Array.from({ length: count }, () => pair.left.connect({ hostname: RIGHT[0], port: PORT })),
  );
  strictEqual(pair.left.stats().connections, count);
  const payload = pattern(20_000);
  await Promise.all(conns.map(async (conn) => {
    const back = readAll(conn);
    await writeAll(conn, payload);
    await conn.closeWrite();
    deepStrictEqual(await back, payload);
    conn.close();
  }));
  await serving;
  strictEqual(pair.library.handleCount(), handles + 1);
});

Deno.test("connections in sequence leave nothing behind", async () => {
  await using pair = await netstackPair(SMALL);
  const handles = pair.library.handleCount();
  using listener = pair.right.listen({ port: PORT });
  const serving = (async () => {
    for await (const conn of listener) await conn.readable.pipeTo(conn.writable);
  })();
  const count = 300;
  for (let i = 0; i < count; i++) {
    const conn = await pair.left.connect({ hostname: RIGHT[i % 2] ?? "", port: PORT });
    const back = readAll(conn);
    await writeAll(conn, encoder.encode(`${i}`));
    await conn.closeWrite();
    strictEqual(decoder.decode(await back), `${i}`);
    conn.close();
  }
  listener.close();
  await serving;
  strictEqual(pair.library.handleCount(), handles);
  strictEqual(pair.left.stats().connects, count);
  strictEqual(pair.left.stats().failures, 0);
});

Deno.test("as many connections as there may be, and no more", async () => {
  await using pair = await netstackPair({ ...SMALL, maxConnections: 3 });
  using listener = pair.right.listen({ port: PORT });
  const conns = [];
  for (let i = 0; i < 3; i++) {
    conns.push(await pair.left.connect({ hostname: RIGHT[0], port: PORT }), await listener.accept());
  }
  await rejects(pair.left.connect({ hostname: RIGHT[0], port: PORT }), Deno.errors.Busy);
  conns.forEach((conn) => conn.close());
});

Deno.test("NetstackDatapath.open() closes what it was handed when a part cannot be had", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library });
  const underlay = UdpUnderlay.open({ library, localAddress: "127.0.0.1", port: 0 });
  await rejects(
    NetstackDatapath.open({ stack: { library, addresses: [] }, underlay, engine }),
    (error) => error instanceof DatapathError && error.code === "invalid-argument",
  );
  const stack = Netstack.open({ library, addresses: ["10.9.0.1/24"] });
  const taken = { library, localAddress: "127.0.0.1", port: underlay.port };
  await using again = UdpUnderlay.open(taken);
  strictEqual(again.port, underlay.port);
  await rejects(
    NetstackDatapath.open({ stack, underlay: taken, engine }),
    (error) => error instanceof DatapathError && error.code === "busy",
  );
  throws(() => stack.listen({ port: PORT }), Deno.errors.BadResource);
});

Deno.test("a stack has the addresses and the MTU that it was given, and another MTU when told so", async () => {
  await using library = Library.open();
  using engine = Engine.create({ library });
  await using datapath = await NetstackDatapath.open({
    stack: { library, addresses: ["10.9.0.1/24"], mtuBytes: 1300 },
    underlay: { library, localAddress: "127.0.0.1", port: 0 },
    engine,
  });
  const { stack } = datapath;
  deepStrictEqual([datapath.kind, stack.kind, stack.addresses], ["netstack", "netstack", ["10.9.0.1/24"]]);
  strictEqual(stack.mtuBytes, 1300);
  const running = datapath.run();
  datapath.setDeviceMtu(1200);
  strictEqual(stack.mtuBytes, 1200);
  await datapath.close();
  await running;
  strictEqual(stack.mtuBytes, 1200);
});
