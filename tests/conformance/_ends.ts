/**
 * Underlays of benches with the peer at their other end, and how ends written in TypeScript break.
 *
 * @module
 */

import {
  addressBytes,
  type Clock,
  type Library,
  MemoryUnderlay,
  type ScriptUnderlay,
  systemClock,
  UdpUnderlay,
} from "../../mod.ts";
import { LOOPBACK, Mailbox } from "./_mailbox.ts";
import { type Outside, PATIENCE_MS, within } from "./_rig.ts";

/** What a breakage of {@linkcode breaker} is called. */
export const failing = (call: string) => `${call}() fails in every call`;

interface Breaker {
  readonly breakages: Outside["breakages"];
  readonly orFail: (call: string, works: () => Promise<number>) => Promise<number>;
}

/** Breaks one of the calls of an end when it is told to. */
export function breaker(calls: readonly string[]): Breaker {
  const broken = new Set<string>();
  return {
    breakages: Object.fromEntries(calls.map((call) => [failing(call), () => Promise.resolve(void broken.add(call))])),
    orFail: (call: string, works: () => Promise<number>): Promise<number> =>
      broken.has(call) ? Promise.reject(new Error(`${call}() is broken`)) : works(),
  };
}

/** How a bench is made. */
export interface BenchOptions {
  /** The port of the datapath's UDP sockets, so that they can be told from others on the wire. @default any */
  readonly port?: number;
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

interface OutsideKind {
  readonly make: (library: Library, options: BenchOptions) => Promise<Outside>;
  readonly breakages: readonly string[];
}

/** The underlays by their names. */
export const OUTSIDES: Readonly<Record<"memory" | "udp", OutsideKind>> = {
  memory: { make: memoryOutside, breakages: ["receive", "send"].map(failing) },
  udp: { make: udpOutside, breakages: [] },
};

/** Fast enough that nobody has to wait for the delays after failures. */
export const hurried: Clock = {
  now: () => systemClock.now() * 20,
  schedule: (delayMs, callback) => systemClock.schedule(delayMs / 20, callback),
};
