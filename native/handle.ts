/**
 * What all handles have in common: they are open, then closing, then closed.
 *
 * @module
 */

import { NativeError } from "./errors.ts";
import type { Library, LibraryPart } from "./library.ts";
import type { Symbols } from "./symbols.ts";

/** Where a handle stands. */
export type HandleState = "open" | "closing" | "closed";

/** A handle of the library as an object. Every method of an object that is not open throws `ECLOSED`. */
export abstract class NativeHandle implements LibraryPart {
  /** What it is, for messages. */
  protected abstract readonly kind: string;
  readonly #library: Library;
  readonly #id: number;
  readonly #disown: () => void;
  #state: HandleState = "open";

  /** @param id What the library just gave; from here on it is this object's to close. */
  protected constructor(library: Library, id: number) {
    this.#library = library;
    this.#id = id;
    try {
      this.#disown = library.own(this);
    } catch (error) {
      library.symbols.icx_close(id);
      throw error;
    }
  }

  /** Where it stands. */
  get state(): HandleState {
    return this.#state;
  }

  /** The library that it belongs to. */
  get library(): Library {
    return this.#library;
  }

  /**
   * The library's number for it, for calls that name several handles.
   *
   * @throws {NativeError} `ECLOSED`.
   */
  unsafeId(operation: string): number {
    this.#requireOpen(operation);
    return this.#id;
  }

  /** Closes it; when that is done everything that belongs to it has stopped. May be called again. Does not fail. */
  abstract close(): void | Promise<void>;

  /** The C functions and the handle's number, for one call. */
  protected use(operation: string): { readonly symbols: Symbols; readonly id: number } {
    this.#requireOpen(operation);
    return { symbols: this.#library.symbols, id: this.#id };
  }

  /** From `open` to `closing`. Gives what is needed to go on, unless someone else did so before. */
  protected beginClosing(): { readonly symbols: Symbols; readonly id: number } | undefined {
    if (this.#state !== "open") return undefined;
    this.#state = "closing";
    return { symbols: this.#library.symbols, id: this.#id };
  }

  /** From any state to `closed`: the library has no such handle any more. */
  protected closed(): void {
    this.#state = "closed";
    this.#disown();
  }

  #requireOpen(operation: string): void {
    if (this.#state !== "open") {
      throw new NativeError(`Cannot use the ${this.kind} as it is ${this.#state}: open another one`, {
        code: "ECLOSED",
        operation,
      });
    }
  }
}

/** A handle that closes at once. */
export abstract class SyncHandle extends NativeHandle implements Disposable {
  override close(): void {
    const closing = this.beginClosing();
    if (closing === undefined) return;
    closing.symbols.icx_close(closing.id);
    this.closed();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** A handle with threads, which closing waits for: up to about two seconds, on another thread. */
export abstract class AsyncHandle extends NativeHandle implements AsyncDisposable {
  #closing: Promise<void> | undefined;

  override close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Called once, when the threads have stopped and the handle is gone. */
  protected onClosed(): void {}

  async #close(): Promise<void> {
    const closing = this.beginClosing();
    if (closing === undefined) return;
    await this.library.track(closing.symbols.icx_close_wait(closing.id));
    this.closed();
    this.onClosed();
  }
}
