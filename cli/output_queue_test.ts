import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { ManualClock } from "../datapath/clock.ts";
import { OutputQueue } from "./output_queue.ts";

/** A reader that does as it is told with each write. */
function reader(behave: (bytes: Uint8Array) => Promise<number>) {
  let text = "";
  const decoder = new TextDecoder();
  const write = async (bytes: Uint8Array): Promise<number> => {
    const taken = await behave(bytes);
    text += decoder.decode(bytes.subarray(0, taken));
    return taken;
  };
  return { write, text: () => text };
}

const describeLoss = (pieces: number): string => `(${pieces} lost)\n`;
const all = (bytes: Uint8Array): Promise<number> => Promise.resolve(bytes.length);

Deno.test("what is pushed comes out whole and in order, through short writes too", async () => {
  const { write, text } = reader((bytes) => Promise.resolve(Math.min(3, bytes.length)));
  const queue = new OutputQueue({ write, describeLoss });
  for (const piece of ["one\n", "zwei \u00e4\n", "three\n"]) queue.push(piece);
  await queue.flush(1000);
  queue.push("four\n");
  await queue.flush(1000);
  strictEqual(text(), "one\nzwei \u00e4\nthree\nfour\n");
});

Deno.test("a reader that is stuck makes nobody wait, and costs what is beyond the limit", async () => {
  const clock = new ManualClock();
  const gate = Promise.withResolvers<void>();
  const { write, text } = reader(async (bytes) => {
    await gate.promise;
    return bytes.length;
  });
  const queue = new OutputQueue({ write, maxLength: 20, describeLoss, clock });
  for (let line = 0; line < 10; line++) queue.push(`line ${line}\n`);
  let flushed = false;
  const flushing = queue.flush(1000).then(() => {
    flushed = true;
  });
  await clock.advance(999);
  ok(!flushed);
  await clock.advance(1);
  await flushing;
  strictEqual(text(), "");

  gate.resolve();
  await queue.flush(1000);
  strictEqual(text(), "line 0\nline 1\n(8 lost)\n");
  queue.push("line 10\n");
  await queue.flush(1000);
  ok(text().endsWith("(8 lost)\nline 10\n"), "there is room again");
});

Deno.test("what cannot be written is dropped and told when writing works again, on a line of its own", async () => {
  const answers: ("all" | "half" | "fail")[] = ["half", "fail", "fail", "all", "all"];
  const { write, text } = reader((bytes) => {
    const answer = answers.shift();
    if (answer === "fail") return Promise.reject(new Error("No space left on device (os error 28)"));
    return answer === "half" ? Promise.resolve(2) : all(bytes);
  });
  const queue = new OutputQueue({ write, describeLoss });
  for (const piece of ["first\n", "second\n", "third\n"]) {
    queue.push(piece);
    await queue.flush(1000);
  }
  strictEqual(text(), "fi\nthird\n(2 lost)\n");
});

Deno.test("a reader that is not ready is tried again after a pause", async () => {
  const clock = new ManualClock();
  let tries = 0;
  const { write, text } = reader((bytes) => {
    tries += 1;
    if (tries > 2) return all(bytes);
    return Promise.reject(Object.assign(new Error("Resource temporarily unavailable"), { name: "WouldBlock" }));
  });
  const queue = new OutputQueue({ write, describeLoss, clock });
  queue.push("one\n");
  await clock.advance(0);
  deepStrictEqual([tries, text()], [1, ""]);
  await clock.advance(50);
  deepStrictEqual([tries, text()], [2, ""]);
  await clock.advance(50);
  deepStrictEqual([tries, text()], [3, "one\n"]);
});

Deno.test("a writer that takes nothing does not keep the processor busy", async () => {
  const { write, text } = reader(() => Promise.resolve(0));
  const queue = new OutputQueue({ write, describeLoss });
  queue.push("one\n");
  await queue.flush(1000);
  strictEqual(text(), "");
});
