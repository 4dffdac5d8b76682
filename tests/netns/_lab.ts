/**
 * Two hosts in network namespaces joined by a veth pair, and icx nodes on them.
 *
 * Every name carries the process id and a serial number, and everything is removed when the lab is disposed of.
 *
 * @module
 */
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** The launcher under test. */
export const ICX: string = fileURLToPath(new URL("../../cli/icx", import.meta.url));

/** The Deno binary that set-up placed beside the library, as the launcher uses it. */
export const DENO: string = process.execPath;

/** What a command left behind. */
export interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A process with its output collected as it comes. */
export class Running {
  readonly #child: Deno.ChildProcess;
  readonly #waiting = new Set<() => void>();
  readonly ended: Promise<Outcome>;
  running = true;
  stdout = "";
  stderr = "";

  constructor(argv: readonly string[]) {
    const [command, ...args] = argv;
    assert(command !== undefined);
    this.#child = new Deno.Command(command, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn();
    this.ended = this.#follow();
    // Whoever awaits it sees a failure; a process that nobody waits for must not end the test run.
    this.ended.catch(() => {});
  }

  kill(signal: Deno.Signal): void {
    if (this.running) this.#child.kill(signal);
  }

  /** Resolves once `found` gives something else than undefined for the output so far. */
  async until<T>(what: string, timeoutMs: number, found: () => T | undefined): Promise<T> {
    const end = Date.now() + timeoutMs;
    while (true) {
      const value = found();
      if (value !== undefined) return value;
      if (!this.running) throw new Error(`ended before ${what}:\n${this.#tail()}`);
      const left = end - Date.now();
      if (left <= 0) throw new Error(`not within ${timeoutMs} ms: ${what}\n${this.#tail()}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, Math.min(left, 200));
        this.#waiting.add(() => {
          clearTimeout(timer);
          resolve();
        });
      });
    }
  }

  async #follow(): Promise<Outcome> {
    const [status] = await Promise.all([this.#child.status, this.#collect("stdout"), this.#collect("stderr")]);
    this.running = false;
    this.#wake();
    return { code: status.signal === null ? status.code : null, stdout: this.stdout, stderr: this.stderr };
  }

  async #collect(stream: "stdout" | "stderr"): Promise<void> {
    for await (const text of this.#child[stream].pipeThrough(new TextDecoderStream())) {
      this[stream] += text;
      this.#wake();
    }
  }

  /** The end of what it printed. */
  #tail(): string {
    const lines = `${this.stdout}\n${this.stderr}`.split("\n").filter((line) => !line.includes('"event":"counters"'));
    return lines.slice(-20).join("\n");
  }

  #wake(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }
}

/** Runs a command to its end. */
export async function run(argv: readonly string[], timeoutMs = 60_000): Promise<Outcome> {
  const running = new Running(argv);
  const timer = setTimeout(() => running.kill("SIGKILL"), timeoutMs);
  try {
    return await running.ended;
  } finally {
    clearTimeout(timer);
  }
}

/** Runs a command that must succeed; gives its standard output. */
export async function ok(argv: readonly string[], timeoutMs = 60_000): Promise<string> {
  const outcome = await run(argv, timeoutMs);
  if (outcome.code !== 0) {
    throw new Error(`${argv.join(" ")} ended with ${outcome.code}:\n${outcome.stdout}${outcome.stderr}`);
  }
  return outcome.stdout;
}

/** One network namespace. */
export class Host {
  readonly ns: string;
  /** Address on the wire between the hosts. */
  readonly underlay: string;
  /** Addresses inside the tunnel. */
  readonly inner4: string;
  readonly inner6: string;
  readonly keyFile: string;
  publicKey = "";

  constructor(
    options: { ns: string; underlay: string; inner4: string; inner6: string; keyFile: string },
  ) {
    ({
      ns: this.ns,
      underlay: this.underlay,
      inner4: this.inner4,
      inner6: this.inner6,
      keyFile: this.keyFile,
    } = options);
  }

  argv(command: readonly string[]): string[] {
    return ["ip", "netns", "exec", this.ns, ...command];
  }

  run(command: readonly string[], timeoutMs?: number): Promise<Outcome> {
    return run(this.argv(command), timeoutMs);
  }

  ok(command: readonly string[], timeoutMs?: number): Promise<string> {
    return ok(this.argv(command), timeoutMs);
  }

  start(command: readonly string[]): Running {
    return new Running(this.argv(command));
  }

  shell(script: string, timeoutMs?: number): Promise<Outcome> {
    return this.run(["bash", "-euo", "pipefail", "-c", script], timeoutMs);
  }
}

/** Counters of a node as its log gives them. */
export type Counters = Readonly<Record<string, number>>;

/** A node started with `icx up`, logging JSON lines. */
export class Node {
  readonly process: Running;
  readonly host: Host;

  constructor(host: Host, process: Running) {
    this.host = host;
    this.process = process;
  }

  /** The structured log so far. */
  events(): Record<string, unknown>[] {
    const events: Record<string, unknown>[] = [];
    for (const line of this.process.stderr.split("\n")) {
      if (!line.startsWith("{")) continue;
      try {
        const { message, properties } = JSON.parse(line) as { message: string; properties: Record<string, unknown> };
        events.push({ message, ...properties });
      } catch {
        // The last line may still be on its way.
      }
    }
    return events;
  }

  /** Resolves with the first event of that name at or after index `from`. */
  event(name: string, timeoutMs = 30_000, from = 0): Promise<Record<string, unknown>> {
    return this.process.until(
      `event ${name} on ${this.host.ns}`,
      timeoutMs,
      () => this.events().slice(from).find((event) => event["event"] === name),
    );
  }

  /** Counters from the first statistics line that is written after now. */
  async counters(): Promise<Counters> {
    const from = this.events().length;
    const event = await this.event("counters", 5_000, from);
    return event["counters"] as Counters;
  }

  /** Ends the node as an operator would, and expects a clean end. */
  async stop(): Promise<Counters> {
    this.process.kill("SIGINT");
    const { code, stderr } = await this.process.ended;
    assert.equal(code, 0, `clean end expected, got ${code}:\n${stderr}`);
    const last = this.events().findLast((event) => event["event"] === "stopped");
    assert(last, `no closing event:\n${stderr}`);
    return last["counters"] as Counters;
  }

  /** Ends the node without giving it a chance to clean up. */
  async crash(): Promise<void> {
    this.process.kill("SIGKILL");
    await this.process.ended;
  }
}

/** How a lab is built. */
export interface LabOptions {
  /** @default "ipv4" */
  readonly underlay?: "ipv4" | "ipv6";
  /** MTU of the link between the hosts in bytes. @default 1500 */
  readonly mtuBytes?: number;
}

let serial = 0;

/** The two hosts `a` and `b`. */
export class Lab {
  readonly a: Host;
  readonly b: Host;
  readonly directory: string;
  readonly #nodes: Node[] = [];
  readonly #running: Running[] = [];

  private constructor(a: Host, b: Host, directory: string) {
    this.a = a;
    this.b = b;
    this.directory = directory;
  }

  static async create(options: LabOptions = {}): Promise<Lab> {
    const tag = `icxt-${process.pid}-${serial++}`;
    const directory = await mkdtemp(join(tmpdir(), `${tag}-`));
    const v6 = options.underlay === "ipv6";
    const host = (letter: "a" | "b", n: number) =>
      new Host({
        ns: `${tag}${letter}`,
        underlay: v6 ? `fd77::${n}` : `192.168.77.${n}`,
        inner4: `10.9.0.${n}`,
        inner6: `fd09::${n}`,
        keyFile: join(directory, `${letter}.key`),
      });
    const lab = new Lab(host("a", 1), host("b", 2), directory);
    try {
      await lab.#build(v6, options.mtuBytes ?? 1500);
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
    return lab;
  }

  async #build(v6: boolean, mtuBytes: number): Promise<void> {
    for (const host of [this.a, this.b]) {
      await ok(["ip", "netns", "add", host.ns]);
      await ok(["ip", "-n", host.ns, "link", "set", "lo", "up"]);
    }
    await ok(["ip", "-n", this.a.ns, "link", "add", "phy", "type", "veth", "peer", "name", "phy", "netns", this.b.ns]);
    for (const host of [this.a, this.b]) {
      const address = v6 ? [`${host.underlay}/64`, "nodad"] : [`${host.underlay}/24`];
      await ok(["ip", "-n", host.ns, "addr", "add", ...address, "dev", "phy"]);
      await ok(["ip", "-n", host.ns, "link", "set", "phy", "mtu", String(mtuBytes), "up"]);
      const generated = await run([ICX, "genkey", host.keyFile]);
      assert.equal(generated.code, 0, generated.stderr);
      host.publicKey = (await ok([ICX, "pubkey", host.keyFile])).trim();
    }
  }

  other(host: Host): Host {
    return host === this.a ? this.b : this.a;
  }

  /** Starts a node on `host` towards the other one. */
  start(host: Host, extra: readonly string[] = []): Node {
    const peer = this.other(host);
    const endpoint = peer.underlay.includes(":") ? `[${peer.underlay}]:6081` : `${peer.underlay}:6081`;
    const node = new Node(
      host,
      host.start([
        ICX,
        "up",
        ...["--identity-key", host.keyFile, "--peer-key", peer.publicKey],
        ...["--address", `${host.inner4}/24`, "--address", `${host.inner6}/64`],
        ...["--log-format", "json", "--stats-interval", "200ms"],
        ...extra,
        endpoint,
      ]),
    );
    this.#nodes.push(node);
    return node;
  }

  /** Starts both nodes and waits until the tunnel is up on both. */
  async tunnel(extra: readonly string[] = [], extraB: readonly string[] = extra): Promise<[Node, Node]> {
    const nodes: [Node, Node] = [this.start(this.a, extra), this.start(this.b, extraB)];
    await Promise.all(nodes.map((node) => node.event("up")));
    return nodes;
  }

  /** A process in a host that ends with the lab. */
  spawn(host: Host, command: readonly string[]): Running {
    const running = host.start(command);
    this.#running.push(running);
    return running;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const running of [...this.#nodes.map((node) => node.process), ...this.#running]) {
      if (running.running) running.kill("SIGKILL");
      await running.ended.catch(() => {});
    }
    for (const host of [this.a, this.b]) {
      // Whatever else still runs in there would keep the namespace alive.
      const pids = (await run(["ip", "netns", "pids", host.ns])).stdout.split("\n").filter((pid) => pid !== "");
      if (pids.length > 0) await host.run(["sh", "-c", `kill -KILL ${pids.join(" ")}`]);
      await run(["ip", "netns", "del", host.ns]);
    }
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** Waits until `probe` succeeds; gives the milliseconds it took. */
export async function eventually(what: string, timeoutMs: number, probe: () => Promise<boolean>): Promise<number> {
  const start = Date.now();
  while (!(await probe())) {
    if (Date.now() - start > timeoutMs) throw new Error(`not within ${timeoutMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return Date.now() - start;
}

/** Sums every counter whose name says that something was dropped. */
export function drops(counters: Counters): Counters {
  const kept = ["packets", "bytes"];
  return Object.fromEntries(
    Object.entries(counters).filter(([name, value]) =>
      /^(rx|tx)_/.test(name) && !kept.some((suffix) => name.endsWith(suffix)) && value !== 0
    ),
  );
}

/** A test that needs root: skipped with a reason without it, or failed where `ICX_TEST_PRIVILEGED=1` demands it. */
export function privileged(name: string, body: () => Promise<void>): void {
  const root = process.getuid?.() === 0;
  if (!root && process.env["ICX_TEST_PRIVILEGED"] === "1") {
    Deno.test(name, () => assert.fail("ICX_TEST_PRIVILEGED=1 but this user is not root"));
    return;
  }
  Deno.test({ name: root ? name : `${name} (skipped: needs root)`, ignore: !root, fn: body });
}
