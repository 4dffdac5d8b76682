import assert from "node:assert/strict";
import { Library } from "./library.ts";
import { setParentDeathSignal } from "./process.ts";

Deno.test("setParentDeathSignal takes signals only", async () => {
  await using library = Library.open();
  setParentDeathSignal(library, 0);
  assert.throws(() => setParentDeathSignal(library, 65), { code: "EINVAL", errno: 22, message: /1 to 64/ });
});
