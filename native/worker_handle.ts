/**
 * Handles of what moves packets on threads of its own, until it is stopped or fails.
 *
 * @module
 */

import { BAD_HANDLE, errorCode, NativeError } from "./errors.ts";
import type { NativeEvent } from "./events.ts";
import { AsyncHandle } from "./handle.ts";
import type { Library } from "./library.ts";
import { check } from "./marshal.ts";
import type { Symbols } from "./symbols.ts";

/** What tells one sort of workers from another. */
export interface WorkerCalls {
  /** The event that tells of a failure, by its number in the C interface. */
  readonly endedEvent: number;
  /** The event that tells anything else. */
  readonly noticeEvent: number;
  /** The function that stops them and waits for that. */
  readonly stop: Extract<keyof Symbols, `${string}_stop`>;
}

/** A handle with threads that may fail, and that tell what happens while they run. */
export abstract class WorkerHandle<Notice> extends AsyncHandle {
  /**
   * Resolves when all has stopped, rejects with a {@linkcode NativeError} when something failed before. It is safe to ignore.
   */
  readonly ended: Promise<void>;
  readonly #ended = Promise.withResolvers<void>();
  readonly #calls: WorkerCalls;
  readonly #onNotice: ((notice: Notice) => void) | undefined;
  readonly #unsubscribe: () => void;

  /**
   * @param id What the library just gave; from here on it is this object's to close.
   * @param onNotice Hears what they have to tell while they run. What it throws is an uncaught error of the process.
   */
  protected constructor(
    library: Library,
    id: number,
    calls: WorkerCalls,
    onNotice: ((notice: Notice) => void) | undefined,
  ) {
    super(library, id);
    this.#calls = calls;
    this.#onNotice = onNotice;
    this.ended = this.#ended.promise;
    this.ended.catch(() => {});
    this.#unsubscribe = library.events.subscribe(id, {
      onEvent: (event) => this.#take(event),
      onError: (error) => this.#ended.reject(error),
    });
  }

  /** Stops it, and waits for that. The counters stay readable until `close`. May be called again. */
  async stop(): Promise<void> {
    if (this.state !== "open") return await this.close();
    const operation = this.#calls.stop;
    const { symbols, id } = this.use(operation);
    // Where the library lacks the function, it has made no such handle.
    const result = await this.library.track(symbols[operation]?.(id) ?? Promise.resolve(BAD_HANDLE));
    this.#unsubscribe();
    // A close meanwhile has done the same.
    if (result !== BAD_HANDLE) check(this.library.symbols, operation, result);
    this.#ended.resolve();
  }

  protected override onClosed(): void {
    this.#unsubscribe();
    this.#ended.resolve();
  }

  #take(event: NativeEvent): void {
    if (event.kind === this.#calls.noticeEvent) this.#onNotice?.(event.payload as Notice);
    if (event.kind !== this.#calls.endedEvent) return;
    const { message, operation, errno } = event.payload as {
      readonly message: string;
      readonly operation: string;
      readonly errno: number | null;
    };
    this.#ended.reject(new NativeError(message, { code: errorCode(event.code), operation, errno: errno ?? undefined }));
  }
}

/** Counters by name, in the order in which the library writes them; `from` says where in `values` the first is. */
export function namedCounters<Name extends string>(
  names: readonly Name[],
  values: BigUint64Array,
  from = 0,
): Record<Name, number> {
  const entries = names.map((name, index) => [name, Number(values[from + index] ?? 0n)]);
  return Object.fromEntries(entries);
}
