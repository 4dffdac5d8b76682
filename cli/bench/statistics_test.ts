import { deepStrictEqual, ok, rejects, strictEqual, throws } from "node:assert/strict";
import { findCleanRate, percentile, type Probe, summarise } from "./statistics.ts";

Deno.test("a summary has the middle of an odd number of figures, the mean of the two middle ones of an even one", () => {
  deepStrictEqual(summarise([9, 1, 5]), { median: 5, min: 1, max: 9 });
  deepStrictEqual(summarise([4, 1, 10, 2]), { median: 3, min: 1, max: 10 });
  deepStrictEqual(summarise([7]), { median: 7, min: 7, max: 7 });
  strictEqual(summarise([]), undefined);
});

Deno.test("percentiles go by nearest rank", () => {
  const values = Array.from({ length: 100 }, (_, index) => 100 - index);
  strictEqual(percentile(values, 0.5), 50);
  strictEqual(percentile(values, 0.99), 99);
  strictEqual(percentile(values, 1), 100);
  strictEqual(percentile(values, 0), 1);
  strictEqual(percentile([1, 2, 3], 0.5), 2);
  strictEqual(percentile([3], 0.99), 3);
  throws(() => percentile([], 0.5), RangeError);
  throws(() => percentile([1], 50), RangeError);
});

/** A path that delivers everything up to a rate, and half of everything above it. */
function path(
  capacityBps: number,
  floodBps: number,
): { probe(rate: number | undefined): Promise<Probe>; tried: number[] } {
  const tried: number[] = [];
  return {
    tried,
    probe: (rate) => {
      const offeredBps = rate ?? floodBps;
      tried.push(offeredBps);
      const loss = offeredBps <= capacityBps ? 0 : 0.5;
      return Promise.resolve({ offeredBps, deliveredBps: offeredBps * (1 - loss), loss });
    },
  };
}

const SEARCH = { tolerableLoss: 0.001, steps: 8 };

Deno.test("the search for a clean rate ends within one step's width below what the path can carry", async () => {
  const { probe, tried } = path(337, 1000);
  const found = await findCleanRate(probe, SEARCH);
  ok(found !== undefined && found.deliveredBps <= 337, String(found?.deliveredBps));
  ok(found.deliveredBps > 337 - 1000 / 2 ** SEARCH.steps, String(found.deliveredBps));
  strictEqual(tried.length, 1 + SEARCH.steps);
});

Deno.test("a sender that cannot overload the path is asked once", async () => {
  const { probe, tried } = path(2000, 1000);
  strictEqual((await findCleanRate(probe, SEARCH))?.deliveredBps, 1000);
  strictEqual(tried.length, 1);
});

Deno.test("a path that loses at every rate has no clean one, and a failure to probe is passed on", async () => {
  strictEqual(await findCleanRate(path(0, 1000).probe, SEARCH), undefined);
  await rejects(findCleanRate(() => Promise.reject(new Error("no path")), SEARCH), /no path/);
});
