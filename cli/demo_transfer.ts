/**
 * The demo's TCP programs, run inside its namespaces: a sender that streams random bytes for a while, and a receiver
 * that takes them. Each prints one JSON line with the bytes it saw, their SHA-256 and the time from first to last.
 *
 * Arguments: `receive ADDRESS PORT`, or `send ADDRESS PORT MILLISECONDS`.
 *
 * @module
 */

import { createHash, randomFillSync } from "node:crypto";
import { once } from "node:events";
import net from "node:net";
import process from "node:process";

/** What a program prints when it is done. */
export interface TransferResult {
  /** Bytes sent or received. */
  readonly bytes: number;
  /** SHA-256 over them, in hex. */
  readonly sha256: string;
  /** Time from the first byte to the last, in milliseconds. */
  readonly elapsedMs: number;
}

const CHUNK_BYTES = 1 << 18;

function report(result: TransferResult): void {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

async function receive(host: string, port: number): Promise<void> {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(port, host);
  await once(server, "listening");
  process.stdout.write("listening\n");
  const [socket] = await once(server, "connection") as [net.Socket];
  server.close();
  const hash = createHash("sha256");
  let bytes = 0;
  let startedAt = performance.now();
  for await (const chunk of socket as AsyncIterable<Uint8Array>) {
    if (bytes === 0) startedAt = performance.now();
    bytes += chunk.length;
    hash.update(chunk);
  }
  const elapsedMs = performance.now() - startedAt;
  // The sender waits for this: its bytes have all been read.
  socket.end();
  report({ bytes, sha256: hash.digest("hex"), elapsedMs });
}

async function send(host: string, port: number, forMs: number): Promise<void> {
  const socket = net.connect({ host, port, allowHalfOpen: true });
  await once(socket, "connect");
  const hash = createHash("sha256");
  const block = new Uint8Array(CHUNK_BYTES);
  randomFillSync(block);
  const startedAt = performance.now();
  let bytes = 0;
  for (let index = 0; performance.now() - startedAt < forMs; index++) {
    // A fresh copy, as the socket still holds the last one; the index makes each differ.
    const chunk = block.slice();
    new DataView(chunk.buffer).setUint32(0, index);
    hash.update(chunk);
    bytes += chunk.length;
    if (!socket.write(chunk)) await once(socket, "drain");
  }
  socket.end();
  socket.resume();
  await once(socket, "end");
  report({ bytes, sha256: hash.digest("hex"), elapsedMs: performance.now() - startedAt });
}

if (import.meta.main) {
  const [role, host = "", port, ms] = process.argv.slice(2);
  if (role === "receive") await receive(host, Number(port));
  else if (role === "send") await send(host, Number(port), Number(ms));
  else throw new TypeError(`Cannot run as the first argument must be receive or send: current value is ${role}`);
  process.exit(0);
}
