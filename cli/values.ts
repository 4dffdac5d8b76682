/** Parsers of single values on the command line: each says what was given and what is allowed. */

import { isIP } from "node:net";
import type { NonEmptyString } from "@optique/core/nonempty";
import { type Message, message, text, value } from "@optique/core/message";
import type { ValueParser } from "@optique/core/valueparser";

interface ValueOptions<T> {
  readonly metavar: NonEmptyString;
  /** Stands for the value where a parser needs one before the real one is known. */
  readonly placeholder: T;
  /** What is allowed, completing the sentence "expected ...". */
  readonly allowed: string;
  /** Returns `undefined` for text that is not acceptable. */
  readonly parse: (input: string) => T | undefined;
  readonly format?: (value: T) => string;
  /** Further advice for a particular input. */
  readonly hint?: (input: string) => string | undefined;
}

/** A parser of one kind of value, whose errors say what was given and what is allowed. */
export function valueParser<T>(options: ValueOptions<T>): ValueParser<"sync", T> {
  return {
    mode: "sync",
    metavar: options.metavar,
    placeholder: options.placeholder,
    parse: (input) => {
      const parsed = options.parse(input);
      if (parsed !== undefined) return { success: true, value: parsed };
      const hint = options.hint?.(input);
      const error: Message = hint === undefined
        ? message`expected ${text(options.allowed)}, but got ${value(input)}.`
        : message`expected ${text(options.allowed)}, but got ${value(input)}. ${text(hint)}`;
      return { success: false, error };
    },
    format: options.format ?? String,
  };
}

/** A whole number in a range, in decimal digits. */
export function whole(metavar: NonEmptyString, minimum: number, maximum: number): ValueParser<"sync", number> {
  return valueParser({
    metavar,
    placeholder: minimum,
    allowed: `a whole number from ${minimum} to ${maximum}`,
    parse: (input) => {
      const number = /^[0-9]{1,10}$/.test(input) ? Number(input) : NaN;
      return number >= minimum && number <= maximum ? number : undefined;
    },
  });
}

/** A UDP port. */
export function port(): ValueParser<"sync", number> {
  return whole("PORT", 1, 65535);
}

const UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };

/** A duration such as `2m`, `90s`, `1m30s` or `500ms`, in milliseconds, within two bounds. */
export function duration(minimumMs: number, maximumMs: number): ValueParser<"sync", number> {
  return valueParser({
    metavar: "TIME",
    placeholder: minimumMs,
    allowed: `a time from ${formatDuration(minimumMs)} to ${formatDuration(maximumMs)}, such as 2m, 90s or 500ms`,
    parse: (input) => {
      const ms = parseDuration(input);
      return ms !== undefined && ms >= minimumMs && ms <= maximumMs ? ms : undefined;
    },
    format: formatDuration,
    hint: (input) => /^[0-9.]+$/.test(input) ? `Add a unit: ${input}s, ${input}m or ${input}h.` : undefined,
  });
}

/** Reads a duration; `undefined` when the text is none. */
export function parseDuration(input: string): number | undefined {
  if (!/^([0-9]{1,9}(\.[0-9]{1,6})?(ms|s|m|h))+$/.test(input)) return undefined;
  let total = 0;
  for (const [, amount, unit] of input.matchAll(/([0-9.]+)(ms|s|m|h)/g)) {
    total += Number(amount) * (UNITS[unit ?? ""] ?? NaN);
  }
  return Math.round(total);
}

/** Writes a duration in its largest whole unit. */
export function formatDuration(ms: number): string {
  for (const [unit, size] of [["h", 3_600_000], ["m", 60_000], ["s", 1000]] as const) {
    if (ms >= size && ms % size === 0) return `${ms / size}${unit}`;
  }
  return `${ms}ms`;
}

