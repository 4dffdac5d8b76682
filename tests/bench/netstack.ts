/**
 * What a tunnel without a device reaches beside one with TUN devices, in turn between the same two hosts: (a) TUN devices on both sides,
 * (b) stacks in the process on both, (c) a stack and a TUN device; and, where Go can build it, wireguard-go with a stack in its process.
 * Then the same over a network that loses and delays datagrams. Needs root.
 *
 * Prints medians, what is asked for, and everything as JSON at the end. It fails where what is asked for is missed.
 */

import { mkdtemp, rm } from "node:fs/promises";
import process from "node:process";
import { readBusySeconds, readPing, readProcessSeconds, readTcp, type TcpReading } from "../../cli/bench/readings.ts";
import { summarise } from "../../cli/bench/statistics.ts";
import { layOut } from "../../cli/bench/table.ts";
import { readKernelFiles } from "../../cli/shell.ts";
import { Lab } from "../netns/_lab.ts";
import { type Contender, icx, PORT, type Started, wireGuardNetstack } from "./netstack_contenders.ts";

const ROUNDS = 3;
const WARM_UP_SECONDS = 1;
const CLEAN_SECONDS = 3;
/** A connection takes longer to find its rate there. */
const LOSSY_SECONDS = 8;
/** What the network does to each datagram, either way. */
const IMPAIRMENT = "loss=1 delay=20";

const TUN = icx("tun", "tun");
const NETSTACK = icx("netstack", "netstack");
const MIXED = icx("netstack", "tun");

/** Asked of (b): bits per second with one flow, and as a share of (a). */
const LEAST_BPS = 2e9;
const LEAST_SHARE = 0.4;

/** What is measured, in the unit that it is kept in, and how it is shown. */
const MEASURES = {
  tcp1: { title: "TCP with 1 flow, Gbit/s", shown: (bps: number) => (bps / 1e9).toFixed(2) },
  tcp4: { title: "TCP with 4 flows, Gbit/s", shown: (bps: number) => (bps / 1e9).toFixed(2) },
  nodesCpu: { title: "CPU of the nodes, s a Gbit", shown: (seconds: number) => seconds.toFixed(2) },
  machineCpu: { title: "CPU of the machine, s a Gbit", shown: (seconds: number) => seconds.toFixed(2) },
  ping: { title: "ping p50, ms", shown: (seconds: number) => (seconds * 1000).toFixed(2) },
  lossy1: { title: `TCP with 1 flow at ${IMPAIRMENT}, Mbit/s`, shown: (bps: number) => (bps / 1e6).toFixed(1) },
} as const;

type Measure = keyof typeof MEASURES;

const figures = new Map<string, Map<Measure, number[]>>();
const directory = await mkdtemp("/tmp/icx-bench-");

try {
  const wireGuard = await wireGuardNetstack(directory);
  const contenders = [TUN, NETSTACK, MIXED, ...typeof wireGuard === "string" ? [] : [wireGuard]];
  if (typeof wireGuard === "string") process.stderr.write(`without wireguard-go's netstack: ${wireGuard}\n`);
  await inTurn(contenders, { relay: false, measure: measureClean });
  await inTurn(contenders, { relay: true, measure: measureLossy });
  process.exitCode = report(contenders) ? 0 : 1;
} finally {
  await rm(directory, { recursive: true, force: true });
}

