/**
 * A whole node: identity, control plane, engine, datapath, and one tunnel for each peer.
 *
 * @module
 */

import { Backoff } from "../datapath/backoff.ts";
import { type Clock, delay, systemClock } from "../datapath/clock.ts";
import type { Datapath, DatapathStats } from "../datapath/datapath.ts";
import type { ForwarderInfo, ForwarderNotice } from "../datapath/afxdp.ts";
import type { Engine, SaStatus } from "../datapath/engine.ts";
import { DatapathError } from "../datapath/errors.ts";
import type { Netstack } from "../datapath/netstack_device.ts";
import { UdpUnderlay } from "../datapath/udp_underlay.ts";
import { supervise } from "../datapath/supervise.ts";
import type { OffloadRefused, PathMtuChanged, PathMtuReason } from "../datapath/device_datapath.ts";
import { requireFunction, requireType } from "../native/arguments.ts";
import { bootClock } from "../native/clock.ts";
import { Library } from "../native/library.ts";
import { interfaceLookup, resolveHost, type RouteInfo, routeLookup } from "../native/network.ts";
import { ControlEndpoint, type ControlPeer } from "./endpoint.ts";
import { Identity, parsePeerKey, type PublicKey, tunnelRole } from "./identity.ts";
import type { TrafficSample, TunnelEvent, TunnelRole } from "./lifecycle.ts";
import { type NodeConfig, type NodeOffloadConfig, type NodePeerConfig, parseNodeConfig } from "./node_config.ts";
import { type NodeDatapath, openDatapath } from "./node_datapath.ts";
import { socketAddress } from "./prefix.ts";
import { Tunnel, type TunnelStatus } from "./tunnel.ts";

export type { ForwarderInfo, ForwarderNotice } from "../datapath/afxdp.ts";

/** What happened to a node, for people and programs to see. */
export type NodeEvent =
  /** Something happened to one peer's tunnel. */
  | { readonly type: "tunnel"; readonly vni: number; readonly host: string; readonly event: TunnelEvent }
  /** A peer's name or the way to it is not known yet; the node goes on trying. */
  | { readonly type: "locating"; readonly vni: number; readonly host: string; readonly reason: string }
  /** A peer's name now stands for another address, and its session confirms it: data goes there from now on. */
  | { readonly type: "moved"; readonly vni: number; readonly host: string; readonly endpoint: string }
  /** Somebody who is not one of the peers tried to connect; `count` times since the last such event. */
  | { readonly type: "rejected"; readonly remote: string; readonly reason: string; readonly count: number }
  /** The kernel would not do for one socket what it seemed able to do; the node goes on without. */
  | { readonly type: "offload-refused" } & OffloadRefused
  /** The path to a peer carries other packets than it did, outside and inside, in bytes. */
  | {
    readonly type: "path-mtu";
    readonly vni: number;
    readonly host: string;
    readonly pathMtuBytes: number;
    readonly innerMtuBytes: number;
    /** A router said so, an interface of this host does, what was learned is ten minutes old, or the peer has moved. */
    readonly reason: PathMtuReason;
  }
  /** The device's MTU follows the paths to the peers; `error` says why it could not. */
  | { readonly type: "device-mtu"; readonly device: string; readonly mtuBytes: number; readonly error?: string }
  /** A forwarder over AF_XDP has something to tell. */
  | { readonly type: "forwarder"; readonly notice: ForwarderNotice }
  /** The first tunnel has its keys: packets move. */
  | { readonly type: "forwarding" };

/** Options of {@linkcode Node.open}. */
export interface NodeOptions {
  /** The library. @default one of its own, which it closes in the end */
  readonly library?: Library | undefined;
  /** Who the node is, of the same library; it may be closed once the node is open. @default the key in `identityKeyFile` */
  readonly identity?: Identity | undefined;
  /** Gives up opening; the promise then rejects with the signal's reason. @default none */
  readonly signal?: AbortSignal | undefined;
  /** Hears of everything that happens, in order. What it throws ends the run. @default none */
  readonly onEvent?: ((event: NodeEvent) => void) | undefined;
  /** Time. @default the time since boot, time spent suspended included */
  readonly clock?: Clock | undefined;
}

