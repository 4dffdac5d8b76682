/** A node as a process, read through its JSON log lines. */

import { fileURLToPath } from "node:url";
import type { Program, ProgramHost, Side } from "./program_host.ts";

/** Path of the launcher. */
export const LAUNCHER: string = fileURLToPath(new URL("./icx", import.meta.url));

/** Makes a node's identity in the private folder, as `a.key` or `b.key`, and returns its public key. */
export async function makeIdentity(host: ProgramHost, side: Side): Promise<string> {
  const file = `${host.folder}/${side}.key`;
  await host.run(side, LAUNCHER, "genkey", file);
  return (await host.run(side, LAUNCHER, "pubkey", file)).trim();
}

/** Counters of a node by name. */
export type Counters = Readonly<Record<string, number>>;

/** One sample of a node's counters. */
export interface Sample {
  /** When it arrived, on the clock of `performance.now()`. */
  readonly atMs: number;
  /** The counters so far. */
  readonly counters: Counters;
}

interface LogLine {
  readonly level: string;
  readonly message: string;
  readonly properties: Readonly<Record<string, unknown>> & { readonly event?: string };
}

/** Follows one node from its start to its last line. */
export class NodeProcess {
  /** Every sample so far, oldest first. */
  readonly samples: Sample[] = [];
  /** When each key exchange after the first was done. */
  readonly rekeys: number[] = [];
  readonly #program: Program;
  readonly #side: Side;
  readonly #seen = new Map<string, Readonly<Record<string, unknown>>>();
  readonly #waiting = new Map<string, (fields: Readonly<Record<string, unknown>>) => void>();
  readonly #problems: string[] = [];
  readonly #reading: Promise<void>;
  #ended = false;

  private constructor(side: Side, program: Program) {
    this.#side = side;
    this.#program = program;
    this.#reading = this.#read();
    this.#reading.catch(() => {});
  }

  /** Starts the node; `launcher` is the path of `cli/icx`, and the arguments begin with the command. */
  static start(host: ProgramHost, side: Side, launcher: string, args: readonly string[]): NodeProcess {
    return new NodeProcess(side, host.start(side, "stderr", launcher, ...args));
  }

  /** Of the node. */
  get pid(): number {
    return this.#program.pid;
  }

  /** Waits for the first line of an event and gives its fields. */
  async seen(event: string, timeoutMs: number): Promise<Readonly<Record<string, unknown>>> {
    const fields = this.#seen.get(event);
    if (fields !== undefined) return fields;
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      return await Promise.race([
        new Promise<Readonly<Record<string, unknown>>>((resolve) => this.#waiting.set(event, resolve)),
        new Promise<never>((_, reject) => {
          timer = setTimeout(() => reject(this.#failure(`said no "${event}" within ${timeoutMs} ms`)), timeoutMs);
        }),
        this.#reading.then(() => Promise.reject(this.#failure(`ended before its "${event}"`))),
      ]);
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(event);
    }
  }

  /** Asks the node to stop, waits for its end and gives its last counters. */
  async stop(): Promise<Counters> {
    this.#program.stop();
    await this.#reading;
    const code = await this.#program.ended;
    if (code !== 0) throw this.#failure(`ended with exit code ${code}`);
    const last = this.samples.at(-1);
    if (last === undefined) throw this.#failure("gave no counters");
    return last.counters;
  }

  async #read(): Promise<void> {
    for await (const line of this.#program.lines) {
      const parsed = parseLine(line);
      if (parsed === undefined) {
        if (line.trim() !== "") this.#problems.push(line);
        continue;
      }
      const { event } = parsed.properties;
      if (parsed.level === "ERROR") this.#problems.push(parsed.message);
      if (event === undefined) continue;
      if (event === "counters" || event === "stopped") this.#addSample(parsed.properties["counters"]);
      if (event === "keys") this.rekeys.push(performance.now());
      if (!this.#seen.has(event)) this.#seen.set(event, parsed.properties);
      this.#waiting.get(event)?.(parsed.properties);
    }
    this.#ended = true;
  }

  #addSample(counters: unknown): void {
    if (typeof counters !== "object" || counters === null) return;
    this.samples.push({
      atMs: performance.now(),
      counters: Object.fromEntries(Object.entries(counters).map(([name, value]) => [name, Number(value)])),
    });
  }

  #failure(what: string): Error {
    const said = this.#problems.length === 0 ? "" : `; it said: ${this.#problems.slice(-5).join(" / ")}`;
    return new Error(`node ${this.#side} ${what}${this.#ended ? " (it has ended)" : ""}${said}`);
  }
}

function parseLine(line: string): LogLine | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    const value = JSON.parse(line) as Partial<LogLine>;
    return { level: value.level ?? "", message: value.message ?? "", properties: value.properties ?? {} };
  } catch {
    return undefined;
  }
}
