import { ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { icx } from "./launcher.ts";

Deno.test("an identity file that is not there is named, and nothing else happens", async () => {
  const { code, stdout, stderr } = await icx([
    "up",
    "--identity-key",
    "/nonexistent/key",
    "--peer-key",
    "x",
    "peer:6081",
  ]);
  strictEqual(code, 1, stderr);
  strictEqual(stdout, "");
  ok(stderr.includes("/nonexistent/key"), stderr);
});

Deno.test("a peer key that is none, or one's own, is refused", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-test-");
  try {
    const file = `${folder}/node.key`;
    const own = (await icx(["genkey", file])).stderr.trim();
    const none = await icx(["up", "--identity-key", file, "--peer-key", "no-key", "127.0.0.1:6081"]);
    strictEqual(none.code, 1, none.stderr);
    ok(none.stderr.includes("peer key") && none.stderr.includes("icx pubkey"), none.stderr);

    const same = await icx(["up", "--identity-key", file, "--peer-key", own, "127.0.0.1:6081"]);
    strictEqual(same.code, 1, same.stderr);
    ok(/same|equal|own/.test(same.stderr), same.stderr);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

Deno.test("options that do not fit together end with 2 and name the options", async () => {
  for (
    const [args, option] of [
      [["--port", "7000", "--control-port", "7000"], "--control-port"],
      [["--allowed-route", "10.0.0.1/8"], "--allowed-route"],
      [["--outer-udp-checksum"], "--outer-udp-checksum"],
    ] as const
  ) {
    const { code, stderr } = await icx(["--identity-key", "k", "--peer-key", "p", ...args, "peer:6081"]);
    strictEqual(code, 2, stderr);
    ok(stderr.includes(option), stderr);
  }
});
