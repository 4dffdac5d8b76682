/**
 * The native thread that serves proxies and forwards on a network stack.
 *
 * @module
 */

import { EVENT_KIND } from "./events.ts";
import type { Library } from "./library.ts";
import { callJson, check, queryJson } from "./marshal.ts";
import type { NativeNetstack } from "./netstack.ts";
import { namedCounters, type WorkerCalls, WorkerHandle } from "./worker_handle.ts";

/** What carries what is forwarded. */
export type ForwardProtocol = "tcp" | "udp";

/** One service, as the library takes it. */
export type NativeService =
  | {
    readonly kind: "socks5" | "http-connect";
    readonly listen: string;
    readonly usersFile?: string | undefined;
    readonly dangerOpen?: boolean | undefined;
  }
  | {
    readonly kind: "forward";
    readonly protocol: ForwardProtocol;
    readonly listen: string;
    readonly remote: string;
    readonly dangerOpen?: boolean | undefined;
  }
  | {
    readonly kind: "reverse";
    readonly protocol: ForwardProtocol;
    readonly listenPort: number;
    readonly target: string;
  };

/** What {@linkcode NativeProxies.start} takes. */
export interface NativeProxiesOptions {
  /** The stack. It stays its owner's. */
  readonly stack: NativeNetstack;
  /** What to serve. */
  readonly services: readonly NativeService[];
  /** Who looks names up: this host, or the stack's name servers. @default "host" */
  readonly nameResolution?: "host" | "tunnel" | undefined;
  /** Clients at the same time. @default 1024 */
  readonly maxClients?: number | undefined;
  /** Hears what they have to tell. @default none */
  readonly onNotice?: ((notice: NativeProxyNotice) => void) | undefined;
}

/** Where a service listens. */
export type ServicePlace = { readonly host: string } | { readonly tunnel: number };

/** What proxies tell while they run. */
export type NativeProxyNotice =
  | { readonly notice: "authentication-failed"; readonly service: string; readonly client: string }
  | {
    readonly notice: "accept-failing";
    readonly service: ServicePlace;
    readonly errno: number | null;
    readonly message: string;
  }
  | { readonly notice: "omitted"; readonly count: number };

const CALLS: WorkerCalls = {
  endedEvent: EVENT_KIND.proxyEnded,
  noticeEvent: EVENT_KIND.proxyNotice,
  stop: "icx_proxy_stop",
};

/** Services that run. */
export class NativeProxies extends WorkerHandle<NativeProxyNotice> {
  protected override readonly kind = "proxies";
  readonly #names: readonly string[];
  readonly #values: BigUint64Array<ArrayBuffer>;

  private constructor(library: Library, id: number, onNotice: ((notice: NativeProxyNotice) => void) | undefined) {
    super(library, id, CALLS, onNotice);
    this.#names = queryJson(
      library.symbols,
      "icx_proxy_counter_names",
      (out, outBytes) => library.symbols.icx_proxy_counter_names(out, outBytes),
    );
    this.#values = new BigUint64Array(this.#names.length);
  }

  /**
   * Starts the services, all of them or none.
   *
   * @throws {NativeError} `EINVAL` for what no service may be; `EADDRINUSE`, `EADDRNOTAVAIL` and `EPERM` where one cannot listen; `ECLOSED`
   * when the stack is; `ESYS`.
   */
  static start(options: NativeProxiesOptions): NativeProxies {
    const operation = "icx_proxy_start";
    const { stack, services, nameResolution, maxClients, onNotice } = options;
    const { library } = stack;
    const { symbols } = library;
    const given = { stack: stack.unsafeId(operation), services, nameResolution, maxClients };
    const id = callJson(symbols, operation, given, (...text) => symbols.icx_proxy_start(...text));
    return new NativeProxies(library, id, onNotice);
  }

  /** Where the services listen, in their order. */
  places(): readonly ServicePlace[] {
    const { symbols, id } = this.use("icx_proxy_info");
    const { services } = queryJson<{ readonly services: readonly ServicePlace[] }>(
      symbols,
      "icx_proxy_info",
      (out, outBytes) => symbols.icx_proxy_info(id, out, outBytes),
    );
    return services;
  }

  /** The counters as they stand, by name, also after `stop`. */
  counters(): Readonly<Record<string, number>> {
    const { symbols, id } = this.use("icx_proxy_counters");
    check(symbols, "icx_proxy_counters", symbols.icx_proxy_counters(id, this.#values, this.#values.length));
    return namedCounters(this.#names, this.#values);
  }
}
