/** The demo's two namespaces, the programs in them, and the janitor that removes everything whatever happens. */

import fs from "node:fs/promises";
import process from "node:process";

/** Which of the two nodes. */
export type Side = "a" | "b";

/** Underlay addresses of the two nodes, on a veth pair of their own. */
export const UNDERLAY: Readonly<Record<Side, string>> = { a: "192.0.2.1", b: "192.0.2.2" };
/** Addresses inside the tunnel. */
export const OVERLAY: Readonly<Record<Side, string>> = { a: "10.9.0.1", b: "10.9.0.2" };

const PREFIX = "icx-demo-";
const FOLDER = "/tmp";

/**
 * Removes what it is told to once its standard input ends, that is when the demo is done with it or dead, however it
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

/** A program that failed, with what it said. */
export class ProgramError extends Error {
  override readonly name = "ProgramError";
}

/** A running program whose lines can be read as they come. */
export interface Program {
  /** Lines of the stream that was asked for. */
  readonly lines: AsyncIterable<string>;
  /** Resolves with the exit code when the program has ended, `null` when a signal ended it. */
  readonly ended: Promise<number | null>;
  /** Asks it to stop. */
  stop(): void;
}

/** The two namespaces of one demo. */
export class DemoNetwork implements AsyncDisposable {
  /** A folder that only this user can read, removed with the rest. */
  readonly folder: string;
  readonly #names: Readonly<Record<Side, string>>;
  readonly #janitor: { dismiss(): Promise<void> };

  private constructor(folder: string, names: Readonly<Record<Side, string>>, janitor: { dismiss(): Promise<void> }) {
    this.folder = folder;
    this.#names = names;
    this.#janitor = janitor;
  }

  /** Makes the namespaces, joined by a veth pair of MTU 1500. */
  static async open(): Promise<DemoNetwork> {
    await sweep();
    const folder = await fs.mkdtemp(`${FOLDER}/${PREFIX}${process.pid}-`);
    const names = { a: `${PREFIX}${process.pid}-a`, b: `${PREFIX}${process.pid}-b` };
    const network = new DemoNetwork(folder, names, startJanitor(folder, Object.values(names)));
    try {
      for (const name of Object.values(names)) await ip("netns", "add", name);
      await ip("-n", names.a, "link", "add", "underlay", "type", "veth", "peer", "name", "underlay", "netns", names.b);
      for (const side of ["a", "b"] as const) {
        await ip("-n", names[side], "address", "add", `${UNDERLAY[side]}/24`, "dev", "underlay");
        await ip("-n", names[side], "link", "set", "lo", "up");
        await ip("-n", names[side], "link", "set", "underlay", "up");
      }
      return network;
    } catch (error) {
      await network[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Name of a side's namespace. */
  nameOf(side: Side): string {
    return this.#names[side];
  }

  /** Runs a program in a namespace to its end and returns its standard output. */
  async run(side: Side, program: string, ...args: readonly string[]): Promise<string> {
    return await ip("netns", "exec", this.#names[side], program, ...args);
  }

  /** Starts a program in a namespace; the lines are those of the stream that is named. */
  start(side: Side, stream: "stdout" | "stderr", program: string, ...args: readonly string[]): Program {
    const child = new Deno.Command("ip", {
      args: ["netns", "exec", this.#names[side], program, ...args],
      stdin: "null",
      stdout: stream === "stdout" ? "piped" : "null",
      stderr: stream === "stderr" ? "piped" : "inherit",
    }).spawn();
    return {
      lines: linesOf(child[stream]),
      ended: child.status.then(({ signal, code }) => signal === null ? code : null),
      stop: () => {
        try {
          child.kill("SIGTERM");
        } catch {
          // It has ended in the meantime.
        }
      },
    };
  }

  /** Ends every program in the namespaces and removes them and the folder. Safe to repeat. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#janitor.dismiss();
  }
}

function startJanitor(folder: string, names: readonly string[]): { dismiss(): Promise<void> } {
  const child = new Deno.Command("/bin/sh", {
    args: ["-c", JANITOR, "icx-demo-janitor", folder, ...names],
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
  const { success, code, stdout, stderr } = await new Deno.Command("ip", { args: [...args], stdin: "null" }).output();
  const text = new TextDecoder().decode(stdout);
  if (success) return text;
  const said = (new TextDecoder().decode(stderr) || text).trim();
  throw new ProgramError(`ip ${args.join(" ")} failed with exit code ${code}: ${said}`);
}

async function* linesOf(stream: ReadableStream<Uint8Array<ArrayBuffer>>): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    yield* lines;
  }
  if (rest !== "") yield rest;
}

/** Removes what demos that are dead left behind, for one whose janitor was killed with it. */
async function sweep(): Promise<void> {
  const stale = new Map<string, { folder: string; names: string[] }>();
  const leftBy = async (pid: string | undefined): Promise<{ folder: string; names: string[] } | undefined> => {
    if (pid === undefined || await isDemo(pid)) return undefined;
    const left = stale.get(pid) ?? { folder: "", names: [] };
    stale.set(pid, left);
    return left;
  };
  for (const line of (await ip("netns", "list")).split("\n")) {
    const name = line.split(" ", 1)[0] ?? "";
    (await leftBy(/^icx-demo-([0-9]+)-[ab]$/.exec(name)?.[1]))?.names.push(name);
  }
  for (const name of await fs.readdir(FOLDER)) {
    const left = await leftBy(/^icx-demo-([0-9]+)-[A-Za-z0-9]{6}$/.exec(name)?.[1]);
    if (left !== undefined) left.folder = `${FOLDER}/${name}`;
  }
  await Promise.all([...stale.values()].map(({ folder, names }) => startJanitor(folder, names).dismiss()));
}

/** Whether a process of that number exists and is a demo, not a later process with the same number. */
async function isDemo(pid: string): Promise<boolean> {
  try {
    const args = (await fs.readFile(`/proc/${pid}/cmdline`, "utf8")).split("\0");
    return args.includes("demo");
  } catch {
    return false;
  }
}
