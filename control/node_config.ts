/**
 * What a node is made of, checked.
 *
 * @module
 */

import { isIP } from "node:net";
import { z } from "zod";
import type { BusyPoll, XdpAttach, ZeroCopy } from "../datapath/afxdp.ts";
import type { Latency } from "../datapath/device_datapath.ts";
import type { Congestion } from "../datapath/netstack_device.ts";
import { shown } from "../native/arguments.ts";
import { addressBytes, parsePrefix } from "./prefix.ts";

/** A pair of prefixes between which packets may pass, seen from this node. */
export interface AllowedRoute {
  /** Addresses on this side: the inner source of what is sent, the inner destination of what is received. */
  readonly src: string;
  /** Addresses on the peer's side. */
  readonly dst: string;
}

/** The tunnel's network device. */
export interface NodeDeviceConfig {
  /** The interface's name, 1 to 15 bytes. @default "icx0" */
  readonly name: string;
  /** Addresses with prefix length, such as `10.9.0.1/24`. @default none */
  readonly addresses: readonly string[];
  /** Largest inner packet, in bytes, 68 to 65535; `undefined` takes what the paths to the peers allow, and follows them. */
  readonly mtuBytes: number | undefined;
}

/** What the kernel may cut and merge for the node, where it can. */
export interface NodeOffloadConfig {
  /** TCP comes from the device uncut. @default true */
  readonly tso: boolean;
  /** UDP comes from the device uncut, where a program sends many datagrams at once. @default true */
  readonly uso: boolean;
  /** TCP, and UDP where the kernel knows `uso`, goes to the device merged. @default true */
  readonly gro: boolean;
  /** The kernel cuts what is sent on the underlay. @default true */
  readonly udpGso: boolean;
  /** The kernel merges what is received on the underlay. @default true */
  readonly udpGro: boolean;
}

export type { BusyPoll, XdpAttach, ZeroCopy } from "../datapath/afxdp.ts";

/** How AF_XDP is used, where the datapath is that. */
export interface NodeAfxdpConfig {
  /**
   * The inner side: a veth pair in the forwarder's shared memory, or a TUN device that the kernel hands uncut packets to.
   * @default "veth", or "tun" where AF_XDP was picked for its speed
   */
  readonly device: "veth" | "tun" | undefined;
  /** Where XDP programs run. @default "auto" */
  readonly attach: XdpAttach;
  /** Whether the driver reads and writes frames itself. @default "auto" */
  readonly zeroCopy: ZeroCopy;
  /** Whether each thread has a processor of its own. @default false */
  readonly cpuPin: boolean;
  /** Whether threads drive the interface's queues instead of interrupts; `undefined`: they do not. */
  readonly busyPoll: BusyPoll | undefined;
  /** A file for frames of both sides, in pcapng; `undefined` for none. */
  readonly pcapFile: string | undefined;
}

/** How the TCP/IP stack in the process behaves, where the datapath is that. */
export interface NodeNetstackConfig {
  /** Name servers on the inner side, at most 4. @default none */
  readonly nameServers: readonly string[];
  /** What a connection receives before it is read, in bytes, 4096 to 67108864. @default 524288 */
  readonly receiveBufferBytes: number;
  /** What a connection takes before it is acknowledged, in bytes, 4096 to 67108864. @default 524288 */
  readonly sendBufferBytes: number;
  /** What limits how much is under way besides the receiver's window. @default "cubic" */
  readonly congestion: Congestion;
  /** Connections at the same time, 1 to 65536. @default 4096 */
  readonly maxConnections: number;
}

/** One peer and its network. */
export interface NodePeerConfig {
  /** Its name or IP address on the underlay. */
  readonly host: string;
  /** Its data port. @default 6081 */
  readonly port: number;
  /** Its control port. @default the node's own control port */
  readonly controlPort: number;
  /** Its public key: base64 of the SPKI DER, or the path of a file that holds that. */
  readonly publicKey: string;
  /** The network's number, 0 to 16777215; the same on both sides, another one for each peer. @default 1 */
  readonly vni: number;
  /** What may pass. @default everything: 0.0.0.0/0 and ::/0 on both sides */
  readonly allowedRoutes: readonly AllowedRoute[];
  /** Frames per second of this peer that reach the AEAD; 0 for no limit. @default 0 */
  readonly rxRateLimitPps: number;
}

