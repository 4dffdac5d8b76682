import { match, ok, strictEqual, throws } from "node:assert/strict";
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inspect } from "node:util";
import { NativeError, type NativeErrorCode } from "../native/errors.ts";
import { Library } from "../native/library.ts";
import { Identity, parsePeerKey, tunnelRole } from "./identity.ts";

function withCode(code: NativeErrorCode): (error: unknown) => boolean {
  return (error) => {
    ok(error instanceof NativeError, String(error));
    strictEqual(error.code, code, error.message);
    return true;
  };
}

function setUp() {
  const parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const folder = mkdtempSync(join(tmpdir(), "icx-identity-"));
  parts.defer(() => rmSync(folder, { recursive: true }));
  return { library, file: join(folder, "node.key"), [Symbol.asyncDispose]: () => parts.disposeAsync() };
}

Deno.test("Identity.generate() makes a file for its owner alone, and never replaces one unasked", async () => {
  await using set = setUp();
  const { library, file } = set;
  using first = Identity.generate(file, { library });
  strictEqual(statSync(file).mode & 0o777, 0o600);
  match(readFileSync(file, "utf8"), /^-----BEGIN PRIVATE KEY-----\n/);
  throws(() => Identity.generate(file, { library }), withCode("EEXIST"));
  using loaded = Identity.load(file, { library });
  strictEqual(loaded.publicKey, first.publicKey);
  using second = Identity.generate(file, { library, force: true });
  ok(second.publicKey !== first.publicKey);
  strictEqual(statSync(file).mode & 0o777, 0o600);
});

Deno.test("Identity.load() refuses a file that others may read, and one without a key", async () => {
  await using set = setUp();
  const { library, file } = set;
  Identity.generate(file, { library }).close();
  chmodSync(file, 0o640);
  throws(() => Identity.load(file, { library }), withCode("EKEY"));
  writeFileSync(file, "no key\n");
  chmodSync(file, 0o600);
  throws(() => Identity.load(file, { library }), withCode("EKEY"));
  throws(() => Identity.load(`${file}.missing`, { library }), withCode("ENOENT"));
});

Deno.test("an Identity shows its public key and nothing else", async () => {
  await using set = setUp();
  using identity = Identity.generate(set.file, { library: set.library });
  const secret = readFileSync(set.file, "utf8").split("\n")[1] ?? "";
  ok(secret.length > 40);
  ok(!inspect(identity, { depth: null, showHidden: true }).includes(secret));
  ok(!JSON.stringify(identity).includes(secret));
  match(identity.fingerprint, /^[A-Za-z0-9+/]{43}$/);
});

Deno.test("parsePeerKey() takes a key, and a file only when that is allowed", async () => {
  await using set = setUp();
  const { library, file } = set;
  using identity = Identity.generate(file, { library });
  strictEqual(parsePeerKey(identity.publicKey, { library }).fingerprint, identity.fingerprint);
  writeFileSync(`${file}.pub`, `${identity.publicKey}\n`);
  strictEqual(parsePeerKey(`${file}.pub`, { library, allowFile: true }).publicKey, identity.publicKey);
  throws(() => parsePeerKey(`${file}.pub`, { library }), withCode("EKEY"));
});

Deno.test("tunnelRole() gives the two sides opposite roles, and refuses equal keys", async () => {
  await using set = setUp();
  const { library, file } = set;
  using a = Identity.generate(file, { library });
  using b = Identity.generate(`${file}.2`, { library });
  const roles = [
    tunnelRole(library, { local: a.publicKey, peer: b.publicKey }),
    tunnelRole(library, { local: b.publicKey, peer: a.publicKey }),
  ];
  strictEqual(roles.toSorted().join(), "initiator,responder");
  throws(() => tunnelRole(library, { local: a.publicKey, peer: a.publicKey }), withCode("EKEY"));
});
