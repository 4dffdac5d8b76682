import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { delay, ManualClock } from "./clock.ts";
import { type RestartReport, ShutdownTimeoutError, supervise, suppressedFailures, type Task } from "./supervise.ts";

/** A task that ends `lateMs` after it was told to, by `end`. */
function waiter(name: string, clock: ManualClock, lateMs = 0, end: () => void = () => {}): Task {
  return {
    name,
    async run(signal) {
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
      await delay(lateMs, { clock });
      end();
    },
  };
}

/** What became of a promise, "pending" if nothing did once everything that is ready has run. */
async function outcome(promise: Promise<void>): Promise<unknown> {
  let result: unknown = "pending";
  promise.then(() => result = "resolved", (error) => result = error);
  await new Promise((resolve) => setTimeout(resolve, 0));
  return result;
}

Deno.test("supervise() resolves when every task is done", async () => {
  const clock = new ManualClock();
  const run = supervise([
    { name: "short", run: (signal) => delay(10, { clock, signal }) },
    { name: "long", run: (signal) => delay(30, { clock, signal }) },
  ], { clock });
  await clock.advance(29);
  strictEqual(await outcome(run), "pending");
  await clock.advance(1);
  strictEqual(await outcome(run), "resolved");
  strictEqual(clock.pending, 0);
});

Deno.test("supervise() resolves without tasks", async () => {
  await supervise([]);
});

Deno.test("supervise() stops the others at the first failure and rejects with it", async () => {
  const clock = new ManualClock();
  const failure = new Error("first");
  let stopped = false;
  const run = supervise([
    { name: "bad", run: () => delay(5, { clock }).then(() => Promise.reject(failure)) },
    waiter("good", clock, 20, () => stopped = true),
  ], { clock });
  run.catch(() => {});
  await clock.advance(24);
  strictEqual(await outcome(run), "pending");
  await clock.advance(1);
  strictEqual(await outcome(run), failure);
  ok(stopped);
  deepStrictEqual(suppressedFailures(failure), []);
});

Deno.test("supervise() keeps the first failure and suppresses those that follow", async () => {
  const clock = new ManualClock();
  const first = new Error("first");
  const second = new Error("second");
  const run = supervise([
    waiter("follows", clock, 5, () => {
      throw second;
    }),
    { name: "leads", run: () => Promise.reject(first) },
  ], { clock });
  run.catch(() => {});
  await clock.advance(5);
  strictEqual(await outcome(run), first);
  deepStrictEqual(suppressedFailures(first), [second]);
});

Deno.test("supervise() takes a task that throws instead of rejecting for a failure", async () => {
  await rejects(
    supervise([{
      name: "sync",
      run() {
        throw new TypeError("thrown");
      },
    }]),
    new TypeError("thrown"),
  );
});

Deno.test("supervise() resolves on abort, whichever way the tasks say that they stopped", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const run = supervise([
    waiter("resolves", clock),
    { name: "rejects with the reason", run: (signal) => delay(1e6, { clock, signal }) },
    {
      name: "rejects with its own AbortError",
      run: (signal) =>
        delay(1e6, { clock, signal }).catch(() => Promise.reject(new DOMException("stopped", "AbortError"))),
    },
  ], { clock, signal: controller.signal });
  await clock.advance(1);
  controller.abort(new Error("enough"));
  await clock.advance(1);
  strictEqual(await outcome(run), "resolved");
  strictEqual(clock.pending, 0);
});

Deno.test("supervise() starts nothing when the signal has aborted", async () => {
  let started = false;
  await supervise([{
    name: "task",
    run() {
      started = true;
      return Promise.resolve();
    },
  }], { signal: AbortSignal.abort() });
  ok(!started);
});

Deno.test("supervise() rejects with a failure during a clean stop", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const failure = new Error("cannot restore the setting");
  const run = supervise([
    waiter("task", clock, 1, () => {
      throw failure;
    }),
  ], { clock, signal: controller.signal });
  run.catch(() => {});
  controller.abort();
  await clock.advance(1);
  strictEqual(await outcome(run), failure);
});

Deno.test("supervise() takes an AbortError before any abort for a failure", async () => {
  const error = new DOMException("mine", "AbortError");
  await rejects(supervise([{ name: "task", run: () => Promise.reject(error) }]), error);
});

Deno.test("supervise() names the tasks that do not end in time", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const run = supervise([
    waiter("quick", clock, 10),
    waiter("slow", clock, 101),
    { name: "deaf", run: () => new Promise(() => {}) },
  ], { clock, signal: controller.signal, shutdownTimeoutMs: 100 });
  run.catch(() => {});
  await clock.advance(1);
  controller.abort();
  await clock.advance(99);
  strictEqual(await outcome(run), "pending");
  await clock.advance(1);
  const error = await outcome(run);
  ok(error instanceof ShutdownTimeoutError);
  deepStrictEqual(error.tasks, ["slow", "deaf"]);
  ok(error.message.includes('100 ms: still running is "slow", "deaf"'), error.message);
});