/** One peer of an open node. */
export interface NodePeerInfo extends PublicKey {
  /** The network's number. */
  readonly vni: number;
  /** The peer's name or address, as configured. */
  readonly host: string;
  /** Where its data goes, `ip:port`. */
  readonly endpoint: string;
  /** Which side we are. */
  readonly role: TunnelRole;
  /** The interface on the way to it. */
  readonly interface: string;
  /** The MTU of that way when the node was opened, in bytes. */
  readonly pathMtuBytes: number;
}

/** What an open node is. */
export interface NodeInfo {
  /** The own public key. */
  readonly identity: PublicKey;
  /** Which datapath moves the packets. */
  readonly datapath: Datapath["kind"];
  /** The tunnel's network device. */
  readonly device: {
    readonly name: string;
    readonly index: number;
    /** As it stands, where it follows the paths to the peers. */
    readonly mtuBytes: number;
    readonly queues: number;
  };
  /** Why it is that one, for people. */
  readonly why: string;
  /** What the kernel cuts and merges: what was asked for, as far as it can. */
  readonly offload: NodeOffloadConfig;
  /** The forwarder over AF_XDP, where that moves the packets. */
  readonly forwarder: ForwarderInfo | undefined;
  /** The own data port. */
  readonly port: number;
  /** The own control port. */
  readonly controlPort: number;
  /** The peers. */
  readonly peers: readonly NodePeerInfo[];
}

/** One peer's tunnel and keys at one moment. */
export interface NodePeerStats {
  /** The session. */
  readonly tunnel: TunnelStatus;
  /** The keys. */
  readonly keys: SaStatus;
  /** The largest IP packet that the way to the peer is known to carry, in bytes. */
  readonly pathMtuBytes: number;
  /** The largest packet that the tunnel to it carries, in bytes. */
  readonly innerMtuBytes: number;
}

/** A node at one moment. */
export interface NodeStats {
  /** Counters. */
  readonly datapath: DatapathStats;
  /** Tunnels, by the VNI of their network. */
  readonly peers: ReadonlyMap<number, NodePeerStats>;
}

/** How long a node's parts may take to end, in milliseconds. */
const SHUTDOWN_TIMEOUT_MS = 5000;
const LOCATE_REPORT_MS = 10_000;
/** How soon a name is asked again whether it stands for where a peer's session now is. */
const FOLLOW_AGAIN_MS = 5000;
/** RFC 8200 section 5: every link that carries IPv6 has an MTU of at least this. */
const IPV6_LEAST_MTU = 1280;
/** What every TUN device takes. */
const LEAST_MTU = 68;
const MAX_DEFAULT_QUEUES = 8;
const MIN_KEY_LIFETIME_MS = 3_600_000;
const MAX_KEY_LIFETIME_MS = 24 * 3_600_000;

interface Located {
  readonly address: string;
  readonly route: RouteInfo;
}

interface PeerState {
  readonly config: NodePeerConfig;
  readonly key: PublicKey;
  readonly role: TunnelRole;
  readonly pathMtuBytes: number;
  readonly interface: string;
  readonly control: ControlPeer;
  readonly tunnel: Tunnel;
  endpoint: string;
  /** What has been learned about the way to it. */
  learned: { readonly pathMtuBytes: number; readonly innerMtuBytes: number } | undefined;
  /** Packets that had opened when last looked at. */
  rxPackets: bigint;
  /** Where the peer's session was when its name was last asked, and when that was. */
  followed: { readonly remote: string; readonly at: number } | undefined;
}

/**
 * A node: opens everything that a tunnel needs in the right order, and runs it.
 *
 * `open` looks up the peers, for as long as that takes, and acquires device, sockets and engine, or throws and leaves
 * nothing behind. `run` works once, and goes on until its signal aborts; packets move from the first finished key exchange
 * on, not before. It rejects with the first real failure. `close` may be called at any moment and again; it says goodbye to
 * the peers and gives everything back.
 *
 * @example A tunnel
 * ```ts ignore
 * import { Node, parseNodeConfig } from "@icx/icx";
 *
 * const config = parseNodeConfig({
 *   identityKeyFile: "node.key",
 *   device: { addresses: ["10.9.0.1/24"] },
 *   peers: [{
 *     host: "192.0.2.2",
 *     publicKey: "peer.pub",
 *     allowedRoutes: [{ src: "10.9.0.1/32", dst: "10.9.0.2/32" }],
 *   }],
 * });
 * await using node = await Node.open(config);
 * await node.run({ signal: AbortSignal.timeout(3_600_000) });
 * ```
 */
