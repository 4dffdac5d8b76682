/**
 * Proxies and forwards between programs of this host and a network stack: their bytes never enter JavaScript.
 *
 * @module
 */

import { requireFunction, requireObject, requireType } from "../native/arguments.ts";
import {
  type ForwardProtocol,
  NativeProxies,
  type NativeProxyNotice,
  type NativeService,
  type ServicePlace,
} from "../native/proxies.ts";
import { guarded, toDatapathError } from "./errors.ts";
import { Netstack } from "./netstack_device.ts";

export type { ForwardProtocol } from "../native/proxies.ts";

/** A proxy for programs of this host, or of others. */
export interface ProxyListener {
  /** SOCKS5 (RFC 1928) for TCP and UDP, or HTTP CONNECT (RFC 9110 section 9.3.6). */
  readonly kind: "socks5" | "http-connect";
  /** Where it listens, `ip:port`; port 0 is one that is free. */
  readonly listen: string;
  /**
   * A file, readable by its owner alone, with `user:password` in each line: whoever wants to use the proxy must be one of them.
   * @default everybody who reaches it
   */
  readonly usersFile?: string | undefined;
  /** Whether it may listen beyond loopback without users. @default false */
  readonly dangerOpen?: boolean | undefined;
}

/** A port of this host that leads somewhere through the tunnel. */
export interface ForwardService {
  /** Which it is. */
  readonly kind: "forward";
  /** What is carried. */
  readonly protocol: ForwardProtocol;
  /** Where it listens, `ip:port`. */
  readonly listen: string;
  /** Where it leads, `host:port`. */
  readonly remote: string;
  /** Whether it may listen beyond loopback. @default false */
  readonly dangerOpen?: boolean | undefined;
}

/** A port of the stack that leads somewhere on this host's side. */
export interface ReverseService {
  /** Which it is. */
  readonly kind: "reverse";
  /** What is carried. */
  readonly protocol: ForwardProtocol;
  /** The port, on all addresses of the stack. */
  readonly port: number;
  /** Where it leads, `host:port`. */
  readonly remote: string;
}

/** Something to serve. */
export type ProxyService = ProxyListener | ForwardService | ReverseService;

/** Something to know about running services, with a sentence for people. */
export interface ProxyNotice {
  /** What it is. */
  readonly kind: "authentication-failed" | "accept-failing" | "omitted";
  /** What happened. */
  readonly message: string;
}

/** What {@linkcode Proxies.open} takes. */
export interface ProxiesOptions {
  /** The stack on whose other side all lies. It stays its owner's; when it closes, the services end. */
  readonly stack: Netstack;
  /** What to serve. */
  readonly services: readonly ProxyService[];
  /** Who looks up the names that clients and services give: this host, or the stack's name servers. @default "host" */
  readonly resolveNames?: "host" | "tunnel" | undefined;
  /** Clients at the same time; more are refused. @default 1024 */
  readonly maxClients?: number | undefined;
  /** Hears of clients that were refused and of failing listeners, a few times a second at most. @default none */
  readonly onNotice?: ((notice: ProxyNotice) => void) | undefined;
}

/**
 * Services that run from `open` to `close`.
 *
 * @example A SOCKS5 proxy into the tunnel, and a web server of this host for the other side
 * ```ts ignore
 * import { type Netstack, Proxies } from "@icx/icx";
 *
 * declare const stack: Netstack;
 * await using proxies = Proxies.open({
 *   stack,
 *   services: [
 *     { kind: "socks5", listen: "127.0.0.1:1080" },
 *     { kind: "reverse", protocol: "tcp", port: 80, remote: "127.0.0.1:8080" },
 *   ],
 * });
 * ```
 */
export class Proxies implements AsyncDisposable {
  /** Where each service listens, in their order: `ip:port` of this host, or the port of the stack. */
  readonly addresses: readonly string[];
  /** Resolves when the services have been closed, rejects with a {@linkcode DatapathError} when they failed before. It is safe to ignore. */
  readonly ended: Promise<void>;
  readonly #native: NativeProxies;
  #closed: Promise<void> | undefined;
  #last: Readonly<Record<string, number>> = {};

  private constructor(native: NativeProxies) {
    this.#native = native;
    this.addresses = native.places().map(placeText);
    this.ended = native.ended.catch((error) => {
      throw toDatapathError(error, "serve proxies");
    });
    this.ended.catch(() => {});
  }

  /**
   * Begins to listen, for all services or for none.
   *
   * @param options The stack and the services.
   * @throws {DatapathError} When a service cannot be as it was asked for, or cannot listen where it was asked to.
   * @throws {TypeError} When an option is of another kind.
   */
  static open(options: ProxiesOptions): Proxies {
    const operation = "open proxies";
    requireObject(options, { operation, name: "options" });
    const { stack, services, resolveNames, maxClients, onNotice = () => {} } = options;
    requireType(stack instanceof Netstack, stack, { operation, name: "stack", allowed: "a Netstack" });
    requireType(Array.isArray(services), services, { operation, name: "services", allowed: "a list of services" });
    requireFunction(onNotice, { operation, name: "onNotice" });
    return guarded(operation, () =>
      new Proxies(NativeProxies.start({
        stack: stack.native,
        services: services.map(nativeService),
        nameResolution: resolveNames,
        maxClients,
        onNotice: (notice) => onNotice({ kind: notice.notice, message: noticeText(notice) }),
      })));
  }

  /** Clients, bytes, datagrams and refusals so far, by name, also after `close`. */
  counters(): Readonly<Record<string, number>> {
    if (this.#closed === undefined) this.#last = this.#native.counters();
    return this.#last;
  }

  /** Ends all connections and listeners. May be called again. */
  close(): Promise<void> {
    if (this.#closed === undefined) {
      this.counters();
      this.#closed = this.#close();
    }
    return this.#closed;
  }

  /** Closes them. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#native.stop();
    await this.#native.close();
  }
}

function nativeService(service: ProxyService): NativeService {
  if (service?.kind !== "reverse") return service;
  const { kind, protocol, port, remote } = service;
  return { kind, protocol, listenPort: port, target: remote };
}

function placeText(place: ServicePlace): string {
  return "host" in place ? place.host : `port ${place.tunnel}`;
}

function noticeText(notice: NativeProxyNotice): string {
  switch (notice.notice) {
    case "authentication-failed":
      return `refused ${notice.client} on ${notice.service}: user or password are not among those that may use it`;
    case "accept-failing":
      return `cannot take connections on ${placeText(notice.service)}: ${notice.message}; trying on`;
    case "omitted":
      return `${notice.count} more such notices were left out`;
  }
}
