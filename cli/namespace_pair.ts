/** Two namespaces joined by a veth pair, the programs in them, and the janitor that removes everything whatever happens. */

import fs from "node:fs/promises";
import process from "node:process";
import { type Program, type ProgramHost, run, type Side, SIDES, start } from "./program_host.ts";
import { readKernelFiles } from "./shell.ts";

/** Underlay addresses of the two nodes, on a veth pair of their own. */
export const UNDERLAY: Readonly<Record<Side, string>> = { a: "192.0.2.1", b: "192.0.2.2" };
/** Name of the underlay's device on both sides. */
export const UNDERLAY_DEVICE = "underlay";

/** Which command a pair belongs to: part of every name it makes. */
export type Owner = "demo" | "bench";

const FOLDER = "/tmp";

/**
 * Removes what it is told to once its standard input ends, that is when the command is done with it or dead, however it
 * died. `$1` is the private folder, the rest are namespaces. It ignores the signals that end a terminal's processes.
 */
const JANITOR = `
trap '' HUP INT TERM
cat >/dev/null
folder=$1
shift
for signal in TERM KILL; do
  left=
  for name in "$@"; do
    for pid in $(ip netns pids "$name" 2>/dev/null); do
      kill -s "$signal" "$pid" 2>/dev/null && left=1
    done
  done
  tries=0
  while [ -n "$left" ] && [ "$tries" -lt 30 ]; do
    left=
    for name in "$@"; do
      [ -z "$(ip netns pids "$name" 2>/dev/null)" ] || left=1
    done
    [ -z "$left" ] || sleep 0.1
    tries=$((tries + 1))
  done
done
for name in "$@"; do
  ip netns del "$name" 2>/dev/null
done
[ -z "$folder" ] || rm -rf -- "$folder"
`;

/** How a program ended and what it wrote. */
export interface ProgramOutcome {
  /** The exit code, `null` when a signal ended it. */
  readonly code: number | null;
  /** What it wrote to standard output. */
  readonly stdout: string;
  /** What it wrote to standard error. */
  readonly stderr: string;
  /** Whether it was killed for taking too long. */
  readonly timedOut: boolean;
}

/** The two namespaces of one run. */
export class NamespacePair implements ProgramHost, AsyncDisposable {
  readonly folder: string;
  readonly #names: Readonly<Record<Side, string>>;
  readonly #janitor: { dismiss(): Promise<void> };

  private constructor(folder: string, names: Readonly<Record<Side, string>>, janitor: { dismiss(): Promise<void> }) {
    this.folder = folder;
    this.#names = names;
    this.#janitor = janitor;
  }

  /** Makes the namespaces, joined by a veth pair of MTU 1500. */
  static async open(owner: Owner): Promise<NamespacePair> {
    await sweep(owner);
    const folder = await fs.mkdtemp(`${FOLDER}/icx-${owner}-${process.pid}-`);
    const names = { a: `icx-${owner}-${process.pid}-a`, b: `icx-${owner}-${process.pid}-b` };
    const pair = new NamespacePair(folder, names, startJanitor(folder, Object.values(names)));
    try {
      for (const name of Object.values(names)) await ip("netns", "add", name);
      await ip(
        "-n",
        names.a,
        "link",
        "add",
        UNDERLAY_DEVICE,
        "type",
        "veth",
        "peer",
        "name",
        UNDERLAY_DEVICE,
        "netns",
        names.b,
      );
      for (const side of SIDES) {
        await ip("-n", names[side], "address", "add", `${UNDERLAY[side]}/24`, "dev", UNDERLAY_DEVICE);
        await ip("-n", names[side], "link", "set", "lo", "up");
        await ip("-n", names[side], "link", "set", UNDERLAY_DEVICE, "up");
      }
      return pair;
    } catch (error) {
      await pair[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Name of a side's namespace. */
  nameOf(side: Side): string {
    return this.#names[side];
  }

  async run(side: Side, program: string, ...args: readonly string[]): Promise<string> {
    return await ip("netns", "exec", this.#names[side], program, ...args);
  }

  /** Runs `ip` on a namespace, as in `ip -n NAME address show`, and returns its standard output. */
  async ip(side: Side, ...args: readonly string[]): Promise<string> {
    return await ip("-n", this.#names[side], ...args);
  }

  /** Runs a program in a namespace for so long at most, and tells how it ended, also when that was badly. */
  async attempt(
    side: Side,
    program: readonly string[],
    options: { readonly timeoutMs: number },
  ): Promise<ProgramOutcome> {
    const child = new Deno.Command("ip", {
      args: ["netns", "exec", this.#names[side], ...program],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    let timedOut = false;
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill("SIGKILL");
    }, options.timeoutMs);
    try {
      const { code, signal, stdout, stderr } = await child.output();
      const decode = (bytes: Uint8Array<ArrayBuffer>) => new TextDecoder().decode(bytes);
      return { code: signal === null ? code : null, stdout: decode(stdout), stderr: decode(stderr), timedOut };
    } finally {
      clearTimeout(timer);
    }
  }

  start(side: Side, stream: "stdout" | "stderr", program: string, ...args: readonly string[]): Program {
    return start("ip", ["netns", "exec", this.#names[side], program, ...args], { stream });
  }

  /** Ends every program in the namespaces and removes them and the folder. Safe to repeat. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#janitor.dismiss();
  }
}

function startJanitor(folder: string, names: readonly string[]): { dismiss(): Promise<void> } {
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", JANITOR, "icx-janitor", folder, ...names],
    stdin: "piped",
    stdout: "null",
    stderr: "null",
  }).spawn();
  let closed: Promise<void> | undefined;
  return {
    dismiss: async () => {
      closed ??= child.stdin.close();
      await closed;
      await child.status;
    },
  };
}

/** Runs `ip` and returns its standard output. */
async function ip(...args: readonly string[]): Promise<string> {
  return await run("ip", args);
}

/** Removes what runs of a command that are dead left behind, for one whose janitor was killed with it. */
async function sweep(owner: Owner): Promise<void> {
  const stale = new Map<string, { folder: string; names: string[] }>();
  const leftBy = async (pid: string | undefined): Promise<{ folder: string; names: string[] } | undefined> => {
    if (pid === undefined || await isAlive(pid, owner)) return undefined;
    const left = stale.get(pid) ?? { folder: "", names: [] };
    stale.set(pid, left);
    return left;
  };
  const namespace = new RegExp(`^icx-${owner}-([0-9]+)-[ab]$`);
  for (const line of (await ip("netns", "list")).split("\n")) {
    const name = line.split(" ", 1)[0] ?? "";
    (await leftBy(namespace.exec(name)?.[1]))?.names.push(name);
  }
  const privateFolder = new RegExp(`^icx-${owner}-([0-9]+)-[A-Za-z0-9]{6}$`);
  for (const name of await fs.readdir(FOLDER)) {
    const left = await leftBy(privateFolder.exec(name)?.[1]);
    if (left !== undefined) left.folder = `${FOLDER}/${name}`;
  }
  await Promise.all([...stale.values()].map(({ folder, names }) => startJanitor(folder, names).dismiss()));
}

/** Whether a process of that number exists and runs that command, not a later process with the same number. */
async function isAlive(pid: string, owner: Owner): Promise<boolean> {
  const [commandLine] = await readKernelFiles(`/proc/${pid}/cmdline`) ?? [];
  return commandLine?.split("\0").includes(owner) ?? false;
}
