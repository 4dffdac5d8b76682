import { match, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { HELP } from "../../cli/help.ts";
import { renderHelp } from "../../cli/generate_help.ts";
import { VERSION } from "../../cli/version.ts";
import denoConfig from "../../deno.json" with { type: "json" };
import { icx, LAUNCHER } from "./launcher.ts";

const COMPLETE = ["--identity-key", "node.key", "--peer-key", "peer.pub"];

/** One line of text: the parser breaks messages at the width of the terminal. */
function unwrapped(text: string): string {
  return text.replace(/\s+/g, " ");
}

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
    ]] as const
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

Deno.test("a misspelt command or option is answered with the one that was meant", async () => {
  const rows = [
    [["genkye", "x"], "genkey"],
    [["pubky"], "pubkey"],
    [["dmeo"], "demo"],
    [["up", "--vin", "3", "peer:6081"], "--vni"],
    [["genkey", "--forse", "x"], "--force"],
    [["--rekey-intervall=2m", "peer:6081"], "--rekey-interval"],
    [["up", "--allowed-routes", "10.0.0.0/8", "peer:6081"], "--allowed-route"],
  ] as const;
  for (const [args, meant] of rows) {
    const { code, stdout, stderr } = await icx(args);
    strictEqual(code, 2, args.join(" "));
    strictEqual(stdout, "");
    match(unwrapped(stderr), /Did you mean/);
    ok(stderr.includes(meant), `${args.join(" ")}: ${stderr}`);
  }
});

Deno.test("each value that is not acceptable is named, with what is allowed", async () => {
  const rows: readonly (readonly [args: readonly string[], given: string, allowed: RegExp])[] = [
    [["192.0.2.1"], "192.0.2.1", /host:port.*192\.0\.2\.1:6081/],
    [["2001:db8::1:6081"], "2001:db8::1:6081", /brackets.*\[2001:db8::1:6081\]:6081/],
    [["peer:0"], "peer:0", /host:port/],
    [["peer:65536"], "peer:65536", /host:port/],
    [["--interface", "a/b", "p:1"], "a/b", /interface name of 1 to 15/],
    [["-i", "sixteen-letters-", "p:1"], "sixteen-letters-", /interface name of 1 to 15/],
    [["--local-address", "eth0", "p:1"], "eth0", /IPv4 or IPv6 address/],
    [["--vni", "16777216", "p:1"], "16777216", /from 0 to 16777215/],
    [["-v", "0x10", "p:1"], "0x10", /whole number/],
    [["--identity-key", "", "p:1"], '""', /private identity key/],
    [["--peer-key", "", "p:1"], '""', /public key/],
    [["--control-port", "0", "p:1"], "0", /from 1 to 65535/],
    [["--peer-control-port", "http", "p:1"], "http", /from 1 to 65535/],
    [["--port", "99999", "p:1"], "99999", /from 1 to 65535/],
    [["-p", "-1", "p:1"], "-1", /from 1 to 65535/],
    [["--rekey-interval", "120", "p:1"], "120", /from 1s to 12h.*120s/],
    [["--rekey-interval", "10ms", "p:1"], "10ms", /from 1s to 12h/],
    [["--tun-device", "", "p:1"], '""', /interface name/],
    [["-t", "x y", "p:1"], "x y", /interface name/],
    [["--tun-mtu", "67", "p:1"], "67", /from 68 to 65535/],
    [["-m", "1500.5", "p:1"], "1500.5", /from 68 to 65535/],
    [["--rx-rate-limit", "-5", "p:1"], "-5", /from 0 to 4294967295/],
    [["--allowed-route", "10.9.0.1", "p:1"], "10.9.0.1", /src=dst.*10\.9\.0\.1\/32/],
    [["--allowed-route", "a=b=c", "p:1"], "a=b=c", /src=dst/],
    [["--address", "10.9.0.1", "p:1"], "10.9.0.1", /prefix length.*10\.9\.0\.1\/24/],
    [["--datapath", "afxdp", "p:1"], "afxdp", /auto.*tun/],
    [["--stats-interval", "fast", "p:1"], "fast", /from 100ms to 24h/],
    [["--log-level", "loud", "p:1"], "loud", /error.*warning.*info.*debug/],
    [["--log-format", "xml", "p:1"], "xml", /text.*json/],
  ];
  for (const [args, given, allowed] of rows) {
    for (const prefix of [["up"], []]) {
      const needed = COMPLETE.filter((_, index) => !args.includes(COMPLETE[index - index % 2] ?? ""));
      const all = [...prefix, ...needed, ...args];
      const { code, stdout, stderr } = await icx(all);
      const message = unwrapped(stderr);
      strictEqual(code, 2, `${all.join(" ")}: ${message}`);
      strictEqual(stdout, "");
      ok(message.includes(given), `${all.join(" ")} does not name ${given}: ${message}`);
      match(message, allowed, all.join(" "));
    }
  }
});

Deno.test("a missing identity, peer key or peer is named", async () => {
  for (
    const [args, missing] of [
      [["up", "--peer-key", "k", "peer:6081"], "--identity-key"],
      [["up", "--identity-key", "k", "peer:6081"], "--peer-key"],
      [["up", ...COMPLETE], "PEER-HOST:PORT"],
    ] as const
  ) {
    const { code, stderr } = await icx(args);
    strictEqual(code, 2);
    ok(unwrapped(stderr).includes(missing), stderr);
  }
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

Deno.test("completion scripts are printed for the common shells", async () => {
  for (const shell of ["bash", "zsh", "fish"]) {
    const { code, stdout } = await icx(["completion", shell]);
    strictEqual(code, 0);
    ok(stdout.includes("icx"), shell);
  }
});
