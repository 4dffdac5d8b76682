/**
 * The tun datapath over every combination of native ends and ends written in TypeScript.
 *
 * @module
 */

import {
  addressBytes,
  type Clock,
  type Device,
  type Engine,
  type Library,
  MemoryDevice,
  MemoryUnderlay,
  type ScriptDevice,
  type ScriptUnderlay,
  systemClock,
  TunDatapath,
  TunDevice,
  UdpUnderlay,
  type Underlay,
} from "../../mod.ts";
import { LOOPBACK, Mailbox } from "./_mailbox.ts";
import { udpPacket, udpPayload } from "./_peer.ts";
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
  within,
} from "./_rig.ts";

const DEVICE_NAME = "icxc0";
const REMOVED = "the device is removed";
const failing = (call: string) => `${call}() fails in every call`;

/** Breaks one of the calls of an end when it is told to. */
function breaker(calls: readonly string[]) {
  const broken = new Set<string>();
  return {
    breakages: Object.fromEntries(calls.map((call) => [failing(call), () => Promise.resolve(void broken.add(call))])),
    orFail: (call: string, works: () => Promise<number>): Promise<number> =>
      broken.has(call) ? Promise.reject(new Error(`${call}() is broken`)) : works(),
  };
}

/** A device in memory. */
function memoryInside(): Promise<Inside> {
  const [near, host] = MemoryDevice.pair({ mtuBytes: DEVICE_MTU_BYTES });
  const { breakages, orFail } = breaker(["read", "write"]);
  const device: ScriptDevice = {
    kind: "script",
    mtuBytes: near.mtuBytes,
    read: (batch, options) => orFail("read", () => near.read(batch, options)),
    write: (batch, options) => orFail("write", () => near.write(batch, options)),
    close: () => near.close(),
  };
  return Promise.resolve({
    device,
    send: (payload, { to = REMOTE, ...options } = {}) => host.push(udpPacket(HOST, to, payload), options),
    async receive(timeoutMs = PATIENCE_MS) {
      const packet = await within(timeoutMs, (signal) => host.pull({ signal }));
      return packet === undefined ? undefined : udpPayload(packet);
    },
    breakages,
    [Symbol.asyncDispose]: () => host.close(),
  });
}

/** A TUN device of the kernel, and a socket of the host behind it. */
async function tunInside(library: Library): Promise<Inside> {
  await using parts = new AsyncDisposableStack();
  const device = TunDevice.open({
    library,
    name: DEVICE_NAME,
    mtuBytes: DEVICE_MTU_BYTES,
    addresses: [`${HOST}/${DEVICE_PREFIX_LENGTH}`],
  });
  parts.adopt(device, (device) => device.close());
  const host = parts.adopt(await Mailbox.bind(HOST, INNER_PORT), (host) => host.close());
  parts.move();
  return {
    device,
    send: (payload, { to = REMOTE } = {}) => host.send(payload, to, INNER_PORT),
    receive: (timeoutMs = PATIENCE_MS) => host.receive(timeoutMs),
    breakages: {
      async [REMOVED]() {
        const { success } = await new Deno.Command("ip", { args: ["link", "del", DEVICE_NAME] }).output();
        if (!success) throw new Error(`Cannot remove ${DEVICE_NAME}`);
      },
    },
    [Symbol.asyncDispose]: () => host.close(),
  };
}

/** An underlay in memory. */
function memoryOutside(): Promise<Outside> {
  const [address, peerPort] = ["192.0.2.2", 6083];
  const endpoint = (address: string, port: number) => ({ address: addressBytes(address), port });
  const [near, peer] = MemoryUnderlay.pair({ endpoints: [endpoint("192.0.2.1", 6081), endpoint(address, peerPort)] });
  const { breakages, orFail } = breaker(["receive", "send"]);
  const underlay: ScriptUnderlay = {
    kind: "script",
    receive: (batch, options) => orFail("receive", () => near.receive(batch, options)),
    send: (batch, options) => orFail("send", () => near.send(batch, options)),
    close: () => near.close(),
  };
  return Promise.resolve({
    underlay,
    // The peer filter is on: datagrams from elsewhere would be dropped.
    address,
    peerPort,
    send: (bytes, options) => peer.push(bytes, near.endpoint, options),
    async receive(timeoutMs = PATIENCE_MS) {
      const datagram = await within(timeoutMs, (signal) => peer.pull({ signal }));
      return datagram === undefined ? undefined : { bytes: datagram.bytes, port: datagram.destination.port };
    },
    breakages,
    [Symbol.asyncDispose]: () => peer.close(),
  });
}

/** UDP sockets on loopback. The datapath's have the given port, or any. */
async function udpOutside(library: Library, { port: ownPort = 0 }: BenchOptions): Promise<Outside> {
  await using parts = new AsyncDisposableStack();
  const peer = parts.adopt(await Mailbox.bind(LOOPBACK, 0), (peer) => peer.close());
  const underlay = UdpUnderlay.open({ library, localAddress: LOOPBACK, port: ownPort });
  const { port } = underlay;
  parts.move();
  return {
    underlay,
    address: LOOPBACK,
    peerPort: peer.port,
    send: (bytes) => peer.send(bytes, LOOPBACK, port),
    async receive(timeoutMs = PATIENCE_MS) {
      const bytes = await peer.receive(timeoutMs);
      // It can only come to the port that it was sent to.
      return bytes === undefined ? undefined : { bytes, port: peer.port };
    },
    breakages: {},
    [Symbol.asyncDispose]: () => peer.close(),
  };
}

const INSIDES = {
  memory: { make: memoryInside, breakages: ["read", "write"].map(failing) },
  tun: { make: tunInside, breakages: [REMOVED] },
} as const;

const OUTSIDES = {
  memory: { make: memoryOutside, breakages: ["receive", "send"].map(failing) },
  udp: { make: udpOutside, breakages: [] },
} as const;

/** How a bench is made. */
export interface BenchOptions {
  /** The port of the datapath's UDP sockets, so that they can be told from others on the wire. @default any */
  readonly port?: number;
}

/** The tun datapath between two kinds of ends; a device of kind `tun` needs a network namespace for itself. */
export function tunBench(inner: "memory" | "tun", outer: "memory" | "udp", options: BenchOptions = {}): Bench {
  return {
    name: `tun datapath, ${inner} to ${outer}`,
    answersTooBig: inner === "tun" && outer === "udp",
    breakages: [...INSIDES[inner].breakages, ...OUTSIDES[outer].breakages],

    async open(library, makeEngine) {
      await using parts = new AsyncDisposableStack();
      const outside = parts.use(await OUTSIDES[outer].make(library, options));
      const engine = makeEngine(`${outside.address}:${outside.peerPort}`);
      const inside = parts.use(await INSIDES[inner].make(library));
      const { device } = inside;
      const { underlay } = outside;
      if (device === undefined || underlay === undefined) throw new Error("The tun datapath is made of two ends");
      const datapath = parts.use(await open(device, underlay, engine));
      const owned = parts.move();
      return { engine, datapath, inside, outside, [Symbol.asyncDispose]: () => owned.disposeAsync() };
    },
  };
}

/** Fast enough that nobody has to wait for the delays after failures. */
const hurried: Clock = {
  now: () => systemClock.now() * 20,
  schedule: (delayMs, callback) => systemClock.schedule(delayMs / 20, callback),
};

function open(device: Device, underlay: Underlay, engine: Engine) {
  return TunDatapath.open({ device, underlay, engine, clock: hurried });
}
