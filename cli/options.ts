/** The command line: which commands and options there are, and the typed values they make. */

import { group, merge, object, or } from "@optique/core/constructs";
import { type RunOptions, runParser } from "@optique/core/facade";
import { commandLine, lineBreak, message, text } from "@optique/core/message";
import { multiple, optional, withDefault } from "@optique/core/modifiers";
import { argument, command, constant, negatableFlag, option } from "@optique/core/primitives";
import { findSimilar } from "@optique/core/suggestion";
import { extractOptionNames, type Usage } from "@optique/core/usage";
import { choice } from "@optique/core/valueparser";
import {
  address,
  addressWithPort,
  duration,
  type Endpoint,
  endpoint,
  interfaceAddress,
  interfaceName,
  mtu,
  nonEmpty,
  type Offloads,
  offloads,
  port,
  queues,
  type Route,
  route,
  whole,
} from "./values.ts";

const LOG_LEVELS = ["error", "warning", "info", "debug", "trace"] as const;
const LOG_FORMATS = ["text", "json"] as const;
/** What can move packets; `auto` picks the fastest of them. */
const DATAPATHS = ["auto", "tun", "afxdp"] as const;
const DEVICES = ["veth", "tun"] as const;
const ATTACH_MODES = ["auto", "native", "generic"] as const;
const ZERO_COPY = ["auto", "require", "off"] as const;
const LATENCIES = ["low", "balanced", "idle"] as const;
/** Networks that `icx bench` makes. */
const BENCH_NETWORKS = ["veth", "segmented"] as const;
/** TCP and UDP port of `icx bench --listen`; the launcher has the same number. */
const LIVE_PORT = 6083;

const identityKey = option("--identity-key", nonEmpty("FILE", "the file that holds the private identity key"), {
  description: message`File with this node's private key; - reads it from standard input.`,
});

const namedFile = option("--identity-key", nonEmpty("FILE", "the file that holds the private identity key"), {
  description: message`The file as an option, in place of the argument.`,
});

const UP_EXAMPLE = "icx up --identity-key icx.key --peer-key peer.pub --address 10.9.0.1/24 192.0.2.2:6081";

/** What `icx up` cannot do without. */
function isRequired(term: Usage[number]): boolean {
  return term.type === "option" || term.type === "argument";
}

