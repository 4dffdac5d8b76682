import { deepStrictEqual, rejects, strictEqual, throws } from "node:assert/strict";
import { PassThrough } from "node:stream";
import type net from "node:net";
import { askFor, line, parseAsk, readLine } from "./live_protocol.ts";

Deno.test("an ask comes back from its line", () => {
  for (const ask of [askFor("receive", 0), askFor("send", 4000), askFor("echo", 0), askFor("datagrams", 0)]) {
    deepStrictEqual(parseAsk(line(ask)), ask);
  }
});

for (
  const [name, text] of [
    ["another version", '{"icxBench":2,"ask":"echo"}'],
    ["no version", '{"ask":"echo"}'],
    ["an unknown ask", '{"icxBench":1,"ask":"flood"}'],
    ["a stream without end", '{"icxBench":1,"ask":"send","forMs":600001}'],
    ["a time that is none", '{"icxBench":1,"ask":"send","forMs":"1"}'],
    ["a negative time", '{"icxBench":1,"ask":"send","forMs":-1}'],
    ["null", "null"],
  ] as const
) {
  Deno.test(`${name} is refused`, () => throws(() => parseAsk(text), TypeError));
}

/** Stands for a connection: the reader takes its events and puts back what is not its own. */
function connection(...chunks: readonly string[]): net.Socket {
  const stream = new PassThrough();
  for (const chunk of chunks) stream.write(new TextEncoder().encode(chunk));
  return stream as unknown as net.Socket;
}

Deno.test("a line is read from pieces, and what follows it stays", async () => {
  const socket = connection('{"a"', ":1}\nrest");
  strictEqual(await readLine(socket), '{"a":1}');
  strictEqual(new TextDecoder().decode(socket.read()), "rest");
});

Deno.test("a line that does not end is refused, as is a connection that does", async () => {
  await rejects(readLine(connection("x".repeat(300))), /too long/);
  const socket = connection("half");
  const reading = readLine(socket);
  socket.end();
  await rejects(reading, /closed the connection/);
});