export class Node implements AsyncDisposable {
  readonly #parts: AsyncDisposableStack;
  readonly #library: Library;
  readonly #identity: Identity;
  readonly #config: NodeConfig;
  readonly #engine: Engine;
  readonly #control: ControlEndpoint;
  readonly #moving: NodeDatapath;
  readonly #clock: Clock;
  readonly #observer: Observer;
  readonly #peers: PeerState[] = [];
  readonly #closing = new AbortController();
  readonly #port: number;
  #deviceMtuBytes: number;
  #started = false;
  #running: Promise<void> | undefined;
  #closed: Promise<void> | undefined;

  private constructor(
    parts: AsyncDisposableStack,
    fields: {
      readonly library: Library;
      readonly identity: Identity;
      readonly config: NodeConfig;
      readonly control: ControlEndpoint;
      readonly moving: NodeDatapath;
      readonly port: number;
      readonly clock: Clock;
      readonly observer: Observer;
    },
  ) {
    this.#parts = parts;
    this.#library = fields.library;
    this.#identity = fields.identity;
    this.#config = fields.config;
    this.#engine = fields.moving.engine;
    this.#control = fields.control;
    this.#moving = fields.moving;
    this.#clock = fields.clock;
    this.#observer = fields.observer;
    this.#port = fields.port;
    this.#deviceMtuBytes = fields.moving.device.mtuBytes;
  }

  /**
   * Opens a node. Nothing moves yet, and no peer is dialled.
   *
   * @param config What {@linkcode parseNodeConfig} gave.
   * @param options Library, signal, observer and clock.
   * @throws {TypeError} When the configuration is not acceptable, or two peers have one key.
   * @throws {NativeError} When the identity or a peer's key is not acceptable, there is no such interface, or the control port
   * cannot be bound.
   * @throws {DatapathError} When the device or the sockets cannot be had, a route or an option is not acceptable, or the way to
   * a peer leads through another interface than the configured one.
   */
  static async open(config: NodeConfig, options: NodeOptions = {}): Promise<Node> {
    config = parseNodeConfig(config);
    const operation = "open a node";
    const { signal, onEvent = () => {} } = options;
    requireFunction(onEvent, { operation, name: "onEvent" });
    signal?.throwIfAborted();
    const observer = new Observer(onEvent);
    await using parts = new AsyncDisposableStack();
    const library = options.library ?? parts.use(Library.open());
    requireType(library instanceof Library, library, {
      operation,
      name: "library",
      allowed: "what Library.open() gave",
    });
    // A rekey that fell due while the machine was suspended is due when it wakes up.
    const clock = options.clock ?? { ...systemClock, now: bootClock(library) };
    const { identity = parts.use(Identity.load(config.identityKeyFile, { library })) } = options;
    requireType(identity instanceof Identity, identity, { operation, name: "identity", allowed: "an Identity" });
    const keys = config.peers.map((peer) => parsePeerKey(peer.publicKey, { library, allowFile: true }));
    requireDistinct(keys);
    const roles = keys.map((key) => tunnelRole(library, { local: identity.publicKey, peer: key.publicKey }));

    // What this host alone decides comes before the wait for names and routes, and the device, which others see, last.
    if (config.interface !== undefined) interfaceLookup(library, config.interface);
    const queues = config.queues ?? defaultQueues();
    const { udpGso, udpGro } = config.offload;
    const underlay = parts.use(UdpUnderlay.open({
      library,
      localAddress: config.localAddress,
      port: config.port,
      sourcePortHashing: config.sourcePortHashing,
      sockets: queues,
      offload: { segment: udpGso, merge: udpGro },
    }));
    const located = await Promise.all(
      config.peers.map((peer) => locate(library, { peer, config, clock, signal, onEvent })),
    );
    for (const { address, route } of located) requireInterface(config.interface, { address, route });
    const moving = await openDatapath({
      library,
      config,
      underlay,
      queues,
      routes: located.map(({ route }) => route),
      owner: parts,
      // There are none before packets move.
      onPathMtu: (changed) => node.#learn(changed),
      onOffloadRefused: (refused) => observer.tell({ type: "offload-refused", ...refused }),
      onForwarder: (notice) => observer.tell({ type: "forwarder", notice }),
    });
    const control = parts.use(ControlEndpoint.open({
      library,
      identity,
      localAddress: config.localAddress,
      port: config.controlPort,
      onRejected: (rejected) => observer.tell({ type: "rejected", ...rejected }),
    }));
    const node: Node = new Node(parts.move(), {
      library,
      identity,
      config,
      control,
      moving,
      port: underlay.port,
      clock,
      observer,
    });
    try {
      config.peers.forEach((peer, index) => {
        const [key, role, place] = [keys[index], roles[index], located[index]];
        if (key !== undefined && role !== undefined && place !== undefined) node.#addPeer(peer, { key, role, place });
      });
    } catch (error) {
      await node.close();
      throw error;
    }
    return node;
  }

