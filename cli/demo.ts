/** `icx demo`: a tunnel between two namespaces of this host, shown at work. */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { bitRate, counterTable, grouped, plot, ratesOf, rekeyDrops, size } from "./demo_report.ts";
import type { TransferResult } from "./demo_transfer.ts";
import { EXIT, type ExitCode } from "./exit.ts";
import { NamespacePair, OVERLAY, type Side, UNDERLAY } from "./namespace_pair.ts";
import { LAUNCHER, makeIdentity, NodeProcess } from "./node_process.ts";
import { orAborted, stoppable } from "./stoppable.ts";
import { err, out, painter } from "./terminal.ts";

const TRANSFER_MS = 4000;
const TRANSFER_PORT = 7000;
const SAMPLE = "250ms";
const RUNTIME = fileURLToPath(new URL("../native/lib/deno", import.meta.url));
const TRANSFER = fileURLToPath(new URL("./demo_transfer.ts", import.meta.url));
const CONFIG = fileURLToPath(new URL("../deno.json", import.meta.url));

const paint = painter("stdout");

function row(title: string, ...lines: readonly string[]): void {
  for (const [index, line] of lines.entries()) {
    out(`  ${paint("bold", (index === 0 ? title : "").padEnd(11))} ${line}\n`);
  }
}

/** Runs the demo and returns what to exit with. */
export async function demo(): Promise<ExitCode> {
  if (process.getuid?.() !== 0) {
    err(
      "icx: the demo needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN): it makes two network namespaces, a veth pair and two " +
        "TUN devices, and removes them again. Run it as root, or: sudo cli/icx demo\n",
    );
    return EXIT.permission;
  }
  return await stoppable(async (signal) => {
    const network = await NamespacePair.open("demo");
    try {
      return await orAborted(show(network), signal);
    } finally {
      await network[Symbol.asyncDispose]();
      row("cleaned up", "namespaces, devices, processes and keys are gone");
    }
  });
}

async function show(network: NamespacePair): Promise<ExitCode> {
  out(`\n${paint("bold", "icx demo")}: two nodes on this host, each in a network namespace of its own\n\n`);
  row(
    "underlay",
    `${network.nameOf("a")} (${UNDERLAY.a}) and ${
      network.nameOf("b")
    } (${UNDERLAY.b}), joined by a veth pair, MTU 1500`,
  );

  const keys = { a: await makeIdentity(network, "a"), b: await makeIdentity(network, "b") };
  const startedAt = performance.now();
  const nodes = {
    a: startNode(network, "a", keys.b),
    b: startNode(network, "b", keys.a),
  };
  const [about] = await Promise.all([nodes.a.seen("starting", 10_000), nodes.b.seen("starting", 10_000)]);
  await Promise.all([nodes.a.seen("up", 15_000), nodes.b.seen("up", 15_000)]);
  row(
    "handshake",
    `keys agreed ${Math.round(performance.now() - startedAt)} ms after the nodes were started; a is the ${
      about["role"]
    }`,
    `a knows b by its key's fingerprint ${about["peerFingerprint"]}`,
  );

  const ping = await network.run("a", "ping", "-n", "-c", "5", "-i", "0.2", "-W", "2", OVERLAY.b);
  const answers = /([0-9]+) received/.exec(ping)?.[1] ?? "0";
  const rtt = /= ([0-9.]+)\/([0-9.]+)\/([0-9.]+)/.exec(ping);
  row("ping", `${answers} of 5 answered, round trip ${rtt?.[1]}/${rtt?.[2]}/${rtt?.[3]} ms (min/avg/max)`);

  const before = { a: lastCounters(nodes.a), b: lastCounters(nodes.b) };
  let good = answers === "5";
  let rekeysUnderLoad = 0;
  for (const from of ["a", "b"] as const) {
    const to: Side = from === "a" ? "b" : "a";
    const fromMs = performance.now();
    const { sent, received } = await transfer(network, from, to);
    const untilMs = performance.now();
    const equal = sent.sha256 === received.sha256 && sent.bytes === received.bytes;
    const rekeys = nodes[to].rekeys.filter((at) => at >= fromMs && at <= untilMs);
    rekeysUnderLoad += rekeys.length;
    good &&= equal;
    const rate = bitRate(received.bytes * 8000 / received.elapsedMs);
    const content = equal
      ? `content equal on both sides, SHA-256 ${sent.sha256.slice(0, 16)}…`
      : `CONTENT DIFFERS: sent ${size(sent.bytes)} ${sent.sha256}, received ${size(received.bytes)} ${received.sha256}`;
    const [line, marked] = plot(ratesOf(nodes[to].samples, fromMs, untilMs), rekeys);
    row(`TCP ${from} → ${to}`, `${size(received.bytes)} at ${rate}; ${content}`, line, marked);
  }

  // Both readings come from the nodes' last lines, after the last packet was handled.
  const counters = { a: await nodes.a.stop(), b: await nodes.b.stop() };
  const drops = rekeyDrops(before.a, counters.a) + rekeyDrops(before.b, counters.b);
  good &&= drops === 0 && rekeysUnderLoad > 0;
  row(
    "rekey",
    `${rekeysUnderLoad} key changes under load (▲ above), ${
      drops === 0 ? "not one packet refused for its key" : `${grouped(drops)} PACKETS REFUSED for their key`
    }`,
  );
  row("counters", ...counterTable(counters.a, counters.b));
  row("result", good ? paint("green", "all as it must be") : paint("red", "NOT as it must be: see above"));
  return good ? EXIT.ok : EXIT.failure;
}

function startNode(network: NamespacePair, side: Side, peerKey: string): NodeProcess {
  const peer = UNDERLAY[side === "a" ? "b" : "a"];
  return NodeProcess.start(network, side, LAUNCHER, [
    ...["--identity-key", `${network.folder}/${side}.key`, "--peer-key", peerKey],
    ...["--address", `${OVERLAY[side]}/24`, "--allowed-route", "10.9.0.0/24"],
    ...["--rekey-interval", "1s", "--stats-interval", SAMPLE, "--log-format", "json", "--log-level", "debug"],
    `${peer}:6081`,
  ]);
}

function lastCounters(node: NodeProcess): Readonly<Record<string, number>> {
  return node.samples.at(-1)?.counters ?? {};
}

/** Streams random bytes from one side to the other and returns what each of them saw. */
async function transfer(
  network: NamespacePair,
  from: Side,
  to: Side,
): Promise<{ readonly sent: TransferResult; readonly received: TransferResult }> {
  const flags = ["run", "--quiet", "--no-prompt", "--cached-only", "--frozen", "--config", CONFIG];
  const net = `--allow-net=${OVERLAY[to]}:${TRANSFER_PORT}`;
  const program = [...flags, net, TRANSFER];
  const where = [OVERLAY[to], String(TRANSFER_PORT)];
  const receiver = network.start(to, "stdout", RUNTIME, ...program, "receive", ...where);
  const lines = receiver.lines[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the receiver ended early, with exit code ${await receiver.ended}`);
    return value;
  };
  if (await next() !== "listening") throw new Error("the receiver did not begin to listen");
  const sent = JSON.parse(await network.run(from, RUNTIME, ...program, "send", ...where, String(TRANSFER_MS)));
  return { sent, received: JSON.parse(await next()) };
}
