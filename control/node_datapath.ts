/**
 * What moves a node's packets: which kind of datapath, and how one is made of a node's configuration.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import {
  Forwarder,
  type ForwarderInfo,
  type ForwarderNotice,
  support,
  wrap,
  type XdpLack,
  type XdpSupport,
} from "../datapath/afxdp.ts";
import type { Datapath } from "../datapath/datapath.ts";
import type { OffloadRefused, PathMtuChanged } from "../datapath/device_datapath.ts";
import { Engine, type EngineOptions } from "../datapath/engine.ts";
import { DatapathError } from "../datapath/errors.ts";
import { innerMtu } from "../datapath/mtu.ts";
import { TunDatapath } from "../datapath/tun.ts";
import { TunDevice } from "../datapath/tun_device.ts";
import type { UdpUnderlay } from "../datapath/udp_underlay.ts";
import { NetstackDatapath } from "../datapath/netstack.ts";
import type { Netstack } from "../datapath/netstack_device.ts";
import type { Library } from "../native/library.ts";
import { interfaceLookup, type RouteInfo } from "../native/network.ts";
import type { NodeConfig, NodeOffloadConfig } from "./node_config.ts";
import { socketAddress } from "./prefix.ts";

/** What moves a node's packets. */
export interface NodeDatapath {
  /** The datapath. */
  readonly datapath: Datapath;
  /** Its engine. */
  readonly engine: Engine;
  /** Why it is this kind, for people. */
  readonly why: string;
  /** The tunnel's network device. */
  readonly device: {
    readonly name: string;
    readonly index: number;
    readonly mtuBytes: number;
    readonly queues: number;
  };
  /** What the kernel cuts and merges. */
  readonly offload: NodeOffloadConfig;
  /** The forwarder over AF_XDP, where that is what moves them. */
  readonly forwarder: ForwarderInfo | undefined;
  /** The stack in the process, where that is the inner side. */
  readonly stack: Netstack | undefined;
  /** Gives the device another MTU while packets move. */
  setDeviceMtu(mtuBytes: number): void;
}

/** What is known when a datapath is made. */
export interface NodeDatapathParts {
  /** The library. */
  readonly library: Library;
  /** The configuration. */
  readonly config: NodeConfig;
  /** The UDP sockets, bound. Over AF_XDP they only keep the port from others. */
  readonly underlay: UdpUnderlay;
  /** Queues of a TUN device beside UDP sockets. */
  readonly queues: number;
  /** The ways to the peers. */
  readonly routes: readonly RouteInfo[];
  /** Takes over what is to be closed in the end. */
  readonly owner: AsyncDisposableStack;
  /** Hears of path MTUs. */
  readonly onPathMtu: (changed: PathMtuChanged) => void;
  /** Hears of refused offloads. */
  readonly onOffloadRefused: (refused: OffloadRefused) => void;
  /** Hears what a forwarder tells. */
  readonly onForwarder: (notice: ForwarderNotice) => void;
}

/** The most that a TUN device takes. */
const MAX_MTU = 65535;

const NO_OFFLOAD: NodeOffloadConfig = { tso: false, uso: false, gro: false, udpGso: false, udpGro: false };

/** Makes the datapath that the configuration asks for, or the one that is the faster here. */
export async function openDatapath(parts: NodeDatapathParts): Promise<NodeDatapath> {
  const { config } = parts;
  if (config.datapath === "afxdp") return openForwarder(parts, "as asked for", config.afxdp.device ?? "veth");
  if (config.datapath === "tun") return await openTun(parts, "as asked for");
  if (config.datapath === "netstack") return await openNetstack(parts, "as asked for");
  const reason = afxdpReason(parts);
  if (!reason.isBetter) return await openTunIfPossible(parts, reason.why);
  try {
    // Copying, it would be the slower one.
    const config: NodeConfig = { ...parts.config, afxdp: { ...parts.config.afxdp, zeroCopy: "require" } };
    return openForwarder({ ...parts, config }, reason.why, config.afxdp.device ?? "tun");
  } catch (error) {
    if (!(error instanceof DatapathError)) throw error;
    return await openTunIfPossible(parts, `picked since AF_XDP did not open (${error.message})`);
  }
}

/** The tun datapath, or a stack in the process where there is no right to a device, or no driver for one. */
async function openTunIfPossible(parts: NodeDatapathParts, why: string): Promise<NodeDatapath> {
  let device: TunDevice;
  try {
    device = openDevice(parts);
  } catch (error) {
    // Without an address a stack could be of no use.
    if (!isOutOfReach(error) || parts.config.device.addresses.length === 0) throw error;
    return await openNetstack(parts, `picked since there can be no device (${error.message})`);
  }
  return await openTun(parts, why, device);
}

