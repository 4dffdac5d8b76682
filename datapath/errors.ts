/**
 * What goes wrong on a datapath.
 *
 * @module
 */

import { NativeError, type NativeErrorCode } from "../native/errors.ts";

/** Options of {@linkcode DatapathError}. */
export interface DatapathErrorOptions {
  /** What kind of failure it is. */
  readonly code: DatapathErrorCode;
  /** What was being done. */
  readonly operation: string;
  /** The operating system's error number, where it was the one to refuse. */
  readonly errno?: number | undefined;
  /** What led to it. */
  readonly cause?: unknown;
}

/**
 * What kind of failure a {@linkcode DatapathError} is.
 *
 * - `already-run`: `run` was called before.
 * - `closed`: it has been closed, or what it stands on has.
 * - `wrong-state`: not possible now.
 * - `end-failed`: a device or an underlay written in TypeScript failed too often in a row, or did not keep to its interface; `cause`
 *   is what it failed with.
 * - `permission-denied`, `exists`, `not-found`, `busy`, `unsupported`: what the operating system has against it.
 * - `system`: another answer of the operating system; `errno` says which.
 * - `invalid-argument`, `key-refused`, `key-reused`, `peer`, `timed-out`: as they say.
 * - `library`: the native library is missing or does not fit.
 * - `internal`: a fault of the library. Please report it.
 */
export type DatapathErrorCode =
  | "already-run"
  | "busy"
  | "closed"
  | "end-failed"
  | "exists"
  | "internal"
  | "invalid-argument"
  | "key-refused"
  | "key-reused"
  | "library"
  | "not-found"
  | "peer"
  | "permission-denied"
  | "system"
  | "timed-out"
  | "unsupported"
  | "wrong-state";

const CODES: Readonly<Record<NativeErrorCode, DatapathErrorCode>> = {
  EINVAL: "invalid-argument",
  EBADHANDLE: "closed",
  EBUFFER: "internal",
  EPANIC: "internal",
  ECLOSED: "closed",
  EEXIST: "exists",
  ENOENT: "not-found",
  EPERM: "permission-denied",
  EBUSY: "busy",
  ESYS: "system",
  EKEY: "key-refused",
  EREUSED: "key-reused",
  ETIMEDOUT: "timed-out",
  ESTATE: "wrong-state",
  EPEER: "peer",
  EUNSUPPORTED: "unsupported",
  EAGAIN: "internal",
  ECONNREFUSED: "peer",
  ECONNRESET: "peer",
  EPIPE: "closed",
  ENOTCONN: "closed",
  EADDRINUSE: "busy",
  EADDRNOTAVAIL: "not-found",
  ENETUNREACH: "not-found",
  ENOLIBRARY: "library",
  EBADLIBRARY: "library",
  EABIVERSION: "library",
  EUNKNOWN: "internal",
};

/** A datapath, or a part of one, cannot do what it was asked to, or cannot go on. */
export class DatapathError extends Error {
  /** The name of the class. */
  override readonly name = "DatapathError";
  /** What kind of failure it is. */
  readonly code: DatapathErrorCode;
  /** What was being done. */
  readonly operation: string;
  /** The operating system's error number, where it was the one to refuse. */
  readonly errno: number | undefined;

  /**
   * Describes a failure.
   *
   * @param message What was given, what is allowed, what to do next.
   * @param options Code, operation, error number and cause.
   */
  constructor(message: string, options: DatapathErrorOptions) {
    super(message, { cause: options.cause });
    this.code = options.code;
    this.operation = options.operation;
    this.errno = options.errno;
  }
}

/**
 * What a native failure is to users of datapaths: the one place where native codes become ours.
 *
 * @param error What was thrown.
 * @param operation What was being done.
 * @returns The same failure as a {@linkcode DatapathError}; anything that is not a native failure as it is.
 */
export function toDatapathError(error: unknown, operation: string): unknown {
  if (!(error instanceof NativeError)) return error;
  return new DatapathError(error.message, { code: CODES[error.code], operation, errno: error.errno, cause: error });
}

/** Runs `call`; a native failure in it becomes a {@linkcode DatapathError}. */
export function guarded<T>(operation: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw toDatapathError(error, operation);
  }
}
