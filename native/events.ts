/**
 * Events of the library: one wait at a time for all handles, and only while somebody listens.
 *
 * @module
 */

import { check, LITTLE_ENDIAN } from "./marshal.ts";
import { NativeError } from "./errors.ts";
import type { Symbols } from "./symbols.ts";

/** What an event tells of, by its number in the C interface. */
export const EVENT_KIND = {
  pumpEnded: 1,
  readable: 2,
  writable: 3,
  pumpNotice: 4,
  forwarderEnded: 5,
  forwarderNotice: 6,
  proxyEnded: 7,
  proxyNotice: 8,
  sessionUp: 10,
  sessionLost: 11,
  dialFailed: 12,
  exchangeDone: 13,
  exchangeFailed: 14,
  peerRejected: 15,
} as const;

/** An event as the library wrote it. */
export interface NativeEvent {
  /** One of {@linkcode EVENT_KIND}; others are of a newer library. */
  readonly kind: number;
  /** The handle that it concerns. */
  readonly handle: number;
  /** A result of the library; 0 for good news. */
  readonly code: number;
  /** What the C interface says for the kind. */
  readonly payload: unknown;
}

/** Who hears of a handle's events. */
export interface EventListener {
  /** Called for each, in order. What it throws is an uncaught error of the process. */
  readonly onEvent: (event: NativeEvent) => void;
  /** Called once if no more events can come, because waiting for them failed. */
  readonly onError: (error: NativeError) => void;
}

const BUFFER_BYTES = 1 << 16;
const WAIT_MS = 60_000;
const HEADER_BYTES = 16;

/** Waits for events while there are listeners. A waiting call keeps the process alive; without listeners nothing does. */
export class EventLoop {
  readonly #symbols: Symbols;
  readonly #listeners = new Map<number, Set<EventListener>>();
  readonly #after: Promise<void>;
  #running: Promise<void> | undefined;

  /** @param after The first wait begins when this has resolved. @default at once */
  constructor(symbols: Symbols, after: Promise<void> = Promise.resolve()) {
    this.#symbols = symbols;
    this.#after = after;
  }

  /**
   * Reports a handle's events to `listener` until the returned function is called, which may be done again.
   *
   * Events from before the first subscription of any handle are reported too, if they are of this handle.
   */
  subscribe(handle: number, listener: EventListener): () => void {
    let listeners = this.#listeners.get(handle);
    if (listeners === undefined) this.#listeners.set(handle, listeners = new Set());
    // A listener of one's own, so that the same one may subscribe twice.
    const own = { onEvent: listener.onEvent, onError: listener.onError };
    listeners.add(own);
    this.#running ??= this.#run();
    return () => {
      if (!listeners.delete(own) || listeners.size > 0) return;
      if (this.#listeners.get(handle) === listeners) this.#listeners.delete(handle);
      this.#wakeIfIdle();
    };
  }

  /** Resolves when no call waits any more: once the last listener has gone. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  /** Drops all listeners, and resolves when no call waits any more. */
  async close(): Promise<void> {
    this.#listeners.clear();
    this.#wakeIfIdle();
    await this.idle();
  }

  #wakeIfIdle(): void {
    if (this.#listeners.size === 0 && this.#running !== undefined) this.#symbols.icx_events_wake();
  }

  async #run(): Promise<void> {
    const buffer = new Uint8Array(BUFFER_BYTES);
    try {
      await this.#after;
      while (this.#listeners.size > 0) {
        const result = await this.#symbols.icx_events_wait(buffer, buffer.byteLength, WAIT_MS);
        this.#dispatch(buffer, check(this.#symbols, "icx_events_wait", result));
      }
      this.#running = undefined;
    } catch (cause) {
      this.#running = undefined;
      this.#fail(cause);
    }
  }

  #dispatch(buffer: Uint8Array<ArrayBuffer>, lengthBytes: number): void {
    for (const event of decodeEvents(buffer.subarray(0, lengthBytes))) {
      for (const listener of [...this.#listeners.get(event.handle) ?? []]) {
        try {
          listener.onEvent(event);
        } catch (error) {
          // The other listeners are not to suffer.
          reportError(error);
        }
      }
    }
  }

  #fail(cause: unknown): void {
    const error = cause instanceof NativeError
      ? cause
      : new NativeError("Cannot read the events of the icx library", { code: "EUNKNOWN", operation: "events", cause });
    const listeners = [...this.#listeners.values()].flatMap((set) => [...set]);
    this.#listeners.clear();
    for (const listener of listeners) listener.onError(error);
  }
}

/** Reads the events that one wait wrote. */
export function* decodeEvents(bytes: Uint8Array<ArrayBuffer>): Generator<NativeEvent> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const decoder = new TextDecoder();
  for (let at = 0; at < bytes.byteLength;) {
    const lengthBytes = view.getUint32(at, LITTLE_ENDIAN);
    const padded = decoder.decode(bytes.subarray(at + HEADER_BYTES, at + lengthBytes));
    const text = padded.replace(/\0+$/, "");
    yield {
      kind: view.getUint32(at + 4, LITTLE_ENDIAN),
      handle: view.getUint32(at + 8, LITTLE_ENDIAN),
      code: view.getInt32(at + 12, LITTLE_ENDIAN),
      payload: text === "" ? undefined : JSON.parse(text),
    };
    at += lengthBytes;
  }
}
