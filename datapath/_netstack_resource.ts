/**
 * What everything that is open on a network stack has in common: its calls are made again until they have a result, and fail with the
 * errors of Deno's own sockets.
 *
 * @module
 */

import { orAbort } from "../native/marshal.ts";
import { NativeError, type NativeErrorCode } from "../native/errors.ts";
import type { ReadinessHandle } from "../native/readiness.ts";

const CLASSES: Partial<Readonly<Record<NativeErrorCode, new (message: string, options: ErrorOptions) => Error>>> = {
  EINVAL: Deno.errors.InvalidData,
  ECLOSED: Deno.errors.ConnectionAborted,
  ENOENT: Deno.errors.NotFound,
  EBUSY: Deno.errors.Busy,
  ETIMEDOUT: Deno.errors.TimedOut,
  ESTATE: Deno.errors.NotSupported,
  ECONNREFUSED: Deno.errors.ConnectionRefused,
  ECONNRESET: Deno.errors.ConnectionReset,
  EPIPE: Deno.errors.BrokenPipe,
  ENOTCONN: Deno.errors.NotConnected,
  EADDRINUSE: Deno.errors.AddrInUse,
  EADDRNOTAVAIL: Deno.errors.AddrNotAvailable,
  ENETUNREACH: Deno.errors.NetworkUnreachable,
};

/** A native failure as Deno's own sockets have it; anything else as it is. */
export function toSocketError(error: unknown): unknown {
  if (!(error instanceof NativeError)) return error;
  const Class = CLASSES[error.code];
  return Class === undefined ? error : new Class(error.message, { cause: error });
}

/** When a call that got nothing is worth making again. */
export type Readiness = "readable" | "writable";

/** A native handle on a stack. */
export class Resource<N extends ReadinessHandle> {
  readonly #native: N;
  readonly #what: string;

  /** @param what What it is, for messages. */
  constructor(native: N, what: string) {
    this.#native = native;
    this.#what = what;
  }

  /** Whether it has been closed, by whomever. */
  get isClosed(): boolean {
    return this.#native.state !== "open";
  }

  /**
   * Makes a call until it has a result.
   *
   * @throws {Deno.errors.BadResource} When it is closed. @throws {Deno.errors.Interrupted} When it closes meanwhile.
   */
  async until<T>(
    operation: string,
    { call, ready, signal }: {
      readonly call: (native: N) => T | undefined;
      readonly ready: Readiness;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<T> {
    signal?.throwIfAborted();
    let result = this.now(operation, call);
    while (result === undefined) {
      await orAbort(this.#native[ready](), signal);
      if (this.isClosed) {
        throw new Deno.errors.Interrupted(`Cannot ${operation} as the ${this.#what} was closed meanwhile`);
      }
      result = this.now(operation, call);
    }
    return result;
  }

  /**
   * Makes a call once.
   *
   * @throws {Deno.errors.BadResource} When it is closed.
   */
  now<T>(operation: string, call: (native: N) => T): T {
    if (this.isClosed) {
      throw new Deno.errors.BadResource(`Cannot ${operation} as the ${this.#what} is closed: open another one`);
    }
    try {
      return call(this.#native);
    } catch (error) {
      throw toSocketError(error);
    }
  }

  /** Gives it back. May be called again. */
  close(): void {
    this.#native.close();
  }
}
