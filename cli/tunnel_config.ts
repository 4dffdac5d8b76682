/** From the arguments of a command that runs a tunnel to the configuration of a node. */

import process from "node:process";
import { type NodeConfig, type NodeOffloadConfig, parseNodeConfig } from "../control/node_config.ts";
import { UsageError } from "./exit.ts";
import type { TunnelArguments } from "./tunnel_options.ts";
import type { OffloadName, Offloads } from "./values.ts";

/** Which option sets a field, for messages about it. */
const OPTION_OF: Readonly<Record<string, string>> = {
  "identityKeyFile": "--identity-key",
  "localAddress": "--local-address",
  "interface": "--interface",
  "port": "--port",
  "controlPort": "--control-port",
  "device.name": "--tun-device",
  "device.addresses": "--address",
  "device.mtuBytes": "--tun-mtu",
  "queues": "--queues",
  "datapath": "--datapath",
  "afxdp.device": "--device",
  "afxdp.attach": "--xdp-attach",
  "afxdp.zeroCopy": "--zero-copy",
  "afxdp.busyPoll": "--busy-poll",
  "afxdp.pcapFile": "--pcap-file",
  "outerUdpChecksum": "--outer-udp-checksum",
  "netstack.nameServers": "--name-server",
  "clampMss": "--clamp-mss",
  "rekeyIntervalMs": "--rekey-interval",
  "peers[0].host": "PEER-HOST:PORT",
  "peers[0].port": "PEER-HOST:PORT",
  "peers[0].controlPort": "--peer-control-port",
  "peers[0].publicKey": "--peer-key",
  "peers[0].vni": "--vni",
  "peers[0].allowedRoutes": "--allowed-route",
  "peers[0].rxRateLimitPps": "--rx-rate-limit",
};

/** Says a message about fields with the options that set them. */
export function inTermsOfOptions(message: string): string {
  return message.replace(/"([a-zA-Z]+(?:\[[0-9]+\])?(?:\.[a-zA-Z]+)?)((?:\[[0-9]+\]|\.[a-z]+)*)"/g, (whole, field) => {
    return OPTION_OF[field] ?? whole;
  });
}

/** One option may set several fields, and its value be told of once for each: once in all is enough. */
function withoutRepeats(message: string): string {
  const [title = "", ...faults] = message.split("\n- ");
  const once = [...new Set(faults)];
  return [title, ...once].join(once.length === 1 ? " " : "\n- ");
}

/** The field of the configuration for each offload. */
export const OFFLOAD_FIELD: Readonly<Record<OffloadName, keyof NodeOffloadConfig>> = {
  tso: "tso",
  uso: "uso",
  gro: "gro",
  "udp-gso": "udpGso",
  "udp-gro": "udpGro",
};

/** What was switched, later ones counting, by the fields of the configuration. */
function offloadOf(switched: readonly Offloads[]): Readonly<Record<string, boolean>> {
  const all: Offloads = Object.assign({}, ...switched);
  return Object.fromEntries(
    Object.entries(OFFLOAD_FIELD).flatMap(([name, field]) => {
      const on = all[name as OffloadName];
      return on === undefined ? [] : [[field, on]];
    }),
  );
}

/** Options that only one datapath takes, with how one says that they were given. */
function requireDatapath(args: TunnelArguments): void {
  requireKind(args, "afxdp", [
    ["--device", args.device !== undefined],
    ["--xdp-attach", args.xdpAttach !== undefined],
    ["--zero-copy", args.zeroCopy !== undefined],
    ["--cpu-pin", args.cpuPin],
    ["--busy-poll", args.busyPoll !== undefined],
    ["--busy-poll-budget", args.busyPollBudget !== undefined],
    ["--pcap-file", args.pcapFile !== undefined],
    ["--outer-udp-checksum", args.outerUdpChecksum],
  ]);
  requireKind(args, "netstack", [
    ["--socks5", args.socks5.length > 0],
    ["--http-connect", args.httpConnect.length > 0],
    ["--forward", args.forwards.length > 0],
    ["--reverse", args.reverses.length > 0],
    ["--name-server", args.nameServers.length > 0],
    ["--open-proxy", args.openProxy],
  ]);
  if (args.busyPollBudget !== undefined && args.busyPoll === undefined) {
    throw new UsageError("--busy-poll-budget goes with --busy-poll, which is not there: add it, or leave both out");
  }
}

function requireKind(
  { datapath }: TunnelArguments,
  kind: TunnelArguments["datapath"],
  given: readonly (readonly [name: string, isGiven: boolean])[],
): void {
  const [name] = given.find(([, isGiven]) => isGiven) ?? [];
  if (name === undefined || datapath === kind) return;
  throw new UsageError(
    `${name} is for the ${kind} datapath, and this is --datapath ${datapath}: leave it out, or add --datapath ${kind}`,
  );
}

/**
 * Checks the arguments as one and completes them.
 *
 * @throws {UsageError} When they do not fit together, or one of them is not acceptable after all.
 */
export function nodeConfigOf(args: TunnelArguments): NodeConfig {
  requireDatapath(args);
  if (args.identityKey === "-" && process.stdin.isTTY === true) {
    throw new UsageError(
      "--identity-key - reads standard input, which is a terminal: name the file, or send the key in a pipe",
    );
  }
  try {
    return parseNodeConfig({
      identityKeyFile: args.identityKey,
      ...(args.localAddress === undefined ? {} : { localAddress: args.localAddress }),
      ...(args.interface === undefined ? {} : { interface: args.interface }),
      port: args.port,
      controlPort: args.controlPort,
      device: {
        name: args.tunDevice,
        addresses: [...args.addresses],
        ...(args.tunMtu.bytes === undefined ? {} : { mtuBytes: args.tunMtu.bytes }),
      },
      rekeyIntervalMs: args.rekeyIntervalMs,
      peerFilter: !args.noPeerIpFilter,
      sourcePortHashing: args.sourcePortHash ?? false,
      copyEcn: args.copyEcn,
      copyDscp: args.copyDscp,
      ...(args.queues.count === undefined ? {} : { queues: args.queues.count }),
      datapath: args.datapath,
      outerUdpChecksum: args.outerUdpChecksum,
      afxdp: {
        ...(args.device === undefined ? {} : { device: args.device }),
        ...(args.xdpAttach === undefined ? {} : { attach: args.xdpAttach }),
        ...(args.zeroCopy === undefined ? {} : { zeroCopy: args.zeroCopy }),
        cpuPin: args.cpuPin,
        ...(args.busyPoll === undefined ? {} : {
          busyPoll: {
            microseconds: args.busyPoll,
            ...(args.busyPollBudget === undefined ? {} : { budget: args.busyPollBudget }),
          },
        }),
        ...(args.pcapFile === undefined ? {} : { pcapFile: args.pcapFile }),
      },
      netstack: { nameServers: [...args.nameServers] },
      latency: args.latency,
      clampMss: args.clampMss,
      offload: offloadOf(args.offloads),
      peers: [{
        host: args.peer.host,
        port: args.peer.port,
        ...(args.peerControlPort === undefined ? {} : { controlPort: args.peerControlPort }),
        publicKey: args.peerKey,
        vni: args.vni,
        ...(args.allowedRoutes.length === 0 ? {} : { allowedRoutes: [...args.allowedRoutes] }),
        rxRateLimitPps: args.rxRateLimit,
      }],
    });
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new UsageError(withoutRepeats(inTermsOfOptions(error.message)), { cause: error });
  }
}
