/**
 * What goes wrong at the native boundary, as one error class.
 *
 * @module
 */

/** Result codes of the library, the first for -1, and so on downwards. Append only. */
const CODES: readonly LibraryErrorCode[] = [
  "EINVAL",
  "EBADHANDLE",
  "EBUFFER",
  "EPANIC",
  "ECLOSED",
  "EEXIST",
  "ENOENT",
  "EPERM",
  "EBUSY",
  "ESYS",
  "EKEY",
  "EREUSED",
  "ETIMEDOUT",
  "ESTATE",
  "EPEER",
  "EUNSUPPORTED",
  "EAGAIN",
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "ENOTCONN",
  "EADDRINUSE",
  "EADDRNOTAVAIL",
  "ENETUNREACH",
];

/** A failure that the library reports. */
export type LibraryErrorCode =
  | "EINVAL"
  | "EBADHANDLE"
  | "EBUFFER"
  | "EPANIC"
  | "ECLOSED"
  | "EEXIST"
  | "ENOENT"
  | "EPERM"
  | "EBUSY"
  | "ESYS"
  | "EKEY"
  | "EREUSED"
  | "ETIMEDOUT"
  | "ESTATE"
  | "EPEER"
  | "EUNSUPPORTED"
  | "EAGAIN"
  | "ECONNREFUSED"
  | "ECONNRESET"
  | "EPIPE"
  | "ENOTCONN"
  | "EADDRINUSE"
  | "EADDRNOTAVAIL"
  | "ENETUNREACH";

/**
 * What kind of failure it was.
 *
 * - `EINVAL`: an option is not acceptable; the message names it.
 * - `EBADHANDLE`, `EBUFFER`, `EPANIC`: a defect of this program or of the library.
 * - `ECLOSED`: the object, or the library, has been closed.
 * - `EEXIST`, `ENOENT`, `EPERM`, `EBUSY`, `ESYS`: what the operating system said; see `errno`. `EPERM` also where Deno refuses the
 *   library.
 * - `EKEY`: an identity or a peer's key is not acceptable. `EREUSED`: the transmit key was used before.
 * - `ETIMEDOUT`, `ESTATE`, `EPEER`, `EUNSUPPORTED`: it took too long; not possible in this state; the peer's fault; not supported
 *   here.
 * - `EAGAIN`: not now. `ECONNREFUSED`, `ECONNRESET`, `EPIPE`, `ENOTCONN`, `EADDRINUSE`, `EADDRNOTAVAIL`, `ENETUNREACH`: what became of a
 *   connection or a port of a network stack.
 * - `ENOLIBRARY`, `EBADLIBRARY`, `EABIVERSION`: the library's file is missing, is something else, or is of another version.
 * - `EUNKNOWN`: a code that this version does not know.
 */
export type NativeErrorCode = LibraryErrorCode | "ENOLIBRARY" | "EBADLIBRARY" | "EABIVERSION" | "EUNKNOWN";

/** Further facts about a {@linkcode NativeError}. */
export interface NativeErrorOptions {
  /** The kind of failure. */
  readonly code: NativeErrorCode;
  /** What was tried: a C function, or the step of the loader. */
  readonly operation: string;
  /** The error number of the operating system. @default none */
  readonly errno?: number | undefined;
  /** What led to it. @default nothing known */
  readonly cause?: unknown;
}

/** Thrown by everything in `native/`. The message says what was given, what is allowed and what to do next. */
export class NativeError extends Error {
  /** The name of the class. */
  override readonly name = "NativeError";
  /** The kind of failure. */
  readonly code: NativeErrorCode;
  /** What was tried: a C function, or the step of the loader. */
  readonly operation: string;
  /** The error number of the operating system, where there is one. */
  readonly errno: number | undefined;

  /**
   * Describes a failure.
   *
   * @param message What was given, what is allowed, what to do next.
   * @param options Further facts.
   */
  constructor(message: string, options: NativeErrorOptions) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = options.code;
    this.operation = options.operation;
    this.errno = options.errno;
  }
}

/** `ICX_EBADHANDLE`: there is no such handle, or not any more. */
export const BAD_HANDLE: number = -2;

/** The name of a negative result of the library. */
export function errorCode(result: number): NativeErrorCode {
  return CODES[-1 - result] ?? "EUNKNOWN";
}
