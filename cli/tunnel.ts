/** Runs a tunnel to one peer until it is told to stop: what `icx up`, `icx proxy` and `icx ping` have in common. */

import process from "node:process";
import { Identity, parsePeerKey } from "../control/identity.ts";
import { Node, type NodeEvent, type NodeInfo, type NodeStats } from "../control/node.ts";
import { type NodeConfig, nodeConfigWarnings } from "../control/node_config.ts";
import { DatapathError } from "../datapath/errors.ts";
import type { PathMtuReason } from "../datapath/device_datapath.ts";
import { ShutdownSignals } from "../datapath/shutdown_signals.ts";
import { NativeError } from "../native/errors.ts";
import { Library } from "../native/library.ts";
import { EXIT, type ExitCode } from "./exit.ts";
import { type Log, openLog } from "./log.ts";
import { openServices, type Services } from "./services.ts";
import { exitBySignal, stopSignals } from "./signals.ts";
import { err, painter } from "./terminal.ts";
import { inTermsOfOptions, nodeConfigOf, OFFLOAD_FIELD } from "./tunnel_config.ts";
import type { TunnelArguments } from "./tunnel_options.ts";
import { forwarderLine, TunnelNarrator } from "./tunnel_events.ts";
import { formatDuration, formatEndpoint, OFFLOADS } from "./values.ts";
import { VERSION } from "./version.ts";

/** What a command does while its tunnel is up. */
export interface TunnelUse {
  /** The node, which runs. */
  readonly node: Node;
  /** Resolves when packets move. */
  readonly forwarding: Promise<void>;
  /** Aborts when the command is to end. */
  readonly signal: AbortSignal;
}

/**
 * Runs the tunnel; resolves with the exit code once it has stopped.
 *
 * @param args The command's arguments.
 * @param use What to do meanwhile: the tunnel stops when it is done, and its exit code is the command's. Without it the tunnel runs
 * until the process is told to stop, and says what happens.
 */
export async function runTunnel(
  args: TunnelArguments,
  use?: (tunnel: TunnelUse) => Promise<ExitCode>,
): Promise<ExitCode> {
  const given = nodeConfigOf(args);
  const log = openLog({
    level: args.logLevel,
    format: logFormat(args),
  });
  // Keys may come from pipes that never end. Until they are here, a signal ends the process by itself.
  await using library = openLibrary(args);
  using identity = Identity.load(given.identityKeyFile, { library });
  const peers = given.peers.map((peer) => ({
    ...peer,
    publicKey: parsePeerKey(peer.publicKey, { library, allowFile: true }).publicKey,
  }));
  const config = { ...given, peers };
  using signals = new ShutdownSignals({ source: stopSignals, onForce: exitBySignal });
  const { signal } = signals;
  const forwarding = Promise.withResolvers<void>();
  const report = reporter(args, log);
  const onEvent = (event: NodeEvent) => {
    if (event.type === "forwarding") forwarding.resolve();
    report(event);
  };
  try {
    await using node = await Node.open(config, { library, identity, signal, onEvent });
    const info = node.info();
    await using services = openServices({ node, args, log });
    if (use !== undefined) return await during(node, { use, forwarding: forwarding.promise, signal });
    announce(args, { config, info, services }, log);
    const ticker = args.statsIntervalMs === undefined ? undefined : setInterval(
      () => {
        const stats = node.stats();
        log("info", trafficLine(stats, args.vni), {
          event: "counters",
          ...figures(stats, { vni: args.vni, services }),
        });
      },
      args.statsIntervalMs,
    );
    try {
      await runWith(services, node, signal);
    } finally {
      clearInterval(ticker);
      const stats = node.stats();
      const text = `stopped; ${trafficLine(stats, args.vni)}`;
      log("info", text, {
        event: "stopped",
        signal: signals.received,
        ...figures(stats, { vni: args.vni, services }),
      });
    }
  } catch (error) {
    // Told to stop while it was still opening: that is a clean stop too.
    if (!signal.aborted || error !== signal.reason) throw error;
    log("info", "stopped before the tunnel was opened", { event: "stopped", signal: signals.received });
  }
  return EXIT.ok;
}

