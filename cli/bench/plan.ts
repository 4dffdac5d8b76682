/** What is measured, in which order, and how long that takes: the matrix before anything runs. */

import type { Metric } from "./report.ts";

/** How large sends cross the wire between the namespaces. */
export const NETWORKS = {
  veth: "A large UDP send crosses the wire whole, as where both network cards segment in hardware.",
  segmented:
    "Large UDP sends are cut at the sender's device and merged again at the receiver's, nearer to most network cards.",
} as const;

/** One of {@linkcode NETWORKS}. */
export type Network = keyof typeof NETWORKS;

/** One run of a measuring program, and what it does. */
export type Measurement =
  | {
    readonly kind: "tcp";
    readonly flows: number;
    /** `up` is from node a to node b. */
    readonly direction: "up" | "down";
    readonly mssBytes: number;
    /** Also take the processor time. */
    readonly cpu: boolean;
  }
  | { readonly kind: "udp-flood"; readonly payloadBytes: number }
  | { readonly kind: "udp-clean"; readonly payloadBytes: number; readonly unit: "1/s" | "bit/s" }
  | { readonly kind: "ping"; readonly load: "idle" | "loaded" }
  | { readonly kind: "request-response" }
  | { readonly kind: "memory" };

/** A measurement with its name and the metrics that come of it. */
export interface Step {
  readonly id: string;
  readonly title: string;
  readonly measurement: Measurement;
  readonly metrics: readonly Metric[];
}

/** Share of lost datagrams below which a rate counts as clean. */
export const TOLERABLE_LOSS = 0.001;
/** Percentiles of round trips that a report has. */
export const PERCENTILES = { p50: 0.5, p90: 0.9, p99: 0.99 } as const;
/** Segments small enough for every contender's tunnel, so that all cut alike. */
const MSS_BYTES = 1280;
const SMALL_MSS_BYTES = 536;

function tcp(flows: number, direction: "up" | "down", mssBytes: number = MSS_BYTES): Step {
  const cpu = flows === 1 && direction === "up" && mssBytes === MSS_BYTES;
  const small = mssBytes !== MSS_BYTES;
  const id = `tcp-${flows}-${direction}${small ? `-${mssBytes}` : ""}`;
  const title = `TCP, ${flows} ${flows === 1 ? "flow" : "flows"}, ${direction === "up" ? "a → b" : "b → a"}${
    small ? `, ${mssBytes} B segments` : ""
  }`;
  const how = `iperf3 for the chosen time, segments of ${mssBytes} bytes, cubic.`;
  const metrics: Metric[] = [{ id, group: "throughput", title, how, unit: "bit/s", better: "higher" }];
  if (cpu) {
    metrics.push({
      id: "cpu-nodes",
      group: "cost",
      title: "Processor time of both nodes",
      how: `Time of the two nodes' processes, in user and kernel mode, for each Gbit of ${title}.`,
      unit: "s/Gbit",
      better: "lower",
    }, {
      id: "cpu-machine",
      group: "cost",
      title: "Processor time of the whole machine",
      how: `Time that no processor was idle for each Gbit of ${title}: nodes, kernel, and iperf3 itself.`,
      unit: "s/Gbit",
      better: "lower",
    });
  }
  return { id, title, measurement: { kind: "tcp", flows, direction, mssBytes, cpu }, metrics };
}

function udpFlood(payloadBytes: number): Step {
  const id = `udp-${payloadBytes}-flood`;
  const title = `UDP, ${payloadBytes} B, packets delivered`;
  return {
    id,
    title,
    measurement: { kind: "udp-flood", payloadBytes },
    metrics: [{
      id,
      group: "datagrams",
      title,
      how: "iperf3 sends as fast as it can, more than it can receive; what arrived counts, whatever was lost.",
      unit: "1/s",
      better: "higher",
    }],
  };
}

/** Small datagrams are a matter of packets, large ones of bits. */
function udpClean(payloadBytes: number, unit: "1/s" | "bit/s"): Step {
  const id = `udp-${payloadBytes}-clean`;
  const title = `UDP, ${payloadBytes} B, clean rate`;
  return {
    id,
    title,
    measurement: { kind: "udp-clean", payloadBytes, unit },
    metrics: [{
      id,
      group: "datagrams",
      title,
      how: `The highest rate of iperf3 that arrived with less than ${TOLERABLE_LOSS * 100} % loss, found by halving.`,
      unit,
      better: "higher",
    }],
  };
}

