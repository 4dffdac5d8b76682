import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { Backoff, type BackoffOptions } from "./backoff.ts";

Deno.test("Backoff doubles from the base to the limit and stays there", () => {
  const backoff = new Backoff({ baseMs: 100, maxMs: 5000, jitter: 0 });
  deepStrictEqual(Array.from({ length: 8 }, () => backoff.next()), [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
  strictEqual(backoff.attempts, 8);
  backoff.reset();
  strictEqual(backoff.attempts, 0);
  strictEqual(backoff.next(), 100);
});

Deno.test("Backoff never exceeds the limit, however often it is asked", () => {
  const backoff = new Backoff({ baseMs: 1, maxMs: 1000, jitter: 0 });
  for (let i = 0; i < 3000; i++) ok(backoff.next() <= 1000);
});

Deno.test("Backoff takes its jitter off the delay", () => {
  const numbers = [0, 0.5, 0.999];
  const backoff = new Backoff({ baseMs: 100, maxMs: 100, jitter: 0.5, random: () => numbers.shift() ?? 0 });
  deepStrictEqual([backoff.next(), backoff.next(), backoff.next()], [100, 75, 100 * (1 - 0.5 * 0.999)]);
});

Deno.test("Backoff refuses options out of their range", () => {
  const rows: BackoffOptions[] = [
    { baseMs: 0, maxMs: 10 },
    { baseMs: NaN, maxMs: 10 },
    { baseMs: 10, maxMs: 9 },
    { baseMs: 10, maxMs: Infinity },
    { baseMs: 10, maxMs: 10, factor: 0.5 },
    { baseMs: 10, maxMs: 10, jitter: 1.5 },
    { baseMs: 10, maxMs: 10, jitter: -0.1 },
  ];
  for (const options of rows) throws(() => new Backoff(options), RangeError, JSON.stringify(options));
});
