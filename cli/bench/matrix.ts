/** Runs the matrix: every contender over every network in every round, in namespaces of their own, and gathers a report. */

import { NamespacePair } from "../namespace_pair.ts";
import { orAborted } from "../stoppable.ts";
import { VERSION } from "../version.ts";
import { type Contender, referenceOf, shapeWire, type Started } from "./contenders.ts";
import { describeMachine, largestSocketBuffer } from "./machine.ts";
import { measure } from "./measure.ts";
import {
  estimateSeconds,
  type Leg,
  legsOf,
  type Network,
  NETWORKS,
  type Step,
  stepsOf,
  warmUpSeconds,
} from "./plan.ts";
import type { Progress } from "./progress.ts";
import { figure, type Report, type Result, SCHEMA } from "./report.ts";
import { summarise } from "./statistics.ts";

/** What to run. */
export interface MatrixSettings {
  readonly networks: readonly Network[];
  readonly contenders: readonly Contender[];
  readonly rounds: number;
  readonly seconds: number;
  readonly quick: boolean;
  /** The command line, for the report. */
  readonly arguments: readonly string[];
}

/** Seconds that a contender takes to start and to go. */
const START_SECONDS = 2;
const READY_MS = 20_000;

/** Gathers figures by network, contender and metric as they come. */
class Results {
  readonly #cells = new Map<string, { values: (number | null)[]; missing?: string; command?: string }>();

  add(leg: Leg, metric: string, found: { value?: number; missing?: string; command?: string }): void {
    const key = JSON.stringify([leg.network, leg.contender, metric]);
    const cell = this.#cells.get(key) ?? { values: [] };
    this.#cells.set(key, cell);
    cell.values[leg.round] = found.value ?? null;
    if (found.missing !== undefined) cell.missing = found.missing;
    if (found.command !== undefined) cell.command = found.command;
  }

  list(): readonly Result[] {
    return [...this.#cells].map(([key, cell]) => {
      const [network, contender, metric] = JSON.parse(key) as [string, string, string];
      const summary = summarise(cell.values.filter((value) => value !== null));
      return { network, contender, metric, ...cell, ...(summary === undefined ? {} : { summary }) };
    });
  }
}

/**
 * Runs the matrix. What cannot be measured is in the report with its reason.
 *
 * @throws The signal's reason when it aborts; everything that was made is gone by then.
 */
export async function runMatrix(
  settings: MatrixSettings,
  { signal, progress }: { readonly signal: AbortSignal; readonly progress: Progress },
): Promise<Report> {
  const startedAt = new Date();
  const machine = await orAborted(describeMachine(), signal);
  const steps = stepsOf(settings);
  const legs = legsOf({ ...settings, contenders: settings.contenders.map(({ id }) => id) });
  const perLeg = steps.reduce(
    (sum, { measurement }) => sum + estimateSeconds(measurement, settings),
    START_SECONDS,
  );
  progress.begin({ steps: legs.length * (steps.length + 1), seconds: legs.length * perLeg });

  const results = new Results();
  for (const leg of legs) {
    signal.throwIfAborted();
    const contender = settings.contenders.find(({ id }) => id === leg.contender);
    if (contender === undefined) throw new TypeError(`There is no contender ${leg.contender}`);
    const pair = await NamespacePair.open("bench");
    try {
      await orAborted(runLeg(leg, { contender, steps, pair, settings, results, progress, signal }), signal);
    } finally {
      await pair[Symbol.asyncDispose]();
    }
  }
  const reference = referenceOf(settings.contenders);
  return {
    schema: SCHEMA,
    kind: "matrix",
    icx: VERSION,
    startedAt: startedAt.toISOString(),
    elapsedSeconds: (Date.now() - startedAt.getTime()) / 1000,
    machine,
    settings: { rounds: settings.rounds, seconds: settings.seconds, arguments: settings.arguments },
    networks: settings.networks.map((id) => ({ id, about: NETWORKS[id] })),
    contenders: settings.contenders.map(({ id, title, version, commands }) => ({
      id,
      title,
      ...(version === undefined ? {} : { version }),
      commands,
    })),
    ...(reference === undefined ? {} : { reference }),
    metrics: steps.flatMap(({ metrics }) => metrics),
    results: results.list(),
  };
}

interface LegContext {
  readonly contender: Contender;
  readonly steps: readonly Step[];
  readonly pair: NamespacePair;
  readonly settings: MatrixSettings;
  readonly results: Results;
  readonly progress: Progress;
  /** What aborts it also takes the pair away, after which nothing that it finds counts. */
  readonly signal: AbortSignal;
}

async function runLeg(leg: Leg, context: LegContext): Promise<void> {
  const { contender, steps, pair, settings, results, progress, signal } = context;
  const { rounds, networks } = settings;
  const where = [
    ...(rounds > 1 ? [`round ${leg.round + 1} of ${rounds}`] : []),
    ...(networks.length > 1 ? [leg.network] : []),
    contender.title,
  ].join(", ");
  const socketBytes = await largestSocketBuffer();
  const missing = (step: Step, reason: string) => {
    for (const metric of step.metrics) results.add(leg, metric.id, { missing: reason });
  };

  let started: Started;
  try {
    progress.step(`${where}: start`);
    started = await startContender(leg, context);
    progress.done("up");
  } catch (error) {
    signal.throwIfAborted();
    const reason = `it did not start: ${reasonOf(error)}`;
    progress.done(reason);
    for (const step of steps) missing(step, reason);
    progress.skip(steps.length);
    return;
  }
  for (const step of steps) {
    progress.step(`${where}: ${step.title}`);
    try {
      const taken = await measure(step, {
        pair,
        started,
        seconds: settings.seconds,
        warmUpSeconds: warmUpSeconds(settings),
        socketBytes,
      });
      for (const metric of step.metrics) {
        const value = taken.values[metric.id];
        results.add(leg, metric.id, {
          ...(value === undefined ? { missing: taken.missing?.[metric.id] ?? "it was not measured" } : { value }),
          ...(taken.command === undefined ? {} : { command: taken.command }),
        });
      }
      signal.throwIfAborted();
      const figures = step.metrics.map(({ id, unit }) => ({ value: taken.values[id], unit }));
      progress.done(figures.map(({ value, unit }) => value === undefined ? "–" : figure(value, unit)).join(", "));
    } catch (error) {
      signal.throwIfAborted();
      missing(step, reasonOf(error));
      progress.done(`no figure: ${reasonOf(error)}`);
    }
  }
}

async function startContender(leg: Leg, { contender, pair }: LegContext): Promise<Started> {
  await shapeWire(pair, leg.network);
  const started = await contender.start(pair);
  const ping = ["ping", "-n", "-c", "1", "-W", "1", started.addresses.b];
  for (const deadline = performance.now() + READY_MS; performance.now() < deadline;) {
    if ((await pair.attempt("a", ping, { timeoutMs: 5000 })).code === 0) return started;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`no ping came through within ${READY_MS / 1000} s`);
}

function reasonOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\s+/g, " ").slice(0, 400);
}
