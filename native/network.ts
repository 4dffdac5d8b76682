/**
 * Questions to the operating system about its network.
 *
 * @module
 */

import type { Library } from "./library.ts";
import { encodeJson, errBuffer, orAbort, queryJson, queryJsonAsync } from "./marshal.ts";

/** Which way is asked for. */
export interface RouteLookupOptions {
  /** The IP address to reach. */
  readonly destination: string;
  /** The address to send from. @default the kernel's choice */
  readonly source?: string | undefined;
  /** Ends the wait. @default none */
  readonly signal?: AbortSignal | undefined;
}

/** The way that the kernel would take. */
export interface RouteInfo {
  /** The interface's name. */
  readonly interface: string;
  /** The interface's index. */
  readonly index: number;
  /** The address to send from. */
  readonly source: string;
  /** The next hop, unless the destination is on the link. */
  readonly gateway: string | null;
  /** The largest packet on the way, as far as this machine knows, in bytes. */
  readonly mtu: number;
}

/** A network interface. */
export interface InterfaceInfo {
  readonly name: string;
  readonly index: number;
  /** The largest packet in bytes. */
  readonly mtu: number;
  /** The hardware address, if it has one. */
  readonly mac: string | null;
  /** Whether it is set up. */
  readonly up: boolean;
}

/** Which name to resolve. */
export interface ResolveOptions {
  /** A host name or an IP address. */
  readonly host: string;
  /** The port that the answer carries. */
  readonly port: number;
  /** The IP versions of the answer. @default "dual" */
  readonly family?: "ipv4" | "ipv6" | "dual" | undefined;
  /** Ends the wait. @default none */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Asks the kernel which way an address takes.
 *
 * @throws {NativeError} `ENOENT` when there is none, `EINVAL`, `ESYS`.
 */
export async function routeLookup(library: Library, options: RouteLookupOptions): Promise<RouteInfo> {
  const { signal, ...question } = options;
  signal?.throwIfAborted();
  const { symbols } = library;
  const answer = queryJsonAsync<RouteInfo>(
    symbols,
    "icx_route_lookup",
    question,
    (...buffers) => symbols.icx_route_lookup(...buffers),
  );
  return await orAbort(library.track(answer), signal);
}

/**
 * Resolves a host name to `ip:port`, best first.
 *
 * @throws {NativeError} `ENOENT` when there is no such name, or none of the family.
 */
export async function resolveHost(library: Library, options: ResolveOptions): Promise<readonly string[]> {
  const { signal, ...question } = options;
  signal?.throwIfAborted();
  const { symbols } = library;
  const answer = queryJsonAsync<readonly string[]>(
    symbols,
    "icx_resolve",
    question,
    (...buffers) => symbols.icx_resolve(...buffers),
  );
  return await orAbort(library.track(answer), signal);
}

/**
 * Looks at a network interface.
 *
 * @throws {NativeError} `ENOENT` when there is none of that name, `EINVAL`, `ESYS`.
 */
export function interfaceLookup(library: Library, name: string): InterfaceInfo {
  const { symbols } = library;
  const json = encodeJson({ name });
  const err = errBuffer();
  return queryJson(
    symbols,
    "icx_interface_lookup",
    (out, outBytes) => symbols.icx_interface_lookup(json, json.byteLength, out, outBytes, err, err.byteLength),
    err,
  );
}
