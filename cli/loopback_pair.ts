/** Two nodes on this host's loopback, without rights: the programs of both, and the janitor that ends them whatever happens. */

import fs from "node:fs/promises";
import process from "node:process";
import { type Program, type ProgramHost, run, type Side, start } from "./program_host.ts";

const FOLDER = "/tmp";

/** Marks the programs of one demo, so that no other process is taken for one of them. */
const MARK = "ICX_DEMO";

/**
 * Ends the programs whose numbers it was told, one in each line, once its standard input ends, that is when the command is done with it
 * or dead, however it died; then it removes the private folder, `$1`. It ignores the signals that end a terminal's processes.
 */
const JANITOR = `
trap '' HUP INT TERM
folder=$1
pids=
while read -r pid; do pids="$pids $pid"; done
ours() { tr '\\0' '\\n' <"/proc/$1/environ" 2>/dev/null | grep -qxF "${MARK}=$folder"; }
for signal in TERM KILL; do
  tries=0
  left=1
  for pid in $pids; do ours "$pid" && kill -s "$signal" "$pid" 2>/dev/null; done
  while [ -n "$left" ] && [ "$tries" -lt 30 ]; do
    left=
    for pid in $pids; do ours "$pid" && left=1; done
    [ -z "$left" ] || sleep 0.1
    tries=$((tries + 1))
  done
done
rm -rf -- "$folder"
`;

/** Ports of the programs, one of them for each side. */
export interface Ports {
  /** For data between the nodes. */
  readonly data: number;
  /** For their keys. */
  readonly control: number;
  /** Where the other side's receiver is reached from this side. */
  readonly forward: number;
  /** Where this side's receiver listens. */
  readonly receiver: number;
  /** For the nodes of `icx ping`. */
  readonly ping: { readonly data: number; readonly control: number };
}

/** Two nodes that share a host. */
export class LoopbackPair implements ProgramHost, AsyncDisposable {
  readonly folder: string;
  /** The loopback addresses of the nodes, chosen so that others hardly have them. */
  readonly underlay: Readonly<Record<Side, string>>;
  /** The ports of both sides, each on its own address. */
  readonly ports: Ports;
  readonly #janitor: Deno.ChildProcess;
  readonly #told: WritableStreamDefaultWriter<Uint8Array>;
  #closed: Promise<void> | undefined;

  private constructor(folder: string) {
    this.folder = folder;
    const [second = 0, third = 0, port = 0] = crypto.getRandomValues(new Uint16Array(3));
    const network = `127.${1 + second % 254}.${third % 255}`;
    this.underlay = { a: `${network}.1`, b: `${network}.2` };
    const first = 20_000 + port % 10_000;
    this.ports = {
      data: first,
      control: first + 1,
      forward: first + 2,
      receiver: first + 3,
      ping: { data: first + 4, control: first + 5 },
    };
    this.#janitor = new Deno.Command("/bin/sh", {
      args: ["-c", JANITOR, "icx-janitor", folder],
      stdin: "piped",
      stdout: "null",
      stderr: "null",
    }).spawn();
    this.#told = this.#janitor.stdin.getWriter();
  }

  /** Makes the private folder. */
  static async open(): Promise<LoopbackPair> {
    return new LoopbackPair(await fs.mkdtemp(`${FOLDER}/icx-demo-${process.pid}-`));
  }

  async run(_side: Side, program: string, ...args: readonly string[]): Promise<string> {
    return await run(program, args, { [MARK]: this.folder });
  }

  start(_side: Side, stream: "stdout" | "stderr", program: string, ...args: readonly string[]): Program {
    const started = start(program, args, { stream, env: { [MARK]: this.folder } });
    // When it cannot be told any more, it is at work already.
    this.#told.write(new TextEncoder().encode(`${started.pid}\n`)).catch(() => {});
    return started;
  }

  /** Ends every program and removes the folder. Safe to repeat. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#told.close();
    await this.#closed.catch(() => {});
    await this.#janitor.status;
  }
}
