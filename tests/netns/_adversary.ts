/** The adversary, the traffic beside it, and what a node has counted of both. */
import assert from "node:assert/strict";
import { join } from "node:path";
import {
  ADVERSARY,
  type Counters,
  DISGUISES,
  eventually,
  type Host,
  type Lab,
  type Namespace,
  type Node,
  type Running,
} from "./_lab.ts";

/** What the adversary says that it did. */
export interface Attack {
  readonly sent: number;
  readonly refused: number;
  readonly seconds: number;
  readonly pps: number;
  readonly kinds: Counters;
  /** What each counter of a node with a UDP socket must have gained. */
  readonly counters: Counters;
  /** How much of that a node over AF_XDP does not get, since its filter takes nothing but Geneve. */
  readonly left: Counters;
}

/** Frames of both directions as the wire carries them, in a capture file. */
export async function capture(lab: Lab): Promise<string> {
  const file = join(lab.directory, "wire.pcap");
  const filter = "udp port 6081 and greater 100";
  // Every datagram by itself, not as many as one send has of them.
  for (const host of [lab.a, lab.b]) {
    await host.ok(["ethtool", "-K", "phy", "tx-udp-segmentation", "off"]);
  }
  const tcpdump = lab.spawn(lab.intruder, ["tcpdump", "-U", "-n", "-i", "side-b", "-c", "400", "-w", file, filter]);
  await tcpdump.until("tcpdump listens", 10_000, () => /listening on/.test(tcpdump.stderr) || undefined);
  for (const size of ["56", "500", "1364"]) {
    await lab.a.ok(["ping", "-q", "-c", "70", "-i", "0.002", "-W", "2", "-s", size, lab.b.inner4]);
  }
  assert.equal((await tcpdump.ended).code, 0);
  for (const host of [lab.a, lab.b]) await host.ok(["ethtool", "-K", "phy", "tx-udp-segmentation", "on"]);
  return file;
}

/** Starts the adversary of `lab`; resolves with what it did. */
export async function attack(lab: Lab, file: string, options: readonly string[], port = 6081): Promise<Attack> {
  const printed = await lab.intruder.ok([
    ADVERSARY,
    ...["--to", `${lab.b.underlay}:${port}`, "--from", DISGUISES.peer],
    ...["--capture", file, "--victim", lab.b.underlay],
    ...options,
  ], 120_000);
  return JSON.parse(printed) as Attack;
}

/** Whether a filter stands before a node that takes nothing but Geneve. */
export function isFiltered(node: Node): boolean {
  return node.events().some(({ event, datapath }) => event === "starting" && datapath === "afxdp");
}

/** What each counter of a node must have gained by an attack. */
export function costs({ counters, left }: Attack, victim: Node): Counters {
  if (!isFiltered(victim)) return counters;
  return Object.fromEntries(Object.entries(counters).map(([name, count]) => [name, count - (left[name] ?? 0)]));
}

/** Starts to count what of the datagrams for the data port the kernel's stack of a host gets to see; gives what tells their number. */
export async function countAtKernel(host: Host): Promise<() => Promise<number>> {
  await host.ok([
    "nft",
    `table ip seen {
    counter data {}
    chain input {
      type filter hook input priority 0
      udp dport 6081 counter name data
    }
  }`,
  ]);
  return async () => Number(/packets (\d+)/.exec(await host.ok(["nft", "list", "counter", "ip", "seen", "data"]))?.[1]);
}

/** Datagrams that the sockets of a namespace had no room for. */
export async function overflows(namespace: Namespace): Promise<number> {
  const [names = [], values = []] = (await namespace.ok(["cat", "/proc/net/snmp"])).split("\n")
    .filter((line) => line.startsWith("Udp:")).map((line) => line.split(" "));
  return Number(values[names.indexOf("RcvbufErrors")]);
}

/** Datagrams that were lost before a node could count them: in a full socket, ring, or queue of the wire whose far end this is. */
export async function lostBefore(node: Node, far: Namespace, device: string): Promise<number> {
  const onWire = await far.ok(["cat", `/sys/class/net/${device}/statistics/tx_dropped`]);
  const { forwarder = {} } = await node.event("counters", 10_000, node.events().length);
  const { rxRingFull = 0, rxFillEmpty = 0 } = forwarder as Counters;
  return await overflows(node.host) + Number(onWire) + rxRingFull + rxFillEmpty;
}

/** What the counters of those names have gained; those that gained nothing are left out. */
export function gains(before: Counters, after: Counters, names: RegExp): Counters {
  return Object.fromEntries(
    Object.entries(after).map(([name, value]) => [name, value - (before[name] ?? 0)] as const)
      .filter(([name, gain]) => names.test(name) && gain !== 0),
  );
}

/** Counters of what was received and went no further. */
export const RX_DROPS: RegExp = /^rx_(?!packets|bytes)/;

/** All counters together. */
export function sum(counters: Counters): number {
  return Object.values(counters).reduce((total, value) => total + value, 0);
}

/** Waits until everything that was received is counted, and gives the node's statistics. */
export async function settled(node: Node): ReturnType<Node["statistics"]> {
  let last = await node.statistics();
  await eventually("the counters stand still", 20_000, async () => {
    const now = await node.statistics();
    const still = now.ends["underlayReceived"] === last.ends["underlayReceived"];
    last = now;
    return still;
  });
  return last;
}

/** Starts iperf3 through the tunnel, from `a` to `b`. */
export async function iperf(lab: Lab, options: readonly string[]): Promise<Running> {
  const server = lab.spawn(lab.b, ["iperf3", "--forceflush", "-s", "-1", "-B", lab.b.inner4]);
  await server.until("iperf3 listens", 10_000, () => /listening/i.test(server.stdout) || undefined);
  return lab.spawn(lab.a, ["iperf3", "--json", "-c", lab.b.inner4, ...options]);
}

/** Bits per second at the receiver. */
export function received(json: string): number {
  const end = (JSON.parse(json) as { readonly end: Record<string, { readonly bits_per_second: number }> }).end;
  return (end["sum_received"] ?? end["sum"])?.bits_per_second ?? 0;
}

/** A port of host `b` where somebody reads and throws away. */
export const UNRELATED_PORT = 9999;

/** Listens on {@linkcode UNRELATED_PORT}. */
export async function discard(lab: Lab): Promise<void> {
  lab.spawn(lab.b, ["socat", "-u", `UDP4-RECV:${UNRELATED_PORT}`, "OPEN:/dev/null"]);
  const listens = async () => (await lab.b.ok(["ss", "-Hlun"])).includes(`:${UNRELATED_PORT} `);
  await eventually("somebody reads unrelated packets", 10_000, listens);
}

/** A second of TCP traffic and more, with an attack on `port` from before its start to after its end. */
export async function underLoad(
  lab: Lab,
  file: string,
  options: { readonly port: number; readonly seconds: number; readonly attack: readonly string[] },
): Promise<{ readonly bitsPerSecond: number; readonly attack: Attack }> {
  const { port, seconds } = options;
  const load = attack(lab, file, ["--seconds", String(seconds + 2), ...options.attack], port);
  const client = await iperf(lab, ["-t", String(seconds)]);
  const { stdout, code } = await client.ended;
  assert.equal(code, 0, stdout);
  return { bitsPerSecond: received(stdout), attack: await load };
}