Deno.test("supervise() keeps the failure when the shutdown takes too long as well", async () => {
  const clock = new ManualClock();
  const failure = new Error("first");
  const run = supervise([
    { name: "bad", run: () => Promise.reject(failure) },
    { name: "deaf", run: () => new Promise(() => {}) },
  ], { clock, shutdownTimeoutMs: 100 });
  run.catch(() => {});
  await clock.advance(100);
  strictEqual(await outcome(run), failure);
  const [late] = suppressedFailures(failure);
  ok(late instanceof ShutdownTimeoutError);
});

Deno.test("supervise() ignores what a task that it left behind does later", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const run = supervise([
    waiter("late", clock, 200, () => {
      throw new Error("after the end");
    }),
  ], { clock, signal: controller.signal, shutdownTimeoutMs: 100 });
  run.catch(() => {});
  controller.abort();
  await clock.advance(100);
  const error = await outcome(run);
  ok(error instanceof ShutdownTimeoutError);
  await clock.advance(100);
  deepStrictEqual(suppressedFailures(error), []);
});

Deno.test("supervise() stops the rest when a task that ends the run is done", async () => {
  const clock = new ManualClock();
  const run = supervise([
    { name: "main", run: () => delay(10, { clock }), whenDone: "stop" },
    waiter("helper", clock),
  ], { clock });
  await clock.advance(10);
  strictEqual(await outcome(run), "resolved");
});

Deno.test("supervise() restarts a task with growing delays and reports each", async () => {
  const clock = new ManualClock();
  const starts: number[] = [];
  const reports: RestartReport[] = [];
  const run = supervise([{
    name: "flaky",
    run() {
      starts.push(clock.now());
      return starts.length < 4 ? Promise.reject(new Error(`failure ${starts.length}`)) : Promise.resolve();
    },
    restart: { baseMs: 100, maxMs: 250, jitter: 0 },
  }], { clock, onRestart: (report) => reports.push(report) });
  await clock.advance(1000);
  strictEqual(await outcome(run), "resolved");
  deepStrictEqual(starts, [0, 100, 300, 550]);
  deepStrictEqual(reports.map(({ task, delayMs, restarts }) => [task, delayMs, restarts]), [
    ["flaky", 100, 1],
    ["flaky", 200, 2],
    ["flaky", 250, 3],
  ]);
});

Deno.test("supervise() gives up after the restarts in a row that the policy allows", async () => {
  const clock = new ManualClock();
  let runs = 0;
  const run = supervise([{
    name: "broken",
    run: () => Promise.reject(new Error(`failure ${++runs}`)),
    restart: { baseMs: 10, maxMs: 10, maxRestarts: 2 },
  }], { clock });
  run.catch(() => {});
  await clock.advance(1000);
  strictEqual(runs, 3);
  ok(String(await outcome(run)).includes("failure 3"));
});

Deno.test("supervise() counts restarts anew after a task has run for long enough", async () => {
  const clock = new ManualClock();
  const starts: number[] = [];
  const run = supervise([{
    name: "daily",
    async run(signal) {
      starts.push(clock.now());
      await delay(starts.length === 3 ? 1000 : 10, { clock, signal });
      throw new Error("again");
    },
    restart: { baseMs: 100, maxMs: 1000, jitter: 0, maxRestarts: 2, resetAfterMs: 1000 },
  }], { clock });
  run.catch(() => {});
  await clock.advance(5000);
  deepStrictEqual(starts, [0, 110, 320, 1420, 1630]);
  ok(String(await outcome(run)).includes("again"));
});

Deno.test("supervise() does not restart after a failure that is not transient", async () => {
  const clock = new ManualClock();
  let runs = 0;
  const run = supervise([{
    name: "task",
    run: () => Promise.reject(new Error(`failure ${++runs}`)),
    restart: { baseMs: 1, maxMs: 1, isTransient: () => false },
  }], { clock });
  await rejects(run, /failure 1/);
});

Deno.test("supervise() ends at once when it is aborted between two tries", async () => {
  const clock = new ManualClock();
  const controller = new AbortController();
  const run = supervise([{
    name: "task",
    run: () => Promise.reject(new Error("failure")),
    restart: { baseMs: 1e6, maxMs: 1e6 },
  }], { clock, signal: controller.signal });
  await clock.advance(1);
  controller.abort();
  await clock.advance(0);
  strictEqual(await outcome(run), "resolved");
  strictEqual(clock.pending, 0);
});

Deno.test("supervise() refuses a negative shutdown timeout", async () => {
  await rejects(supervise([], { shutdownTimeoutMs: -1 }), RangeError);
});
