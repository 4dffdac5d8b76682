/** Reads what the measuring programs print and what the kernel says of a process. */

import { percentile } from "./statistics.ts";
import { PERCENTILES } from "./plan.ts";

/** A measurement that could not be taken, with the reason that the report gives. */
export class NoFigure extends Error {
  override readonly name = "NoFigure";
}

/** What iperf3 says of a TCP run. */
export interface TcpReading {
  /** Bits per second that were received, without the time to warm up. */
  readonly receivedBps: number;
  /** Bits that were sent or received in the whole run, the time to warm up included. */
  readonly totalBits: number;
}

interface IperfSum {
  readonly bits_per_second?: unknown;
  readonly bytes?: unknown;
  readonly packets?: unknown;
  readonly lost_packets?: unknown;
  readonly seconds?: unknown;
}

interface IperfOutput {
  readonly error?: unknown;
  readonly intervals?: readonly { readonly sum?: IperfSum }[];
  readonly end?: { readonly sum?: IperfSum; readonly sum_received?: IperfSum };
}

function iperf(text: string): IperfOutput {
  let output: IperfOutput;
  try {
    output = JSON.parse(text) as IperfOutput;
  } catch (cause) {
    throw new NoFigure(`iperf3 printed no JSON${text.trim() === "" ? "" : `, but: ${text.trim().slice(0, 200)}`}`, {
      cause,
    });
  }
  if (typeof output.error === "string") throw new NoFigure(`iperf3: ${output.error}`);
  return output;
}

function amount(value: unknown, what: string): number {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new NoFigure(`iperf3 gave no ${what}`);
  return value;
}

/** Reads the JSON of a TCP client. */
export function readTcp(text: string): TcpReading {
  const { end, intervals = [] } = iperf(text);
  return {
    receivedBps: amount(end?.sum_received?.bits_per_second, "received rate"),
    totalBits: intervals.reduce((bits, { sum }) => bits + 8 * amount(sum?.bytes, "bytes of an interval"), 0),
  };
}

/** What iperf3 says of a UDP run. */
export interface UdpReading {
  readonly deliveredPps: number;
  readonly deliveredBps: number;
  readonly offeredBps: number;
  /** Share of the datagrams that did not arrive. */
  readonly loss: number;
}

/** Reads the JSON of a UDP client whose datagrams had that many bytes. */
export function readUdp(text: string, payloadBytes: number): UdpReading {
  const { end } = iperf(text);
  const packets = amount(end?.sum?.packets, "number of packets");
  const lost = amount(end?.sum?.lost_packets, "number of lost packets");
  const seconds = amount(end?.sum?.seconds, "duration");
  if (packets === 0 || seconds === 0) throw new NoFigure("iperf3 sent no datagram");
  // It can count what came out of order as negative loss.
  const deliveredPps = Math.min(packets, packets - lost) / seconds;
  const bits = payloadBytes * 8;
  return {
    deliveredPps,
    deliveredBps: deliveredPps * bits,
    offeredBps: packets / seconds * bits,
    loss: Math.max(0, lost) / packets,
  };
}

/** Round trips by percentile, in seconds, from what ping prints. */
export function readPing(text: string): Readonly<Record<keyof typeof PERCENTILES, number>> {
  const seconds = Array.from(text.matchAll(/ time=([0-9.]+) ms/g), ([, ms]) => Number(ms) / 1000);
  const sent = Number(/([0-9]+) packets transmitted/.exec(text)?.[1] ?? 0);
  if (seconds.length === 0) throw new NoFigure(`none of ${sent} pings was answered`);
  if (seconds.length < sent * 0.9) throw new NoFigure(`only ${seconds.length} of ${sent} pings were answered`);
  const { p50, p90, p99 } = PERCENTILES;
  return { p50: percentile(seconds, p50), p90: percentile(seconds, p90), p99: percentile(seconds, p99) };
}

/** Ticks in a second as the kernel counts time for programs: fixed on Linux, whatever its own timer does. */
const TICKS_PER_SECOND = 100;

/** Seconds of processor time that a process has used, from `/proc/PID/stat`. */
export function readProcessSeconds(stat: string): number {
  // The name stands in parentheses and may hold anything.
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Seconds for which processors were busy since the start of the machine, from `/proc/stat`. */
export function readBusySeconds(stat: string): number {
  const [user, nice, system, , , irq, softirq] = (/^cpu +(.*)$/m.exec(stat)?.[1] ?? "").split(" ").map(Number);
  return [user, nice, system, irq, softirq].reduce<number>((sum, ticks) => sum + (ticks ?? NaN), 0) / TICKS_PER_SECOND;
}

/** A field of `/proc/PID/status` or `/proc/meminfo`, which are in KiB, in bytes. */
export function readKibibytes(text: string, field: string): number | undefined {
  const value = new RegExp(`^${field}:\\s+([0-9]+) kB$`, "m").exec(text)?.[1];
  return value === undefined ? undefined : Number(value) * 1024;
}
