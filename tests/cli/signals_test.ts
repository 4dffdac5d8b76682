/** How a signal ends a command that waits: for a key that never comes, and for an end that takes long. */

import { match, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { icx, LAUNCHER } from "./launcher.ts";

const DENO = fileURLToPath(new URL("../../native/lib/deno", import.meta.url));

/** A generous bound for what has to happen soon, in milliseconds. */
const SOON_MS = 30_000;

/** Rejects when `promise` has not settled soon. */
async function soon<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${SOON_MS} ms`)), SOON_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Makes sure that the process ends by itself, and ends it if it does not. */
async function exitCode(child: Deno.ChildProcess, what: string): Promise<number> {
  try {
    return (await soon(child.status, what)).code;
  } catch (error) {
    child.kill("SIGKILL");
    await child.status;
    throw error;
  }
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

Deno.test("a signal ends a command that waits for a key from a pipe without an end", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-signals-");
  try {
    const key = `${folder}/node.key`;
    const peer = `${folder}/peer.pub`;
    await icx(["genkey", key]);
    await fs.writeFile(peer, (await icx(["genkey", `${folder}/peer.key`])).stderr);
    // None of these gets as far as a tunnel: there is never a whole pair of keys.
    const rows: readonly (readonly [args: (pipe: string) => readonly string[], signal: Deno.Signal, code: number])[] = [
      [(pipe) => ["pubkey", pipe], "SIGINT", 130],
      [(pipe) => ["up", "--identity-key", pipe, "--peer-key", peer, "192.0.2.1:6081"], "SIGINT", 130],
      [(pipe) => ["up", "--identity-key", pipe, "--peer-key", peer, "192.0.2.1:6081"], "SIGTERM", 143],
      [(pipe) => ["up", "--identity-key", key, "--peer-key", pipe, "192.0.2.1:6081"], "SIGINT", 130],
    ];
    const named = rows.map(async ([args, signal, code], index) => {
      const pipe = `${folder}/pipe${index}`;
      strictEqual((await icx(["-c", 'mkfifo -m 600 "$1"', "sh", pipe], { launcher: "/bin/sh" })).code, 0);
      const what = `${args(pipe).join(" ")} by ${signal}`;
      const child = new Deno.Command(LAUNCHER, { args: [...args(pipe)], stdin: "null", stdout: "null", stderr: "null" })
        .spawn();
      // Opens only once the other end is there.
      const writer = fs.open(pipe, "w");
      try {
        await using _end = await soon(writer, `${what}: opening the pipe`);
        child.kill(signal);
        strictEqual(await exitCode(child, what), code, what);
      } catch (error) {
        await (await fs.open(pipe, "r+")).close();
        await (await writer).close().catch(() => {});
        throw error;
      }
    });
    const standard = [["pubkey", "-"], ["up", "--identity-key", "-", "--peer-key", peer, "192.0.2.1:6081"]].map(
      async (args) => {
        const child = new Deno.Command(LAUNCHER, { args, stdin: "piped", stdout: "null", stderr: "null" }).spawn();
        // It is reading by then, or not that far yet, which must not matter.
        await pause(1500);
        child.kill("SIGINT");
        strictEqual(await exitCode(child, args.join(" ")), 130, args.join(" "));
        await child.stdin.close().catch(() => {});
      },
    );
    await Promise.all([...named, ...standard]);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

/** Stops as every command does, yet takes for ever over it. */
const SLOW_END = `
import { exitBySignal, stopSignals } from ${JSON.stringify(new URL("../../cli/signals.ts", import.meta.url).href)};
import { ShutdownSignals } from ${JSON.stringify(new URL("../../datapath/shutdown_signals.ts", import.meta.url).href)};
using signals = new ShutdownSignals({ source: stopSignals, onForce: exitBySignal });
signals.signal.addEventListener("abort", () => console.log("stopping"));
setInterval(() => {}, 1000);
console.log("ready");
await new Promise(() => {});
`;

Deno.test("a second signal ends a stop that takes long at once, and one that follows at once does not", async () => {
  const run = async (signal: Deno.Signal, code: number) => {
    const child = new Deno.Command(DENO, {
      args: ["run", "--no-prompt", "--quiet", "--no-lock", "--ext=ts", "-"],
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    const input = child.stdin.getWriter();
    await input.write(new TextEncoder().encode(SLOW_END));
    await input.close();
    const output = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
    let ended = false;
    const status = child.status.then((status) => {
      ended = true;
      return status.code;
    });
    try {
      match((await soon(output.read(), "the start")).value ?? "", /ready/);
      // As Ctrl-C arrives under a task runner.
      child.kill(signal);
      await pause(2);
      child.kill(signal);
      match((await soon(output.read(), "the first signal")).value ?? "", /stopping/);
      await pause(1500);
      ok(!ended, "the echo of the first signal ended it");
      child.kill(signal);
      strictEqual(await soon(status, "the second signal"), code);
    } finally {
      if (!ended) child.kill("SIGKILL");
      await status;
      await output.cancel();
    }
  };
  await Promise.all([run("SIGINT", 130), run("SIGTERM", 143)]);
});
