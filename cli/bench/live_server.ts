/** The far end of `icx bench --to`: answers what a caller asks for, on one address, until it is stopped. */

import { randomBytes } from "node:crypto";
import dgram from "node:dgram";
import { once } from "node:events";
import net from "node:net";
import { type Endpoint, formatEndpoint } from "../values.ts";
import { line, type Opened, parseAsk, readLine, type Received, TOKEN_BYTES } from "./live_protocol.ts";

/** How long a caller may say nothing. */
const SILENCE_MS = 30_000;
/** How long datagrams that are still on their way are waited for. */
const STRAGGLERS_MS = 300;
/** Callers at one time. */
const MOST_CONNECTIONS = 64;
const CHUNK = new Uint8Array(1 << 18);

/** Counts of the datagrams that carry one token. */
interface Lane {
  bytes: number;
  datagrams: number;
  firstMs: number;
  lastMs: number;
}

/**
 * Answers callers until the signal aborts.
 *
 * @throws When the address cannot be listened on.
 */
export async function listen(
  at: Endpoint,
  { signal, say }: { readonly signal: AbortSignal; readonly say: (text: string) => void },
): Promise<void> {
  const lanes = new Map<string, Lane>();
  const udp = dgram.createSocket(at.host.includes(":") ? "udp6" : "udp4");
  const tcp = net.createServer({ allowHalfOpen: true });
  const callers = new Set<net.Socket>();
  // Errors of a start reject there; later ones concern one datagram.
  udp.on("error", () => {});
  udp.on("message", (datagram: Uint8Array) => count(lanes, datagram));
  tcp.maxConnections = MOST_CONNECTIONS;
  tcp.on("connection", (socket: net.Socket) => {
    callers.add(socket);
    socket.on("close", () => callers.delete(socket));
    // Told to the caller as far as possible; the others are not to suffer from it.
    socket.on("error", () => {});
    socket.setTimeout(SILENCE_MS, () => socket.destroy());
    socket.setNoDelay();
    answer(socket, lanes).catch((error) => {
      if (!socket.destroyed) socket.end(line({ error: error instanceof Error ? error.message : String(error) }));
    });
  });
  try {
    try {
      await Promise.all([begun(tcp, () => tcp.listen(at.port, at.host)), begun(udp, () => udp.bind(at.port, at.host))]);
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const advice = "name an address of this host, such as that of its tunnel device, or another port";
      throw new Error(`cannot listen on ${formatEndpoint(at)}: ${reason}: ${advice}`, { cause });
    }
    say(`listening on ${formatEndpoint(at)}, TCP and UDP; from the other end: icx bench --to ${formatEndpoint(at)}`);
    if (!signal.aborted) await once(signal, "abort");
  } finally {
    tcp.close();
    for (const socket of callers) socket.destroy();
    udp.close();
  }
}

/** Resolves when a server that `start` starts is bound; rejects when it cannot be. */
export async function begun(server: net.Server | dgram.Socket, start: () => void): Promise<void> {
  const listening = once(server, "listening");
  start();
  await listening;
}

async function answer(socket: net.Socket, lanes: Map<string, Lane>): Promise<void> {
  const { ask, forMs = 0 } = parseAsk(await readLine(socket));
  switch (ask) {
    case "receive":
      return void socket.end(line(await drain(socket)));
    case "send":
      return await stream(socket, forMs);
    case "echo":
      return void socket.pipe(socket);
    case "datagrams":
      return await countDatagrams(socket, lanes);
  }
}

/** Takes everything until the caller has no more. */
async function drain(socket: net.Socket): Promise<Received> {
  let bytes = 0;
  let startedAt: number | undefined;
  socket.on("data", (chunk: Uint8Array) => {
    startedAt ??= performance.now();
    bytes += chunk.length;
  });
  socket.resume();
  await once(socket, "end");
  return { bytes, datagrams: 0, elapsedMs: performance.now() - (startedAt ?? performance.now()) };
}

/** Streams for a while. */
export async function stream(socket: net.Socket, forMs: number): Promise<void> {
  const until = performance.now() + forMs;
  const gone = once(socket, "close");
  while (performance.now() < until && !socket.destroyed) {
    if (!socket.write(CHUNK)) await Promise.race([once(socket, "drain"), gone]);
  }
  socket.end();
}

async function countDatagrams(socket: net.Socket, lanes: Map<string, Lane>): Promise<void> {
  const token = randomBytes(TOKEN_BYTES).toString("hex");
  const lane: Lane = { bytes: 0, datagrams: 0, firstMs: 0, lastMs: 0 };
  lanes.set(token, lane);
  try {
    const opened: Opened = { token };
    socket.write(line(opened));
    socket.setTimeout(0);
    socket.resume();
    await Promise.race([once(socket, "end"), once(socket, "close")]);
    await new Promise((resolve) => setTimeout(resolve, STRAGGLERS_MS));
    const { bytes, datagrams, firstMs, lastMs } = lane;
    socket.end(line({ bytes, datagrams, elapsedMs: lastMs - firstMs }));
  } finally {
    lanes.delete(token);
  }
}

function count(lanes: Map<string, Lane>, datagram: Uint8Array): void {
  if (lanes.size === 0 || datagram.length < TOKEN_BYTES) return;
  const lane = lanes.get(datagram.subarray(0, TOKEN_BYTES).toHex());
  if (lane === undefined) return;
  lane.lastMs = performance.now();
  if (lane.datagrams === 0) lane.firstMs = lane.lastMs;
  lane.bytes += datagram.length;
  lane.datagrams++;
}
