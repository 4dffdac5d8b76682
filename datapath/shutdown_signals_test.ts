import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { ManualClock } from "./clock.ts";
import { ShutdownSignals } from "./shutdown_signals.ts";

class FakeSource {
  readonly listeners = new Set<(name: string) => void>();
  subscribe(listener: (name: string) => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  raise(name: string): void {
    for (const listener of this.listeners) listener(name);
  }
}

Deno.test("ShutdownSignals aborts at the first signal and forces the end at one that comes a second later", async () => {
  const clock = new ManualClock();
  const source = new FakeSource();
  const forced: string[] = [];
  using signals = new ShutdownSignals({ source, clock, onForce: (name) => forced.push(name) });
  ok(!signals.signal.aborted);
  strictEqual(signals.received, undefined);

  source.raise("SIGINT");
  ok(signals.signal.aborted);
  strictEqual(signals.signal.reason.name, "AbortError");
  strictEqual(signals.signal.reason.message, "Received SIGINT");
  await clock.advance(2);
  source.raise("SIGINT");
  await clock.advance(997);
  source.raise("SIGTERM");
  deepStrictEqual(forced, []);
  await clock.advance(1);
  source.raise("SIGTERM");
  deepStrictEqual(forced, ["SIGTERM"]);
  strictEqual(signals.received, "SIGINT");
});

Deno.test("ShutdownSignals stops listening when it is disposed of", () => {
  const source = new FakeSource();
  const signals = new ShutdownSignals({ source, onForce: () => {} });
  signals[Symbol.dispose]();
  strictEqual(source.listeners.size, 0);
  source.raise("SIGINT");
  ok(!signals.signal.aborted);
});
