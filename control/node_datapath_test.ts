import { deepStrictEqual, match } from "node:assert/strict";
import { lacking } from "./node_datapath.ts";

Deno.test("lacking tells missing rights from other things by their kind, whatever they are called", () => {
  const right = { kind: "permission", what: "AF_XDP sockets (Permission denied)" } as const;
  const feature = { kind: "kernel", what: "the capability of this kernel to do so (CONFIG_XDP_SOCKETS)" } as const;
  const failure = { kind: "system", what: "memory" } as const;
  for (
    const [missing, code] of [
      [[right], "permission-denied"],
      [[feature, right], "permission-denied"],
      [[feature], "unsupported"],
      [[failure], "unsupported"],
    ] as const
  ) {
    const error = lacking(missing);
    deepStrictEqual(error.code, code, error.message);
    for (const { what } of missing) match(error.message, new RegExp(`without ${what.replace(/[()]/g, ".")}`));
    match(error.message, /--datapath tun/);
  }
});
