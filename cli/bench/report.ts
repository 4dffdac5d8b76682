/**
 * The report of `icx bench`: what is measured, in which units, and the form in which `--json` writes it.
 *
 * A reader checks `schema`. Fields may be added within a version; a change that could mislead a reader makes a new one.
 */

import type { Summary } from "./statistics.ts";

/** Version of the report's form. */
export const SCHEMA = "icx-bench/1";

/** Units of the figures, all without a prefix. */
export type Unit = "bit/s" | "1/s" | "s" | "s/Gbit" | "B";

/** Parts of a report. */
export const GROUPS = {
  throughput: "Throughput",
  datagrams: "Datagrams",
  latency: "Latency",
  cost: "Cost",
} as const;

/** One thing that is measured. */
export interface Metric {
  /** Its name in the report, stable within a version of it. */
  readonly id: string;
  readonly group: keyof typeof GROUPS;
  readonly title: string;
  /** How it is measured, as a sentence. */
  readonly how: string;
  readonly unit: Unit;
  /** Which figures are good ones. */
  readonly better: "higher" | "lower";
  /** Metrics of one chart are drawn together, each a part of it, such as the percentiles of a round trip. */
  readonly chart?: { readonly title: string; readonly part: string };
}

/** The machine a report was taken on. */
export interface Machine {
  readonly cpu: string;
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  /** Load average over a minute when the run began: more than a little of it spoils the figures. */
  readonly loadAverage: number;
  /** Memory of the runtime with an empty program; the difference is what a node adds. */
  readonly emptyRuntimeBytes?: number;
  /** Versions of the programs that measure. */
  readonly tools: Readonly<Record<string, string>>;
}

/** What stands in the race. */
export interface ContenderFacts {
  readonly id: string;
  readonly title: string;
  /** What it says its version is; absent where it says nothing. */
  readonly version?: string;
  /** How it was started, a command a line. */
  readonly commands: readonly string[];
}

/** Figures of one metric for one contender over one network. */
export interface Result {
  readonly network: string;
  readonly contender: string;
  readonly metric: string;
  /** One figure for each round, `null` where it could not be taken. */
  readonly values: readonly (number | null)[];
  /** Absent when there is no figure at all. */
  readonly summary?: Summary;
  /** Why figures are missing, if any are. */
  readonly missing?: string;
  /** The command that measured it last. */
  readonly command?: string;
}

/** Everything that `icx bench` found. */
export interface Report {
  readonly schema: typeof SCHEMA;
  /** `matrix`: between namespaces of one host. `live`: through a tunnel between two nodes. */
  readonly kind: "matrix" | "live";
  /** Version of icx. */
  readonly icx: string;
  /** When it began, ISO 8601. */
  readonly startedAt: string;
  readonly elapsedSeconds: number;
  readonly machine: Machine;
  readonly settings: {
    readonly rounds: number;
    /** Seconds that each measurement of a rate takes. */
    readonly seconds: number;
    /** The command line. */
    readonly arguments: readonly string[];
  };
  readonly networks: readonly { readonly id: string; readonly about: string }[];
  readonly contenders: readonly ContenderFacts[];
  /** Id of the contender that ratios are taken to; absent when there is nothing to compare with. */
  readonly reference?: string;
  readonly metrics: readonly Metric[];
  readonly results: readonly Result[];
}

/** A result found by its coordinates. */
export function resultOf(report: Report, network: string, contender: string, metric: string): Result | undefined {
  return report.results.find((result) =>
    result.network === network && result.contender === contender && result.metric === metric
  );
}

/** How many times the reference's figure a median is; `undefined` without both. */
export function ratioOf(report: Report, result: Result): number | undefined {
  if (report.reference === undefined || report.reference === result.contender) return undefined;
  const base = resultOf(report, result.network, report.reference, result.metric)?.summary?.median;
  return base === undefined || base === 0 || result.summary === undefined ? undefined : result.summary.median / base;
}

const SCALES: Readonly<Record<Unit, readonly (readonly [least: number, factor: number, unit: string])[]>> = {
  "bit/s": [[1e9, 1e-9, "Gbit/s"], [1e6, 1e-6, "Mbit/s"], [0, 1e-3, "kbit/s"]],
  "1/s": [[1e6, 1e-6, "M/s"], [1e3, 1e-3, "k/s"], [0, 1, "/s"]],
  "s": [[1, 1, "s"], [1e-3, 1e3, "ms"], [0, 1e6, "µs"]],
  "s/Gbit": [[1, 1, "s/Gbit"], [0, 1e3, "ms/Gbit"]],
  "B": [[0, 1 / (1 << 20), "MiB"]],
};

/** A figure with three digits and a unit that keeps it short. */
export function figure(value: number, unit: Unit): string {
  const [, factor, name] = SCALES[unit].find(([least]) => value >= least) ?? [0, 1, unit];
  const scaled = value * factor;
  const digits = scaled >= 100 || scaled === 0 ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${name}`;
}

/** A ratio such as `3.42×`. */
export function times(ratio: number): string {
  return `${ratio.toFixed(ratio >= 100 ? 0 : ratio >= 10 ? 1 : ratio >= 0.1 || ratio === 0 ? 2 : 3)}×`;
}
