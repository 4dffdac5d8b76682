import { strictEqual } from "node:assert/strict";
import { isOlder } from "../../native/setup_platform.ts";

Deno.test("versions are compared place by place as numbers", () => {
  const rows = [
    ["1.91.0", [1, 91], false],
    ["1.90.9", [1, 91], true],
    ["1.100.0", [1, 91], false],
    ["2.0", [1, 91], false],
    ["0.99.1", [1, 91], true],
    ["1", [1, 0, 1], true],
    ["6.18.44-1-cloud-amd64", [5, 6], false],
    ["5.4.0-150-generic", [5, 6], true],
    ["2.9.6", [2, 9, 6], false],
    ["2.9.5", [2, 9, 6], true],
  ] as const;
  for (const [version, minimum, older] of rows) {
    strictEqual(isOlder(version, minimum), older, `${version} < ${minimum}`);
  }
});
