/** What a handful of figures come to. */

/** Figures of one thing, measured several times. */
export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** Sums up what was measured; `undefined` when there is nothing. */
export function summarise(values: readonly number[]): Summary | undefined {
  const sorted = values.toSorted((one, other) => one - other);
  const [min, max] = [sorted[0], sorted.at(-1)];
  if (min === undefined || max === undefined) return undefined;
  const upper = sorted[sorted.length >> 1] ?? max;
  const lower = sorted[(sorted.length - 1) >> 1] ?? min;
  return { median: (lower + upper) / 2, min, max };
}

/**
 * The value that a share of all values does not exceed, by nearest rank.
 *
 * @throws {RangeError} When there are no values, or the share is not between 0 and 1.
 */
export function percentile(values: readonly number[], share: number): number {
  if (!(share >= 0 && share <= 1)) {
    throw new RangeError(`Cannot take a percentile as the share must be from 0 to 1: current value is ${share}`);
  }
  const sorted = values.toSorted((one, other) => one - other);
  const value = sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)];
  if (value === undefined) throw new RangeError("Cannot take a percentile of no values at all");
  return value;
}

/** What came of sending datagrams at a rate. */
export interface Probe {
  /** Bits per second of payload that were sent. */
  readonly offeredBps: number;
  /** Bits per second of payload that arrived. */
  readonly deliveredBps: number;
  /** Share of the datagrams that did not, from 0 to 1. */
  readonly loss: number;
}

/** Options of {@linkcode findCleanRate}. */
export interface RateSearch {
  /** Share of lost datagrams that still counts as clean. */
  readonly tolerableLoss: number;
  /** How many rates to try after the first. Each halves the doubt. */
  readonly steps: number;
}

/**
 * Finds the highest rate that arrives with next to no loss: first as fast as the sender can (`undefined`), then by halving
 * what lies between the last clean rate and the last lossy one.
 *
 * @returns What the best clean probe delivered, or `undefined` when every one of them lost too much.
 */
export async function findCleanRate(
  probe: (rateBps: number | undefined) => Promise<Probe>,
  { tolerableLoss, steps }: RateSearch,
): Promise<Probe | undefined> {
  const flood = await probe(undefined);
  if (flood.loss < tolerableLoss) return flood;
  let best: Probe | undefined;
  let [clean, lossy] = [0, flood.offeredBps];
  for (let step = 0; step < steps; step++) {
    const rate = (clean + lossy) / 2;
    const result = await probe(rate);
    if (result.loss < tolerableLoss) {
      clean = rate;
      if (best === undefined || result.deliveredBps > best.deliveredBps) best = result;
    } else {
      lossy = rate;
    }
  }
  return best;
}
