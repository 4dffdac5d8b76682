/**
 * Two network stacks at the ends of a tunnel, for tests.
 *
 * @module
 */

import { Library } from "../native/library.ts";
import { Engine } from "./engine.ts";
import { MemoryUnderlay } from "./memory_underlay.ts";
import { NetstackDatapath } from "./netstack.ts";
import { Netstack, type NetstackOptions } from "./netstack_device.ts";
import { UdpUnderlay } from "./udp_underlay.ts";

const VNI = 7;
const LOOPBACK = "127.0.0.1";
const KEYS = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"] as const;

/** A network of which only two addresses of each family answer. */
const NETWORKS = ["10.9.0.0/24", "fd09::/64"];

/** What is to be otherwise than usual. */
export type StackChoice = Omit<Partial<NetstackOptions>, "library">;

/** Two stacks whose datapaths run. */
export interface NetstackPair extends AsyncDisposable {
  /** What both belong to. */
  readonly library: Library;
  /** 10.9.0.1 and fd09::1. */
  readonly left: Netstack;
  /** 10.9.0.2 and fd09::2. */
  readonly right: Netstack;
  /** Ends the right one's datapath, and with it its stack, without a word to the left one. */
  stopRight(): Promise<void>;
}

/** Makes the pair: over UDP sockets of this host, or over memory. */
export async function netstackPair(
  choice: StackChoice & { readonly underlay?: "udp" | "memory" } = {},
): Promise<NetstackPair> {
  const { underlay: kind = "udp", ...options } = choice;
  await using parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const underlays = kind === "memory" ? memoryPair() : udpPair(library);
  const sides = [];
  for (const [at, { underlay, peer }] of underlays.entries()) {
    const engine = parts.use(Engine.create({ library, dangerIsolatedKeyHistory: true }));
    engine.addNetwork({ vni: VNI, peer, routes: NETWORKS.map((network) => ({ src: network, dst: network })) });
    const [rxKey, txKey] = at === 0 ? KEYS : [KEYS[1], KEYS[0]];
    engine.dangerInstall({ vni: VNI, rxSpi: 1 + at, txSpi: 2 - at, rxKey, txKey, expiresAtNs: 2n ** 63n });
    const stack = Netstack.open({ library, addresses: [`10.9.0.${1 + at}/24`, `fd09::${1 + at}/64`], ...options });
    const datapath = underlay.kind === "script"
      ? await NetstackDatapath.open({ stack, underlay, engine })
      : await NetstackDatapath.open({ stack, underlay, engine });
    const running = datapath.run();
    const stop = async () => {
      await datapath.close();
      await running;
    };
    parts.defer(stop);
    sides.push({ stack, stop });
  }
  const [left, right] = sides;
  if (left === undefined || right === undefined) throw new Error("There are two sides");
  const owned = parts.move();
  return {
    library,
    left: left.stack,
    right: right.stack,
    stopRight: right.stop,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

interface Outer {
  readonly underlay: UdpUnderlay | MemoryUnderlay;
  readonly peer: string;
}

function memoryPair(): Outer[] {
  const [left, right] = MemoryUnderlay.pair();
  return [{ underlay: left, peer: "192.0.2.2:6081" }, { underlay: right, peer: "192.0.2.1:6081" }];
}

function udpPair(library: Library): Outer[] {
  const [left, right] = [0, 0].map((port) => UdpUnderlay.open({ library, localAddress: LOOPBACK, port }));
  if (left === undefined || right === undefined) throw new Error("There are two underlays");
  return [
    { underlay: left, peer: `${LOOPBACK}:${right.port}` },
    { underlay: right, peer: `${LOOPBACK}:${left.port}` },
  ];
}
