/**
 * Clients that mean no good, of a SOCKS5 proxy on 127.0.0.1:1080 and an HTTP proxy on 127.0.0.1:8118, run inside their host:
 * `ADDRESS ROUNDS`, with an address where a web server is behind the proxies. Prints how many clients there were, once all have left.
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import process from "node:process";

const PORTS = { socks5: 1080, http: 8118 } as const;
type Proxy = keyof typeof PORTS;
/** Rounds side by side: some of their clients wait until they are thrown out. */
const AT_ONCE = 20;

const [address = "", rounds = "0"] = process.argv.slice(2);

/** What asks each proxy for the web server, and the bytes with which it grants that. */
const ASKING: Readonly<Record<Proxy, readonly [request: Buffer, granted: number]>> = {
  // A client may send its request along with the greeting.
  socks5: [Buffer.from([5, 1, 0, 5, 1, 0, 1, ...address.split(".").map(Number), 0, 80]), 2 + 10],
  http: [Buffer.from(`CONNECT ${address}:80 HTTP/1.1\r\nHost: ${address}:80\r\n\r\n`), 12],
};

/** Bytes that depend on the number alone. */
function garbage(number: number): Buffer {
  const seed = createHash("sha512").update(String(number)).digest();
  return Buffer.concat(Array.from({ length: 1 + number % 64 }, (_, at) => seed.subarray(at % 8)));
}

/** Reads until so many bytes are there or the other end has closed. */
async function receive(socket: Socket, count: number): Promise<void> {
  for (let had = 0; had < count && !socket.readableEnded && !socket.destroyed;) {
    had += (socket.read() as Buffer | null)?.length ?? 0;
    // A reset is one way to close.
    if (had < count) await Promise.race([once(socket, "readable"), once(socket, "close")]).catch(() => {});
  }
}

/** What one client does from when it is connected until it leaves. */
type Conduct = (socket: Socket, proxy: Proxy, number: number) => Promise<void>;

const CONDUCTS: readonly Conduct[] = [
  // Sends nonsense, and reads what comes of it.
  async (socket, _proxy, number) => {
    socket.end(garbage(number));
    await receive(socket, 1 << 20);
  },
  // Leaves in the middle of what it has to say.
  async (socket, proxy, number) => {
    const [request] = ASKING[proxy];
    await new Promise((resolve) => socket.write(request.subarray(0, 1 + number % (request.length - 1)), resolve));
  },
  // Says half of it, and nothing more until it is thrown out.
  async (socket, proxy) => {
    const [request] = ASKING[proxy];
    socket.write(request.subarray(0, request.length / 2));
    await receive(socket, 1 << 20);
  },
  // A request without an end.
  async (socket) => {
    const field = Buffer.alloc(1 << 16, "a: b\r\n");
    while (!socket.destroyed && socket.writable) {
      await new Promise((resolve) => socket.write(field, resolve));
    }
  },
  // Resets in the middle of what it asked for.
  async (socket, proxy, number) => {
    const [request, granted] = ASKING[proxy];
    socket.write(request);
    await receive(socket, granted);
    socket.write(`GET /bytes/1e12 HTTP/1.1\r\nHost: ${address}\r\n\r\n`);
    await receive(socket, number % 7 << 18);
    socket.resetAndDestroy();
  },
  // Asks for much, reads none of it, and resets while the way is full.
  async (socket, proxy) => {
    const [request, granted] = ASKING[proxy];
    socket.write(request);
    await receive(socket, granted);
    socket.pause();
    socket.write(`GET /bytes/1e12 HTTP/1.1\r\nHost: ${address}\r\n\r\n`);
    await new Promise((resolve) => setTimeout(resolve, 200));
    socket.resetAndDestroy();
  },
];

async function visit(conduct: Conduct, proxy: Proxy, number: number): Promise<void> {
  const socket = connect({ host: "127.0.0.1", port: PORTS[proxy] });
  // To be thrown out is what it is here for.
  socket.on("error", () => {});
  await once(socket, "connect");
  await conduct(socket, proxy, number);
  socket.destroy();
}

/** One client of each kind for each proxy. */
function visits(round: number): Promise<void>[] {
  return CONDUCTS.flatMap((conduct, at) =>
    (["socks5", "http"] as const).map((proxy) => visit(conduct, proxy, round * CONDUCTS.length + at))
  );
}

let clients = 0;
for (let round = 0; round < Number(rounds); round += AT_ONCE) {
  const numbers = Array.from({ length: Math.min(AT_ONCE, Number(rounds) - round) }, (_, at) => round + at);
  clients += (await Promise.all(numbers.flatMap(visits))).length;
}
assert(clients > 0);
process.stdout.write(`${JSON.stringify({ clients })}\n`);
