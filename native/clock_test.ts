import assert from "node:assert/strict";
import { bootClock } from "./clock.ts";
import { Library } from "./library.ts";

Deno.test("bootClock counts milliseconds, as the runtime's clock does while nothing is suspended", async () => {
  await using library = Library.open();
  const now = bootClock(library);
  const [first, start] = [now(), performance.now()];
  while (performance.now() < start + 20);
  const passedMs = now() - first;
  assert(passedMs >= 20 && passedMs < 10_000, `${passedMs} ms`);
});