/** Measures the contenders round by round in one lab. */
async function inTurn(
  contenders: readonly Contender[],
  { relay, measure }: {
    readonly relay: boolean;
    readonly measure: (lab: Lab, contender: Contender) => Promise<void>;
  },
): Promise<void> {
  await using lab = await Lab.create({ relay });
  if (relay) {
    await lab.relay.set(IMPAIRMENT);
    // As the stacks do, the kernels shall take each loss for congestion. Every kernel has this one (RFC 5681).
    for (const host of [lab.a, lab.b]) await host.ok(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"]);
  }
  for (let round = 1; round <= ROUNDS; round++) {
    for (const contender of contenders) {
      await measure(lab, contender);
      process.stderr.write(`${relay ? IMPAIRMENT : "clean"}, round ${round} of ${ROUNDS}: ${contender.name} done\n`);
    }
  }
}

async function measureClean(lab: Lab, contender: Contender): Promise<void> {
  if (contender.ping !== undefined) note(contender, "ping", readPing(await contender.ping(lab)).p50);
  const started = await contender.start(lab);
  const before = await processorTime(started);
  const { receivedBps, totalBits } = await tcp(lab, started, { flows: 1, seconds: CLEAN_SECONDS });
  const after = await processorTime(started);
  note(contender, "tcp1", receivedBps);
  note(contender, "nodesCpu", (after.nodes - before.nodes) / (totalBits / 1e9));
  note(contender, "machineCpu", (after.machine - before.machine) / (totalBits / 1e9));
  note(contender, "tcp4", (await tcp(lab, started, { flows: 4, seconds: CLEAN_SECONDS })).receivedBps);
  await started.stop();
}

async function measureLossy(lab: Lab, contender: Contender): Promise<void> {
  const started = await contender.start(lab);
  note(contender, "lossy1", (await tcp(lab, started, { flows: 1, seconds: LOSSY_SECONDS })).receivedBps);
  await started.stop();
}

async function tcp(
  lab: Lab,
  { address }: Started,
  { flows, seconds }: { readonly flows: number; readonly seconds: number },
): Promise<TcpReading> {
  // One for each run: what was lost of the end of a run keeps a server from the next.
  const server = lab.spawn(lab.b, ["iperf3", "--server", "--port", String(PORT), "--forceflush"]);
  try {
    await server.until("the server listens", 10_000, () => server.stdout.includes("listening") || undefined);
    return readTcp(
      await lab.a.ok([
        ...["iperf3", "--client", address, "--port", String(PORT), "--json", "--parallel", String(flows)],
        ...["--time", String(seconds), "--omit", String(WARM_UP_SECONDS)],
      ]),
    );
  } finally {
    server.kill("SIGINT");
    await server.ended;
  }
}

/** Seconds of processor time so far. */
async function processorTime({ pids }: Started): Promise<{ readonly nodes: number; readonly machine: number }> {
  const texts = await readKernelFiles("/proc/stat", ...pids.map((pid) => `/proc/${pid}/stat`));
  if (texts === undefined) throw new Error("a node has ended meanwhile");
  const [machine = "", ...nodes] = texts;
  return {
    nodes: nodes.reduce((sum, stat) => sum + readProcessSeconds(stat), 0),
    machine: readBusySeconds(machine),
  };
}

function note({ name }: Contender, measure: Measure, value: number): void {
  const own = figures.get(name) ?? new Map<Measure, number[]>();
  figures.set(name, own.set(measure, [...own.get(measure) ?? [], value]));
}

function median({ name }: Contender, measure: Measure): number | undefined {
  return summarise(figures.get(name)?.get(measure) ?? [])?.median;
}

function report(contenders: readonly Contender[]): boolean {
  const rows = (Object.keys(MEASURES) as Measure[]).map((measure) => {
    const { title, shown } = MEASURES[measure];
    const reference = median(TUN, measure) ?? NaN;
    return [
      title,
      ...contenders.map((contender) => {
        const value = median(contender, measure);
        return value === undefined ? "–" : `${shown(value)} (${(value / reference).toFixed(2)})`;
      }),
    ];
  });
  const header = ["", ...contenders.map(({ name }) => name)];
  process.stdout.write(`${layOut([header, ...rows]).join("\n")}\n`);
  process.stdout.write(`Medians of ${ROUNDS} rounds; in parentheses the ratio to ${TUN.name}.\n`);
  const flow = median(NETSTACK, "tcp1") ?? NaN;
  const share = flow / (median(TUN, "tcp1") ?? NaN);
  const verdicts = [
    judged(`${NETSTACK.name}, TCP with 1 flow, Gbit/s`, flow / 1e9, LEAST_BPS / 1e9),
    judged(`${NETSTACK.name} of ${TUN.name}, TCP with 1 flow`, share, LEAST_SHARE),
  ];
  const all = Object.fromEntries([...figures].map(([name, own]) => [name, Object.fromEntries(own)]));
  process.stdout.write(`${JSON.stringify(all)}\n`);
  return verdicts.every((met) => met);
}

function judged(what: string, found: number, least: number): boolean {
  const met = found >= least;
  process.stdout.write(`${met ? "met   " : "MISSED"} ${what}: ${found.toFixed(2)}, asked at least ${least}\n`);
  return met;
}
