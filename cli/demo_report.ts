/** The figures of a demo and how they are shown. */

import type { Counters, Sample } from "./node_process.ts";
import { marks, sparkline } from "./sparkline.ts";

/** Received bytes between one sample and the next. */
export interface Rate {
  /** End of the interval, on the clock of `performance.now()`. */
  readonly atMs: number;
  /** Bits per second over it. */
  readonly bitsPerSecond: number;
}

/** Rates of what a node opened, from its samples within a span of time. */
export function ratesOf(samples: readonly Sample[], fromMs: number, untilMs: number): Rate[] {
  const rates: Rate[] = [];
  for (const [index, sample] of samples.entries()) {
    const before = samples[index - 1];
    if (before === undefined || before.atMs < fromMs || sample.atMs > untilMs || sample.atMs <= before.atMs) continue;
    const bytes = (sample.counters["rx_bytes"] ?? 0) - (before.counters["rx_bytes"] ?? 0);
    rates.push({ atMs: sample.atMs, bitsPerSecond: bytes * 8000 / (sample.atMs - before.atMs) });
  }
  return rates;
}

/** A plot of rates, and below it a line that marks the intervals in which keys were changed. */
export function plot(rates: readonly Rate[], rekeys: readonly number[]): readonly [string, string] {
  const positions = rekeys.map((at) =>
    rates.findIndex((rate, index) => at <= rate.atMs && (index > 0 || at > rate.atMs - 1000))
  );
  return [
    sparkline(rates.map(({ bitsPerSecond }) => bitsPerSecond)),
    marks(positions.filter((position) => position >= 0), rates.length),
  ];
}

/** Counters that say a packet was refused for its key, its nonce or its seal: what a rekey could cause. */
const REKEY_DROPS = [
  "rx_no_key",
  "rx_expired_key",
  "rx_spi_mismatch",
  "rx_auth_failed",
  "rx_replayed",
  "tx_no_key",
  "tx_expired_key",
  "tx_exhausted",
] as const;

/** Packets that a node refused for a reason that a rekey could cause, between two readings of its counters. */
export function rekeyDrops(before: Counters, after: Counters): number {
  return REKEY_DROPS.reduce((sum, name) => sum + (after[name] ?? 0) - (before[name] ?? 0), 0);
}

/** Counters of both nodes side by side: the traffic, and each drop that happened. */
export function counterTable(a: Counters, b: Counters): readonly string[] {
  const names = ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"];
  const others = new Set([...Object.keys(a), ...Object.keys(b)]);
  for (const name of others) {
    if (/^(rx|tx)_/.test(name) && !names.includes(name) && ((a[name] ?? 0) > 0 || (b[name] ?? 0) > 0)) names.push(name);
  }
  const rows = [["", "node a", "node b"], ...names.map((name) => [name, grouped(a[name] ?? 0), grouped(b[name] ?? 0)])];
  const widths = [0, 1, 2].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map(([name = "", left = "", right = ""]) =>
    `${name.padEnd(widths[0] ?? 0)}  ${left.padStart(widths[1] ?? 0)}  ${right.padStart(widths[2] ?? 0)}`
  );
}

/** A count with its thousands set apart. */
export function grouped(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(?:[0-9]{3})+$)/g, " ");
}

/** A rate in a unit that keeps it short. */
export function bitRate(bitsPerSecond: number): string {
  return bitsPerSecond >= 1e9
    ? `${(bitsPerSecond / 1e9).toFixed(2)} Gbit/s`
    : `${(bitsPerSecond / 1e6).toFixed(0)} Mbit/s`;
}

/** A size in a unit that keeps it short. */
export function size(bytes: number): string {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