function ping(load: "idle" | "loaded"): Step {
  const title = load === "idle" ? "Round trip, idle" : "Round trip under load";
  const beside = load === "idle" ? "nothing else on the tunnel" : "one TCP flow at full speed beside it, a → b";
  return {
    id: `rtt-${load}`,
    title,
    measurement: { kind: "ping", load },
    metrics: Object.keys(PERCENTILES).map((name): Metric => ({
      id: `rtt-${load}-${name}`,
      group: "latency",
      title: `${title}, ${name}`,
      how: `ping every 10 ms with ${beside}.`,
      unit: "s",
      better: "lower",
      chart: { title, part: name },
    })),
  };
}

const REQUEST_RESPONSE: Step = {
  id: "request-response",
  title: "TCP request/response",
  measurement: { kind: "request-response" },
  metrics: [{
    id: "request-response",
    group: "latency",
    title: "TCP requests and responses",
    how: "One byte there and one back over one connection, as often as it goes.",
    unit: "1/s",
    better: "higher",
  }],
};

const MEMORY: Step = {
  id: "memory",
  title: "Memory",
  measurement: { kind: "memory" },
  metrics: [{
    id: "memory",
    group: "cost",
    title: "Memory of a node at its peak",
    how: "The larger of the two nodes' resident sets at their highest, after everything else.",
    unit: "B",
    better: "lower",
  }],
};

/** Everything that is measured of one contender, in order; `quick` leaves out what takes long. */
export function stepsOf({ quick }: { readonly quick: boolean }): readonly Step[] {
  if (quick) {
    return [ping("idle"), tcp(1, "up"), tcp(1, "down"), udpFlood(1200), ping("loaded"), REQUEST_RESPONSE, MEMORY];
  }
  return [
    ping("idle"),
    tcp(1, "up"),
    tcp(4, "up"),
    tcp(1, "down"),
    tcp(4, "down"),
    tcp(1, "up", SMALL_MSS_BYTES),
    udpClean(64, "1/s"),
    udpClean(1200, "bit/s"),
    ping("loaded"),
    REQUEST_RESPONSE,
    MEMORY,
  ];
}

/** How many rates the search for a clean one tries. */
export const RATE_STEPS = 6;
/** Seconds that TCP has to find its speed before it is measured. */
export function warmUpSeconds({ quick }: { readonly quick: boolean }): number {
  return quick ? 0 : 1;
}

/** Seconds for which a rate is tried in the search for a clean one. */
export const PROBE_SECONDS = 1;

/** Seconds that a measurement takes, roughly. */
export function estimateSeconds(
  { kind }: Measurement,
  { seconds, quick }: { readonly seconds: number; readonly quick: boolean },
): number {
  switch (kind) {
    case "tcp":
      return seconds + warmUpSeconds({ quick }) + 0.5;
    case "udp-flood":
    case "request-response":
      return seconds + 0.5;
    case "udp-clean":
      return (PROBE_SECONDS + 0.5) * (RATE_STEPS + 1);
    case "ping":
      return seconds + 1;
    case "memory":
      return 0;
  }
}

/** One contender over one network in one round. */
export interface Leg {
  readonly round: number;
  readonly network: Network;
  readonly contender: string;
}

/**
 * All legs in their order: rounds outermost, so that what changes on the machine meanwhile hits every contender alike.
 * Every other round goes through the contenders backwards, so that none is always the first after another.
 */
export function legsOf(
  plan: { readonly rounds: number; readonly networks: readonly Network[]; readonly contenders: readonly string[] },
): readonly Leg[] {
  const legs: Leg[] = [];
  for (let round = 0; round < plan.rounds; round++) {
    const order = round % 2 === 0 ? plan.contenders : plan.contenders.toReversed();
    for (const network of plan.networks) {
      for (const contender of order) legs.push({ round, network, contender });
    }
  }
  return legs;
}
