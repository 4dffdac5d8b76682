/**
 * What a forwarder over AF_XDP reaches beside one that does no cryptography: (a) pass-through, (b) icx with a veth pair, (c) icx with a TUN
 * device, in turn between the same two namespaces. Needs root.
 *
 * Prints medians, and against what they should be the medians of the ratios to (a) in the same round, since the machine's speed changes from
 * round to round; everything as JSON at the end. It fails where a ratio is missed.
 */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { ICX, Namespace, ok, type Running } from "../netns/_lab.ts";
import { mkdtemp, rm } from "node:fs/promises";

const PASS_THROUGH = fileURLToPath(new URL("../../rust/target/release/icx-pass-through", import.meta.url));
const ROUNDS = 9;
const SECONDS = 2;
const SMALL_BYTES = 22;

/** What is asked for, as ratios to (a). */
const TARGETS: readonly {
  readonly name: string;
  readonly of: Contender;
  readonly measure: Measure;
  readonly least?: number;
  readonly most?: number;
}[] = [
  { name: "(b) of (a), TCP with 1 flow", of: "b", measure: "tcp1", least: 0.9 },
  { name: "(b) of (a), TCP with 4 flows", of: "b", measure: "tcp4", least: 0.9 },
  { name: "(c) of (a), TCP with 1 flow", of: "c", measure: "tcp1", least: 1.7 },
  { name: "(c) of (a), TCP with 4 flows", of: "c", measure: "tcp4", least: 2 },
  { name: "(b) of (a), ping p50", of: "b", measure: "ping", most: 1.15 },
];

type Contender = "a" | "b" | "c";
type Measure = "tcp1" | "tcp4" | "ping" | "pps" | "nsPerPacket";

const NAMES: Readonly<Record<Contender, string>> = { a: "pass-through", b: "icx veth", c: "icx tun" };
const UNITS: Readonly<Record<Measure, string>> = {
  tcp1: "Gbit/s, 1 flow",
  tcp4: "Gbit/s, 4 flows",
  ping: "ms, ping p50",
  pps: "packets/s of 64 B",
  nsPerPacket: "CPU ns a packet of 64 B",
};

const tag = `icxb-${process.pid}`;
const hosts = [new Namespace(`${tag}a`), new Namespace(`${tag}b`)] as const;
const directory = await mkdtemp("/tmp/icx-bench-");
const figures: Record<Contender, Record<Measure, number[]>> = { a: empty(), b: empty(), c: empty() };

function empty(): Record<Measure, number[]> {
  return { tcp1: [], tcp4: [], ping: [], pps: [], nsPerPacket: [] };
}

try {
  await wire();
  for (let round = 0; round < ROUNDS; round++) {
    for (const contender of ["a", "b", "c"] as const) {
      const nodes = await start(contender);
      try {
        await measure(figures[contender]);
      } finally {
        for (const node of nodes) await end(node);
      }
      process.stderr.write(`round ${round + 1} of ${ROUNDS}: ${NAMES[contender]} done\n`);
    }
  }
  process.exitCode = report() ? 0 : 1;
} finally {
  for (const { ns } of hosts) await ok(["ip", "netns", "del", ns]).catch(() => {});
  await rm(directory, { recursive: true, force: true });
}

async function wire(): Promise<void> {
  for (const { ns } of hosts) {
    await ok(["ip", "netns", "add", ns]);
    await ok(["ip", "-n", ns, "link", "set", "lo", "up"]);
  }
  const [a, b] = hosts;
  await ok(["ip", "-n", a.ns, "link", "add", "phy", "type", "veth", "peer", "name", "phy", "netns", b.ns]);
  for (const [index, { ns }] of hosts.entries()) {
    await ok(["ip", "-n", ns, "addr", "add", `192.168.77.${index + 1}/24`, "dev", "phy"]);
    await ok(["ip", "-n", ns, "link", "set", "phy", "up"]);
    await ok([ICX, "genkey", `${directory}/${index}.key`]);
  }
}

