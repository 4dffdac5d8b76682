/**
 * What is behind a node, run inside its host with an address of that as the argument: a web server on port 80, an echo on
 * port 7, and a name server on port 53 that knows the name `web.inner.test`, which is that address.
 *
 * The web server answers `GET /bytes/N` with N bytes that are always the same, `GET /digest/N` with their SHA-256, and `PUT` with
 * that of what it is given.
 */
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createCipheriv, createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { createServer as createWebServer } from "node:http";
import { createServer, isIPv4 } from "node:net";
import process from "node:process";
import { Readable } from "node:stream";

const NAME = "web.inner.test";
const CHUNK = Buffer.alloc(256 << 10);

/** As `openssl enc -aes-128-ctr` with a key and a counter of zeros makes them of zeros. */
function* bytes(count: number): Generator<Buffer> {
  const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16));
  for (let left = count; left > 0; left -= CHUNK.length) {
    yield cipher.update(CHUNK.subarray(0, Math.min(left, CHUNK.length)));
  }
}

async function digest(chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of chunks) hash.update(chunk);
  return hash.digest("hex");
}

const web = createWebServer(async (request, response) => {
  const [, what, count = ""] = (request.url ?? "").split("/");
  if (request.method === "PUT") response.end(await digest(request));
  else if (what === "digest") response.end(await digest(bytes(Number(count))));
  else Readable.from(bytes(Number(count))).pipe(response);
});

const echo = createServer({ noDelay: true }, (socket) => {
  // Clients leave as they like.
  socket.on("error", () => {});
  socket.pipe(socket);
});

/** The answer to a question, whose name and type follow a header of 12 bytes (RFC 1035 section 4.1). */
function answer(query: Buffer, address: string): Buffer {
  const labels: string[] = [];
  let at = 12;
  for (let length; (length = query[at] ?? 0) !== 0; at += 1 + length) {
    labels.push(query.toString("latin1", at + 1, at + 1 + length));
  }
  const question = query.subarray(12, at + 5);
  const isKnown = labels.join(".").toLowerCase() === NAME;
  const isFound = isKnown && query.readUInt16BE(at + 1) === 1;
  const header = Buffer.alloc(12);
  query.copy(header, 0, 0, 2);
  // An authoritative answer: no error, or no such name.
  header.writeUInt16BE(isKnown ? 0x8400 : 0x8403, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(isFound ? 1 : 0, 6);
  // The name of the question, type A, class IN, a minute, four bytes.
  const record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split(".").map(Number)];
  return Buffer.concat([header, question, Buffer.from(isFound ? record : [])]);
}

const address = process.argv[2] ?? "";
assert(isIPv4(address), `an IPv4 address is needed, not ${address}`);
const names = createSocket("udp4");
names.on("message", (query, from) => names.send(answer(query, address), from.port, from.address));
names.bind(53, address);
web.listen(80, "::");
echo.listen(7, "::");
await Promise.all([names, web, echo].map((server) => once(server, "listening")));
process.stdout.write("listening\n");
