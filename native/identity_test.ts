import assert from "node:assert/strict";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { NativeIdentity, parsePeerKey, roleOf } from "./identity.ts";
import { Library } from "./library.ts";

Deno.test("NativeIdentity writes a key once, for its owner alone, and loads it again", async () => {
  await using library = Library.open();
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "icx-native-"));
  try {
    const file = path.join(folder, "key.pem");
    using made = NativeIdentity.generate(library, { path: file });
    const info = made.info();
    assert.match(info.publicKey, /^[A-Za-z0-9+/]{122}==$/);
    assert.match(info.fingerprint, /^[A-Za-z0-9+/]{43}$/);
    assert.equal((await fs.stat(file)).mode & 0o777, 0o600);

    using loaded = NativeIdentity.load(library, { path: file });
    assert.deepEqual(loaded.info(), info);
    assert.throws(() => NativeIdentity.generate(library, { path: file }), { code: "EEXIST", message: /--force/ });
    assert.deepEqual(loaded.info(), info);

    using replaced = NativeIdentity.generate(library, { path: file, force: true });
    assert.notEqual(replaced.info().publicKey, info.publicKey);
    const roles = [[info, replaced.info()], [replaced.info(), info]].map(([local, peer]) =>
      roleOf(library, { local: local?.publicKey ?? "", peer: peer?.publicKey ?? "" })
    );
    assert.deepEqual(roles.sort(), ["initiator", "responder"]);

    await fs.chmod(file, 0o640);
    assert.throws(() => NativeIdentity.load(library, { path: file }), {
      code: "EKEY",
      message: /mode 0640.*chmod 600/,
    });
    await fs.writeFile(file, "nothing");
    await fs.chmod(file, 0o600);
    assert.throws(() => NativeIdentity.load(library, { path: file }), { code: "EKEY" });
    const missing = path.join(folder, "missing");
    assert.throws(() => NativeIdentity.load(library, { path: missing }), { code: "ENOENT", errno: 2 });
    assert.throws(() => NativeIdentity.generate(library, { path: path.join(missing, "x") }), { code: "ENOENT" });

    const keyFile = path.join(folder, "peer.pub");
    await fs.writeFile(keyFile, `${info.publicKey}\n`);
    assert.deepEqual(parsePeerKey(library, { text: keyFile, allowFile: true }), info);
    assert.deepEqual(parsePeerKey(library, { text: info.publicKey, allowFile: true }), info);
    assert.throws(() => parsePeerKey(library, { text: keyFile }), { code: "EKEY" });
    assert.throws(() => roleOf(library, { local: info.publicKey, peer: info.publicKey }), { code: "EKEY" });
  } finally {
    await fs.rm(folder, { recursive: true });
  }
  assert.equal(library.handleCount(), 0);
});