/** How many queues; `auto` leaves that to the node, as `undefined`. */
export function queues(): ValueParser<"sync", { readonly count: number | undefined }> {
  return valueParser<{ readonly count: number | undefined }>({
    metavar: "auto|N",
    placeholder: { count: undefined },
    allowed: "auto, or a whole number from 1 to 64",
    parse: (input) => {
      if (input === "auto") return { count: undefined };
      const count = /^[0-9]{1,2}$/.test(input) ? Number(input) : 0;
      return count >= 1 && count <= 64 ? { count } : undefined;
    },
    format: ({ count }) => count === undefined ? "auto" : String(count),
  });
}

/** An MTU in bytes; `auto` leaves that to the node, as `undefined`. */
export function mtu(minimum: number, maximum: number): ValueParser<"sync", { readonly bytes: number | undefined }> {
  return valueParser<{ readonly bytes: number | undefined }>({
    metavar: "auto|BYTES",
    placeholder: { bytes: undefined },
    allowed: `auto, or a whole number from ${minimum} to ${maximum}`,
    parse: (input) => {
      if (input === "auto") return { bytes: undefined };
      const bytes = /^[0-9]{1,10}$/.test(input) ? Number(input) : NaN;
      return bytes >= minimum && bytes <= maximum ? { bytes } : undefined;
    },
    format: ({ bytes }) => bytes === undefined ? "auto" : String(bytes),
  });
}

/** What the kernel can cut and merge, by the names of the option. */
export const OFFLOADS = ["tso", "uso", "gro", "udp-gso", "udp-gro"] as const;

/** One of {@linkcode OFFLOADS}. */
export type OffloadName = typeof OFFLOADS[number];

/** Which offloads to switch. */
export type Offloads = Readonly<Partial<Record<OffloadName, boolean>>>;

/** `name=on` or `name=off`, several with commas between them, later ones counting; `all` is every name. */
export function offloads(): ValueParser<"sync", Offloads> {
  return valueParser<Offloads>({
    metavar: "NAME=on|off",
    placeholder: {},
    allowed: `one or more of ${[...OFFLOADS, "all"].join(", ")}, each with =on or =off, and commas between them`,
    parse: (input) => {
      let result: Offloads = {};
      for (const part of input.split(",")) {
        const [, name, state] = /^([a-z-]+)=(on|off)$/.exec(part) ?? [];
        const names = name === "all" ? OFFLOADS : OFFLOADS.filter((known) => known === name);
        if (names.length === 0) return undefined;
        result = { ...result, ...Object.fromEntries(names.map((known) => [known, state === "on"])) };
      }
      return result;
    },
    format: (switched) => Object.entries(switched).map(([name, on]) => `${name}=${on ? "on" : "off"}`).join(","),
  });
}

/** Where the peer is reached. */
export interface Endpoint {
  /** Name or address, an IPv6 address without its brackets. */
  readonly host: string;
  /** UDP port. */
  readonly port: number;
}

/** `host:port`, the host being a name, an IPv4 address or an IPv6 address in brackets. */
export function endpoint(): ValueParser<"sync", Endpoint> {
  return valueParser<Endpoint>({
    metavar: "PEER-HOST:PORT",
    placeholder: { host: "localhost", port: 6081 },
    allowed: "the peer as host:port, where host is a name, an IPv4 address or an IPv6 address in brackets",
    parse: (input) => {
      const parts = /^(?:\[([0-9A-Fa-f:.]+(?:%[^\]\s]+)?)\]|([^\s:[\]/]{1,253})):([0-9]{1,5})$/.exec(input);
      const host = parts?.[1] ?? parts?.[2];
      const number = Number(parts?.[3]);
      return host !== undefined && number >= 1 && number <= 65535 ? { host, port: number } : undefined;
    },
    format: formatEndpoint,
    hint: (input) => {
      if (/^[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:/.test(input)) return `For an IPv6 address write [${input}]:6081.`;
      return /:/.test(input) ? undefined : `Add the peer's data port: ${input}:6081.`;
    },
  });
}

