/**
 * The afxdp datapath between a veth pair or a TUN device inside and an interface outside, whose other end is in another namespace.
 *
 * @module
 */

import { socketAddress } from "../../control/prefix.ts";
import { afxdp, type Engine, type Library, TunDevice } from "../../mod.ts";
import { Mailbox } from "./_mailbox.ts";
import {
  type Bench,
  DEVICE_MTU_BYTES,
  DEVICE_PREFIX_LENGTH,
  HOST,
  INNER_PORT,
  type Inside,
  type Outside,
  PATIENCE_MS,
  REMOTE,
} from "./_rig.ts";

const DEVICE_NAME = "icxc0";
const REMOVED = "the device is removed";

/** The interface of the outer side, and the ports of both ends. */
export const OUTER = { interface: "phy", port: 6081, peerPort: 6083 } as const;

/**
 * Where this process is the peer: what comes to the peer's address and port goes to the mailbox, what the mailbox sends to the gate
 * leaves from the peer's. Whoever made the namespaces sees to that.
 */
export const GATE = { interface: "gate", mailboxPort: 7000, gatePort: 7001 } as const;

/** Addresses on the interfaces: this host's and the peer's on the outer side, and the ends of the gate. */
export const ADDRESSES = {
  ipv4: { local: "192.168.77.1", peer: "192.168.77.2", mailbox: "10.200.0.1", gate: "10.200.0.2" },
  ipv6: { local: "fd77::1", peer: "fd77::2", mailbox: "fd20::1", gate: "fd20::2" },
} as const;

async function command(...argv: readonly string[]): Promise<string> {
  const [program = "", ...args] = argv;
  const { success, stdout, stderr } = await new Deno.Command(program, { args }).output();
  if (!success) throw new Error(`${argv.join(" ")}: ${new TextDecoder().decode(stderr)}`);
  return new TextDecoder().decode(stdout);
}

/** What varies. */
export interface AfxdpBenchOptions {
  readonly device: "veth" | "tun";
  readonly attach: "native" | "generic";
  readonly underlay: keyof typeof ADDRESSES;
  /** Of the interface and of the device; all of them are served. */
  readonly queues: number;
}

/** What it is called. */
export function afxdpName({ device, attach, underlay, queues }: AfxdpBenchOptions): string {
  return `afxdp datapath, ${device}, ${attach}, ${underlay}, ${queues} queue${queues === 1 ? "" : "s"}`;
}

/** The afxdp datapath, wrapped. */
export function afxdpBench(options: AfxdpBenchOptions): Bench {
  const { local, peer, mailbox: own, gate } = ADDRESSES[options.underlay];
  return {
    name: afxdpName(options),
    artifact: "afxdp",
    answersTooBig: true,
    leavesOthers: true,
    breakages: [REMOVED],

    async open(library, makeEngine) {
      await using parts = new AsyncDisposableStack();
      const mailbox = parts.adopt(await Mailbox.bind(own, GATE.mailboxPort), (mailbox) => mailbox.close());
      const [, mac = ""] = /link\/ether (\S+)/.exec(await command("ip", "-o", "link", "show", OUTER.interface)) ?? [];
      const engine = makeEngine(socketAddress(peer, OUTER.peerPort), {
        // Whoever hands datagrams on changes a checksum; none at all it would make a wrong one of.
        rawUnderlay: { local: [{ addr: socketAddress(local, OUTER.port), mac }], outerUdpChecksum: true },
        ...(options.device === "veth"
          ? { ethernet: { hostMac: "02:00:00:00:00:01", gatewayMac: "02:00:00:00:00:02" } }
          : {}),
      });
      const forwarder = parts.use(openForwarder(library, engine, options));
      const host = parts.adopt(await Mailbox.bind(HOST, INNER_PORT), (host) => host.close());
      const inside: Inside = {
        device: undefined,
        send: (payload, { to = REMOTE } = {}) => host.send(payload, to, INNER_PORT),
        receive: (timeoutMs = PATIENCE_MS) => host.receive(timeoutMs),
        breakages: {
          async [REMOVED]() {
            await command("ip", "link", "del", DEVICE_NAME);
          },
        },
        [Symbol.asyncDispose]: () => Promise.resolve(),
      };
      const outside: Outside = {
        underlay: undefined,
        address: peer,
        peerPort: OUTER.peerPort,
        send: (bytes) => mailbox.send(bytes, gate, GATE.gatePort),
        async receive(timeoutMs = PATIENCE_MS) {
          const bytes = await mailbox.receive(timeoutMs);
          // Only what came to the peer's port gets here.
          return bytes === undefined ? undefined : { bytes, port: OUTER.peerPort };
        },
        breakages: {},
        [Symbol.asyncDispose]: () => Promise.resolve(),
      };
      const datapath = afxdp.wrap(forwarder);
      const owned = parts.move();
      return { engine, datapath, inside, outside, [Symbol.asyncDispose]: () => owned.disposeAsync() };
    },
  };
}

function openForwarder(library: Library, engine: Engine, options: AfxdpBenchOptions): afxdp.Forwarder {
  const { attach, queues } = options;
  const { local } = ADDRESSES[options.underlay];
  const inner = { name: DEVICE_NAME, mtuBytes: DEVICE_MTU_BYTES, addresses: [`${HOST}/${DEVICE_PREFIX_LENGTH}`] };
  return afxdp.Forwarder.open({
    engine,
    interface: OUTER.interface,
    device: options.device === "veth" ? inner : TunDevice.open({ library, ...inner, queues }),
    bound: [socketAddress(local, OUTER.port)],
    attach,
    queues,
  });
}