/**
 * Whether there can be no device, whatever it is like: no right to one, or no driver, for which there is an error number. What only a
 * setting of this host forbids has none.
 */
function isOutOfReach(error: unknown): error is DatapathError {
  if (!(error instanceof DatapathError)) return false;
  const { code, errno } = error;
  return code === "permission-denied" || (code === "unsupported" && errno !== undefined);
}

/** Whether AF_XDP is the faster one on the way to the peers, and why. */
function afxdpReason({ library, routes }: NodeDatapathParts): { readonly isBetter: boolean; readonly why: string } {
  const tun = (why: string) => ({ isBetter: false, why: `picked since ${why}` });
  const names = new Set(routes.map((route) => route.interface));
  const [name] = names;
  if (name === undefined || names.size > 1) return tun("the ways to the peers lead through several interfaces");
  if (library.artifact === "core") return tun("the library for AF_XDP is not there");
  const found = support(library, name);
  const driver = found.driver === null ? `the driver of ${name}` : `${name}'s driver ${found.driver}`;
  if (found.zeroCopy !== true) {
    return tun(
      `${driver} ${
        found.zeroCopy === false ? "does" : "is not known to do"
      } no zero-copy, where UDP sockets are faster`,
    );
  }
  if (found.missing.length > 0) return tun(`AF_XDP cannot be used ${without(found.missing)}`);
  return { isBetter: true, why: `picked since ${driver} does zero-copy` };
}

function engineOptions({ library, config }: NodeDatapathParts, mtuBytes: number): EngineOptions {
  return {
    library,
    innerMtuBytes: mtuBytes,
    keepaliveMs: config.keepaliveMs,
    peerFilter: config.peerFilter,
    sourcePortHashing: config.sourcePortHashing,
    copyEcn: config.copyEcn,
    copyDscp: config.copyDscp,
  };
}

/** The largest inner packet that fits every way, unless the configuration says so. */
function deviceMtu({ library, config, routes }: NodeDatapathParts): number {
  const pathMtuBytes = Math.min(...routes.map((route) => route.mtu));
  return config.device.mtuBytes ?? Math.min(MAX_MTU, innerMtu(library, pathMtuBytes));
}

function openDevice(parts: NodeDatapathParts): TunDevice {
  const { library, config, queues } = parts;
  const { tso, uso, gro } = config.offload;
  const { name, addresses } = config.device;
  return TunDevice.open({
    library,
    name,
    addresses,
    mtuBytes: deviceMtu(parts),
    queues,
    offload: { tso, uso, gro },
  });
}

/** Of UDP sockets nothing else can be asked for. */
function requireKernelChecksum({ outerUdpChecksum }: NodeConfig): void {
  if (!outerUdpChecksum) return;
  throw new DatapathError(
    'Cannot open a node as "outerUdpChecksum" is for the afxdp datapath: the kernel computes it for UDP sockets always',
    { code: "wrong-state", operation: "open a node" },
  );
}

async function openTun(parts: NodeDatapathParts, why: string, opened?: TunDevice): Promise<NodeDatapath> {
  const { config, underlay, owner } = parts;
  requireKernelChecksum(config);
  const device = owner.use(opened ?? openDevice(parts));
  const engine = owner.use(Engine.create(engineOptions(parts, device.mtuBytes)));
  const datapath = owner.use(
    await TunDatapath.open({
      device,
      underlay,
      engine,
      latency: config.latency,
      clampMss: config.clampMss,
      onPathMtu: parts.onPathMtu,
      onOffloadRefused: parts.onOffloadRefused,
    }),
  );
  return {
    datapath,
    engine,
    why,
    device,
    offload: { ...device.offload, udpGso: underlay.offload.segment, udpGro: underlay.offload.merge },
    forwarder: undefined,
    stack: undefined,
    setDeviceMtu: (mtuBytes) => datapath.setDeviceMtu(mtuBytes),
  };
}

