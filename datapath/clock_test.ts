import { deepStrictEqual, rejects, strictEqual, throws } from "node:assert/strict";
import { delay, ManualClock, MAX_DELAY_MS, systemClock } from "./clock.ts";

Deno.test("ManualClock runs timers in the order in which they are due", async () => {
  const clock = new ManualClock();
  const seen: string[] = [];
  clock.schedule(20, () => seen.push(`b at ${clock.now()}`));
  clock.schedule(10, () => {
    seen.push(`a at ${clock.now()}`);
    clock.schedule(5, () => seen.push(`nested at ${clock.now()}`));
  });
  clock.schedule(20, () => seen.push(`c at ${clock.now()}`));
  const cancel = clock.schedule(12, () => seen.push("cancelled"));
  cancel();
  cancel();
  await clock.advance(19);
  deepStrictEqual(seen, ["a at 10", "nested at 15"]);
  await clock.advance(1);
  deepStrictEqual(seen.slice(2), ["b at 20", "c at 20"]);
});

Deno.test("delay() rejects with the reason of its signal and leaves no timer", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const waiting = delay(100, { clock, signal: controller.signal });
  const reason = new Error("enough");
  controller.abort(reason);
  await rejects(waiting, reason);
  strictEqual(clock.pending, 0);
  await rejects(delay(100, { clock, signal: controller.signal }), reason);
});

Deno.test("delay() notices an abort that comes while its timer is being set", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const waiting = delay(100, {
    clock: {
      now: () => 0,
      schedule(delayMs, callback) {
        controller.abort();
        return clock.schedule(delayMs, callback);
      },
    },
    signal: controller.signal,
  });
  await rejects(waiting, { name: "AbortError" });
  strictEqual(clock.pending, 0);
});

Deno.test("a delay that a timer cannot hold is refused", async () => {
  for (const ms of [-1, NaN, MAX_DELAY_MS + 1]) {
    throws(() => systemClock.schedule(ms, () => {}), RangeError);
    await rejects(delay(ms, { clock: new ManualClock() }), RangeError);
  }
});
