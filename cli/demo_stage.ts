/** What a demo is played on: two nodes, and the programs that use the tunnel between them. */

import { fileURLToPath } from "node:url";
import type { TransferResult } from "./demo_transfer.ts";
import { LoopbackPair } from "./loopback_pair.ts";
import { NamespacePair, UNDERLAY } from "./namespace_pair.ts";
import { LAUNCHER, NodeProcess } from "./node_process.ts";
import { OVERLAY, type ProgramHost, type Side } from "./program_host.ts";

/** What `ping` found. */
export interface PingResult {
  readonly asked: number;
  readonly answered: number;
  /** Round trips, as text. */
  readonly minMs: string;
  readonly meanMs: string;
  readonly maxMs: string;
}

/** What both sides of a transfer saw. */
export interface Transfer {
  readonly sent: TransferResult;
  readonly received: TransferResult;
}

/** Two nodes and their programs. */
export interface Stage extends AsyncDisposable {
  /** Completes "two nodes on this host, …". */
  readonly about: string;
  /** What is between them, in lines. */
  readonly underlay: readonly string[];
  /** Completes "… are gone". */
  readonly leftovers: string;
  /** Runs programs. */
  readonly host: ProgramHost;
  /** Starts a side's node. */
  startNode(side: Side, peerKey: string): NodeProcess;
  /** Sends echo requests from a to b. */
  ping(keys: Readonly<Record<Side, string>>): Promise<PingResult>;
  /** Streams random bytes from one side to the other. */
  transfer(from: Side, to: Side): Promise<Transfer>;
}

const TRANSFER_MS = 4000;
const TRANSFER_PORT = 7000;
const PINGS = 5;
const RUNTIME = fileURLToPath(new URL("../native/lib/deno", import.meta.url));
const TRANSFER = fileURLToPath(new URL("./demo_transfer.ts", import.meta.url));
const CONFIG = fileURLToPath(new URL("../deno.json", import.meta.url));
const LOG = ["--rekey-interval", "1s", "--stats-interval", "250ms", "--log-format", "json", "--log-level", "debug"];

function other(side: Side): Side {
  return side === "a" ? "b" : "a";
}

/** Options of every node. */
function nodeOptions(host: ProgramHost, side: Side, peerKey: string): readonly string[] {
  return [
    ...["--identity-key", `${host.folder}/${side}.key`, "--peer-key", peerKey],
    ...["--address", `${OVERLAY[side]}/24`, "--allowed-route", "10.9.0.0/24"],
  ];
}