/** Runs the node until the signal aborts; when its services fail, it stops too. */
async function runWith(services: Services, node: Node, signal: AbortSignal): Promise<void> {
  const failed = new AbortController();
  services.ended.catch((error) => failed.abort(error));
  // A stack that closes fails its services, too: how the node fares tells why it did.
  await node.run({ signal: AbortSignal.any([signal, failed.signal]) });
  if (!signal.aborted) failed.signal.throwIfAborted();
}

/** Runs the node for as long as `use` takes. */
async function during(
  node: Node,
  options: {
    readonly use: (tunnel: TunnelUse) => Promise<ExitCode>;
    readonly forwarding: Promise<void>;
    readonly signal: AbortSignal;
  },
): Promise<ExitCode> {
  const { use, forwarding, signal } = options;
  const done = new AbortController();
  const stop = AbortSignal.any([signal, done.signal]);
  const running = node.run({ signal: stop });
  const failed = running.then(() => new Promise<never>(() => {}));
  try {
    return await Promise.race([use({ node, forwarding, signal: stop }), failed]);
  } finally {
    done.abort();
    await running.catch(() => {});
  }
}

/** The artifact that the datapath takes; where that is to be picked, the one with more, if this host has it. */
function openLibrary({ datapath }: TunnelArguments): Library {
  if (datapath === "tun" || datapath === "netstack") return Library.open();
  try {
    return Library.open({ artifact: "afxdp" });
  } catch (error) {
    const isAbsent = error instanceof NativeError && (error.code === "ENOLIBRARY" || error.code === "EBADLIBRARY");
    if (datapath === "afxdp" || !isAbsent) throw error;
    return Library.open();
  }
}

/** Arguments that say how to say things. */
type OutputArguments = Pick<TunnelArguments, "logLevel" | "logFormat">;

/** Why a run failed. */
interface Failure {
  readonly error: unknown;
  readonly text: string;
  readonly exitCode: ExitCode;
}

/** Says why the run failed: in one line as other commands do, or as one more JSON line. */
export function reportFailure(args: OutputArguments, { error, text, exitCode }: Failure): void {
  const { code, errno } = (typeof error === "object" && error !== null ? error : {}) as Record<string, unknown>;
  const inOptions = error instanceof DatapathError && error.code === "wrong-state" ? inTermsOfOptions(text) : text;
  if (logFormat(args) === "text") {
    err(`${painter("stderr")(["red", "bold"], "icx:")} ${inOptions}\n`);
    return;
  }
  openLog({ level: "error", format: "json" })("error", inOptions.replace(/\n(- )?/g, " "), {
    event: "failed",
    exitCode,
    ...(code === undefined ? {} : { code }),
    ...(errno === undefined ? {} : { errno }),
  });
}

function logFormat(args: OutputArguments): "text" | "json" {
  return args.logFormat ?? (process.stderr.isTTY === true ? "text" : "json");
}

/** Turns the node's events into log lines. */
function reporter(args: TunnelArguments, log: Log): (event: NodeEvent) => void {
  const peer = formatEndpoint(args.peer);
  const narrator = new TunnelNarrator({ peer, peerPort: args.peer.port, port: args.port, vni: args.vni });
  return (event) => {
    switch (event.type) {
      case "tunnel": {
        const line = narrator.tell(event.event);
        if (line !== undefined) log(line.level, line.text, line.fields);
        return;
      }
      case "locating":
        log("warning", `the way to ${event.host} is not known yet: ${event.reason}; trying on`, {
          event: "locating",
          host: event.host,
          reason: event.reason,
        });
        return;
      case "moved":
        log("info", `${event.host} has moved: data goes to ${event.endpoint} now`, {
          event: "moved",
          host: event.host,
          endpoint: event.endpoint,
        });
        return;
      case "rejected":
        log(
          "warning",
          `refused ${event.count} ${
            event.count === 1 ? "attempt" : "attempts"
          } to connect, last from ${event.remote}: ` +
            event.reason,
          { event: "rejected", remote: event.remote, reason: event.reason, count: event.count },
        );
        return;
      case "offload-refused":
        log(
          "warning",
          `the kernel does not cut datagrams (${event.offload}) sent from ${event.local}: ${event.reason}; they are sent ` +
            `one by one from now on, which is slower and loses nothing. --offload ${event.offload}=off says so from the start`,
          { event: "offload-refused", offload: event.offload, local: event.local, reason: event.reason },
        );
        return;
      case "path-mtu": {
        const { pathMtuBytes, innerMtuBytes, reason } = event;
        log(
          reason === "expired" || reason === "peer-changed" ? "info" : "warning",
          `${PATH_MTU_REASON[reason]}: the way to ${event.host} takes packets of up to ${pathMtuBytes} bytes, the ` +
            `tunnel of up to ${innerMtuBytes}; senders of larger ones are told`,
          {
            event: "path-mtu",
            host: event.host,
            vni: event.vni,
            pathMtu: pathMtuBytes,
            innerMtu: innerMtuBytes,
            reason,
          },
        );
        return;
      }
      case "device-mtu": {
        const { device, mtuBytes, error } = event;
        const fields = {
          event: "device-mtu",
          device,
          mtu: mtuBytes,
          ...(error === undefined ? {} : { reason: error }),
        };
        if (error === undefined) log("info", `${device} has an MTU of ${mtuBytes} now`, fields);
        else log("warning", `${device} keeps its MTU, although ${mtuBytes} would fit the path: ${error}`, fields);
        return;
      }
      case "forwarder": {
        const line = forwarderLine(event.notice);
        log(line.level, line.text, line.fields);
        return;
      }
      case "forwarding":
        log("debug", "packets move", { event: "forwarding" });
        return;
    }
  };
}