/** A node, ready to be opened. {@linkcode parseNodeConfig} makes one. */
export interface NodeConfig {
  /** The file with the private key, readable by its owner alone; `-` reads it from stdin. */
  readonly identityKeyFile: string;
  /** The underlay address to bind; `undefined` for all. */
  readonly localAddress: string | undefined;
  /** The underlay interface through which the kernel's route to every peer must lead; `undefined` for any. */
  readonly interface: string | undefined;
  /** The own data port. @default 6081 */
  readonly port: number;
  /** The own control port, another than `port`. @default 6082 */
  readonly controlPort: number;
  /**
   * What moves packets; `auto` takes what is faster on the interface to the peers, or, without the right to make a device, `netstack`, a
   * TCP/IP stack in the process. @default "auto"
   */
  readonly datapath: "auto" | "tun" | "afxdp" | "netstack";
  /** How AF_XDP is used. */
  readonly afxdp: NodeAfxdpConfig;
  /** How the stack in the process behaves. */
  readonly netstack: NodeNetstackConfig;
  /** The tunnel's network device. */
  readonly device: NodeDeviceConfig;
  /** Time between two key exchanges, in milliseconds, 1000 to 43200000. @default 120000 */
  readonly rekeyIntervalMs: number;
  /** Time between two keepalives, in milliseconds; 0 for none. @default 25000 */
  readonly keepaliveMs: number;
  /** Whether the outer source address of a frame must be the peer's. @default true */
  readonly peerFilter: boolean;
  /** Whether the outer source port follows the inner flow. @default false */
  readonly sourcePortHashing: boolean;
  /** Whether the outer header takes the inner ECN field over (RFC 6040); the peers must take marks over, too. @default false */
  readonly copyEcn: boolean;
  /** Whether the outer header takes the inner DSCP over. @default false */
  readonly copyDscp: boolean;
  /** Whether the outer UDP checksum is computed over IPv4 too; UDP sockets always do. @default false */
  readonly outerUdpChecksum: boolean;
  /**
   * Threads that move packets, each with a queue of the device, 1 to 64; `undefined` goes by the number of processors, or over AF_XDP by
   * that of the interface's queues.
   */
  readonly queues: number | undefined;
  /** How much processor time goes into answering sooner. @default "balanced" */
  readonly latency: Latency;
  /** Whether the segment size that passing TCP connections announce is lowered to what fits the tunnel. @default false */
  readonly clampMss: boolean;
  /** What the kernel may cut and merge. */
  readonly offload: NodeOffloadConfig;
  /** The peers, at least one. */
  readonly peers: readonly NodePeerConfig[];
}

const EVERYWHERE: readonly AllowedRoute[] = [
  { src: "0.0.0.0/0", dst: "0.0.0.0/0" },
  { src: "::/0", dst: "::/0" },
];

function integer(min: number, max: number) {
  const message = `must be an integer from ${min} to ${max}`;
  return z.number(message).int(message).min(min, message).max(max, message);
}

const MOST_CHARACTERS = 120;
const IPV6_LEAST_MTU = 1280;
/** What the name of a veth pair's other end leaves. */
const VETH_NAME_BYTES = 11;
/** How many addresses the library's stack has room for. */
const MOST_NETSTACK_ADDRESSES = 8;

const text = z.string("must be text").min(1, "must not be empty");
const port = integer(1, 65535);

const ipAddress = text.refine(
  (value) => isIP(value) !== 0 && !value.includes("%"),
  "must be an IP address, such as 192.0.2.1 or 2001:db8::1",
);

const interfaceAddress = text.superRefine((value, context) => {
  let address: string;
  try {
    ({ address } = parsePrefix(value));
  } catch {
    context.addIssue({ code: "custom", message: "must be an IP address with prefix length, such as 10.9.0.1/24" });
    return;
  }
  if (!isUnicast(address)) {
    context.addIssue({ code: "custom", message: "must be a unicast address, such as 10.9.0.1/24" });
  }
});

