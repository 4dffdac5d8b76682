/** The command line: which commands and options there are, and the typed values they make. */

import { group, merge, object, or } from "@optique/core/constructs";
import { type RunOptions, runParser } from "@optique/core/facade";
import { commandLine, lineBreak, message, text } from "@optique/core/message";
import { multiple, optional, withDefault } from "@optique/core/modifiers";
import { argument, command, constant, option } from "@optique/core/primitives";
import { findSimilar } from "@optique/core/suggestion";
import { extractOptionNames, type Usage } from "@optique/core/usage";
import { choice } from "@optique/core/valueparser";
import {
  afxdpOptions,
  DEFAULT_PROXY_PORTS,
  deviceOptions,
  keyOptions,
  latencyOptions,
  outputOptions,
  overlayOptions,
  peer,
  protectionOptions,
  serviceOptions,
  speedOptions,
  type TunnelArguments,
  underlayOptions,
} from "./tunnel_options.ts";
import { address, addressWithPort, duration, type Endpoint, nonEmpty, whole } from "./values.ts";

/** Networks that `icx bench` makes. */
const BENCH_NETWORKS = ["veth", "segmented"] as const;
/** TCP and UDP port of `icx bench --listen`; the launcher has the same number. */
const LIVE_PORT = 6083;

const namedFile = option("--identity-key", nonEmpty("FILE", "the file that holds the private identity key"), {
  description: message`The file as an option, in place of the argument.`,
});

const TUNNEL = "--identity-key icx.key --peer-key peer.pub --address 10.9.0.1/24 192.0.2.2:6081";
const UP_EXAMPLE = `icx up ${TUNNEL}`;
const PROXY_EXAMPLE = `icx proxy --socks5 ${TUNNEL}`;
const PING_EXAMPLE = `icx ping ${TUNNEL} 10.9.0.2`;

/** What a tunnel cannot do without. */
function isRequired(term: Usage[number]): boolean {
  return term.type === "option" || term.type === "argument";
}

const up = command(
  "up",
  merge(
    object({ command: constant("up"), peer }),
    keyOptions,
    overlayOptions,
    deviceOptions,
    speedOptions,
    afxdpOptions,
    serviceOptions,
    underlayOptions,
    protectionOptions,
    outputOptions,
  ),
  {
    brief: message`Run a tunnel to a peer in the foreground.`,
    description:
      message`Runs a tunnel to one peer until SIGINT or SIGTERM. "icx PEER-HOST:PORT …", without the command, is the same. Needs the right to administer the network (root, or CAP_NET_ADMIN), but for --datapath netstack.`,
    usageLine: (full) => full.filter(isRequired).toSpliced(-1, 0, { type: "literal", value: "[OPTION...]" }),
    footer: message`Example:${lineBreak()}  ${commandLine(UP_EXAMPLE)}`,
  },
);

const proxy = command(
  "proxy",
  merge(
    object({ command: constant("proxy"), peer }),
    keyOptions,
    overlayOptions,
    serviceOptions,
    latencyOptions,
    underlayOptions,
    protectionOptions,
    outputOptions,
  ),
  {
    brief: message`Use a tunnel without a device or rights: proxies and forwards.`,
    description:
      message`Runs a tunnel to one peer with a TCP/IP stack in the process (--datapath netstack), and serves proxies and forwards into it. Needs no rights. Without --socks5, --http-connect, --forward and --reverse it is a SOCKS5 proxy on 127.0.0.1:1080.`,
    usageLine: (full) => full.filter(isRequired).toSpliced(-1, 0, { type: "literal", value: "[OPTION...]" }),
    footer: message`Examples:${lineBreak()}  ${commandLine(PROXY_EXAMPLE)}${lineBreak()}  ${
      commandLine("curl --proxy socks5h://127.0.0.1:1080 http://10.9.0.2/")
    }`,
  },
);