/** What happened to a path, for people. */
const PATH_MTU_REASON: Readonly<Record<PathMtuReason, string>> = {
  "router": "a router found a packet too big",
  "interface": "the interface takes no larger packet",
  "expired": "ten minutes have passed, larger packets are tried again",
  "peer-changed": "the peer has another address",
};

/** Says who is here, where the peer is, how packets move, and how to stop. */
function announce(
  args: TunnelArguments,
  node: { readonly config: NodeConfig; readonly info: NodeInfo; readonly services: Services },
  log: Log,
): void {
  const { config, info, services } = node;
  const peer = info.peers[0];
  const peerConfig = config.peers[0];
  if (peer === undefined || peerConfig === undefined) return;
  const calls = peer.role === "initiator" ? "this side calls" : "the peer calls";
  const { queues } = info.device;
  const addresses = config.device.addresses.length === 0 ? "no address" : config.device.addresses.join(", ");
  const routes = peerConfig.allowedRoutes.map(({ src, dst }) => src === dst ? src : `${src} = ${dst}`);
  const offloads = OFFLOADS.filter((name) => info.offload[OFFLOAD_FIELD[name]]).join(", ");
  const rows = [
    ["this node", info.identity.fingerprint],
    ["peer", `${peer.fingerprint} at ${formatEndpoint(args.peer)}`],
    [
      "underlay",
      `${peer.interface} to ${peer.endpoint}, path MTU ${peer.pathMtuBytes}; data port ${info.port}, ` +
      `VNI ${peer.vni}${config.sourcePortHashing ? ", source ports by flow" : ""}${copiedOutward(config)}`,
    ],
    [
      "keys",
      `control port ${info.controlPort} here, ${peerConfig.controlPort} there; ${calls}; new keys every ` +
      formatDuration(config.rekeyIntervalMs),
    ],
    [
      "datapath",
      `${info.datapath}: ${movers(info)}, ${info.why}; ${queues === 1 ? "1 queue" : `${queues} queues`}, ` +
      `latency ${config.latency}`,
    ],
    ...(info.forwarder === undefined || info.forwarder.settings.length === 0
      ? []
      : [["changed", `on ${info.forwarder.interface}, until the end: ${info.forwarder.settings.join("; ")}`]]),
    info.datapath === "netstack"
      ? ["inside", `MTU ${info.device.mtuBytes}, ${addresses}; answers ping`]
      : ["device", `${info.device.name}, MTU ${info.device.mtuBytes}, ${addresses}`],
    ["offload", offloads === "" ? "none" : offloads],
    ["may pass", routes.join("; ")],
    ...services.lines.map((line, at) => [at === 0 ? "serves" : "", line]),
    ["to stop", `Ctrl-C, or kill ${process.pid}`],
  ];
  const text = rows.map(([title = "", value = ""]) => `  ${title.padEnd(10)} ${value}`).join("\n");
  log("info", `icx ${VERSION}\n${text}`, {
    event: "starting",
    version: VERSION,
    pid: process.pid,
    publicKey: info.identity.publicKey,
    fingerprint: info.identity.fingerprint,
    peerFingerprint: peer.fingerprint,
    peer: formatEndpoint(args.peer),
    endpoint: peer.endpoint,
    role: peer.role,
    interface: peer.interface,
    pathMtu: peer.pathMtuBytes,
    port: info.port,
    controlPort: info.controlPort,
    peerControlPort: peerConfig.controlPort,
    vni: peer.vni,
    datapath: info.datapath,
    why: info.why,
    ...(info.forwarder === undefined ? {} : { forwarder: info.forwarder }),
    device: info.device.name,
    mtu: info.device.mtuBytes,
    queues,
    latency: config.latency,
    offload: info.offload,
    addresses: [...config.device.addresses],
    allowedRoutes: peerConfig.allowedRoutes.map(({ src, dst }) => `${src}=${dst}`),
    ...(services.addresses.length === 0 ? {} : { services: services.addresses }),
  });
  if (args.datapath === "auto" && info.datapath === "netstack") {
    const text =
      "Programs of this host do not see the tunnel, as there is no device: --socks5, --http-connect and --forward, with " +
      "--datapath netstack, lead into it. Run as root, or with CAP_NET_ADMIN, for a device";
    log("warning", text, { event: "warning" });
  }
  for (const warning of nodeConfigWarnings(config)) log("warning", warning, { event: "warning" });
}

