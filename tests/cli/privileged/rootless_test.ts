/** icx where nobody grants a right: from a checkout of root's, as other users and in a container, with what set-up placed there alone. */

import { deepStrictEqual, match, ok, strictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { ok as succeed, type Outcome, privileged, run } from "../../netns/_lab.ts";

const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
const README = fileURLToPath(new URL("../../../README.md", import.meta.url));

/** What icx runs from. */
const PARTS = ["cli", "control", "datapath", "native", "mod.ts", "deno.json", "deno.lock", "node_modules"];

/** A place without rights. */
interface Sandbox {
  readonly name: string;
  /** Makes it, as root, in mount and process namespaces of its own. @default nothing more */
  readonly prepare?: string;
  /** A command that runs another one there. */
  readonly enter: string;
  /** How `--datapath tun` ends there. */
  readonly tun: { readonly code: number; readonly says: RegExp };
}

const NO_RIGHTS = "setpriv --bounding-set -all --inh-caps -all --no-new-privs";
const NOBODY = `${NO_RIGHTS} --reuid 65534 --regid 65534 --clear-groups`;
const NOT_PERMITTED = { code: 4, says: /no permission.*CAP_NET_ADMIN/ };

const SANDBOXES: readonly Sandbox[] = [
  { name: "an ordinary user", enter: NOBODY, tun: NOT_PERMITTED },
  { name: "root in a user namespace", enter: `${NOBODY} unshare --user --map-root-user`, tun: NOT_PERMITTED },
  {
    name: "root in a container",
    // A network namespace with loopback, no TUN driver, and nothing that can be written to but /tmp.
    prepare: "mount -t tmpfs none /dev/net; mount -o remount,bind,ro /mnt; mount -o remount,bind,ro /",
    enter: `unshare --net -- sh -c 'ip link set lo up && exec ${NO_RIGHTS} "$@"' sh`,
    tun: { code: 1, says: /\/dev\/net\/tun does not exist/ },
  },
];

/** A copy of the checkout that everybody may read, wherever this one is; gone with the test. */
class Checkout implements AsyncDisposable {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  static async open(): Promise<Checkout> {
    const path = await fs.mkdtemp("/tmp/icx-rootless-");
    const checkout = new Checkout(path);
    // Locks of the runtime's package cache come and go with every program that it runs.
    const copy = 'root=$1 path=$2; shift 2; tar -C "$root" -c --exclude ".deno.lock*" -- "$@" | tar -C "$path" -x; ' +
      'chmod -R a+rX "$path"';
    try {
      await succeed(["/bin/sh", "-c", 'exec bash -euo pipefail -c "$@"', "sh", copy, "bash", ROOT, path, ...PARTS]);
      return checkout;
    } catch (error) {
      await checkout[Symbol.asyncDispose]();
      throw error;
    }
  }

  /**
   * Runs a script in a sandbox, where the checkout is the current folder and `/tmp` is empty. It must leave neither a file nor a process
   * behind.
   */
  async run({ prepare = ":", enter }: Sandbox, ...script: readonly string[]): Promise<Outcome> {
    const inside = ["cd /mnt", ...script].join("\n");
    const outside = `set -eu
mount --bind "$1" /mnt
mount -t tmpfs -o mode=1777 none /tmp
${prepare}
code=0
env -i PATH=/usr/bin:/bin:/usr/sbin:/sbin ${enter} sh -euc "$2" || code=$?
set -- /tmp/* /tmp/.[!.]* /proc/[0-9]*
[ "$*" = '/tmp/* /tmp/.[!.]* /proc/1' ] || { echo "left behind: $*" >&2; exit 99; }
exit "$code"`;
    const namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    return await run([
      "/bin/sh",
      "-c",
      'exec "$@"',
      "sh",
      ...namespaces,
      "sh",
      "-c",
      outside,
      "sh",
      this.#path,
      inside,
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await fs.rm(this.#path, { recursive: true, force: true });
  }
}

/** Without the launcher: the runtime with the flag that the README says is the only one. */
async function bareRuntime(): Promise<string> {
  const [, flag = ""] = /the only permission is\s+`([^`]+)`/.exec(await fs.readFile(README, "utf8")) ?? [];
  match(flag, /^--allow-ffi=[a-z./]+$/);
  return `native/lib/deno run --quiet --no-prompt --cached-only --frozen --config deno.json ${flag} cli/main.ts`;
}

/** Makes keys of two nodes, `a` and `b`, whose ends on loopback follow. */
const KEYS = "for node in a b; do cli/icx genkey /tmp/$node.key 2>/tmp/$node.pub; done";
const A = "--identity-key /tmp/a.key --peer-key /tmp/b.pub --address 10.9.0.1/24 --local-address 127.0.0.2";
const B = "--identity-key /tmp/b.key --peer-key /tmp/a.pub --address 10.9.0.2/24 --local-address 127.0.0.3";

/** Starts a node in the background, as `$pid`, and waits until it has started or failed. */
const start = (node: string) =>
  `${node} 2>/tmp/log & pid=$!
until grep -q '"event":"starting"' /tmp/log; do kill -0 $pid 2>/dev/null || break; sleep 0.1; done`;

/** Ends it as an operator would, removes everything, and exits as it did. */
const STOP = `code=0
kill -TERM $pid && wait $pid || code=$?
cat /tmp/log >&2
rm /tmp/*
exit $code`;

/** Events of a log among other output, by their names. */
function eventsOf(stderr: string): Readonly<Record<string, Record<string, unknown>>> {
  const lines = stderr.split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line));
  return Object.fromEntries(lines.map(({ properties }) => [properties.event, properties]));
}

for (const sandbox of SANDBOXES) {
  privileged(`${sandbox.name}: the demo shows every part, all of it good, and leaves nothing behind`, async () => {
    await using checkout = await Checkout.open();
    const { code, stdout, stderr } = await checkout.run(sandbox, "cli/icx demo");
    strictEqual(code, 0, `${stdout}\n${stderr}`);
    match(stdout, /each with a TCP\/IP stack in its process/);
    match(stdout, /5 of 5 answered/);
    strictEqual(stdout.match(/content equal on both sides/g)?.length, 2, stdout);
    match(stdout, /not one packet refused for its key/);
  });

  privileged(`${sandbox.name}: auto takes a stack in the process and says why, and tun what is missing`, async () => {
    await using checkout = await Checkout.open();
    const up = `cli/icx up ${A}`;
    const auto = await checkout.run(sandbox, KEYS, start(`${up} --log-format json 127.0.0.3:6081`), STOP);
    strictEqual(auto.code, 0, auto.stderr);
    const { starting, stopped } = eventsOf(auto.stderr);
    ok(starting !== undefined && stopped !== undefined, auto.stderr);
    strictEqual(starting["datapath"], "netstack");
    match(String(starting["why"]), /^picked since there can be no device/);
    match(String(starting["why"]), sandbox.tun.says);
    match(auto.stderr, /--socks5, --http-connect and --forward/);

    const tun = await checkout.run(
      sandbox,
      KEYS,
      `code=0; ${up} --log-format text --datapath tun 127.0.0.3:6081 || code=$?; rm /tmp/*; exit $code`,
    );
    strictEqual(tun.code, sandbox.tun.code, tun.stderr);
    match(tun.stderr, sandbox.tun.says);
  });

  privileged(`${sandbox.name}: one permission of the runtime is all that nodes without a device take`, async () => {
    await using checkout = await Checkout.open();
    const bare = await bareRuntime();
    const proxy = `${bare} proxy --log-format json --socks5 1080 --reverse 80=127.0.0.1:8080 ${B} 127.0.0.2:6081`;
    const ping = `${bare} ping --count 3 --interval 50ms --timeout 20s ${A} 127.0.0.3:6081 10.9.0.2`;
    const { code, stdout, stderr } = await checkout.run(sandbox, KEYS, start(proxy), ping, STOP);
    strictEqual(code, 0, stderr);
    match(stdout, /3 sent, 3 answered, 0 % lost/);
    deepStrictEqual(eventsOf(stderr)["starting"]?.["services"], ["127.0.0.1:1080", "port 80"]);
  });
}
