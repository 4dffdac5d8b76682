/**
 * From operating-system signals to one abort signal.
 *
 * @module
 */

import { requireFunction, requireNumber, requireObject } from "../native/arguments.ts";
import { type Clock, MAX_DELAY_MS, systemClock } from "./clock.ts";

/** Where signals come from. The native layer has one for SIGINT and SIGTERM; a test brings its own. */
export interface SignalSource {
  /**
   * Calls `listener` with the signal's name each time that one arrives.
   *
   * @returns A function that ends this.
   */
  subscribe(listener: (name: string) => void): () => void;
}

/** What {@linkcode ShutdownSignals} is made of. */
export interface ShutdownSignalsOptions {
  /** Where the signals come from. */
  readonly source: SignalSource;
  /** Called with the signal's name when the user insists: end the process here. */
  readonly onForce: (name: string) => void;
  /** A signal that comes earlier than this after the first one is the same wish, in milliseconds. @default 1000 */
  readonly graceMs?: number | undefined;
  /** Time. @default systemClock */
  readonly clock?: Clock | undefined;
}

/**
 * The first signal aborts {@linkcode ShutdownSignals.signal}: a clean stop begins. Another one at least a second later
 * forces the end. What comes between is ignored, because Ctrl-C under a task runner arrives twice within milliseconds.
 */
export class ShutdownSignals implements Disposable {
  readonly #controller = new AbortController();
  readonly #unsubscribe: () => void;
  #firstAt: number | undefined;
  #name: string | undefined;

  /**
   * Listens from now on.
   *
   * @param options Source, what to do when the user insists, and time.
   * @throws {TypeError} When an option is of another type. @throws {RangeError} When the time is below 0.
   */
  constructor(options: ShutdownSignalsOptions) {
    const operation = "listen for signals";
    requireObject(options, { operation, name: "options" });
    requireObject(options.source, { operation, name: "source" });
    requireFunction(options.onForce, { operation, name: "onForce" });
    const { source, onForce, graceMs = 1000, clock = systemClock } = options;
    requireNumber(graceMs, { operation, name: "graceMs", min: 0, max: MAX_DELAY_MS });
    this.#unsubscribe = source.subscribe((name) => {
      if (this.#firstAt === undefined) {
        this.#firstAt = clock.now();
        this.#name = name;
        this.#controller.abort(new DOMException(`Received ${name}`, "AbortError"));
      } else if (clock.now() - this.#firstAt >= graceMs) {
        onForce(name);
      }
    });
  }

  /** Aborts with the first signal; the reason is an `AbortError` that names it. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** The name of the first signal, `undefined` as long as none came. */
  get received(): string | undefined {
    return this.#name;
  }

  /** Stops listening. {@linkcode ShutdownSignals.signal} stays as it is. */
  [Symbol.dispose](): void {
    this.#unsubscribe();
  }
}