/** Whether one host can have the address: it is neither unspecified, multicast nor broadcast. */
function isUnicast(address: string): boolean {
  const [first = 0, ...rest] = addressBytes(address);
  if (first === 0 && rest.every((byte) => byte === 0)) return false;
  return rest.length === 3 ? first < 224 : first !== 0xff;
}

const prefix = text.superRefine((value, context) => {
  try {
    const { address, length, network } = parsePrefix(value);
    if (`${address}/${length}` !== network) {
      context.addIssue({ code: "custom", message: `must have no bits set behind the prefix: ${network} would do` });
    }
  } catch {
    context.addIssue({ code: "custom", message: "must be a prefix, such as 10.9.0.0/24 or 2001:db8::/32" });
  }
});

const allowedRoute = z.strictObject({ src: prefix, dst: prefix }).superRefine(({ src, dst }, context) => {
  if (src.includes(":") !== dst.includes(":")) {
    context.addIssue({ code: "custom", message: 'must have "src" and "dst" of one IP version' });
  }
});

const interfaceName = text.refine(
  (name) => /^[^/\s:%]+$/.test(name) && name !== "." && name !== ".." && new TextEncoder().encode(name).length <= 15,
  "must be an interface name: 1 to 15 bytes without space, slash, colon or percent sign",
);

function onByDefault() {
  return z.boolean("must be true or false").default(() => true);
}

function offByDefault() {
  return z.boolean("must be true or false").default(() => false);
}

/** What is wrong with a peer's name or address, `undefined` when nothing is. */
function hostFault(host: string): string | undefined {
  if (isIP(host) !== 0) {
    return host.includes("%") || isUnicast(host) ? undefined : "must be an address that one host can have";
  }
  if (/[\s/:[\]]/.test(host)) return "must be a host name or an IP address, without brackets or port";
  // A name does not end in a number (RFC 1123 section 2.1): this is an IPv4 address with a mistake in it.
  return /(^|\.)[0-9]+$/.test(host) ? "must be a host name or an IP address" : undefined;
}

const peerSchema = z.strictObject({
  host: text.superRefine((host, context) => {
    const wrong = hostFault(host);
    if (wrong !== undefined) context.addIssue({ code: "custom", message: wrong });
  }),
  port: port.default(6081),
  controlPort: port.optional(),
  publicKey: text,
  vni: integer(0, 2 ** 24 - 1).default(1),
  allowedRoutes: z.array(allowedRoute, "must be a list").min(1, "must have at least one entry")
    .default(() => [...EVERYWHERE]),
  rxRateLimitPps: integer(0, 2 ** 32 - 1).default(0),
});

const nodeFields = z.strictObject({
  identityKeyFile: text,
  localAddress: ipAddress.optional(),
  interface: interfaceName.optional(),
  port: port.default(6081),
  controlPort: port.default(6082),
  device: z.strictObject({
    name: interfaceName.default("icx0"),
    addresses: z.array(interfaceAddress, "must be a list").default(() => []),
    mtuBytes: integer(68, 65535).optional(),
  }).prefault({}),
  rekeyIntervalMs: integer(1000, 12 * 3_600_000).default(120_000),
  keepaliveMs: integer(0, 24 * 3_600_000).default(25_000),
  peerFilter: z.boolean("must be true or false").default(() => true),
  sourcePortHashing: offByDefault(),
  copyEcn: offByDefault(),
  copyDscp: offByDefault(),
  outerUdpChecksum: offByDefault(),
  datapath: z.enum(["auto", "tun", "afxdp", "netstack"], 'must be "auto", "tun", "afxdp" or "netstack"').default(
    "auto",
  ),
  netstack: z.strictObject({
    nameServers: z.array(ipAddress, "must be a list").max(4, "must have at most 4 entries").default(() => []),
    receiveBufferBytes: integer(4096, 2 ** 26).default(2 ** 19),
    sendBufferBytes: integer(4096, 2 ** 26).default(2 ** 19),
    congestion: z.enum(["cubic", "reno", "none"], 'must be "cubic", "reno" or "none"').default("cubic"),
    maxConnections: integer(1, 65536).default(4096),
  }).prefault({}),
  afxdp: z.strictObject({
    device: z.enum(["veth", "tun"], 'must be "veth" or "tun"').optional(),
    attach: z.enum(["auto", "native", "generic"], 'must be "auto", "native" or "generic"').default("auto"),
    zeroCopy: z.enum(["auto", "require", "off"], 'must be "auto", "require" or "off"').default("auto"),
    cpuPin: offByDefault(),
    busyPoll: z.strictObject({ microseconds: integer(1, 1_000_000), budget: integer(1, 65535).default(64) }).optional(),
    pcapFile: text.optional(),
  }).prefault({}),
  queues: integer(1, 64).optional(),
  latency: z.enum(["low", "balanced", "idle"], 'must be "low", "balanced" or "idle"').default("balanced"),
  clampMss: z.boolean("must be true or false").default(() => false),
  offload: z.strictObject({
    tso: onByDefault(),
    uso: onByDefault(),
    gro: onByDefault(),
    udpGso: onByDefault(),
    udpGro: onByDefault(),
  }).prefault({}),
  peers: z.array(peerSchema, "must be a list").min(1, "must have at least one entry"),
});