  /** What the node is. */
  info(): NodeInfo {
    const { datapath, why, device, offload, forwarder } = this.#moving;
    return {
      identity: { publicKey: this.#identity.publicKey, fingerprint: this.#identity.fingerprint },
      datapath: datapath.kind,
      why,
      device: { name: device.name, index: device.index, mtuBytes: this.#deviceMtuBytes, queues: device.queues },
      offload,
      forwarder,
      port: this.#port,
      controlPort: this.#control.port,
      peers: this.#peers.map((peer) => ({
        ...peer.key,
        vni: peer.config.vni,
        host: peer.config.host,
        endpoint: peer.endpoint,
        role: peer.role,
        interface: peer.interface,
        pathMtuBytes: peer.pathMtuBytes,
      })),
    };
  }

  /** The TCP/IP stack in the process, to connect and listen through, where that is the inner side. */
  get stack(): Netstack | undefined {
    return this.#moving.stack;
  }

  /** Counters, tunnels and keys as they stand. */
  stats(): NodeStats {
    return {
      datapath: this.#moving.datapath.stats(),
      peers: new Map(this.#peers.map((peer) => [
        peer.config.vni,
        { tunnel: peer.tunnel.status(), keys: this.#engine.saStatus(peer.config.vni), ...this.#pathOf(peer) },
      ])),
    };
  }

  /**
   * Runs the node until `signal` aborts or it is closed.
   *
   * @param options The signal.
   * @throws {TypeError} When it was called before, or the node is closed.
   */
  async run(options: { readonly signal?: AbortSignal | undefined } = {}): Promise<void> {
    if (this.#closed !== undefined) throw new TypeError("Cannot run the node as it is closed: open a new one");
    if (this.#started) throw new TypeError("Cannot run the node as it has been run before: open a new one");
    this.#started = true;
    const { signal } = options;
    const stop = signal === undefined ? this.#closing.signal : AbortSignal.any([signal, this.#closing.signal]);
    this.#running = supervise([
      ...this.#peers.map(({ config, tunnel }) => ({
        name: `tunnel to ${config.host}`,
        run: (signal: AbortSignal) => tunnel.run({ signal }),
      })),
      { name: "datapath", run: (signal) => this.#forward(signal) },
      { name: "observer", run: (signal) => this.#observer.watch(signal) },
    ], { signal: stop, shutdownTimeoutMs: SHUTDOWN_TIMEOUT_MS, clock: this.#clock });
    await this.#running;
  }

  /** Stops the node and gives everything back. Does not reject. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Moves packets from the first finished key exchange on. */
  async #forward(signal: AbortSignal): Promise<void> {
    const aborted = Promise.withResolvers<void>();
    const onAbort = () => aborted.resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      // Tunnels that end without keys end the run by themselves.
      const ready = Promise.any(this.#peers.map(({ tunnel }) => tunnel.ready)).catch(() => aborted.promise);
      await Promise.race([aborted.promise, ready]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
    if (signal.aborted) return;
    this.#observer.tell({ type: "forwarding" });
    await this.#moving.datapath.run({ signal });
  }

  #addPeer(config: NodePeerConfig, facts: { key: PublicKey; role: TunnelRole; place: Located }): void {
    const { key, role, place } = facts;
    const { vni, host } = config;
    const endpoint = socketAddress(place.address, config.port);
    this.#engine.addNetwork(networkOf(config, endpoint));
    const peer = this.#control.addPeer({
      engine: this.#engine,
      vni,
      publicKey: key.publicKey,
      keyLifetimeMs: keyLifetimeMs(this.#config.rekeyIntervalMs),
    });
    const tunnel = new Tunnel({
      peer,
      rekeyIntervalMs: this.#config.rekeyIntervalMs,
      clock: this.#clock,
      resolve: ({ signal }) => resolve(this.#library, { config: this.#config, host, port: config.controlPort, signal }),
      sampleTraffic: () => this.#sample(state),
      onEvent: (event) => {
        this.#observer.tell({ type: "tunnel", vni, host, event });
        if (event.type === "session-up") this.#follow(state, event.remote);
      },
    });
    const state: PeerState = {
      config,
      key,
      role,
      control: peer,
      tunnel,
      endpoint,
      interface: place.route.interface,
      pathMtuBytes: place.route.mtu,
      learned: undefined,
      rxPackets: 0n,
      followed: undefined,
    };
    this.#peers.push(state);
  }

  /** The largest packets on the way to a peer, and inside. */
  #pathOf({ learned, pathMtuBytes }: PeerState): { readonly pathMtuBytes: number; readonly innerMtuBytes: number } {
    return learned ?? { pathMtuBytes, innerMtuBytes: this.#moving.device.mtuBytes };
  }

  /** Takes in what the way to a peer carries now. */
  #learn({ vni, pathMtuBytes, innerMtuBytes, reason }: PathMtuChanged): void {
    const peer = this.#peers.find((peer) => peer.config.vni === vni);
    if (peer === undefined) return;
    peer.learned = pathMtuBytes === undefined || innerMtuBytes === undefined
      ? undefined
      : { pathMtuBytes, innerMtuBytes };
    this.#observer.tell({ type: "path-mtu", vni, host: peer.config.host, ...this.#pathOf(peer), reason });
    if (this.#config.device.mtuBytes === undefined) this.#followPaths();
  }

  /** Gives the device the largest MTU with which its packets pass to every peer, and none that is larger than at the start. */
  #followPaths(): void {
    const { name, mtuBytes: most } = this.#moving.device;
    const hasIpv6 = this.#config.device.addresses.some((address) => address.includes(":"));
    const smallest = Math.min(most, ...this.#peers.map((peer) => this.#pathOf(peer).innerMtuBytes));
    const mtuBytes = Math.min(most, Math.max(smallest, hasIpv6 ? IPV6_LEAST_MTU : LEAST_MTU));
    if (mtuBytes === this.#deviceMtuBytes) return;
    try {
      this.#moving.setDeviceMtu(mtuBytes);
      this.#deviceMtuBytes = mtuBytes;
      this.#observer.tell({ type: "device-mtu", device: name, mtuBytes });
    } catch (error) {
      // Senders are told by the engine as well, packet by packet.
      this.#observer.tell({ type: "device-mtu", device: name, mtuBytes, error: messageOf(error) });
    }
  }

  #sample(peer: PeerState): TrafficSample {
    const { tx_packets, rx_packets, last_keepalive } = this.#engine.counters(peer.config.vni);
    // A session wanders with its peer, and nothing tells of it. Where packets open there is nothing to look for.
    const remote = rx_packets === peer.rxPackets ? peer.control.remote : undefined;
    if (remote !== undefined) this.#follow(peer, remote);
    peer.rxPackets = rx_packets;
    return { txPackets: tx_packets, rxPackets: rx_packets, lastKeepalive: last_keepalive };
  }

  /** Sends data to where the peer's session now is, if that is an address of its name. */
  #follow(peer: PeerState, remote: string): void {
    const address = addressOf(remote);
    const endpoint = socketAddress(address, peer.config.port);
    if (endpoint === peer.endpoint) return;
    const { followed } = peer;
    const now = this.#clock.now();
    if (followed?.remote === remote && now - followed.at < FOLLOW_AGAIN_MS) return;
    peer.followed = { remote, at: now };
    const { host, port, vni } = peer.config;
    const signal = this.#closing.signal;
    resolve(this.#library, { config: this.#config, host, port, signal }).then((addresses) => {
      if (signal.aborted || !addresses.includes(endpoint)) return;
      this.#engine.updateNetwork(networkOf(peer.config, endpoint));
      peer.endpoint = endpoint;
      this.#observer.tell({ type: "moved", vni, host, endpoint });
    }).catch((error: unknown) => {
      this.#observer.tell({ type: "locating", vni, host, reason: messageOf(error) });
    });
  }

  async #close(): Promise<void> {
    this.#closing.abort();
    // What went wrong there is for the caller of `run` to hear.
    await this.#running?.catch(() => {});
    await this.#parts.disposeAsync();
  }
}

