/** The set-up, in a checkout of its own with a cargo that only pretends: nothing is downloaded or compiled. */

import { deepStrictEqual, match, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { isOlder } from "../../native/setup_platform.ts";

Deno.test("versions are compared place by place as numbers", () => {
  const rows = [
    ["1.91.0", [1, 91], false],
    ["1.90.9", [1, 91], true],
    ["1.100.0", [1, 91], false],
    ["2.0", [1, 91], false],
    ["0.99.1", [1, 91], true],
    ["1", [1, 0, 1], true],
    ["6.18.44-1-cloud-amd64", [5, 6], false],
    ["5.4.0-150-generic", [5, 6], true],
    ["2.9.6", [2, 9, 6], false],
    ["2.9.5", [2, 9, 6], true],
  ] as const;
  for (const [version, minimum, older] of rows) {
    strictEqual(isOlder(version, minimum), older, `${version} < ${minimum}`);
  }
});

Deno.test("the set-up may run what it has only just installed", async () => {
  const { tasks } = JSON.parse(await fs.readFile(`${REPOSITORY}deno.json`, "utf8"));
  for (const task of ["setup", "setup:test", "build"]) {
    const [, allowed = ""] = /--allow-run=(\S+)/.exec(tasks[task].command) ?? [];
    // Deno looks for a bare name once, when it starts, and allows nothing where it finds none.
    const names = allowed.split(",").filter((program: string) => !program.includes("/"));
    deepStrictEqual(names, ["cargo"], `${task} allows what is installed by its path`);
  }
});

const REPOSITORY = fileURLToPath(new URL("../../", import.meta.url));

/** Notes each build, fails when it meets another one, and is done once there is a file `go`, or the checkout is gone. */
const CARGO = `#!/bin/sh
root=\${0%/bin/cargo}
if [ "$1" = --version ]; then echo "cargo 99.0.0"; exit; fi
mkdir "$root/building" || { echo met >>"$root/builds"; exit 1; }
trap 'rmdir "$root/building"; exit 1' TERM INT
echo built >>"$root/builds"
until [ -e "$root/go" ] || [ ! -e "$root/builds" ]; do sleep 0.05; done
printf library >"$root/artifact.so"
mv "$root/artifact.so" "$root/libicx.so"
rmdir "$root/building"
printf '{"reason":"compiler-artifact","filenames":["%s"]}\\n' "$root/libicx.so"
`;

/** A checkout with nothing but what building the library takes. */
class FakeCheckout implements AsyncDisposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  static async make(): Promise<FakeCheckout> {
    const path = await fs.mkdtemp("/tmp/icx-setup-");
    for (const folder of ["bin", "native", "rust"]) await fs.mkdir(`${path}/${folder}`);
    for (const name of await fs.readdir(`${REPOSITORY}native`)) {
      if (/^setup.*\.ts$/.test(name)) await fs.copyFile(`${REPOSITORY}native/${name}`, `${path}/native/${name}`);
    }
    await fs.copyFile(`${REPOSITORY}rust/Cargo.toml`, `${path}/rust/Cargo.toml`);
    await fs.writeFile(`${path}/bin/cargo`, CARGO, { mode: 0o755 });
    return new FakeCheckout(path);
  }

  start(): Setup {
    return new Setup(this.path);
  }

  letBuildsEnd(): Promise<void> {
    return fs.writeFile(`${this.path}/go`, "");
  }

  /** What the builds noted. */
  async builds(): Promise<readonly string[]> {
    const text = await fs.readFile(`${this.path}/builds`, "utf8").catch(() => "");
    return text.split("\n").filter((line) => line !== "");
  }

  /** What the set-up has put in place. */
  async placed(): Promise<readonly string[]> {
    return (await fs.readdir(`${this.path}/native/lib`)).sort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await fs.rm(this.path, { recursive: true });
  }
}

/** A set-up that runs. */
class Setup {
  readonly #child: Deno.ChildProcess;
  #silent = false;
  stderr = "";

  constructor(root: string) {
    const script = 'cd "$1" && PATH="$1/bin:$PATH" exec "$2" run --no-prompt --quiet --no-config --no-lock ' +
      "--allow-sys=uid,osRelease --allow-read=.,/etc/os-release --allow-write=native/lib " +
      "--allow-run=cargo,/usr/bin/cp native/setup.ts --build-only";
    this.#child = new Deno.Command("/bin/sh", {
      args: ["-c", script, "sh", root, `${REPOSITORY}native/lib/deno`],
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).spawn();
    this.#collect();
  }

  async #collect(): Promise<void> {
    for await (const text of this.#child.stderr.pipeThrough(new TextDecoderStream())) this.stderr += text;
    this.#silent = true;
  }

  kill(signal: Deno.Signal): void {
    this.#child.kill(signal);
  }

  async end(): Promise<number> {
    const { code } = await this.#child.status;
    // What it started holds the other end of the pipe.
    await until("all that the set-up started ends", () => this.#silent);
    return code;
  }
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = performance.now() + 30_000; performance.now() < end;) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`not within 30 s: ${what}`);
}

const PLACED = ["libicx.so", "setup.json", "setup.lock"];

Deno.test("of two set-ups at once one builds, and the other one waits for it and finds everything done", async () => {
  await using checkout = await FakeCheckout.make();
  const first = checkout.start();
  await until("the first one builds", async () => (await checkout.builds()).length > 0);
  const second = checkout.start();
  await until("the second one waits", () => second.stderr.includes("waiting for another set-up of this checkout"));
  await checkout.letBuildsEnd();
  strictEqual(await first.end(), 0, first.stderr);
  strictEqual(await second.end(), 0, second.stderr);
  deepStrictEqual(await checkout.builds(), ["built"]);
  deepStrictEqual(await checkout.placed(), PLACED);
});

Deno.test("a set-up that is stopped leaves nothing half done, and another one goes on", async () => {
  await using checkout = await FakeCheckout.make();
  for (const [signal, code] of [["SIGINT", 130], ["SIGTERM", 143]] as const) {
    await fs.rm(`${checkout.path}/builds`, { force: true });
    const stopped = checkout.start();
    await until("it builds", async () => (await checkout.builds()).length > 0);
    stopped.kill(signal);
    strictEqual(await stopped.end(), code, stopped.stderr);
    match(stopped.stderr, new RegExp(`stopped by ${signal}; what was finished stays, run it again to go on`));
    // The build was told to stop, too.
    await until("the build ends", async () => !(await fs.readdir(checkout.path)).includes("building"));
    deepStrictEqual(await checkout.placed(), ["setup.lock"]);
  }

  await checkout.letBuildsEnd();
  const again = checkout.start();
  strictEqual(await again.end(), 0, again.stderr);
  deepStrictEqual(await checkout.placed(), PLACED);
  strictEqual(await fs.readFile(`${checkout.path}/native/lib/libicx.so`, "utf8"), "library");
  const builds = await checkout.builds();
  const idle = checkout.start();
  strictEqual(await idle.end(), 0, idle.stderr);
  ok(idle.stderr.includes("up to date"), idle.stderr);
  deepStrictEqual(await checkout.builds(), builds);
});
