import { match, notStrictEqual, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import process from "node:process";
import { LAUNCHER } from "../launcher.ts";

const required = process.env["ICX_TEST_PRIVILEGED"] === "1";
const root = process.getuid?.() === 0;
/** Without root these cannot run; where they must, they run and fail. */
const ignore = !root && !required;

const decoder = new TextDecoder();

function startDemo(): Deno.ChildProcess {
  return new Deno.Command(LAUNCHER, { args: ["demo"], stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
}

/** What a demo of that process has made and not removed. */
async function leftovers(pid: number): Promise<readonly string[]> {
  const { stdout } = await new Deno.Command("/usr/sbin/ip", { args: ["netns", "list"], stdin: "null" }).output();
  const namespaces = decoder.decode(stdout).split("\n").filter((line) => line.startsWith(`icx-demo-${pid}-`));
  const folders = (await fs.readdir("/tmp")).filter((name) => name.startsWith(`icx-demo-${pid}-`));
  return [...namespaces, ...folders];
}

async function until(condition: () => Promise<boolean>, what: string): Promise<void> {
  for (const deadline = performance.now() + 20_000; performance.now() < deadline;) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${what} did not happen within 20 s`);
}

/** Both namespaces and the private folder. */
async function underWay(pid: number): Promise<boolean> {
  return (await leftovers(pid)).length === 3;
}

Deno.test({
  name: "the demo shows every part, all of it good, in plain text, and leaves nothing behind",
  ignore,
  async fn() {
    const child = startDemo();
    const { pid } = child;
    const { code, stdout, stderr } = await child.output();
    const text = decoder.decode(stdout);
    strictEqual(code, 0, `${text}\n${decoder.decode(stderr)}`);
    ok(!text.includes("\x1b"), "there are escape sequences in the output");
    for (const title of ["handshake", "ping", "TCP a → b", "TCP b → a", "rekey", "counters", "result", "cleaned up"]) {
      ok(text.includes(title), `${title} is missing: ${text}`);
    }
    match(text, /5 of 5 answered/);
    strictEqual(text.match(/content equal on both sides/g)?.length, 2);
    match(text, /not one packet refused for its key/);
    match(text, /▲/);
    strictEqual((await leftovers(pid)).join(), "");
  },
});

Deno.test({
  name: "root without /dev/net/tun gets the demo that takes no device, and is told why",
  ignore,
  async fn() {
    const script = 'mount -t tmpfs none /dev/net && exec "$0" demo';
    const child = new Deno.Command("/bin/sh", {
      args: ["-c", 'exec unshare --mount /bin/sh -c "$0" "$1"', script, LAUNCHER],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const { code, stdout, stderr } = await child.output();
    const text = decoder.decode(stdout);
    strictEqual(code, 0, `${text}\n${decoder.decode(stderr)}`);
    match(text, /there can be no namespaces with devices \(.*tuntap.*No such file/);
    strictEqual(text.match(/content equal on both sides/g)?.length, 2);
    strictEqual((await leftovers(child.pid)).join(), "");
  },
});

for (const signal of ["SIGINT", "SIGTERM", "SIGKILL"] as const) {
  Deno.test({
    name: `a demo ended by ${signal} leaves nothing behind`,
    ignore,
    async fn() {
      const child = startDemo();
      const { pid } = child;
      const output = child.output();
      await until(() => underWay(pid), "the demo's start");
      child.kill(signal);
      const { code } = await output;
      notStrictEqual(code, 0);
      await until(async () => (await leftovers(pid)).length === 0, "the clean-up");
    },
  });
}

Deno.test({
  name: "a demo that starts beside another one leaves that one alone",
  ignore,
  async fn() {
    const first = startDemo();
    const ends = [first.output()];
    const running = [first];
    try {
      await until(() => underWay(first.pid), "the first demo's start");
      const second = startDemo();
      running.push(second);
      ends.push(second.output());
      // It has looked for what others left behind before it makes anything itself.
      await until(() => underWay(second.pid), "the second demo's start");
      ok(await underWay(first.pid), "the first demo has lost its namespaces");
    } finally {
      for (const demo of running) demo.kill("SIGINT");
      await Promise.all(ends);
    }
  },
});

Deno.test({
  name: "a demo whose parent is killed ends and leaves nothing behind",
  ignore,
  async fn() {
    const script = '"$1" demo >/dev/null 2>&1 & echo $!; wait';
    const parent = new Deno.Command("/bin/sh", {
      args: ["-c", script, "sh", LAUNCHER],
      stdin: "null",
      stdout: "piped",
    }).spawn();
    const reader = parent.stdout.getReader();
    const pid = Number(decoder.decode((await reader.read()).value));
    await until(() => underWay(pid), "the demo's start");
    parent.kill("SIGKILL");
    await parent.status;
    await reader.cancel();
    await until(async () => (await leftovers(pid)).length === 0, "the clean-up");
  },
});

Deno.test({
  name: "a demo that nobody reads says so and leaves nothing behind",
  ignore,
  async fn() {
    const script = 'exec 3>&1; { sh -c \'echo $$ >&3; exec "$0" demo\' "$1"; echo $? >&3; } | true';
    const { stdout, stderr } = await new Deno.Command("/bin/sh", {
      args: ["-c", script, "sh", LAUNCHER],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).output();
    const [pid = "", code] = decoder.decode(stdout).split("\n");
    const text = decoder.decode(stderr);
    strictEqual(code, "1", text);
    match(text, /^icx: cannot write to standard output: [^\n]*Broken pipe[^\n]*\n$/);
    strictEqual((await leftovers(Number(pid))).join(), "");
  },
});