/** Runs the two programs of a transfer, the receiver at one place, which the sender reaches at another. */
async function transfer(
  host: ProgramHost,
  programs: { readonly from: Side; readonly to: Side; readonly at: string; readonly reachedAt: string },
): Promise<Transfer> {
  const { from, to, at, reachedAt } = programs;
  const command = (net: string) => [
    ...["run", "--quiet", "--no-prompt", "--cached-only", "--frozen", "--config", CONFIG],
    ...[`--allow-net=${net}`, TRANSFER],
  ];
  const receiver = host.start(to, "stdout", RUNTIME, ...command(at), "receive", ...at.split(":"));
  const lines = receiver.lines[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the receiver ended early, with exit code ${await receiver.ended}`);
    return value;
  };
  if (await next() !== "listening") throw new Error("the receiver did not begin to listen");
  const where = [...reachedAt.split(":"), String(TRANSFER_MS)];
  const sent = JSON.parse(await host.run(from, RUNTIME, ...command(reachedAt), "send", ...where));
  return { sent, received: JSON.parse(await next()) };
}

/** Two namespaces of this host with a veth pair between them, and a device in each. */
export class DeviceStage implements Stage {
  readonly about = "each in a network namespace of its own";
  readonly leftovers = "namespaces, devices, processes and keys";
  readonly underlay: readonly string[];
  readonly host: NamespacePair;

  private constructor(host: NamespacePair) {
    this.host = host;
    const place = (side: Side) => `${host.nameOf(side)} (${UNDERLAY[side]})`;
    this.underlay = [`${place("a")} and ${place("b")}, joined by a veth pair, MTU 1500`];
  }

  /** Makes the namespaces, and looks whether there can be devices in them: a container of root's may have the right, and no /dev/net/tun. */
  static async open(): Promise<DeviceStage> {
    const host = await NamespacePair.open("demo");
    try {
      for (const action of ["add", "del"]) await host.ip("a", "tuntap", action, "dev", "probe", "mode", "tun");
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
    return new DeviceStage(host);
  }

  startNode(side: Side, peerKey: string): NodeProcess {
    const options = [...nodeOptions(this.host, side, peerKey), ...LOG];
    return NodeProcess.start(this.host, side, LAUNCHER, ["up", ...options, `${UNDERLAY[other(side)]}:6081`]);
  }

  async ping(): Promise<PingResult> {
    const said = await this.host.run("a", "ping", "-n", "-c", String(PINGS), "-i", "0.2", "-W", "2", OVERLAY.b);
    const [, minMs = "?", meanMs = "?", maxMs = "?"] = /= ([0-9.]+)\/([0-9.]+)\/([0-9.]+)/.exec(said) ?? [];
    return { asked: PINGS, answered: Number(/([0-9]+) received/.exec(said)?.[1] ?? 0), minMs, meanMs, maxMs };
  }

  async transfer(from: Side, to: Side): Promise<Transfer> {
    const at = `${OVERLAY[to]}:${TRANSFER_PORT}`;
    return await transfer(this.host, { from, to, at, reachedAt: at });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
  }
}

/** Loopback, and a TCP/IP stack in each node's process: nothing of it takes a right. */
export class NetstackStage implements Stage {
  readonly about: string;
  readonly leftovers = "processes and keys";
  readonly underlay: readonly string[];
  readonly host: LoopbackPair;

  private constructor(host: LoopbackPair, why: string) {
    this.host = host;
    this.about = `each with a TCP/IP stack in its process, as ${why}`;
    const { underlay: { a, b }, ports } = host;
    this.underlay = [
      `${a} and ${b} on loopback, UDP port ${ports.data}`,
      `programs lead into the tunnel by forwards: ${a}:${ports.forward} here is ${OVERLAY.b}:${TRANSFER_PORT} there`,
    ];
  }

  /** Makes the private folder; `why` says why it is no other stage. */
  static async open(why: string): Promise<NetstackStage> {
    return new NetstackStage(await LoopbackPair.open(), why);
  }

  /** Where a side's node is, and where its peer is. */
  #ends(side: Side, ports: { readonly data: number; readonly control: number }): readonly string[] {
    const { underlay } = this.host;
    return [
      ...["--local-address", underlay[side], "--port", String(ports.data), "--control-port", String(ports.control)],
      // As on most networks: loopback would take packets of 64 KiB.
      ...["--tun-mtu", "1392", `${underlay[other(side)]}:${ports.data}`],
    ];
  }

  startNode(side: Side, peerKey: string): NodeProcess {
    const { underlay, ports } = this.host;
    return NodeProcess.start(this.host, side, LAUNCHER, [
      ...["proxy", ...nodeOptions(this.host, side, peerKey), ...LOG],
      ...["--forward", `${underlay[side]}:${ports.forward}=${OVERLAY[other(side)]}:${TRANSFER_PORT}`],
      ...["--reverse", `${TRANSFER_PORT}=${underlay[side]}:${ports.receiver}`],
      ...this.#ends(side, ports),
    ]);
  }

  /** Between two nodes of its own, with the same keys: `icx ping` is a node. */
  async ping(keys: Readonly<Record<Side, string>>): Promise<PingResult> {
    const { host } = this;
    const ports = host.ports.ping;
    const answering = NodeProcess.start(host, "b", LAUNCHER, [
      ...["up", "--datapath", "netstack", ...nodeOptions(host, "b", keys.a), ...LOG, ...this.#ends("b", ports)],
    ]);
    const said = await host.run("a", LAUNCHER, "ping", ...nodeOptions(host, "a", keys.b), "--log-format", "json", ...[
      ...["--count", String(PINGS), "--interval", "200ms", ...this.#ends("a", ports), OVERLAY.b],
    ]);
    await answering.stop();
    const [, minMs = "?", meanMs = "?", maxMs = "?"] = /most ([0-9.]+)\/([0-9.]+)\/([0-9.]+)/.exec(said) ?? [];
    return { asked: PINGS, answered: Number(/([0-9]+) answered/.exec(said)?.[1] ?? 0), minMs, meanMs, maxMs };
  }

  async transfer(from: Side, to: Side): Promise<Transfer> {
    const { underlay, ports } = this.host;
    const [at, reachedAt] = [`${underlay[to]}:${ports.receiver}`, `${underlay[from]}:${ports.forward}`];
    return await transfer(this.host, { from, to, at, reachedAt });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.host[Symbol.asyncDispose]();
  }
}