const ping = command(
  "ping",
  merge(
    object({
      command: constant("ping"),
      peer,
      destination: argument(address("on the other side of the tunnel"), {
        description: message`Whom to ask, on the inner side.`,
      }),
    }),
    group(
      "Ping",
      object({
        count: optional(option("-c", "--count", whole("COUNT", 1, 1_000_000), {
          description: message`Stop after so many requests. Default: at Ctrl-C.`,
        })),
        intervalMs: withDefault(
          option("--interval", duration(10, 3_600_000), { description: message`Time between two requests.` }),
          1000,
          { message: message`${text("1s")}` },
        ),
        timeoutMs: withDefault(
          option("--timeout", duration(10, 3_600_000), { description: message`Time that an answer may take.` }),
          2000,
          { message: message`${text("2s")}` },
        ),
        payloadBytes: withDefault(
          option("-s", "--size", whole("BYTES", 0, 1200), { description: message`Payload of each request.` }),
          56,
          { message: message`${text("56")}` },
        ),
      }),
    ),
    keyOptions,
    overlayOptions,
    latencyOptions,
    underlayOptions,
    protectionOptions,
    outputOptions,
  ),
  {
    brief: message`Ask an inner address for an echo, without a device or rights.`,
    description:
      message`Opens a tunnel to one peer as icx proxy does, and sends echo requests to an address on its inner side. Exits with 0 when at least one was answered.`,
    usageLine: (full) => full.filter(isRequired).toSpliced(-2, 0, { type: "literal", value: "[OPTION...]" }),
    footer: message`Example:${lineBreak()}  ${commandLine(PING_EXAMPLE)}`,
  },
);

const genkey = command(
  "genkey",
  object({
    command: constant("genkey"),
    file: optional(argument(nonEmpty("FILE|-", "a file name, or - for standard output"), {
      description: message`Where to write the private key; - is standard output.`,
    })),
    identityKey: optional(namedFile),
    force: option("--force", { description: message`Replace an existing file.` }),
  }),
  {
    brief: message`Make a private identity key.`,
    description:
      message`Makes a private identity key, writes it to a file with mode 0600 (never over an existing one without --force), and prints the public key to standard error.`,
    footer: message`Examples:${lineBreak()}  ${commandLine("icx genkey /etc/icx.key")}${lineBreak()}  ${
      commandLine("icx genkey - | ssh host 'umask 077; cat > icx.key'")
    }`,
  },
);

const pubkey = command(
  "pubkey",
  object({
    command: constant("pubkey"),
    file: optional(argument(nonEmpty("FILE|-", "a file name, or - for standard input"), {
      description: message`Private key to read; - or nothing is standard input.`,
    })),
    identityKey: optional(namedFile),
  }),
  {
    brief: message`Print the public key of a private identity key.`,
    description:
      message`Reads a private identity key and prints its public key, which is what the peer's --peer-key takes.`,
    footer: message`Example:${lineBreak()}  ${commandLine("icx pubkey /etc/icx.key > icx.pub")}`,
  },
);

const demo = command(
  "demo",
  object({ command: constant("demo") }),
  {
    brief: message`Show a tunnel between two nodes of this host.`,
    description:
      message`Runs two nodes, as root each in a network namespace with a device of its own, else over loopback with a TCP/IP stack in each process, and shows handshake, ping, verified transfers, a rekey under load and the counters. Cleans up after itself.`,
    footer: message`Example:${lineBreak()}  ${commandLine("icx demo")}`,
  },
);

