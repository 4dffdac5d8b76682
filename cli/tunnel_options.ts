/** Options of the commands that run a tunnel, in groups as their help shows them. */

import { group, object } from "@optique/core/constructs";
import { message, text } from "@optique/core/message";
import { multiple, optional, withDefault } from "@optique/core/modifiers";
import { argument, negatableFlag, option } from "@optique/core/primitives";
import type { Parser } from "@optique/core/parser";
import { choice } from "@optique/core/valueparser";
import { type Forward, forward, type ProxyAt, proxyAt, type Reverse, reverse } from "./service_values.ts";
import {
  address,
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

/** Options that give some of the arguments. */
type Options<K extends keyof TunnelArguments> = Parser<
  "sync",
  Pick<TunnelArguments, K>,
  Record<string | symbol, unknown>
>;

const LOG_LEVELS = ["error", "warning", "info", "debug", "trace"] as const;
const LOG_FORMATS = ["text", "json"] as const;
/** What can move packets; `auto` picks the fastest of them. */
const DATAPATHS = ["auto", "tun", "afxdp", "netstack"] as const;
const DEVICES = ["veth", "tun"] as const;
const ATTACH_MODES = ["auto", "native", "generic"] as const;
const ZERO_COPY = ["auto", "require", "off"] as const;
const LATENCIES = ["low", "balanced", "idle"] as const;
/** Where a SOCKS proxy listens unless it is told where (RFC 1928 section 3). */
export const SOCKS_PORT = 1080;
/** The same for HTTP. */
const HTTP_PORT = 8118;

/** Where a proxy listens on loopback when its option has no value. */
export const DEFAULT_PROXY_PORTS: ReadonlyMap<string, number> = new Map([
  ["--socks5", SOCKS_PORT],
  ["--http-connect", HTTP_PORT],
]);

const identityKey = option(
  "--identity-key",
  nonEmpty("FILE", "the file that holds the private identity key"),
  { description: message`File with this node's private key; - reads it from standard input.` },
);

/** Whom the tunnel leads to. */
export const peer: Parser<"sync", Endpoint, unknown> = argument(endpoint(), {
  description: message`Where the peer receives data: name, IPv4, or [IPv6], with the port.`,
});

/** Who this node and its peer are. */
export const keyOptions: Options<"identityKey" | "peerKey" | "rekeyIntervalMs"> = group(
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
);

/** What is inside, whatever the packets are moved by. */
export const overlayOptions: Options<"addresses" | "allowedRoutes" | "tunMtu" | "clampMss" | "vni"> = group(
  "Tunnel",
  object({
    addresses: multiple(option("--address", interfaceAddress(), {
      description: message`Address of the tunnel device with its prefix length; repeat it for more.`,
    })),
    allowedRoutes: multiple(option("--allowed-route", route(), {
      description:
        message`Inner packets that may pass: own prefix = peer's prefix, or one prefix for both; repeat it for more. Default: everything, with a warning.`,
    })),
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
  }),
);

/** The device, and what serves it. */
export const deviceOptions: Options<"tunDevice" | "datapath"> = group(
  "Device",
  object({
    tunDevice: withDefault(
      option("-t", "--tun-device", interfaceName(), { description: message`Name of the tunnel device.` }),
      "icx0",
      { message: message`${text("icx0")}` },
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
);

/** Processor time and what the kernel takes over. */
export const speedOptions: Options<"queues" | "latency" | "offloads"> = group(
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
);

/** Of those, what a stack in the process takes. */
export const latencyOptions: Options<"latency"> = group(
  "Speed",
  object({
    latency: withDefault(
      option("--latency", choice(LATENCIES, { metavar: "HOW" }), {
        description:
          message`Processor time for sooner answers: low looks for more packets for 1 ms before it sleeps, balanced for 60 µs, idle not at all.`,
      }),
      "balanced",
      { message: message`${text("balanced")}` },
    ),
  }),
);

/** How AF_XDP is used. */
export const afxdpOptions: Options<
  "device" | "xdpAttach" | "zeroCopy" | "cpuPin" | "busyPoll" | "busyPollBudget" | "pcapFile"
> = group(
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
);

/** What a node without a device serves. */
export const serviceOptions: Options<"socks5" | "httpConnect" | "forwards" | "reverses" | "nameServers" | "openProxy"> =
  group(
    "Without a device (--datapath netstack)",
    object({
      socks5: multiple(option("--socks5", proxyAt(SOCKS_PORT), {
        description:
          message`Be a SOCKS5 proxy into the tunnel, for TCP and UDP. Alone it listens on 127.0.0.1:1080; a file has user:password in each line.`,
      })),
      httpConnect: multiple(option("--http-connect", proxyAt(HTTP_PORT), {
        description: message`Be an HTTP proxy into the tunnel, by CONNECT. Alone it listens on 127.0.0.1:8118.`,
      })),
      forwards: multiple(option("--forward", forward(), {
        description:
          message`Carry connections to [ADDRESS:]PORT here to HOST:PORT through the tunnel; udp: in front carries datagrams. Repeat it for more.`,
      })),
      reverses: multiple(option("--reverse", reverse(), {
        description:
          message`Carry connections to PORT of the inner address to HOST:PORT on this side; udp: in front carries datagrams. Repeat it for more.`,
      })),
      nameServers: multiple(option("--name-server", address("on the other side of the tunnel"), {
        description:
          message`Ask this server, through the tunnel, for names that clients and forwards give; repeat it for more. Default: this host looks them up.`,
      })),
      openProxy: option("--open-proxy", {
        description:
          message`Let proxies and forwards listen on other addresses than loopback, where everybody who reaches them may use them.`,
      }),
    }),
  );

/** The outer side. */
export const underlayOptions: Options<
  | "localAddress"
  | "interface"
  | "port"
  | "controlPort"
  | "peerControlPort"
  | "sourcePortHash"
  | "copyEcn"
  | "copyDscp"
  | "outerUdpChecksum"
> = group(
  "Underlay",
  object({
    localAddress: optional(option("--local-address", address("of this host"), {
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
);

/** What is kept out. */
export const protectionOptions: Options<"noPeerIpFilter" | "rxRateLimit"> = group(
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
);

/** What is said. */
export const outputOptions: Options<"logLevel" | "logFormat" | "statsIntervalMs"> = group(
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
);

/** Arguments of a command that runs a tunnel, one field per option. */
export interface TunnelArguments {
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
  readonly socks5: readonly ProxyAt[];
  readonly httpConnect: readonly ProxyAt[];
  readonly forwards: readonly Forward[];
  readonly reverses: readonly Reverse[];
  readonly nameServers: readonly string[];
  readonly openProxy: boolean;
  readonly statsIntervalMs: number | undefined;
  readonly logLevel: typeof LOG_LEVELS[number];
  readonly logFormat: typeof LOG_FORMATS[number] | undefined;
}
