import { deepStrictEqual, strictEqual } from "node:assert/strict";
import { judge, parseSummary } from "../run.ts";

Deno.test("summary lines of cargo and Deno are read, coloured or not", () => {
  const rows = [
    ["test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.50s", [12, 0, 1]],
    ["test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out", [3, 2, 0]],
    ["ok | 5 passed (3 steps) | 0 failed | 2 ignored (36ms)", [5, 0, 2]],
    ["ok | 9 passed | 0 failed (1s)", [9, 0, 0]],
    ["\x1b[0m\x1b[31mFAILED\x1b[0m | 0 passed | 1 failed \x1b[0m\x1b[38;5;245m(42ms)\x1b[0m", [0, 1, 0]],
  ] as const;
  for (const [line, [passed, failed, ignored]] of rows) {
    deepStrictEqual(parseSummary(line), { passed, failed, ignored });
  }
  strictEqual(parseSummary("5 passed, 0 failed"), undefined);
  strictEqual(parseSummary("test a ... ok"), undefined);
});

Deno.test("a stage that ends badly or runs nothing has a failure", () => {
  deepStrictEqual(judge([{ passed: 2, failed: 0, ignored: 0 }, { passed: 1, failed: 0, ignored: 4 }], 0), {
    passed: 3,
    failed: 0,
    ignored: 4,
  });
  deepStrictEqual(judge([{ passed: 2, failed: 1, ignored: 0 }], 101), { passed: 2, failed: 1, ignored: 0 });
  deepStrictEqual(judge([{ passed: 2, failed: 0, ignored: 0 }], 101), { passed: 2, failed: 1, ignored: 0 });
  deepStrictEqual(judge([], 0), { passed: 0, failed: 1, ignored: 0 });
  deepStrictEqual(judge([{ passed: 0, failed: 0, ignored: 0 }], 0), { passed: 0, failed: 1, ignored: 0 });
  deepStrictEqual(judge([{ passed: 0, failed: 0, ignored: 7 }], 0), { passed: 0, failed: 0, ignored: 7 });
});
