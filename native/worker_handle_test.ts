import assert from "node:assert/strict";
import type { EventListener } from "./events.ts";
import { Library } from "./library.ts";
import { namedCounters, WorkerHandle } from "./worker_handle.ts";

const ENDED = 100;
const NOTICE = 101;

/** No handle of the library has this number, as after a close by somebody else. */
const GONE = 0;

class Workers extends WorkerHandle<string> {
  protected override readonly kind = "workers";
  readonly told: string[];

  constructor(library: Library) {
    const told: string[] = [];
    super(library, GONE, { endedEvent: ENDED, noticeEvent: NOTICE, stop: "icx_pump_stop" }, (notice) => {
      told.push(notice);
    });
    this.told = told;
  }
}

/** Workers, and who hears of their events. */
function listening(library: Library): { readonly workers: Workers; readonly listener: EventListener } {
  const { events } = library;
  const { subscribe } = events;
  let listener: EventListener | undefined;
  events.subscribe = (_handle, given) => {
    listener = given;
    return () => {};
  };
  const workers = new Workers(library);
  events.subscribe = subscribe;
  assert(listener !== undefined);
  return { workers, listener };
}

Deno.test("WorkerHandle: a failure is what `ended` rejects with, and notices go to their listener", async () => {
  await using library = Library.open();
  const { workers, listener } = listening(library);
  const event = { handle: GONE, code: 0, payload: undefined };
  listener.onEvent({ ...event, kind: NOTICE, payload: "first" });
  listener.onEvent({ ...event, kind: NOTICE + 1, payload: "of another kind" });
  const payload = { message: "Cannot go on", operation: "read", errno: 77 };
  listener.onEvent({ ...event, kind: ENDED, code: -10, payload });
  listener.onEvent({ ...event, kind: NOTICE, payload: "second" });
  await assert.rejects(workers.ended, { ...payload, name: "NativeError", code: "ESYS" });
  assert.deepEqual(workers.told, ["first", "second"]);
  await workers.close();
  await assert.rejects(workers.ended, { code: "ESYS" }, "what came first stays");
});

Deno.test("WorkerHandle: a stop ends it once, also beside a close", async () => {
  await using library = Library.open();
  for (const end of ["stop", "close", "both"] as const) {
    const { workers } = listening(library);
    if (end !== "close") await Promise.all([workers.stop(), ...(end === "both" ? [workers.close()] : [])]);
    if (end === "close") await workers.close();
    await workers.ended;
    await workers.stop();
    assert.equal(workers.state, end === "stop" ? "open" : "closed");
    await workers.close();
    assert.equal(workers.state, "closed");
  }
});

Deno.test("namedCounters names values in order, with 0 for those that are not there", () => {
  const values = new BigUint64Array([1n, 2n, 3n]);
  assert.deepEqual(namedCounters(["a", "b"], values), { a: 1, b: 2 });
  assert.deepEqual(namedCounters(["c", "d"], values, 2), { c: 3, d: 0 });
});