/** Writes an endpoint as it is given on the command line. */
export function formatEndpoint({ host, port }: Endpoint): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** An IP address, or `address:port` with IPv6 in brackets; the port is `defaultPort` where it is left out. */
export function addressWithPort(defaultPort: number): ValueParser<"sync", Endpoint> {
  return valueParser<Endpoint>({
    metavar: "ADDRESS[:PORT]",
    placeholder: { host: "::1", port: defaultPort },
    allowed: "an IP address, with or without a port, such as 10.9.0.2, 10.9.0.2:7000, fd00::2 or [fd00::2]:7000",
    parse: (input) => {
      const parts = /^(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?$/.exec(input);
      const host = parts?.[1] ?? parts?.[2] ?? input;
      const port = Number(parts?.[3] ?? defaultPort);
      return isIP(host) !== 0 && port >= 1 && port <= 65535 ? { host, port } : undefined;
    },
    format: formatEndpoint,
  });
}

/** An allowed route: inner prefixes as seen from this node. */
export interface Route {
  /** Prefix of inner sources. */
  readonly src: string;
  /** Prefix of inner destinations. */
  readonly dst: string;
}

const PREFIX = /^(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}\/[0-9]{1,2}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\/[0-9]{1,3})$/;

/** `src=dst`, or one prefix that stands for both. The prefixes themselves are checked by the library. */
export function route(): ValueParser<"sync", Route> {
  return valueParser<Route>({
    metavar: "SRC=DST",
    placeholder: { src: "::/0", dst: "::/0" },
    allowed: "two prefixes as src=dst, or one prefix for both, such as 10.9.0.1/32=10.9.0.2/32 or 10.9.0.0/24",
    parse: (input) => {
      const parts = input.split("=");
      const [src = "", dst = src] = parts;
      return parts.length <= 2 && PREFIX.test(src) && PREFIX.test(dst) ? { src, dst } : undefined;
    },
    format: ({ src, dst }) => src === dst ? src : `${src}=${dst}`,
    hint: (input) =>
      /^[0-9A-Fa-f:.]+$/.test(input) ? `Add a length: ${input}/${input.includes(":") ? 128 : 32}.` : undefined,
  });
}

/** An address of the tunnel device with the length of its network. */
export function interfaceAddress(): ValueParser<"sync", string> {
  return valueParser({
    metavar: "ADDRESS/LENGTH",
    placeholder: "::1/128",
    allowed: "an address with its prefix length, such as 10.9.0.1/24 or fd00::1/64",
    parse: (input) => PREFIX.test(input) ? input : undefined,
    hint: (input) =>
      /^[0-9A-Fa-f:.]+$/.test(input) ? `Add a length: ${input}/${input.includes(":") ? 64 : 24}.` : undefined,
  });
}

/** A bare IP address; `whose` completes "an IPv4 or IPv6 address …". */
export function address(whose: string): ValueParser<"sync", string> {
  return valueParser({
    metavar: "ADDRESS",
    placeholder: "::1",
    allowed: `an IPv4 or IPv6 address ${whose}`,
    parse: (input) =>
      /^(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%\S+)?)$/.test(input) ? input : undefined,
  });
}

/** The name of a network interface: what the kernel accepts. */
export function interfaceName(): ValueParser<"sync", string> {
  return valueParser({
    metavar: "NAME",
    placeholder: "icx0",
    allowed: "an interface name of 1 to 15 characters without a slash, a colon or a space",
    parse: (input) => /^[^\s/:]{1,15}$/.test(input) && input !== "." && input !== ".." ? input : undefined,
  });
}

/** Text that must not be empty: a file name or a key. */
export function nonEmpty(metavar: NonEmptyString, what: string): ValueParser<"sync", string> {
  return valueParser({
    metavar,
    placeholder: "-",
    allowed: what,
    parse: (input) => input === "" ? undefined : input,
  });
}