const bench = command(
  "bench",
  merge(
    object({ command: constant("bench") }),
    group(
      "Between namespaces of this host (needs root)",
      object({
        contenders: multiple(option("--contender", nonEmpty("NAME[=PROGRAM]", "the name of a contender"), {
          description:
            message`What to measure: none (the bare wire), icx-tun, wireguard-go, boringtun, wireguard, nebula; with a program to run, or icx-tun='OPTIONS' of icx up; repeat it for more. Default: the wire, icx, and what is on the PATH.`,
        })),
        networks: multiple(option("--net", choice(BENCH_NETWORKS, { metavar: "KIND" }), {
          description:
            message`veth (large sends cross whole) or segmented (cut and merged by the devices); repeat it for both. Default: both.`,
        })),
        quick: option("--quick", {
          description: message`A shorter list of measurements, one round of a second each, veth only; also with --to.`,
        }),
      }),
    ),
    group(
      "Through a tunnel that is up",
      object({
        to: optional(option("--to", addressWithPort(LIVE_PORT), {
          description: message`Measure to the node with this address, on which icx bench --listen runs.`,
        })),
        listen: optional(option("--listen", addressWithPort(LIVE_PORT), {
          description: message`Be the other end: answer on this address of the tunnel's device until Ctrl-C.`,
        })),
      }),
    ),
    group(
      "How long",
      object({
        rounds: optional(option("--rounds", whole("COUNT", 1, 99), {
          description: message`How often to measure everything; medians count. Default: 3.`,
        })),
        seconds: optional(option("--seconds", whole("SECONDS", 1, 60), {
          description: message`Time for each measurement of a rate. Default: 4.`,
        })),
      }),
    ),
    group(
      "Output",
      object({
        json: optional(option("--json", nonEmpty("FILE", "a file name"), {
          description: message`Write the report as JSON to this file.`,
        })),
        html: optional(option("--html", nonEmpty("FILE", "a file name"), {
          description: message`Write the report as one HTML page with charts to this file.`,
        })),
      }),
    ),
  ),
  {
    brief: message`Measure throughput, latency and cost, beside other tunnels.`,
    description:
      message`Runs icx and other tunnels in turn between two network namespaces of this host and measures TCP in flows, directions and segment sizes, datagrams, round trips idle and under load, processor time and memory. Prints medians; progress goes to standard error. With --to it measures a tunnel that is up, and needs nothing else installed.`,
    usageLine: [{ type: "literal", value: "[OPTION...]" }],
    footer: message`Examples:${lineBreak()}  ${commandLine("sudo cli/icx bench --html bench.html")}${lineBreak()}  ${
      commandLine("sudo cli/icx bench --quick --contender icx-tun --contender wireguard-go=PATH")
    }${lineBreak()}  ${commandLine("icx bench --listen 10.9.0.2")}${lineBreak()}  ${
      commandLine("icx bench --to 10.9.0.2")
    }`,
  },
);

const cli = or(up, proxy, ping, genkey, pubkey, demo, bench);

const PARSERS: ReadonlyMap<string, { readonly usage: Usage }> = new Map(
  Object.entries({ up, proxy, ping, genkey, pubkey, demo, bench }),
);

/** Arguments of `icx up`. */
export interface UpArguments extends TunnelArguments {
  readonly command: "up";
}

/** Options that a node without a device does not take. */
type DeviceArguments =
  | "tunDevice"
  | "datapath"
  | "queues"
  | "offloads"
  | "device"
  | "xdpAttach"
  | "zeroCopy"
  | "cpuPin"
  | "busyPoll"
  | "busyPollBudget"
  | "pcapFile";

/** Options that only services take. */
type ServiceArguments = "socks5" | "httpConnect" | "forwards" | "reverses" | "nameServers" | "openProxy";

/** What stands for them in a node without a device. */
export const withoutDevice: Pick<TunnelArguments, DeviceArguments> = {
  tunDevice: "icx0",
  datapath: "netstack",
  queues: { count: undefined },
  offloads: [],
  device: undefined,
  xdpAttach: undefined,
  zeroCopy: undefined,
  cpuPin: false,
  busyPoll: undefined,
  busyPollBudget: undefined,
  pcapFile: undefined,
};

/** What stands for them where nothing is served. */
export const withoutServices: Pick<TunnelArguments, ServiceArguments> = {
  socks5: [],
  httpConnect: [],
  forwards: [],
  reverses: [],
  nameServers: [],
  openProxy: false,
};

/** Arguments of `icx proxy`. */
export interface ProxyArguments extends Omit<TunnelArguments, DeviceArguments> {
  readonly command: "proxy";
}

/** Arguments of `icx ping`. */
export interface PingArguments extends Omit<TunnelArguments, DeviceArguments | ServiceArguments> {
  readonly command: "ping";
  readonly destination: string;
  readonly count: number | undefined;
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly payloadBytes: number;
}

