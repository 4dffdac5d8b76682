/**
 * Values across the boundary: JSON text in, text out, the reason of a failure. The only place that knows the buffers' layout.
 *
 * @module
 */

import { requireObject, requireType } from "./arguments.ts";
import { errorCode, NativeError } from "./errors.ts";
import type { Symbols } from "./symbols.ts";

/** A buffer of the kind that FFI calls take: not shared with another thread. */
export type Buffer = Uint8Array<ArrayBuffer>;

/** Byte order of the numbers that the library writes into byte buffers, for `DataView`. */
export const LITTLE_ENDIAN = true;

const ERR_BYTES = 1024;
const ERR_HEADER_BYTES = 8;
const OUT_BYTES = 1024;
const MAX_OUT_BYTES = 1 << 24;
/** `ICX_EBUFFER`: the call changed nothing and may be repeated with more room. */
const BUFFER_TOO_SMALL = -3;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/**
 * The text of a value, for a `json` argument.
 *
 * @throws {TypeError} When it is no object, or something in it has no JSON text that says the same.
 */
export function encodeJson(value: unknown): Buffer {
  requireObject(value, { operation: "call the icx library", name: "options" });
  return encoder.encode(JSON.stringify(value, plain));
}

/** JSON would turn these numbers into `null`, and knows no such integers. */
function plain(name: string, value: unknown): unknown {
  const holds = typeof value !== "bigint" && (typeof value !== "number" || Number.isFinite(value));
  requireType(holds, value, { operation: "call the icx library", name, allowed: "a finite number" });
  return value;
}

/** Reads what the library wrote into `out`. The type is the caller's knowledge of the C interface. */
export function decodeJson<T>(out: Buffer, lengthBytes: number): T {
  return JSON.parse(decodeText(out, lengthBytes));
}

/** Reads a text that the library wrote into `out`. */
export function decodeText(out: Buffer, lengthBytes: number): string {
  return decoder.decode(out.subarray(0, lengthBytes));
}

/** Room for the reason of a failure. A nonblocking call needs one of its own. */
export function errBuffer(): Buffer {
  return new Uint8Array(ERR_BYTES);
}

/**
 * Gives back a result that is zero or above, and throws the library's reason otherwise.
 *
 * @param err What the call had as `err`; without one the text of the code is the reason.
 */
export function check(symbols: Symbols, operation: string, result: number, err?: Buffer): number {
  if (result >= 0) return result;
  const code = errorCode(result);
  if (err !== undefined) {
    const view = new DataView(err.buffer, err.byteOffset, err.byteLength);
    const lengthBytes = view.getUint32(0, LITTLE_ENDIAN);
    const errno = view.getInt32(4, LITTLE_ENDIAN);
    if (lengthBytes > 0) {
      const message = decoder.decode(err.subarray(ERR_HEADER_BYTES, ERR_HEADER_BYTES + lengthBytes));
      throw new NativeError(message, { code, operation, errno: errno === 0 ? undefined : errno });
    }
  }
  throw new NativeError(`Cannot carry out ${operation}: ${codeText(symbols, result)}`, { code, operation });
}

function codeText(symbols: Symbols, result: number): string {
  const out = new Uint8Array(256);
  const lengthBytes = symbols.icx_strerror(result, out, out.byteLength);
  return lengthBytes >= 0 ? decodeText(out, lengthBytes) : `result ${result}`;
}

/** Calls a function that takes JSON text and gives a number. */
export function callJson(
  symbols: Symbols,
  operation: string,
  options: unknown,
  call: (json: Buffer, jsonBytes: number, err: Buffer, errBytes: number) => number,
): number {
  const json = encodeJson(options);
  const err = errBuffer();
  return check(symbols, operation, call(json, json.byteLength, err, err.byteLength), err);
}

/** Calls a function that gives JSON text, again with more room while the text does not fit. */
export function queryJson<T>(
  symbols: Symbols,
  operation: string,
  call: (out: Buffer, outBytes: number) => number,
  err?: Buffer,
): T {
  for (let outBytes = OUT_BYTES;; outBytes *= 4) {
    const out = new Uint8Array(outBytes);
    const result = call(out, outBytes);
    if (result === BUFFER_TOO_SMALL && outBytes < MAX_OUT_BYTES) continue;
    return decodeJson(out, check(symbols, operation, result, err));
  }
}

/** As {@linkcode queryJson}, for a function that takes JSON text too and does not run on this thread. */
export async function queryJsonAsync<T>(
  symbols: Symbols,
  operation: string,
  options: unknown,
  call: (
    json: Buffer,
    jsonBytes: number,
    out: Buffer,
    outBytes: number,
    err: Buffer,
    errBytes: number,
  ) => Promise<number>,
): Promise<T> {
  const json = encodeJson(options);
  const err = errBuffer();
  for (let outBytes = OUT_BYTES;; outBytes *= 4) {
    const out = new Uint8Array(outBytes);
    const result = await call(json, json.byteLength, out, outBytes, err, err.byteLength);
    if (result === BUFFER_TOO_SMALL && outBytes < MAX_OUT_BYTES) continue;
    return decodeJson(out, check(symbols, operation, result, err));
  }
}

/** The rejection of an aborted wait, without waiting further for the native call, which runs to its end unheard. */
export async function orAbort<T>(pending: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await pending;
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const onAbort = () => reject(signal.reason);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([pending, aborted]);
  } finally {
    signal.removeEventListener("abort", onAbort);
    // Whichever lost the race has no other listener.
    pending.catch(() => {});
  }
}