/** What fields are to each other is looked at once each is good in itself. */
const nodeSchema = nodeFields.pipe(z.custom<z.output<typeof nodeFields>>()).superRefine((config, context) => {
  if (config.port === config.controlPort) {
    context.addIssue({ code: "custom", path: ["controlPort"], message: 'must differ from "port"' });
  }
  const { name, addresses, mtuBytes } = config.device;
  const isVeth = config.datapath === "afxdp" && (config.afxdp.device ?? "veth") === "veth";
  if (isVeth && new TextEncoder().encode(name).length > VETH_NAME_BYTES) {
    const message =
      `must have ${VETH_NAME_BYTES} bytes at most for a veth pair, whose other end is called "<name>-xdp"`;
    context.addIssue({ code: "custom", path: ["device", "name"], message });
  }
  if (isVeth && config.afxdp.zeroCopy === "require") {
    const message =
      'must be "auto" or "off" with a veth pair, which shares its memory with the interface: use device "tun"';
    context.addIssue({ code: "custom", path: ["afxdp", "zeroCopy"], message });
  }
  if (config.datapath === "netstack" && (addresses.length < 1 || addresses.length > MOST_NETSTACK_ADDRESSES)) {
    const message = `must have 1 to ${MOST_NETSTACK_ADDRESSES} entries for a stack in the process`;
    context.addIssue({ code: "custom", path: ["device", "addresses"], message });
  }
  addresses.forEach((address, index) => {
    const same = addresses.findIndex((other) => parsePrefix(other).address === parsePrefix(address).address);
    if (same < index) {
      const message = `must be given once: it is that of addresses[${same}], ${addresses[same]}, too`;
      context.addIssue({ code: "custom", path: ["device", "addresses", index], message });
    }
  });
  if (mtuBytes !== undefined && mtuBytes < IPV6_LEAST_MTU && addresses.some((address) => address.includes(":"))) {
    const message = `must be at least ${IPV6_LEAST_MTU} with an IPv6 address (RFC 8200 section 5)`;
    context.addIssue({ code: "custom", path: ["device", "mtuBytes"], message });
  }
  const vnis = new Map<number, number>();
  const routes = new Map<string, number>();
  config.peers.forEach((peer, index) => {
    const sameVni = vnis.get(peer.vni);
    if (sameVni !== undefined) {
      const message = `must differ from that of peers[${sameVni}]`;
      context.addIssue({ code: "custom", path: ["peers", index, "vni"], message });
    }
    vnis.set(peer.vni, index);
    const { localAddress } = config;
    if (localAddress !== undefined && isIP(peer.host) !== 0 && isIP(peer.host) !== isIP(localAddress)) {
      const message = `must be of the IP version of "localAddress", which is ${localAddress}`;
      context.addIssue({ code: "custom", path: ["peers", index, "host"], message });
    }
    peer.allowedRoutes.forEach((route, at) => {
      const key = `${parsePrefix(route.src).network}=${parsePrefix(route.dst).network}`;
      const owner = routes.get(key);
      if (owner !== undefined && owner !== index) {
        const message = `must belong to one peer: ${key} is among those of peers[${owner}] too`;
        context.addIssue({ code: "custom", path: ["peers", index, "allowedRoutes", at], message });
      }
      routes.set(key, index);
    });
  });
});