async function start(contender: Contender): Promise<readonly Running[]> {
  const nodes = await Promise.all(hosts.map(async (host, index) => {
    const [own, peer] = [index + 1, 2 - index];
    if (contender === "a") {
      const other = hosts[1 - index];
      const mac = (await other?.ok(["cat", "/sys/class/net/phy/address"]) ?? "").trim();
      return host.start([
        PASS_THROUGH,
        ...["--interface", "phy", "--name", "icx0", "--address", `10.9.0.${own}/24`, "--mtu", "1392"],
        ...["--local", `192.168.77.${own}:6081`, "--peer", `192.168.77.${peer}:6081`, "--peer-mac", mac],
      ], { stdin: "piped" });
    }
    const key = (await ok([ICX, "pubkey", `${directory}/${1 - index}.key`])).trim();
    return host.start([
      ...[ICX, "up", "--identity-key", `${directory}/${index}.key`, "--peer-key", key, "--address", `10.9.0.${own}/24`],
      ...["--datapath", "afxdp", "--device", contender === "b" ? "veth" : "tun", "--log-format", "json"],
      ...["--allowed-route", "10.9.0.0/24", `192.168.77.${peer}:6081`],
    ]);
  }));
  const [node] = nodes;
  if (node === undefined) throw new Error("there are two hosts");
  await node.until(
    "packets move",
    30_000,
    () => /"event":"(ready|up)"/.test(node.stdout + node.stderr) || undefined,
  );
  await hosts[0].ok(["ping", "-c", "3", "-i", "0.2", "-W", "2", "10.9.0.2"]);
  return nodes;
}

async function end(node: Running): Promise<void> {
  node.kill("SIGINT");
  await node.ended;
}

async function measure(into: Record<Measure, number[]>): Promise<void> {
  const [a, b] = hosts;
  const ping = await a.ok(["ping", "-c", "200", "-i", "0.01", "-W", "1", "10.9.0.2"]);
  into.ping.push(median([...ping.matchAll(/time=([\d.]+)/g)].map(([, ms]) => Number(ms))));
  const server = b.start(["iperf3", "-s"]);
  try {
    await new Promise((resolve) => setTimeout(resolve, 300));
    const iperf = async (...args: string[]) => {
      const text = await a.ok(["iperf3", "-J", "-c", "10.9.0.2", "-t", String(SECONDS), ...args]);
      return JSON.parse(text)["end"] as Record<string, Record<string, number>>;
    };
    into.tcp1.push((await iperf())["sum_received"]?.["bits_per_second"] ?? 0);
    into.tcp4.push((await iperf("-P", "4"))["sum_received"]?.["bits_per_second"] ?? 0);
    // 22 bytes of UDP payload are 64 on the wire of an Ethernet.
    const before = await busyNs();
    const small = (await iperf("-u", "-b", "0", "-l", String(SMALL_BYTES)))["sum"] ?? {};
    const spent = await busyNs() - before;
    const arrived = (small["packets"] ?? 0) - (small["lost_packets"] ?? 0);
    into.pps.push(arrived / SECONDS);
    into.nsPerPacket.push(spent / Math.max(1, arrived));
  } finally {
    server.kill("SIGINT");
    await server.ended;
  }
}

/** Time that all processors have been busy since boot. */
async function busyNs(): Promise<number> {
  const [line = ""] = (await hosts[0].ok(["cat", "/proc/stat"])).split("\n");
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] = line.split(/\s+/).slice(1).map(Number);
  return (user + nice + system + irq + softirq) * 1e7;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN;
}

function report(): boolean {
  const shown = (measure: Measure, value: number) =>
    measure.startsWith("tcp") ? (value / 1e9).toFixed(2) : value.toFixed(2);
  for (const measure of Object.keys(UNITS) as Measure[]) {
    const row = (["a", "b", "c"] as const).map((at) => `${NAMES[at]} ${shown(measure, median(figures[at][measure]))}`);
    process.stdout.write(`${UNITS[measure].padEnd(26)} ${row.join("   ")}\n`);
  }
  let good = true;
  for (const { name, of, measure, least, most } of TARGETS) {
    const ratio = median(figures[of][measure].map((value, round) => value / (figures.a[measure][round] ?? NaN)));
    const met = (least === undefined || ratio >= least) && (most === undefined || ratio <= most);
    good &&= met;
    const asked = least === undefined ? `at most ${most}` : `at least ${least}`;
    process.stdout.write(`${met ? "met   " : "MISSED"} ${name}: ${ratio.toFixed(2)}, asked ${asked}\n`);
  }
  process.stdout.write(`${JSON.stringify(figures)}\n`);
  return good;
}
