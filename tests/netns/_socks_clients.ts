/**
 * Clients of a SOCKS5 proxy on 127.0.0.1:1080, run inside its host: `at-once ADDRESS COUNT` has so many connections to the echo
 * behind it at the same time, `in-turn ADDRESS COUNT` one after the other. Prints how many of them gave back what they were given.
 */
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import process from "node:process";

const PROXY = { host: "127.0.0.1", port: 1080 };
const ECHO_PORT = 7;
/** How many are being opened at a time: as a listener's queue takes them. */
const OPENING = 64;

/** Reads so many bytes. */
async function read(socket: Socket, count: number): Promise<Buffer> {
  while (true) {
    const chunk: Buffer | null = socket.read(count);
    if (chunk !== null) return chunk;
    if (socket.readableEnded) throw new Error("the connection has ended");
    await Promise.race([once(socket, "readable"), once(socket, "end")]);
  }
}

/** A connection to the echo (RFC 1928 sections 3 to 6). */
async function open(address: string): Promise<Socket> {
  const socket = connect(PROXY);
  await once(socket, "connect");
  socket.write(Buffer.from([5, 1, 0]));
  const [, method] = await read(socket, 2);
  if (method !== 0) throw new Error(`the proxy wants method ${method}`);
  socket.write(Buffer.from([5, 1, 0, 1, ...address.split(".").map(Number), 0, ECHO_PORT]));
  const [, reply] = await read(socket, 10);
  if (reply !== 0) throw new Error(`the proxy replied ${reply}`);
  return socket;
}

/** Whether what goes in comes back, up to the end of the connection. */
async function echoes(socket: Socket, number: number): Promise<boolean> {
  const sent = Buffer.alloc(1000 + number, number & 0xff);
  socket.end(sent);
  const came: Buffer[] = [];
  for await (const chunk of socket) came.push(chunk);
  return Buffer.concat(came).equals(sent);
}

const [how, address = "", count = "0"] = process.argv.slice(2);
let echoed = 0;
if (how === "at-once") {
  const sockets: Socket[] = [];
  while (sockets.length < Number(count)) {
    const group = Math.min(OPENING, Number(count) - sockets.length);
    sockets.push(...await Promise.all(Array.from({ length: group }, () => open(address))));
  }
  const outcomes = await Promise.all(sockets.map(echoes));
  echoed = outcomes.filter((isEqual) => isEqual).length;
} else {
  for (let number = 0; number < Number(count); number++) {
    if (await echoes(await open(address), number & 0xfff)) echoed++;
  }
}
process.stdout.write(`${JSON.stringify({ echoed })}\n`);