async function openNetstack(parts: NodeDatapathParts, why: string): Promise<NodeDatapath> {
  const { library, config, underlay, queues, owner } = parts;
  requireKernelChecksum(config);
  const mtuBytes = deviceMtu(parts);
  const engine = owner.use(Engine.create(engineOptions(parts, mtuBytes)));
  const datapath = owner.use(
    await NetstackDatapath.open({
      stack: { library, addresses: config.device.addresses, mtuBytes, queues, ...config.netstack },
      underlay,
      engine,
      latency: config.latency,
      clampMss: config.clampMss,
      onPathMtu: parts.onPathMtu,
      onOffloadRefused: parts.onOffloadRefused,
    }),
  );
  const { segment, merge } = underlay.offload;
  return {
    datapath,
    engine,
    why,
    device: { name: "netstack", index: 0, mtuBytes, queues },
    // The stack cuts and merges TCP itself, as a kernel would.
    offload: { tso: true, uso: false, gro: true, udpGso: segment, udpGro: merge },
    forwarder: undefined,
    stack: datapath.stack,
    setDeviceMtu: (mtuBytes) => datapath.setDeviceMtu(mtuBytes),
  };
}

function openForwarder(parts: NodeDatapathParts, why: string, kind: "veth" | "tun"): NodeDatapath {
  const { library, config, routes, owner } = parts;
  const [first] = routes;
  const other = routes.find((route) => route.interface !== first?.interface);
  if (first === undefined || other !== undefined) {
    throw new DatapathError(
      `Cannot open a node with the afxdp datapath as the ways to its peers lead through ${first?.interface} and ` +
        `${other?.interface}: use --datapath tun, or a node for each interface`,
      { code: "wrong-state", operation: "open a node" },
    );
  }
  const { interface: name } = first;
  const { mac } = interfaceLookup(library, name);
  if (mac === null) {
    throw new DatapathError(
      `Cannot open a node with the afxdp datapath as interface ${name} has no hardware address: use --datapath tun`,
      { code: "unsupported", operation: "open a node" },
    );
  }
  const found = support(library, name);
  if (found.missing.length > 0) throw lacking(found.missing);
  const mtuBytes = deviceMtu(parts);
  const local = [...new Set(routes.map((route) => socketAddress(route.source, config.port)))];
  const engine = owner.use(Engine.create({
    ...engineOptions(parts, mtuBytes),
    ...(kind === "veth" ? { ethernet: { hostMac: randomMac(), gatewayMac: randomMac() } } : {}),
    rawUnderlay: { local: local.map((addr) => ({ addr, mac })), outerUdpChecksum: config.outerUdpChecksum },
  }));
  const queues = config.queues ?? found.queues ?? 1;
  const { name: deviceName, addresses } = config.device;
  const tun = kind === "tun" ? openDevice({ ...parts, queues }) : undefined;
  if (tun !== undefined) owner.use(tun);
  const forwarder = owner.use(
    Forwarder.open({
      engine,
      interface: name,
      device: tun ?? { name: deviceName, mtuBytes, addresses },
      bound: local,
      attach: config.afxdp.attach,
      zeroCopy: config.afxdp.zeroCopy,
      queues: config.queues,
      cpuPin: config.afxdp.cpuPin,
      busyPoll: config.afxdp.busyPoll,
      latency: config.latency,
      clampMss: config.clampMss,
      pcapFile: config.afxdp.pcapFile,
      onNotice: parts.onForwarder,
    }),
  );
  const { device } = forwarder.info;
  return {
    datapath: wrap(forwarder),
    engine,
    why: `${why}${driverOf(found)}`,
    device: { name: device.name, index: device.index, mtuBytes: device.mtu, queues: device.queues },
    offload: tun === undefined ? NO_OFFLOAD : { ...tun.offload, udpGso: false, udpGro: false },
    forwarder: forwarder.info,
    stack: undefined,
    setDeviceMtu() {
      throw new DatapathError("Cannot change the MTU of the device during a run of the afxdp datapath", {
        code: "unsupported",
        operation: "set the MTU of the device",
      });
    },
  };
}

/** Why there is no forwarder where something is missing: `permission-denied` where a right is among it. */
export function lacking(missing: readonly XdpLack[]): DatapathError {
  const code = missing.some(({ kind }) => kind === "permission") ? "permission-denied" : "unsupported";
  return new DatapathError(
    `Cannot open a node with the afxdp datapath ${without(missing)}: add that, or use --datapath tun`,
    { code, operation: "open a node" },
  );
}

function without(missing: readonly XdpLack[]): string {
  return missing.map(({ what }) => `without ${what}`).join(", and ");
}

function driverOf({ driver }: XdpSupport): string {
  return driver === null ? "" : `, driver ${driver}`;
}

/** A locally administered unicast address. */
function randomMac(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  bytes[0] = ((bytes[0] ?? 0) & 0xfc) | 0x02;
  return Buffer.from(bytes).toString("hex").match(/../g)?.join(":") ?? "";
}