/** Tells the owner of a node what happens, and keeps what goes wrong there out of the parts that report it. */
class Observer {
  readonly #onEvent: (event: NodeEvent) => void;
  readonly #failed = Promise.withResolvers<never>();

  constructor(onEvent: (event: NodeEvent) => void) {
    this.#onEvent = onEvent;
    this.#failed.promise.catch(() => {});
  }

  tell(event: NodeEvent): void {
    try {
      this.#onEvent(event);
    } catch (error) {
      this.#failed.reject(error);
    }
  }

  /** Rejects with the first thing that the owner throws; resolves when the signal aborts. */
  async watch(signal: AbortSignal): Promise<void> {
    const stopped = Promise.withResolvers<void>();
    const onAbort = () => stopped.resolve();
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.race([this.#failed.promise, stopped.promise]);
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }
}

/** One key for two peers would make them one to the control plane. */
function requireDistinct(keys: readonly PublicKey[]): void {
  keys.forEach(({ publicKey, fingerprint }, index) => {
    const same = keys.findIndex((key) => key.publicKey === publicKey);
    if (same === index) return;
    throw new TypeError(
      `Cannot open a node as "peers[${index}].publicKey" must differ from that of peers[${same}]: both have the ` +
        `fingerprint ${fingerprint}; give each peer the key that \`icx pubkey\` prints on it`,
    );
  });
}

/** The kernel's route decides where packets leave; the configuration only says what it must be. */
function requireInterface(expected: string | undefined, { address, route }: Located): void {
  if (expected === undefined || route.interface === expected) return;
  throw new DatapathError(
    `Cannot open a node as the route to ${address} leads through ${route.interface}, and "interface" says ${expected}: ` +
      `change the route (\`ip route get ${address}\` shows it), or name the interface that is meant`,
    { code: "wrong-state", operation: "open a node" },
  );
}

/** Key lifetime for a rekey interval, both in milliseconds. */
export function keyLifetimeMs(rekeyIntervalMs: number): number {
  return Math.min(Math.max(4 * rekeyIntervalMs, MIN_KEY_LIFETIME_MS), MAX_KEY_LIFETIME_MS);
}

interface LocateOptions {
  readonly peer: NodePeerConfig;
  readonly config: NodeConfig;
  readonly clock: Clock;
  readonly signal: AbortSignal | undefined;
  readonly onEvent: (event: NodeEvent) => void;
}

/** Finds a peer's address and the way to it; goes on trying, and says so at intervals. */
async function locate(library: Library, options: LocateOptions): Promise<Located> {
  const { peer, config, clock, signal, onEvent } = options;
  const backoff = new Backoff({ baseMs: 100, maxMs: 5000 });
  let reportedAt: number | undefined;
  while (true) {
    try {
      const [endpoint] = await resolve(library, { config, host: peer.host, port: peer.port, signal });
      if (endpoint === undefined) throw new Error(`${peer.host} has no address`);
      const address = addressOf(endpoint);
      const route = await routeLookup(library, { destination: address, source: config.localAddress, signal });
      return { address, route };
    } catch (error) {
      signal?.throwIfAborted();
      if (reportedAt === undefined || clock.now() - reportedAt >= LOCATE_REPORT_MS) {
        reportedAt = clock.now();
        onEvent({ type: "locating", vni: peer.vni, host: peer.host, reason: messageOf(error) });
      }
      await delay(backoff.next(), { signal, clock });
    }
  }
}

interface ResolveOptions {
  readonly config: NodeConfig;
  readonly host: string;
  readonly port: number;
  readonly signal: AbortSignal | undefined;
}

/** Addresses of a name as `ip:port`, of the family that a bound local address can reach. */
function resolve(library: Library, { config, host, port, signal }: ResolveOptions): Promise<readonly string[]> {
  const { localAddress } = config;
  const family = localAddress === undefined ? undefined : localAddress.includes(":") ? "ipv6" : "ipv4";
  return resolveHost(library, { host, port, family, signal });
}

function networkOf(config: NodePeerConfig, endpoint: string) {
  return { vni: config.vni, peer: endpoint, routes: config.allowedRoutes, rxRateLimitPps: config.rxRateLimitPps };
}

/** One thread for two processors: the other half is for those whose packets they are. */
function defaultQueues(): number {
  return Math.max(1, Math.min(MAX_DEFAULT_QUEUES, Math.floor(navigator.hardwareConcurrency / 2)));
}

/** The address of `ip:port`, without brackets. */
function addressOf(endpoint: string): string {
  return endpoint.slice(0, endpoint.lastIndexOf(":")).replace(/^\[(.*)\]$/, "$1");
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
