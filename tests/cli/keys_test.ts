import { match, notStrictEqual, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { icx, LAUNCHER } from "./launcher.ts";

const PUBLIC_KEY = /^[A-Za-z0-9+/]{122}==\n$/;

/** A private folder that goes away with the test. */
async function folder(): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await fs.mkdtemp("/tmp/icx-test-");
  return { path, [Symbol.asyncDispose]: () => fs.rm(path, { recursive: true }) };
}

Deno.test("genkey makes a file of mode 0600, and pubkey prints the public key that genkey told", async () => {
  await using tmp = await folder();
  const file = `${tmp.path}/node.key`;
  const made = await icx(["genkey", file]);
  strictEqual(made.code, 0, made.stderr);
  strictEqual(made.stdout, "");
  match(made.stderr, PUBLIC_KEY);
  strictEqual((await fs.stat(file)).mode & 0o777, 0o600);
  match(await fs.readFile(file, "utf8"), /^-----BEGIN PRIVATE KEY-----\n/);

  for (const args of [["pubkey", file], ["pubkey", "--identity-key", file]]) {
    const { code, stdout, stderr } = await icx(args);
    strictEqual(code, 0, stderr);
    strictEqual(stdout, made.stderr);
    strictEqual(stderr, "");
  }
});

Deno.test("genkey takes its file as --identity-key too", async () => {
  await using tmp = await folder();
  const file = `${tmp.path}/node.key`;
  const { code, stderr } = await icx(["genkey", "--identity-key", file]);
  strictEqual(code, 0, stderr);
  strictEqual((await fs.stat(file)).mode & 0o777, 0o600);
});

Deno.test("genkey never overwrites a file, except with --force", async () => {
  await using tmp = await folder();
  const file = `${tmp.path}/node.key`;
  const first = await icx(["genkey", file]);
  const pem = await fs.readFile(file, "utf8");

  const refused = await icx(["genkey", file]);
  strictEqual(refused.code, 1);
  strictEqual(await fs.readFile(file, "utf8"), pem);

  const forced = await icx(["genkey", "--force", file]);
  strictEqual(forced.code, 0, forced.stderr);
  notStrictEqual(forced.stderr, first.stderr);
  notStrictEqual(await fs.readFile(file, "utf8"), pem);
  strictEqual((await fs.stat(file)).mode & 0o777, 0o600);
  strictEqual((await fs.readdir(tmp.path)).length, 1, "a temporary file was left behind");
});

Deno.test("genkey writes the private key to standard output and the public key to standard error", async () => {
  const { code, stdout, stderr } = await icx(["genkey", "-"]);
  strictEqual(code, 0);
  match(stdout, /^-----BEGIN PRIVATE KEY-----\n[A-Za-z0-9+/=\n]+-----END PRIVATE KEY-----\n$/);
  match(stderr, PUBLIC_KEY);
  for (const args of [["pubkey", "-"], ["pubkey"]]) {
    const read = await icx(args, { stdin: stdout });
    strictEqual(read.code, 0, read.stderr);
    strictEqual(read.stdout, stderr);
  }
});

Deno.test("genkey and pubkey work in a pipe", async () => {
  const script = '"$1" genkey - 2>/dev/null | "$1" pubkey -';
  const { code, stdout } = await icx(["-c", script, "sh", LAUNCHER], { launcher: "/bin/sh" });
  strictEqual(code, 0);
  match(stdout, PUBLIC_KEY);
});
