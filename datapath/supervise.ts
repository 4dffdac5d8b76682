/**
 * The supervised run loop: tasks that live and end together.
 *
 * @module
 */

import { requireFunction, requireNumber, requireObject, requireType } from "../native/arguments.ts";
import { Backoff, type BackoffOptions } from "./backoff.ts";
import { type Clock, delay, MAX_DELAY_MS, systemClock } from "./clock.ts";

/** How a failed task is started again. */
export interface RestartPolicy extends BackoffOptions {
  /**
   * Restarts in a row before the failure counts as a real one. At least 1.
   *
   * @default Infinity
   */
  readonly maxRestarts?: number | undefined;
  /**
   * A task that ran for this long, in milliseconds, has recovered: the delays and the count of restarts begin again.
   *
   * @default 60000
   */
  readonly resetAfterMs?: number | undefined;
  /** Says whether this failure is worth another try. @default all of them are */
  readonly isTransient?: ((error: unknown) => boolean) | undefined;
}

/** One of the things that {@linkcode supervise} runs. */
export interface Task {
  /** What it is called in errors and reports. */
  readonly name: string;
  /**
   * Does the work until it is done or `signal` aborts. After an abort it resolves, or rejects with the signal's reason
   * or any `AbortError`; anything else that it rejects with is a failure, also then.
   */
  run(signal: AbortSignal): Promise<void>;
  /** Starts the task again when it fails. @default a failure ends the run */
  readonly restart?: RestartPolicy | undefined;
  /** Whether the others go on (`"continue"`) or stop cleanly (`"stop"`) when this one is done. @default "continue" */
  readonly whenDone?: "continue" | "stop" | undefined;
}

/** A failure that led to a restart. */
export interface RestartReport {
  /** The task. */
  readonly task: string;
  /** What it failed with. */
  readonly error: unknown;
  /** How long until it runs again, in milliseconds. */
  readonly delayMs: number;
  /** How many restarts in a row this makes. */
  readonly restarts: number;
}

/** Options of {@linkcode supervise}. */
export interface SuperviseOptions {
  /** Stops the tasks cleanly. @default none */
  readonly signal?: AbortSignal | undefined;
  /** How long tasks may take to end once they were told to, in milliseconds. @default 5000 */
  readonly shutdownTimeoutMs?: number | undefined;
  /** Hears of each restart. @default none */
  readonly onRestart?: ((report: RestartReport) => void) | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/** Tasks did not end in time after they were told to. */
export class ShutdownTimeoutError extends Error {
  /** The name of the class. */
  override readonly name = "ShutdownTimeoutError";
  /** Those that were still running. */
  readonly tasks: readonly string[];

  /**
   * Names the tasks.
   *
   * @param tasks Names of those that were still running.
   * @param timeoutMs How long they had, in milliseconds.
   */
  constructor(tasks: readonly string[], timeoutMs: number) {
    const names = tasks.map((task) => `"${task}"`).join(", ");
    super(`Cannot stop cleanly as every task must end within ${timeoutMs} ms: still running is ${names}`);
    this.tasks = tasks;
  }
}

const suppressed = new WeakMap<object, readonly unknown[]>();

/**
 * What else went wrong in the run that ended with `failure`.
 *
 * @param failure What {@linkcode supervise} rejected with.
 * @returns The later failures in the order in which they came; none for an error that {@linkcode supervise} did not
 * throw.
 */
export function suppressedFailures(failure: unknown): readonly unknown[] {
  return (typeof failure === "object" && failure !== null ? suppressed.get(failure) : undefined) ?? [];
}

/**
 * Runs tasks under one controller.
 *
 * - The first real failure stops the others, and is what the promise rejects with, once they have ended. What fails
 *   after it is found with {@linkcode suppressedFailures}.
 * - An abort of `signal` stops all of them and is a clean end: the promise resolves. With a signal that has aborted
 *   already no task starts.
 * - It resolves when every task is done.
 * - Tasks that were told to stop and did not within `shutdownTimeoutMs` are left behind: the promise rejects with
 *   {@linkcode ShutdownTimeoutError}, unless a failure came first.
 * - A task with a restart policy runs again after a failure, until the policy gives up; then that failure is a real one.
 *
 * @param tasks What to run.
 * @param options Signal, limits and clock.
 * @returns A promise for the end of all tasks.
 * @throws {TypeError} When a task or an option is of another type. @throws {RangeError} When a number is out of its range.
 * No task has started then.
 *
 * @example One task fails, the other one is stopped
 * ```ts
 * import { delay, supervise } from "@icx/icx";
 * import { rejects } from "node:assert";
 *
 * await rejects(
 *   supervise([
 *     { name: "worker", run: () => Promise.reject(new Error("The device is gone")) },
 *     { name: "timer", run: (signal) => delay(3_600_000, { signal }) },
 *   ]),
 *   /device is gone/,
 * );
 * ```
 */
export async function supervise(tasks: readonly Task[], options: SuperviseOptions = {}): Promise<void> {
  const { signal, shutdownTimeoutMs = 5000, onRestart, clock = systemClock } = options;
  requireNumber(shutdownTimeoutMs, { operation: "supervise", name: "shutdownTimeoutMs", min: 0, max: MAX_DELAY_MS });
  requireTasks(tasks);
  if (signal?.aborted) return;

  const controller = new AbortController();
  const failures: unknown[] = [];
  const running = new Set<symbol>();
  const names = new Map<symbol, string>();
  let finished = false;

  const fail = (error: unknown): void => {
    if (finished) return;
    failures.push(error);
    controller.abort(error);
  };
  const onAbort = () => controller.abort(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });

  const lives = tasks.map(async (task) => {
    const id = Symbol(task.name);
    names.set(id, task.name);
    running.add(id);
    try {
      await live(task, { signal: controller.signal, clock, onRestart });
      if (task.whenDone === "stop") controller.abort(new DOMException(`Task "${task.name}" is done`, "AbortError"));
    } catch (error) {
      if (!isAbort(error, controller.signal)) fail(error);
    } finally {
      running.delete(id);
    }
  });

  let cancelTimer: (() => void) | undefined;
  const timeout = new Promise<"timeout">((resolve) => {
    const arm = () => {
      cancelTimer = clock.schedule(shutdownTimeoutMs, () => resolve("timeout"));
    };
    if (controller.signal.aborted) arm();
    else controller.signal.addEventListener("abort", arm, { once: true });
  });

  const outcome = await Promise.race([Promise.all(lives), timeout]);
  cancelTimer?.();
  signal?.removeEventListener("abort", onAbort);
  if (outcome === "timeout") {
    const left = [...names].filter(([id]) => running.has(id)).map(([, name]) => name);
    fail(new ShutdownTimeoutError(left, shutdownTimeoutMs));
  }
  finished = true;
  if (failures.length === 0) return;
  const [first, ...rest] = failures;
  if (typeof first === "object" && first !== null) suppressed.set(first, rest);
  throw first;
}

/** Makes sure that all of them can run before the first one does. */
function requireTasks(tasks: readonly Task[]): void {
  const operation = "supervise";
  requireType(Array.isArray(tasks), tasks, { operation, name: "tasks", allowed: "a list" });
  for (const [index, task] of tasks.entries()) {
    const name = `tasks[${index}]`;
    requireObject(task, { operation, name });
    requireFunction(task.run, { operation, name: `${name}.run` });
    if (task.restart === undefined) continue;
    const { maxRestarts = 1 } = task.restart;
    requireNumber(maxRestarts, { operation, name: `${name}.restart.maxRestarts`, min: 1, max: Infinity });
    new Backoff(task.restart);
  }
}

interface LiveOptions {
  readonly signal: AbortSignal;
  readonly clock: Clock;
  readonly onRestart: ((report: RestartReport) => void) | undefined;
}

/** Runs one task through all its restarts. */
async function live(task: Task, { signal, clock, onRestart }: LiveOptions): Promise<void> {
  const policy = task.restart;
  if (policy === undefined) {
    await task.run(signal);
    return;
  }
  const { maxRestarts = Infinity, resetAfterMs = 60_000, isTransient = () => true } = policy;
  const backoff = new Backoff(policy);
  while (true) {
    const startedAt = clock.now();
    try {
      await task.run(signal);
      return;
    } catch (error) {
      if (signal.aborted) throw error;
      if (clock.now() - startedAt >= resetAfterMs) backoff.reset();
      if (backoff.attempts >= maxRestarts || !isTransient(error)) throw error;
      const delayMs = backoff.next();
      onRestart?.({ task: task.name, error, delayMs, restarts: backoff.attempts });
      await delay(delayMs, { signal, clock });
    }
  }
}

/** Whether `error` only says that `signal` aborted. */
function isAbort(error: unknown, signal: AbortSignal): boolean {
  if (!signal.aborted) return false;
  return error === signal.reason || (error instanceof Error && error.name === "AbortError");
}
