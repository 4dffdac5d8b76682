/**
 * Handles whose calls do not wait, and that tell when to call again.
 *
 * @module
 */

import type { NativeError } from "./errors.ts";
import { EVENT_KIND, type NativeEvent } from "./events.ts";
import { SyncHandle } from "./handle.ts";

interface Wait {
  readonly promise: Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: NativeError) => void;
}

/** A handle that is read and written without waiting, and that tells on the library's one event queue when to go on. */
export abstract class ReadinessHandle extends SyncHandle {
  #waits: { readable?: Wait; writable?: Wait } = {};
  #unsubscribe: (() => void) | undefined;

  /** Resolves when it is worth reading again, and when the handle closes. To be called right after a read that got nothing. */
  readable(): Promise<void> {
    return this.#wait("readable");
  }

  /** Resolves when it is worth writing again, and when the handle closes. To be called right after a write that took nothing. */
  writable(): Promise<void> {
    return this.#wait("writable");
  }

  protected override closed(): void {
    super.closed();
    this.#unsubscribe?.();
    // Whoever waits tries again, and hears that it is closed.
    this.#settle(({ resolve }) => resolve());
  }

  #wait(what: "readable" | "writable"): Promise<void> {
    this.use(what);
    this.#unsubscribe ??= this.library.events.subscribe(this.unsafeId(what), {
      onEvent: (event) => this.#hear(event),
      onError: (error) => this.#settle(({ reject }) => reject(error)),
    });
    return (this.#waits[what] ??= Promise.withResolvers<void>()).promise;
  }

  #hear({ kind }: NativeEvent): void {
    const what = kind === EVENT_KIND.readable ? "readable" : kind === EVENT_KIND.writable ? "writable" : undefined;
    if (what === undefined) return;
    this.#waits[what]?.resolve();
    delete this.#waits[what];
  }

  #settle(settle: (wait: Wait) => void): void {
    const waits = Object.values(this.#waits);
    this.#waits = {};
    waits.forEach(settle);
  }
}
