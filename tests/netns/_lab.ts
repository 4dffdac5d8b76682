/**
 * Two hosts in network namespaces joined by a veth pair or by a relay, and icx nodes on them.
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

/** A program of the test kit, as set-up placed it. */
function testKit(name: "icx-relay" | "icx-adversary"): string {
  return fileURLToPath(new URL(`../../native/lib/${name}`, import.meta.url));
}

/** The network between the hosts, where a lab has a relay. */
const RELAY = testKit("icx-relay");

/** Sends a node what an attacker could. */
export const ADVERSARY: string = testKit("icx-adversary");

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
  readonly #input: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>> | undefined;
  readonly ended: Promise<Outcome>;
  running = true;
  stdout = "";
  stderr = "";

  constructor(argv: readonly string[], options: { readonly stdin?: "null" | "piped" } = {}) {
    const [command, ...args] = argv;
    assert(command !== undefined);
    const { stdin = "null" } = options;
    this.#child = new Deno.Command(command, { args, stdin, stdout: "piped", stderr: "piped" }).spawn();
    if (stdin === "piped") this.#input = this.#child.stdin.getWriter();
    this.ended = this.#follow();
    // Whoever awaits it sees a failure; a process that nobody waits for must not end the test run.
    this.ended.catch(() => {});
  }

  /** Of what `ip netns exec` became: it does not fork. */
  get pid(): number {
    return this.#child.pid;
  }

  kill(signal: Deno.Signal): void {
    if (this.running) this.#child.kill(signal);
  }

  /** Writes a line to its standard input, which must be piped. */
  async write(line: string): Promise<void> {
    assert(this.#input !== undefined, "this process has no standard input");
    await this.#input.write(new TextEncoder().encode(`${line}\n`));
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
    // Broken already when the process has ended first.
    await this.#input?.close().catch(() => {});
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
export class Namespace {
  readonly ns: string;

  constructor(ns: string) {
    this.ns = ns;
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

  start(command: readonly string[], options: { readonly stdin?: "null" | "piped" } = {}): Running {
    return new Running(this.argv(command), options);
  }

  shell(script: string, timeoutMs?: number): Promise<Outcome> {
    return this.run(["bash", "-euo", "pipefail", "-c", script], timeoutMs);
  }
}

/** A namespace in which a node runs. */
export class Host extends Namespace {
  /** Address on the wire between the hosts. */
  readonly underlay: string;
  /** Where the other host is, as seen from this one. */
  readonly peerUnderlay: string;
  /** Who is at the other end of its wire. */
  readonly gateway: string;
  /** Addresses inside the tunnel. */
  readonly inner4: string;
  readonly inner6: string;
  readonly keyFile: string;
  publicKey = "";

  constructor(
    options: {
      ns: string;
      underlay: string;
      peerUnderlay: string;
      gateway: string;
      inner4: string;
      inner6: string;
      keyFile: string;
    },
  ) {
    super(options.ns);
    ({
      underlay: this.underlay,
      peerUnderlay: this.peerUnderlay,
      gateway: this.gateway,
      inner4: this.inner4,
      inner6: this.inner6,
      keyFile: this.keyFile,
    } = options);
  }
}

/** What became of the datagrams of each lane of a relay: a direction, `a-b` or `b-a`, and a port. */
export type RelayCounts = Readonly<Record<string, Readonly<Record<string, number>>>>;

/** The network between the hosts, as bad as it is told to be. */
export class Relay {
  readonly process: Running;

  constructor(process: Running) {
    this.process = process;
  }

  ready(): Promise<unknown> {
    return this.#answer(0, "the relay is ready");
  }

  /**
   * Changes the network, in words of the form `name=value`: `loss`, `duplicate`, `corrupt` and `reorder` in percent, `hold` and
   * `delay` in milliseconds, `mtu` in bytes of IP packet, `link=up` or `down`; `clear` makes it perfect.
   */
  async set(change: string): Promise<RelayCounts> {
    const from = this.process.stdout.length;
    await this.process.write(change);
    const answer = await this.#answer(from, `the relay's answer to ${change}`);
    assert.equal(answer["event"], "ok", JSON.stringify(answer));
    return answer["counts"] as RelayCounts;
  }

  counts(): Promise<RelayCounts> {
    return this.set("counts");
  }

  #answer(from: number, what: string): Promise<Record<string, unknown>> {
    return this.process.until(what, 10_000, () => {
      const [line, rest] = this.process.stdout.slice(from).split("\n", 2);
      return rest === undefined ? undefined : JSON.parse(line ?? "") as Record<string, unknown>;
    });
  }
}

/** Counters of a node as its log gives them. */
export type Counters = Readonly<Record<string, number>>;

/** A line of a node's log, as far as the tests look at it. */
interface LogLine {
  readonly "@timestamp": string;
  readonly message: string;
  readonly properties: Record<string, unknown>;
}

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
        const record = JSON.parse(line) as LogLine;
        events.push({ message: record.message, timestamp: record["@timestamp"], ...record.properties });
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
    return (await this.statistics()).counters;
  }

  /** The same, with what the datapath counts at its ends. */
  async statistics(): Promise<{ readonly counters: Counters; readonly ends: Counters }> {
    const from = this.events().length;
    const event = await this.event("counters", 10_000, from);
    return { counters: event["counters"] as Counters, ends: event["ends"] as Counters };
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
  /** A relay in a third namespace stands between the hosts. @default false */
  readonly relay?: boolean;
  /** A router in a third namespace stands between the hosts, with a wire `side-a` and `side-b` to each. @default false */
  readonly router?: boolean;
  /**
   * The hosts are joined by a switch in a third namespace, with a port `side-a` and `side-b` to each: whoever is there sees
   * every frame, and sends host `b` datagrams from addresses of others. @default false
   */
  readonly intruder?: boolean;
}

/** Who an intruder can say that it is: host `a`, or somebody whom nobody knows. */
export const DISGUISES = { peer: "192.168.77.1", stranger: "192.168.77.3" } as const;

let serial = 0;

/** What moves the packets of nodes that a lab starts, unless their own options say so: options of `icx up`. */
const DATAPATHS = {
  "tun": [],
  "afxdp, veth": ["--datapath", "afxdp", "--device", "veth"],
  "afxdp, veth, generic": ["--datapath", "afxdp", "--device", "veth", "--xdp-attach", "generic"],
  "afxdp, tun": ["--datapath", "afxdp", "--device", "tun"],
} as const;

/** What moves packets in a test. */
export type DatapathName = keyof typeof DATAPATHS;

/** That of the test that runs. */
let datapath: readonly string[] = [];

/** The two hosts `a` and `b`, and what is between and beside them. */
export class Lab {
  readonly a: Host;
  readonly b: Host;
  readonly directory: string;
  readonly #third: Namespace;
  readonly #nodes: Node[] = [];
  readonly #running: Running[] = [];
  readonly #mtuBytes: number;
  #relay: Relay | undefined;

  private constructor(a: Host, b: Host, options: { third: Namespace; directory: string; mtuBytes: number }) {
    this.a = a;
    this.b = b;
    this.#third = options.third;
    this.directory = options.directory;
    this.#mtuBytes = options.mtuBytes;
  }

  static async create(options: LabOptions = {}): Promise<Lab> {
    const tag = `icxt-${process.pid}-${serial++}`;
    const directory = await mkdtemp(join(tmpdir(), `${tag}-`));
    const v6 = options.underlay === "ipv6";
    assert(!(v6 && options.intruder), "the intruder lies over IPv4 only");
    const apart = options.relay === true || options.router === true;
    const address = (net: number, n: number) => v6 ? `fd${net}::${n}` : `192.168.${net}.${n}`;
    const host = (letter: "a" | "b", n: number) => {
      const net = apart && letter === "b" ? 78 : 77;
      const gateway = address(net, 3 - n);
      return new Host({
        ns: `${tag}${letter}`,
        underlay: address(net, n),
        peerUnderlay: options.router ? address(155 - net, 3 - n) : gateway,
        gateway,
        inner4: `10.9.0.${n}`,
        inner6: `fd09::${n}`,
        keyFile: join(directory, `${letter}.key`),
      });
    };
    const { mtuBytes = 1500 } = options;
    const third = new Namespace(`${tag}m`);
    const lab = new Lab(host("a", 1), host("b", 2), { third, directory, mtuBytes });
    try {
      await lab.#build(options);
    } catch (error) {
      await lab[Symbol.asyncDispose]();
      throw error;
    }
    return lab;
  }

  /** The network between the hosts. */
  get relay(): Relay {
    assert(this.#relay !== undefined, "this lab was made without a relay");
    return this.#relay;
  }

  /** What stands between the hosts. */
  get router(): Namespace {
    return this.#third;
  }

  /** Where the intruder is. */
  get intruder(): Namespace {
    return this.#third;
  }

  async #build({ relay = false, router = false, intruder = false }: LabOptions): Promise<void> {
    await Promise.all([this.a, this.b].map(async (host) => {
      await addNamespace(host);
      const generated = await run([ICX, "genkey", host.keyFile]);
      assert.equal(generated.code, 0, generated.stderr);
      host.publicKey = generated.stderr.trim();
    }));
    if (!relay && !router && !intruder) {
      await this.rewire();
      return;
    }
    await addNamespace(this.#third);
    if (intruder) {
      await this.#joinBySwitch();
      return;
    }
    for (const [name, host] of [["side-a", this.a], ["side-b", this.b]] as const) {
      await wire([host, "phy", host.underlay], [this.#third, name, host.gateway], this.#mtuBytes);
      if (router) await host.ok(["ip", "route", "add", "default", "via", host.gateway]);
    }
    if (router) {
      for (const name of ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]) {
        await this.#third.ok(["sysctl", "-qw", `${name}=1`]);
      }
      return;
    }
    const running = this.#third.start([
      RELAY,
      ...["--a", this.a.underlay, "--a-side", this.a.peerUnderlay],
      ...["--b", this.b.underlay, "--b-side", this.b.peerUnderlay],
    ], { stdin: "piped" });
    this.#running.push(running);
    this.#relay = new Relay(running);
    await this.#relay.ready();
  }

  /** Lays the wire between the hosts, in a lab without a relay. */
  async rewire(): Promise<void> {
    await wire([this.a, "phy", this.a.underlay], [this.b, "phy", this.b.underlay], this.#mtuBytes);
  }

  /** Makes the third namespace a switch between the hosts, where processes may send host `b` what they like. */
  async #joinBySwitch(): Promise<void> {
    const { ns } = this.#third;
    await ok(["ip", "-n", ns, "link", "add", "switch", "type", "bridge"]);
    for (const [name, host] of [["side-a", this.a], ["side-b", this.b]] as const) {
      await wire([host, "phy", host.underlay], [this.#third, name], this.#mtuBytes);
      await ok(["ip", "-n", ns, "link", "set", name, "master", "switch"]);
    }
    // It must not answer who asks for the addresses that it pretends to have.
    await ok(["ip", "-n", ns, "link", "set", "switch", "arp", "off", "up"]);
    for (const address of Object.values(DISGUISES)) {
      await ok(["ip", "-n", ns, "addr", "add", `${address}/32`, "dev", "switch"]);
    }
    await ok(["ip", "-n", ns, "route", "add", `${this.b.underlay}/32`, "dev", "switch"]);
    const mac = (await this.b.ok(["cat", "/sys/class/net/phy/address"])).trim();
    await ok(["ip", "-n", ns, "neigh", "add", this.b.underlay, "lladdr", mac, "dev", "switch", "nud", "permanent"]);
  }

  other(host: Host): Host {
    return host === this.a ? this.b : this.a;
  }

  /**
   * Starts a node on `host` towards the other one, which is known by `peerHost`, a name or an address; `command` is that of the
   * launcher, `through` is a command that runs the launcher, such as `prlimit`, and `statsInterval` says how often it logs its counters.
   */
  start(
    host: Host,
    extra: readonly string[] = [],
    { command = "up", through = [], peerHost = host.peerUnderlay, statsInterval = "200ms" }: {
      readonly command?: "up" | "proxy";
      readonly through?: readonly string[];
      readonly peerHost?: string;
      readonly statsInterval?: string;
    } = {},
  ): Node {
    const node = new Node(
      host,
      host.start([
        ...through,
        ICX,
        command,
        ...(command === "up" ? datapath : []),
        ...extra,
        ...this.ends(host),
        ...["--log-format", "json", "--stats-interval", statsInterval],
        `${bracketed(peerHost)}:6081`,
      ]),
    );
    this.#nodes.push(node);
    return node;
  }

  /** Options that say who the node on `host` and its peer are, and which inner addresses it has. */
  ends(host: Host): readonly string[] {
    return [
      ...["--identity-key", host.keyFile, "--peer-key", this.other(host).publicKey],
      ...["--address", `${host.inner4}/24`, "--address", `${host.inner6}/64`],
    ];
  }

  /** Starts both nodes and waits until the tunnel is up on both. */
  async tunnel(extra: readonly string[] = [], extraB: readonly string[] = extra): Promise<[Node, Node]> {
    const nodes: [Node, Node] = [this.start(this.a, extra), this.start(this.b, extraB)];
    await Promise.all(nodes.map((node) => node.event("up")));
    return nodes;
  }

  /** A process in a host that ends with the lab. */
  spawn(host: Namespace, command: readonly string[]): Running {
    const running = host.start(command);
    this.#running.push(running);
    return running;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const running of [...this.#nodes.map((node) => node.process), ...this.#running]) {
      if (running.running) running.kill("SIGKILL");
      await running.ended.catch(() => {});
    }
    await Promise.all([this.a, this.b, this.#third].map(async (host) => {
      // Whatever else still runs in there would keep the namespace alive.
      const pids = (await run(["ip", "netns", "pids", host.ns])).stdout.split("\n").filter((pid) => pid !== "");
      if (pids.length > 0) await host.run(["sh", "-c", `kill -KILL ${pids.join(" ")}`]);
      await host.run(["sh", "-c", FORGET_CLAIMS]);
      await run(["ip", "netns", "del", host.ns]);
    }));
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** An address as it stands before a port. */
export function bracketed(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}

/** Removes what nodes noted of interfaces in the namespace that it runs in. */
const FORGET_CLAIMS = 'rm -f /run/icx/"$(stat -Lc %i /proc/self/ns/net)"-*';

async function addNamespace(namespace: Namespace): Promise<void> {
  const { ns } = namespace;
  await ok(["ip", "netns", "add", ns]);
  // Its number may be that of a former one, in which a node was killed.
  await namespace.ok(["sh", "-c", FORGET_CLAIMS]);
  await ok(["ip", "-n", ns, "link", "set", "lo", "up"]);
}

/** One end of a wire: where, the device's name, its address; the port of a switch has none. */
type End = readonly [namespace: Namespace, device: string, address?: string];

/** Lays a wire between two namespaces. */
async function wire(one: End, other: End, mtuBytes: number): Promise<void> {
  const peer = ["peer", "name", other[1], "netns", other[0].ns];
  await ok(["ip", "-n", one[0].ns, "link", "add", one[1], "type", "veth", ...peer]);
  for (const [{ ns }, device, address] of [one, other]) {
    if (address !== undefined) {
      const length = address.includes(":") ? [`${address}/64`, "nodad"] : [`${address}/24`];
      await ok(["ip", "-n", ns, "addr", "add", ...length, "dev", device]);
    }
    await ok(["ip", "-n", ns, "link", "set", "dev", device, "mtu", String(mtuBytes), "up"]);
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

/** The same test over several datapaths. */
export function privilegedOver(datapaths: readonly DatapathName[], name: string, body: () => Promise<void>): void {
  for (const kind of datapaths) {
    privileged(kind === "tun" ? name : `${kind}: ${name}`, async () => {
      datapath = DATAPATHS[kind];
      try {
        await body();
      } finally {
        datapath = [];
      }
    });
  }
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