/** What moves the packets, for the summary. */
function movers({ datapath, forwarder }: NodeInfo): string {
  if (datapath === "netstack") return "TCP/IP stack in this process and UDP sockets";
  if (forwarder === undefined) return "TUN device and UDP sockets";
  const { attached, zeroCopy, device } = forwarder;
  const inner = device.kind === "veth" ? "veth pair" : "TUN device";
  return `${inner} and AF_XDP, XDP ${attached}, ${zeroCopy ? "zero-copy" : "copying"}`;
}

/** What the outer headers take over, for the summary. */
function copiedOutward({ copyEcn, copyDscp }: NodeConfig): string {
  const copied = [...copyEcn ? ["ECN"] : [], ...copyDscp ? ["DSCP"] : []];
  return copied.length === 0 ? "" : `, ${copied.join(" and ")} copied outward`;
}

/** Counters of the network and of the engine as one, by name, without times. */
function countersOf(stats: NodeStats, vni: number): Readonly<Record<string, number>> {
  const network: Readonly<Record<string, bigint>> = stats.datapath.networks.get(vni) ?? {};
  return Object.fromEntries(
    Object.entries(stats.datapath.engine)
      .filter(([name]) => /^(rx|tx)_/.test(name))
      .map(([name, count]) => [name, Number(count + (network[name] ?? 0n))]),
  );
}

function figures(
  stats: NodeStats,
  of: { readonly vni: number; readonly services: Services },
): Readonly<Record<string, unknown>> {
  const { vni, services } = of;
  const peer = stats.peers.get(vni);
  const served = services.counters();
  return {
    counters: countersOf(stats, vni),
    ends: { ...stats.datapath.ends },
    ...(stats.datapath.forwarder === undefined ? {} : { forwarder: { ...stats.datapath.forwarder } }),
    ...(stats.datapath.state === undefined ? {} : { state: stats.datapath.state }),
    ...(stats.datapath.stack === undefined ? {} : { stack: { ...stats.datapath.stack } }),
    ...(served === undefined ? {} : { services: served }),
    ...(peer === undefined ? {} : { pathMtu: peer.pathMtuBytes, innerMtu: peer.innerMtuBytes }),
  };
}

function trafficLine(stats: NodeStats, vni: number): string {
  const counters = countersOf(stats, vni);
  const drops = Object.entries(counters).filter(([name, count]) => !/_(packets|bytes)$/.test(name) && count > 0);
  const dropped = drops.length === 0
    ? "nothing dropped"
    : `dropped: ${drops.map(([n, count]) => `${n} ${count}`).join(", ")}`;
  return `sent ${counters["tx_packets"] ?? 0} packets (${counters["tx_bytes"] ?? 0} B), ` +
    `received ${counters["rx_packets"] ?? 0} (${counters["rx_bytes"] ?? 0} B), ${dropped}`;
}
