import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { runChild } from "./_child.ts";
import { NativeEngine } from "./engine.ts";
import { decodeEvents } from "./events.ts";
import { Library } from "./library.ts";

Deno.test("decodeEvents reads what the C interface writes", () => {
  const bytes = new Uint8Array([
    ...[28, 0, 0, 0, 10, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0],
    ...new TextEncoder().encode('{"a":"ü"}'),
    ...[0, 0],
    ...[16, 0, 0, 0, 99, 0, 0, 0, 2, 0, 1, 0, 0xf6, 0xff, 0xff, 0xff],
  ]);
  assert.equal(bytes.length, 44);
  assert.deepEqual([...decodeEvents(bytes)], [
    { kind: 10, handle: 0x10001, code: 0, payload: { a: "ü" } },
    { kind: 99, handle: 0x10002, code: -10, payload: undefined },
  ]);
  assert.deepEqual([...decodeEvents(new Uint8Array(0))], []);
});

Deno.test("EventLoop waits only while somebody listens", async () => {
  await using library = Library.open();
  using engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
  const listener = { onEvent() {}, onError: (error: unknown) => assert.fail(String(error)) };
  // The sanitizers of the test runner see a wait that is left over.
  for (let round = 0; round < 3; round++) {
    const first = library.events.subscribe(engine.unsafeId("test"), listener);
    const second = library.events.subscribe(engine.unsafeId("test"), listener);
    await new Promise((resolve) => setTimeout(resolve, 5 * round));
    first();
    first();
    second();
    await library.events.idle();
  }
});

Deno.test("EventLoop goes on for one who listens again at once", async () => {
  await using library = Library.open();
  const listener = { onEvent() {}, onError: (error: unknown) => assert.fail(String(error)) };
  const first = library.events.subscribe(1, listener);
  await new Promise((resolve) => setTimeout(resolve, 5));
  first();
  const second = library.events.subscribe(2, listener);
  await new Promise((resolve) => setTimeout(resolve, 5));
  // Somebody waits, so a second waiter is refused.
  const BUSY = -9;
  assert.equal(await library.symbols.icx_events_wait(new Uint8Array(64), 64, 0), BUSY);
  second();
  await library.events.idle();
});

Deno.test("EventLoop tells its listeners when somebody else waits already", async () => {
  await using library = Library.open();
  const elsewhere = library.track(library.symbols.icx_events_wait(new Uint8Array(64), 64, 60_000));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const { promise, resolve } = Promise.withResolvers<string>();
  library.events.subscribe(1, { onEvent() {}, onError: (error) => resolve(error.code) });
  assert.equal(await promise, "EBUSY");
  library.symbols.icx_events_wake();
  assert.equal(await elsewhere, 0);
});

Deno.test("a process ends by itself when nobody listens, with the library still open", async () => {
  const file = fileURLToPath(new URL("./lib/libicx.so", import.meta.url));
  const { code, stderr } = await runChild(
    `
    import { Library } from "native/library.ts";
    const library = Library.open();
    const unsubscribe = library.events.subscribe(1, { onEvent() {}, onError() {} });
    setTimeout(unsubscribe, 20);`,
    [`--allow-ffi=${file}`],
  );
  assert.equal(code, 0, stderr);
});

Deno.test("what a listener throws ends the process as an uncaught error, and names it", async () => {
  const file = fileURLToPath(new URL("./lib/libicx.so", import.meta.url));
  const { code, stderr } = await runChild(
    `
    import { EventLoop } from "native/events.ts";
    const record = Uint8Array.from([16, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    const loop = new EventLoop({
      icx_events_wait(out) { out.set(record); return Promise.resolve(record.length); },
      icx_events_wake() { return 0; },
    });
    loop.subscribe(7, { onEvent() { throw new Error("from a listener"); }, onError() {} });`,
    [`--allow-ffi=${file}`],
  );
  assert.equal(code, 1);
  assert.match(stderr, /from a listener/);
});