/** Arguments of `icx genkey`. */
export interface GenkeyArguments {
  readonly command: "genkey";
  readonly file: string | undefined;
  readonly identityKey: string | undefined;
  readonly force: boolean;
}

/** Arguments of `icx pubkey`. */
export interface PubkeyArguments {
  readonly command: "pubkey";
  readonly file: string | undefined;
  readonly identityKey: string | undefined;
}

/** Arguments of `icx demo`. */
export interface DemoArguments {
  readonly command: "demo";
}

/** Arguments of `icx bench`. */
export interface BenchArguments {
  readonly command: "bench";
  readonly contenders: readonly string[];
  readonly networks: readonly (typeof BENCH_NETWORKS[number])[];
  readonly quick: boolean;
  readonly to: Endpoint | undefined;
  readonly listen: Endpoint | undefined;
  readonly rounds: number | undefined;
  readonly seconds: number | undefined;
  readonly json: string | undefined;
  readonly html: string | undefined;
}

/** A parsed command line. */
export type Arguments =
  | UpArguments
  | ProxyArguments
  | PingArguments
  | GenkeyArguments
  | PubkeyArguments
  | DemoArguments
  | BenchArguments;

/** Parses a command line; help, version and errors go through the callbacks in `options`, which must not return. */
export function parseArguments(args: readonly string[], options: RunOptions<never, never>): Arguments {
  return runParser(cli, "icx", withDefaultListeners(withDefaultCommand(args)), options);
}

const COMMANDS = new Set(["up", "proxy", "ping", "genkey", "pubkey", "demo", "bench", "completion"]);

/** The command that is asked for, as far as it can be told; `up` where it is left out. */
export function commandOf(args: readonly string[]): string | undefined {
  const [first] = withDefaultCommand(args);
  return first !== undefined && COMMANDS.has(first) ? first : undefined;
}

/** Puts `up` in front when the command is left out: when options come first, or something that looks like the peer. */
function withDefaultCommand(args: readonly string[]): readonly string[] {
  const first = args[0];
  if (first === undefined || COMMANDS.has(first)) return args;
  if (["-h", "--help", "--version", "--completion"].includes(first)) return args;
  return first.startsWith("-") || first.includes(":") ? ["up", ...args] : args;
}

/** Gives proxies that are asked for without a value their usual place. */
function withDefaultListeners(args: readonly string[]): readonly string[] {
  return args.flatMap((arg, at) => {
    const port = DEFAULT_PROXY_PORTS.get(arg);
    return port !== undefined && valueBehind(args, at) === undefined ? [`${arg}=${port}`] : [arg];
  });
}

/** The argument behind an option, where that is a value and no option itself. */
function valueBehind(args: readonly string[], at: number): string | undefined {
  const next = args[at + 1];
  return next?.startsWith("-") ? undefined : next;
}

/** For the first option in `args` that their command does not know: what is misspelt, and the names it may have meant. */
export function findMisspelling(
  args: readonly string[],
): { readonly given: string; readonly similar: readonly string[] } | undefined {
  const known = new Set([
    ...extractOptionNames((PARSERS.get(commandOf(args) ?? "") ?? cli).usage),
    "--help",
    "--version",
  ]);
  for (const arg of args) {
    const given = arg.split("=", 1)[0] ?? arg;
    if (arg === "--") return undefined;
    if (/^--?[a-zA-Z]/.test(given) && !known.has(given)) {
      return { given, similar: findSimilar(given, [...known].filter((name) => name.startsWith("--"))) };
    }
  }
  return undefined;
}

/** The first proxy in `args` with a value in an argument of its own: where a peer went that was meant to stand alone. */
export function findProxyValue(
  args: readonly string[],
): { readonly option: string; readonly value: string } | undefined {
  for (const [at, option] of args.entries()) {
    const value = valueBehind(args, at);
    if (DEFAULT_PROXY_PORTS.has(option) && value !== undefined) return { option, value };
  }
  return undefined;
}
