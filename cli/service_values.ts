/** Parsers of what a node without a device serves: proxies, forwards, and their reverse. */

import { isIP } from "node:net";
import type { ValueParser } from "@optique/core/valueparser";
import { type Endpoint, formatEndpoint, valueParser } from "./values.ts";

/** Where a proxy listens, and the file that says who may use it. */
export interface ProxyAt {
  /** An address of this host. */
  readonly listen: Endpoint;
  /** `user:password` in each line; `undefined`: everybody who reaches it. */
  readonly usersFile: string | undefined;
}

/** What is carried. */
export type Protocol = "tcp" | "udp";

/** From a port of this host to somewhere through the tunnel. */
export interface Forward {
  readonly protocol: Protocol;
  /** An address of this host. */
  readonly listen: Endpoint;
  /** A name or address on the inner side. */
  readonly remote: Endpoint;
}

/** From a port of the node's inner addresses to somewhere on this host's side. */
export interface Reverse {
  readonly protocol: Protocol;
  readonly port: number;
  /** A name or address that this host reaches. */
  readonly remote: Endpoint;
}

/** Where services listen unless they are told where. */
export const LOOPBACK = "127.0.0.1";

/** `[ADDRESS:]PORT`, a file of users, or both with a comma between them. */
export function proxyAt(defaultPort: number): ValueParser<"sync", ProxyAt> {
  return valueParser<ProxyAt>({
    metavar: "[ADDRESS:]PORT,USER-FILE",
    placeholder: { listen: { host: LOOPBACK, port: defaultPort }, usersFile: undefined },
    allowed:
      `where to listen, such as ${defaultPort} or 127.0.0.1:${defaultPort}, a file of users, or both with a comma`,
    parse: (input) => {
      const [first = "", ...rest] = input.split(",");
      const listen = listenAt(first);
      const usersFile = listen === undefined ? input : rest.join(",");
      if (listen === undefined && (first === "" || /^[0-9]+$/.test(first))) return undefined;
      if (listen !== undefined && rest.length > 0 && usersFile === "") return undefined;
      return {
        listen: listen ?? { host: LOOPBACK, port: defaultPort },
        usersFile: usersFile === "" ? undefined : usersFile,
      };
    },
    format: ({ listen, usersFile }) => [formatEndpoint(listen), usersFile ?? []].flat().join(","),
  });
}

/** `[tcp:|udp:][ADDRESS:]PORT=HOST:PORT`. */
export function forward(): ValueParser<"sync", Forward> {
  return valueParser<Forward>({
    metavar: "LOCAL=REMOTE",
    placeholder: { protocol: "tcp", listen: { host: LOOPBACK, port: 1 }, remote: { host: "::1", port: 1 } },
    allowed:
      "a port of this host and a place on the other side, such as 8080=10.9.0.2:80 or udp:127.0.0.1:53=10.9.0.2:53",
    parse: (input) => {
      const { protocol, left, right } = sides(input);
      const [listen, remote] = [listenAt(left), hostAndPort(right)];
      return listen === undefined || remote === undefined ? undefined : { protocol, listen, remote };
    },
    format: ({ protocol, listen, remote }) => `${protocol}:${formatEndpoint(listen)}=${formatEndpoint(remote)}`,
  });
}

/** `[tcp:|udp:]PORT=HOST:PORT`. */
export function reverse(): ValueParser<"sync", Reverse> {
  return valueParser<Reverse>({
    metavar: "PORT=LOCAL",
    placeholder: { protocol: "tcp", port: 1, remote: { host: "::1", port: 1 } },
    allowed:
      "a port of the node's inner address and a place on this side, such as 80=127.0.0.1:8080 or udp:53=[::1]:53",
    parse: (input) => {
      const { protocol, left, right } = sides(input);
      const [port, remote] = [portOf(left), hostAndPort(right)];
      return port === undefined || remote === undefined ? undefined : { protocol, port, remote };
    },
    format: ({ protocol, port, remote }) => `${protocol}:${port}=${formatEndpoint(remote)}`,
    hint: (input) =>
      /^[a-z]*:?[0-9.]+:[0-9]+=/.test(input) ? "It is on all inner addresses: name the port alone." : undefined,
  });
}

function sides(input: string): { readonly protocol: Protocol; readonly left: string; readonly right: string } {
  const [, protocol = "tcp", left = "", right = ""] = /^(?:(tcp|udp):)?([^=]*)=([^=]*)$/.exec(input) ?? [];
  return { protocol: protocol as Protocol, left, right };
}

function portOf(text: string): number | undefined {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : 0;
  return port >= 1 && port <= 65535 ? port : undefined;
}

/** A port on loopback, or with an address. */
function listenAt(text: string): Endpoint | undefined {
  const alone = portOf(text);
  if (alone !== undefined) return { host: LOOPBACK, port: alone };
  const at = hostAndPort(text);
  return at !== undefined && isIP(at.host) !== 0 ? at : undefined;
}

function hostAndPort(text: string): Endpoint | undefined {
  const [, v6, name, digits = ""] = /^(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/[\]]{1,253})):([0-9]{1,5})$/.exec(text) ?? [];
  const [host, port] = [v6 ?? name, portOf(digits)];
  if (host === undefined || port === undefined) return undefined;
  // A name does not end in a number (RFC 1123 section 2.1): this is an address with a mistake in it.
  const isGood = v6 === undefined ? isIP(host) === 4 || !/(^|\.)[0-9]+$/.test(host) : isIP(host) === 6;
  return isGood ? { host, port } : undefined;
}