/**
 * Checks what was given for a node and fills in the defaults.
 *
 * @param input A plain object with the fields of {@linkcode NodeConfig}; those with a default may be left out.
 * @returns The complete configuration.
 * @throws {TypeError} When a field is missing, unknown or out of its range: the message says of each the field, what it must
 * be and what it is; several have a line each.
 *
 * @example The shortest configuration
 * ```ts
 * import { parseNodeConfig } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * const config = parseNodeConfig({
 *   identityKeyFile: "node.key",
 *   peers: [{ host: "192.0.2.1", publicKey: "peer.pub" }],
 * });
 * strictEqual(config.peers[0]?.controlPort, 6082);
 * strictEqual(config.device.name, "icx0");
 * ```
 */
export function parseNodeConfig(input: unknown): NodeConfig {
  const result = nodeSchema.safeParse(input);
  if (!result.success) {
    const faults = result.error.issues.map((issue) => describe(issue, input));
    throw new TypeError(
      faults.length === 1
        ? `Cannot use the configuration: ${faults[0]}`
        : `Cannot use the configuration:\n${faults.map((fault) => `- ${fault}`).join("\n")}`,
    );
  }
  const { device, localAddress, interface: underlay, queues, peers, afxdp, ...rest } = result.data;
  return {
    ...rest,
    localAddress,
    interface: underlay,
    queues,
    afxdp: { ...afxdp, device: afxdp.device, busyPoll: afxdp.busyPoll, pcapFile: afxdp.pcapFile },
    device: { ...device, mtuBytes: device.mtuBytes },
    peers: peers.map((peer) => ({ ...peer, controlPort: peer.controlPort ?? rest.controlPort })),
  };
}

/**
 * What is allowed and still worth a second look.
 *
 * @param config A checked configuration.
 * @returns One sentence for each finding; none if all is well.
 */
export function nodeConfigWarnings(config: NodeConfig): string[] {
  const warnings: string[] = [];
  for (const peer of config.peers) {
    const open = peer.allowedRoutes.filter(({ src, dst }) => src.endsWith("/0") && dst.endsWith("/0"));
    if (open.length > 0) {
      const routes = open.map(({ src, dst }) => `${src}=${dst}`).join(" and ");
      warnings.push(
        `Every inner address may pass to and from ${peer.host} (${routes}): name the prefixes that the peer really has`,
      );
    }
  }
  if (!config.peerFilter) {
    warnings.push("The peer filter is off: frames from any outer address are opened, which costs time under attack");
  }
  return warnings;
}

function describe(issue: z.core.$ZodIssue, input: unknown): string {
  const path = issue.path.reduce<string>(
    (done, part) =>
      typeof part === "number" ? `${done}[${part}]` : done === "" ? String(part) : `${done}.${String(part)}`,
    "",
  );
  const field = path === "" ? "the configuration" : `"${path}"`;
  if (issue.code === "unrecognized_keys") {
    const keys = issue.keys.map((key) => `"${key}"`).join(", ");
    return `${field} must have known fields only: current value has ${keys}`;
  }
  const value = issue.path.reduce<unknown>(
    (at, part) => typeof at === "object" && at !== null ? (at as Record<PropertyKey, unknown>)[part] : undefined,
    input,
  );
  if (value === undefined && issue.code === "invalid_type") return `${field} must be given`;
  const message = issue.code === "invalid_type" && !issue.message.startsWith("must")
    ? "must be an object"
    : issue.message;
  return value === undefined ? `${field} ${message}` : `${field} ${message}: current value is ${shownHere(value)}`;
}

/** Lists and objects of a configuration are data: they are shown as they are, where they have a text. */
function shownHere(value: unknown): string {
  if (typeof value !== "object" || value === null) return shown(value);
  try {
    const text = JSON.stringify(value);
    return text.length > MOST_CHARACTERS ? `${text.slice(0, MOST_CHARACTERS)}…` : text;
  } catch {
    return shown(value);
  }
}
