import assert from "node:assert/strict";
import { errorCode, NativeError } from "./errors.ts";
import { Library } from "./library.ts";
import { decodeText } from "./marshal.ts";

Deno.test("errorCode knows every code of the library, by its name in C", async () => {
  await using library = Library.open();
  const { symbols } = library;
  const out = new Uint8Array(128);
  const text = (code: number) => symbols.icx_strerror(code, out, out.byteLength);
  let code = -1;
  for (; text(code) > 0; code -= 1) assert.notEqual(errorCode(code), "EUNKNOWN", decodeText(out, text(code)));
  assert.equal(code, -25);
  assert.equal(errorCode(code), "EUNKNOWN");
  assert.deepEqual([-1, -2, -3, -4, -12, -16].map(errorCode), [
    "EINVAL",
    "EBADHANDLE",
    "EBUFFER",
    "EPANIC",
    "EREUSED",
    "EUNSUPPORTED",
  ]);
});

Deno.test("NativeError keeps its facts", () => {
  const cause = new Error("why");
  const error = new NativeError("Cannot do it", { code: "ESYS", operation: "icx_tun_open", errno: 5, cause });
  assert.deepEqual([error.name, error.code, error.operation, error.errno], ["NativeError", "ESYS", "icx_tun_open", 5]);
  assert.equal(error.cause, cause);
  assert(!("cause" in new NativeError("Cannot do it", { code: "ESYS", operation: "x" })));
});
