/** What a node without a device serves: proxies, forwards and their reverse. */

import type { Node } from "../control/node.ts";
import { Proxies, type ProxyNotice, type ProxyService } from "../datapath/proxies.ts";
import type { Log } from "./log.ts";
import type { Forward, ProxyAt, Reverse } from "./service_values.ts";
import type { TunnelArguments } from "./tunnel_options.ts";
import { formatEndpoint } from "./values.ts";

/** Services, which may be none. */
export interface Services extends AsyncDisposable {
  /** One for each, for people. */
  readonly lines: readonly string[];
  /** Where they listen. */
  readonly addresses: readonly string[];
  /** Resolves when they have been closed, rejects when they failed before. */
  readonly ended: Promise<void>;
  /** What they have carried; `undefined` when there are none. */
  counters(): Readonly<Record<string, number>> | undefined;
}

const NONE: Services = {
  lines: [],
  addresses: [],
  ended: Promise.resolve(),
  counters: () => undefined,
  [Symbol.asyncDispose]: () => Promise.resolve(),
};

/** Opens what the arguments ask for. */
export function openServices(
  { node, args, log }: { readonly node: Node; readonly args: TunnelArguments; readonly log: Log },
): Services {
  const services = servicesOf(args);
  const { stack } = node;
  if (services.length === 0 || stack === undefined) return NONE;
  const proxies = Proxies.open({
    stack,
    services,
    resolveNames: args.nameServers.length > 0 ? "tunnel" : "host",
    onNotice: (notice) => tell(notice, log),
  });
  const { addresses, ended } = proxies;
  return {
    lines: services.map((service, at) => lineOf(service, addresses[at] ?? "")),
    addresses,
    ended,
    counters: () => proxies.counters(),
    [Symbol.asyncDispose]: () => proxies.close(),
  };
}

function servicesOf({ socks5, httpConnect, forwards, reverses, openProxy }: TunnelArguments): readonly ProxyService[] {
  const proxy = (kind: "socks5" | "http-connect") => ({ listen, usersFile }: ProxyAt): ProxyService => ({
    kind,
    listen: formatEndpoint(listen),
    usersFile,
    dangerOpen: openProxy,
  });
  const forward = ({ protocol, listen, remote }: Forward): ProxyService => ({
    kind: "forward",
    protocol,
    listen: formatEndpoint(listen),
    remote: formatEndpoint(remote),
    dangerOpen: openProxy,
  });
  const reverse = ({ protocol, port, remote }: Reverse): ProxyService => ({
    kind: "reverse",
    protocol,
    port,
    remote: formatEndpoint(remote),
  });
  return [
    ...socks5.map(proxy("socks5")),
    ...httpConnect.map(proxy("http-connect")),
    ...forwards.map(forward),
    ...reverses.map(reverse),
  ];
}

function lineOf(service: ProxyService, at: string): string {
  switch (service.kind) {
    case "socks5":
      return `SOCKS5 on ${at}${users(service.usersFile)}`;
    case "http-connect":
      return `HTTP CONNECT on ${at}${users(service.usersFile)}`;
    case "forward":
      return `${service.protocol} ${at} here to ${service.remote} through the tunnel`;
    case "reverse":
      return `${service.protocol} port ${service.port} inside to ${service.remote} here`;
  }
}

function users(file: string | undefined): string {
  return file === undefined ? "" : `, for the users in ${file}`;
}

function tell(notice: ProxyNotice, log: Log): void {
  const { message, ...fields } = notice;
  log("warning", message, { event: "service", ...fields });
}