const up = command(
  "up",
  merge(
    object({
      command: constant("up"),
      peer: argument(endpoint(), {
        description: message`Where the peer receives data: name, IPv4, or [IPv6], with the port.`,
      }),
    }),
    group(
      "Keys",
      object({
        identityKey,
        peerKey: option(
          "--peer-key",
          nonEmpty("KEY|FILE", "the peer's public key in base64, or a file that holds it"),
          {
            description: message`The peer's public key as icx pubkey prints it there, or a file that holds it.`,
          },
        ),
        rekeyIntervalMs: withDefault(
          option("--rekey-interval", duration(1000, 12 * 3_600_000), {
            description: message`Time between key exchanges, such as 2m or 90s; that of the calling side counts.`,
          }),
          120_000,
          { message: message`${text("2m")}` },
        ),
      }),
    ),
    group(
      "Tunnel",
      object({
        addresses: multiple(option("--address", interfaceAddress(), {
          description: message`Address of the tunnel device with its prefix length; repeat it for more.`,
        })),
        allowedRoutes: multiple(option("--allowed-route", route(), {
          description:
            message`Inner packets that may pass: own prefix = peer's prefix, or one prefix for both; repeat it for more. Default: everything, with a warning.`,
        })),
        tunDevice: withDefault(
          option("-t", "--tun-device", interfaceName(), { description: message`Name of the tunnel device.` }),
          "icx0",
          { message: message`${text("icx0")}` },
        ),
        tunMtu: withDefault(
          option("-m", "--tun-mtu", mtu(68, 65535), {
            description:
              message`MTU of the tunnel device. auto: from the path, 1392 at 1500, and less while the path carries less.`,
          }),
          { bytes: undefined },
          { message: message`${text("auto")}` },
        ),
        clampMss: option("--clamp-mss", {
          description:
            message`Lower the segment size that TCP connections through the tunnel announce to what fits it, for ends that do not hear of the MTU.`,
        }),
        vni: withDefault(
          option("-v", "--vni", whole("VNI", 0, 0xff_ffff), {
            description: message`Number of the virtual network; the same on both sides.`,
          }),
          1,
          { message: message`${text("1")}` },
        ),
        datapath: withDefault(
          option("--datapath", choice(DATAPATHS, { metavar: "KIND" }), {
            description:
              message`What moves the packets: tun (a TUN device and UDP sockets), afxdp (past the kernel's stack, on the interface to the peer), or auto, the faster one.`,
          }),
          "auto",
          { message: message`${text("auto")}` },
        ),
      }),
    ),
    group(
      "Speed",
      object({
        queues: withDefault(
          option("--queues", queues(), {
            description:
              message`Threads that move packets, each with a queue of the tunnel device. auto: one for two processors, 8 at most; with afxdp one for each queue of the interface.`,
          }),
          { count: undefined },
          { message: message`${text("auto")}` },
        ),
        latency: withDefault(
          option("--latency", choice(LATENCIES, { metavar: "HOW" }), {
            description:
              message`Processor time for sooner answers: low looks for more packets for 1 ms before it sleeps, balanced for 60 µs, idle not at all.`,
          }),
          "balanced",
          { message: message`${text("balanced")}` },
        ),
        offloads: multiple(option("--offload", offloads(), {
          description:
            message`What the kernel cuts and merges: tso, uso, gro (tunnel device), udp-gso, udp-gro (underlay), or all; with commas or repeated, such as tso=off,gro=off. Default: all that it can.`,
        })),
      }),
    ),
    group(
      "AF_XDP",
      object({
        device: optional(option("--device", choice(DEVICES, { metavar: "KIND" }), {
          description:
            message`The inner side of afxdp: veth (a pair in shared memory), or tun (uncut packets). Default: veth, or tun where auto picked afxdp.`,
        })),
        xdpAttach: optional(option("--xdp-attach", choice(ATTACH_MODES, { metavar: "WHERE" }), {
          description:
            message`Where XDP programs run: native (in the driver), generic (behind it), or auto. Default: auto.`,
        })),
        zeroCopy: optional(option("--zero-copy", choice(ZERO_COPY, { metavar: "HOW" }), {
          description:
            message`Let the driver read and write frames itself: auto, require, off. Not with --device veth. Default: auto.`,
        })),
        cpuPin: option("--cpu-pin", {
          description: message`Give each thread a processor of its own, of those that icx may use.`,
        }),
        busyPoll: optional(option("--busy-poll", whole("MICROSECONDS", 1, 1_000_000), {
          description: message`Let threads drive the interface's queues instead of interrupts, this long in each call.`,
        })),
        busyPollBudget: optional(option("--busy-poll-budget", whole("PACKETS", 1, 65535), {
          description: message`Packets that one such call handles at most. Default: 64.`,
        })),
        pcapFile: optional(option("--pcap-file", nonEmpty("FILE", "a file name"), {
          description:
            message`Write frames of both sides to this file in pcapng, as many as it can keep up with. It shows what is inside.`,
        })),
      }),
    ),
    group(
      "Underlay",
      object({
        localAddress: optional(option("--local-address", address(), {
          description: message`Address of this host to send from and listen on. Default: any.`,
        })),
        interface: optional(option("-i", "--interface", interfaceName(), {
          description: message`Do not start unless the kernel's route to the peer leads through this interface.`,
        })),
        port: withDefault(
          option("-p", "--port", port(), { description: message`UDP port for data on this host.` }),
          6081,
          { message: message`${text("6081")}` },
        ),
        controlPort: withDefault(
          option("--control-port", port(), { description: message`UDP port for key exchange on this host.` }),
          6082,
          { message: message`${text("6082")}` },
        ),
        peerControlPort: optional(option("--peer-control-port", port(), {
          description: message`UDP port for key exchange on the peer. Default: as --control-port.`,
        })),
        sourcePortHash: optional(
          negatableFlag({ positive: "--source-port-hash", negative: "--no-source-port-hash" }, {
            description:
              message`Let the UDP source port follow the inner flow, so that routers spread the load. Default: off.`,
          }),
        ),
        copyEcn: option("--copy-ecn", {
          description:
            message`Let routers on the way mark congestion instead of dropping packets. Only with icx on both ends.`,
        }),
        copyDscp: option("--copy-dscp", {
          description: message`Send each packet with the DSCP of the inner one, which everybody on the way can read.`,
        }),
        outerUdpChecksum: option("--outer-udp-checksum", {
          description: message`With afxdp: compute it over IPv4 too. UDP sockets always do.`,
        }),
      }),
    ),
    group(
      "Protection",
      object({
        noPeerIpFilter: option("--no-peer-ip-filter", {
          description:
            message`Open data from any address, not only the peer's; it must still be sealed with the right key.`,
        }),
        rxRateLimit: withDefault(
          option("--rx-rate-limit", whole("PPS", 0, 0xffff_ffff), {
            description: message`Packets per second to open at most; 0 for no limit.`,
          }),
          0,
          { message: message`${text("none")}` },
        ),
      }),
    ),
    group(
      "Output",
      object({
        logLevel: withDefault(
          option("--log-level", choice(LOG_LEVELS, { metavar: "LEVEL" }), {
            description: message`How much to say: error, warning, info, debug or trace.`,
          }),
          "info",
          { message: message`${text("info")}` },
        ),
        logFormat: optional(option("--log-format", choice(LOG_FORMATS, { metavar: "FORMAT" }), {
          description: message`text or json (one object a line). Default: text on a terminal, else json.`,
        })),
        statsIntervalMs: optional(option("--stats-interval", duration(100, 24 * 3_600_000), {
          description: message`Log the counters this often, such as 10s. Default: only at the end.`,
        })),
      }),
    ),
  ),
  {
    brief: message`Run a tunnel to a peer in the foreground.`,
    description:
      message`Runs a tunnel to one peer until SIGINT or SIGTERM. "icx PEER-HOST:PORT …", without the command, is the same. Needs the right to administer the network (root, or CAP_NET_ADMIN).`,
    usageLine: (full) => full.filter(isRequired).toSpliced(-1, 0, { type: "literal", value: "[OPTION...]" }),
    footer: message`Example:${lineBreak()}  ${commandLine(UP_EXAMPLE)}`,
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
    brief: message`Show a tunnel between two network namespaces of this host (needs root).`,
    description:
      message`Makes two network namespaces, runs a node in each, and shows handshake, ping, verified transfers, a rekey under load and the counters. Cleans up after itself.`,
    footer: message`Example:${lineBreak()}  ${commandLine("sudo cli/icx demo")}`,
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

const cli = or(up, genkey, pubkey, demo, bench);

const PARSERS: ReadonlyMap<string, { readonly usage: Usage }> = new Map(
  Object.entries({ up, genkey, pubkey, demo, bench }),
);

/** Arguments of `icx up`, one field per option. */
export interface UpArguments {
  readonly command: "up";
  readonly peer: Endpoint;
  readonly identityKey: string;
  readonly peerKey: string;
  readonly addresses: readonly string[];
  readonly allowedRoutes: readonly Route[];
  readonly interface: string | undefined;
  readonly localAddress: string | undefined;
  readonly port: number;
  readonly controlPort: number;
  readonly peerControlPort: number | undefined;
  readonly vni: number;
  readonly rekeyIntervalMs: number;
  readonly tunDevice: string;
  readonly tunMtu: { readonly bytes: number | undefined };
  readonly clampMss: boolean;
  readonly datapath: typeof DATAPATHS[number];
  readonly device: typeof DEVICES[number] | undefined;
  readonly xdpAttach: typeof ATTACH_MODES[number] | undefined;
  readonly zeroCopy: typeof ZERO_COPY[number] | undefined;
  readonly cpuPin: boolean;
  readonly busyPoll: number | undefined;
  readonly busyPollBudget: number | undefined;
  readonly pcapFile: string | undefined;
  readonly queues: { readonly count: number | undefined };
  readonly latency: typeof LATENCIES[number];
  readonly offloads: readonly Offloads[];
  readonly sourcePortHash: boolean | undefined;
  readonly copyEcn: boolean;
  readonly copyDscp: boolean;
  readonly noPeerIpFilter: boolean;
  readonly rxRateLimit: number;
  readonly outerUdpChecksum: boolean;
  readonly statsIntervalMs: number | undefined;
  readonly logLevel: typeof LOG_LEVELS[number];
  readonly logFormat: typeof LOG_FORMATS[number] | undefined;
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
export type Arguments = UpArguments | GenkeyArguments | PubkeyArguments | DemoArguments | BenchArguments;

/** Parses a command line; help, version and errors go through the callbacks in `options`, which must not return. */
export function parseArguments(args: readonly string[], options: RunOptions<never, never>): Arguments {
  return runParser(cli, "icx", withDefaultCommand(args), options);
}

const COMMANDS = new Set(["up", "genkey", "pubkey", "demo", "bench", "completion"]);

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
