import { match, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { HELP } from "../../cli/help.ts";
import { renderHelp } from "../../cli/generate_help.ts";
import { VERSION } from "../../cli/version.ts";
import denoConfig from "../../deno.json" with { type: "json" };
import { icx, LAUNCHER } from "./launcher.ts";

Deno.test("the help page is the one the parser renders", () => {
  strictEqual(HELP, renderHelp(), "run: deno task help");
});

Deno.test("icx --help and -h print the help page and exit with 0", async () => {
  for (const flag of ["--help", "-h"]) {
    const { code, stdout, stderr } = await icx([flag]);
    strictEqual(code, 0);
    strictEqual(stdout, HELP);
    strictEqual(stderr, "");
  }
});

Deno.test("every command has a help page that shows its options", async () => {
  for (
    const [command, option] of [["up", "--rekey-interval"], ["genkey", "--force"], [
      "pubkey",
      "--identity-key",
    ], ["bench", "--listen"]] as const
  ) {
    const { code, stdout } = await icx([command, "--help"]);
    strictEqual(code, 0);
    match(stdout, new RegExp(`Usage: icx ${command}`));
    ok(stdout.includes(option), stdout);
  }
});

Deno.test("the version is the one of deno.json and of the Rust workspace", async () => {
  const { code, stdout } = await icx(["--version"]);
  strictEqual(code, 0);
  strictEqual(stdout, `${VERSION}\n`);
  strictEqual(VERSION, denoConfig.version);
  const manifest = await fs.readFile(new URL("../../rust/Cargo.toml", import.meta.url), "utf8");
  strictEqual(/^version = "([^"]+)"/m.exec(manifest)?.[1], VERSION);
});

Deno.test("no arguments at all show the help page on standard error and exit with 2", async () => {
  const { code, stdout, stderr } = await icx([]);
  strictEqual(code, 2);
  strictEqual(stdout, "");
  ok(stderr.includes("genkey") && stderr.includes("pubkey"), stderr);
});

Deno.test("the launcher works through symbolic links and from any folder", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-test-");
  try {
    const script = 'ln -s "$1" "$2/first" && ln -s first "$2/icx" && cd / && exec "$2/icx" --version';
    const { code, stdout } = await icx(["-c", script, "sh", LAUNCHER, folder], { launcher: "/bin/sh" });
    strictEqual(code, 0);
    strictEqual(stdout, `${VERSION}\n`);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

Deno.test("a checkout in a path with a comma says so", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-test-");
  try {
    const script = 'mkdir -p "$2/cli" "$2/native/lib" && cp "$1" "$2/cli" && ln -s "$3" "$2/native/lib/deno" && ' +
      'exec "$2/cli/icx" --version';
    const args = ["-c", script, "sh", LAUNCHER, `${folder}/a,b`, "/bin/true"];
    const { code, stdout, stderr } = await icx(args, { launcher: "/bin/sh" });
    strictEqual(code, 1);
    strictEqual(stdout, "");
    match(stderr, new RegExp(`^icx: .* a path with a comma.*: move it from ${folder}/a,b\n$`));
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

Deno.test("completion scripts are printed for the common shells", async () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await icx(["completion", shell]);
    strictEqual(code, 0);
    ok(stdout.includes("icx"), shell);
  }
});
