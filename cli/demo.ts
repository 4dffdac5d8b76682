/**
 * `icx demo`: a tunnel between two nodes of this host, shown at work: as root between two namespaces with a device in each, else over loopback
 * with a stack in each process.
 */

import process from "node:process";
import { bitRate, counterTable, grouped, plot, ratesOf, rekeyDrops, size } from "./demo_report.ts";
import { EXIT, type ExitCode } from "./exit.ts";
import { DeviceStage, NetstackStage, type Stage } from "./demo_stage.ts";
import { makeIdentity, type NodeProcess } from "./node_process.ts";
import type { Side } from "./program_host.ts";
import { orAborted, stoppable } from "./stoppable.ts";
import { out, painter } from "./terminal.ts";

const paint = painter("stdout");

function row(title: string, ...lines: readonly string[]): void {
  for (const [index, line] of lines.entries()) {
    out(`  ${paint("bold", (index === 0 ? title : "").padEnd(11))} ${line}\n`);
  }
}

/** Runs the demo and returns what to exit with. */
export async function demo(): Promise<ExitCode> {
  return await stoppable(async (signal) => {
    const stage = await openStage();
    try {
      return await orAborted(show(stage), signal);
    } finally {
      await stage[Symbol.asyncDispose]();
      row("cleaned up", `${stage.leftovers} are gone`);
    }
  });
}

/** Namespaces and devices for root, unless it is one without that right or without /dev/net/tun, as in most containers. */
async function openStage(): Promise<Stage> {
  if (process.getuid?.() !== 0) {
    return await NetstackStage.open("there is no right to a device (run it as root for that)");
  }
  try {
    return await DeviceStage.open();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return await NetstackStage.open(`there can be no namespaces with devices (${reason})`);
  }
}

async function show(stage: Stage): Promise<ExitCode> {
  out(`\n${paint("bold", "icx demo")}: two nodes on this host, ${stage.about}\n\n`);
  row("underlay", ...stage.underlay);

  const keys = { a: await makeIdentity(stage.host, "a"), b: await makeIdentity(stage.host, "b") };
  const startedAt = performance.now();
  const nodes: Readonly<Record<Side, NodeProcess>> = {
    a: stage.startNode("a", keys.b),
    b: stage.startNode("b", keys.a),
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

  const { answered, asked, minMs, meanMs, maxMs } = await stage.ping(keys);
  row("ping", `${answered} of ${asked} answered, round trip ${minMs}/${meanMs}/${maxMs} ms (min/avg/max)`);

  const before = { a: lastCounters(nodes.a), b: lastCounters(nodes.b) };
  let good = answered === asked;
  let rekeysUnderLoad = 0;
  for (const from of ["a", "b"] as const) {
    const to: Side = from === "a" ? "b" : "a";
    const fromMs = performance.now();
    const { sent, received } = await stage.transfer(from, to);
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

function lastCounters(node: NodeProcess): Readonly<Record<string, number>> {
  return node.samples.at(-1)?.counters ?? {};
}
