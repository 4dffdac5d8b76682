/** How fast the tun datapath has to be beside others in the same run, and whether a report shows it. */

import { type Report, resultOf } from "../../cli/bench/report.ts";

/** What one figure has to be, as a multiple of another contender's. */
export interface Target {
  readonly network: string;
  readonly metric: string;
  /** Whom it is compared with. */
  readonly with: string;
  readonly least?: number;
  readonly most?: number;
}

/** The contender that the targets are about. */
export const SUBJECT = "icx-tun";
const NETWORKS = ["veth", "segmented"] as const;
/** What a node may take beyond the runtime with an empty program. */
export const MOST_MEMORY_BYTES: number = 64 << 20;

/** All targets that are a ratio. */
export const TARGETS: readonly Target[] = [
  { network: "veth", metric: "tcp-1-up", with: "wireguard-go", least: 4 },
  { network: "veth", metric: "tcp-4-up", with: "wireguard-go", least: 5 },
  { network: "segmented", metric: "tcp-1-up", with: "wireguard-go", least: 3.5 },
  { network: "segmented", metric: "tcp-4-up", with: "wireguard-go", least: 4.5 },
  { network: "veth", metric: "tcp-1-up", with: "none", least: 0.5 },
  ...NETWORKS.flatMap((network): Target[] => [
    { network, metric: "tcp-1-up", with: "boringtun", least: 10 },
    { network, metric: "tcp-4-up", with: "boringtun", least: 10 },
    { network, metric: "rtt-idle-p50", with: "wireguard-go", most: 0.6 },
    { network, metric: "rtt-loaded-p50", with: "wireguard-go", most: 0.7 },
    { network, metric: "request-response", with: "wireguard-go", least: 1.5 },
    { network, metric: "udp-1200-clean", with: "wireguard-go", least: 2 },
  ]),
];

/** What became of a target. */
export interface Verdict {
  readonly what: string;
  readonly wanted: string;
  readonly found: string;
  /** `undefined` when the report has no figures for it. */
  readonly met: boolean | undefined;
}

/** Judges a report. */
export function judge(report: Report): readonly Verdict[] {
  const median = (network: string, contender: string, metric: string) =>
    resultOf(report, network, contender, metric)?.summary?.median;
  const ratios = TARGETS.map(({ network, metric, with: other, least, most }): Verdict => {
    const [own, theirs] = [median(network, SUBJECT, metric), median(network, other, metric)];
    const ratio = own === undefined || theirs === undefined ? undefined : own / theirs;
    return {
      what: `${network}, ${metric}, beside ${other}`,
      wanted: least === undefined ? `at most ${most}` : `at least ${least}`,
      found: ratio === undefined ? "no figures" : ratio.toFixed(2),
      met: ratio === undefined ? undefined : ratio >= (least ?? -Infinity) && ratio <= (most ?? Infinity),
    };
  });
  const memory = NETWORKS.map((network): Verdict => {
    const [own, empty] = [median(network, SUBJECT, "memory"), report.machine.emptyRuntimeBytes];
    const beyond = own === undefined || empty === undefined ? undefined : own - empty;
    const mebibytes = (bytes: number) => `${(bytes / (1 << 20)).toFixed(0)} MiB`;
    return {
      what: `${network}, memory beyond the empty runtime`,
      wanted: `at most ${mebibytes(MOST_MEMORY_BYTES)}`,
      found: beyond === undefined ? "no figures" : mebibytes(beyond),
      met: beyond === undefined ? undefined : beyond <= MOST_MEMORY_BYTES,
    };
  });
  return [...ratios, ...memory];
}
