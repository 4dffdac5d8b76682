/**
 * The tun datapath over every combination of native ends and ends written in TypeScript.
 *
 * @module
 */

import {
  type Engine,
  type Library,
  MemoryDevice,
  type ScriptDevice,
  TunDatapath,
  TunDevice,
  type Underlay,
} from "../../mod.ts";
import { type BenchOptions, breaker, failing, hurried, OUTSIDES } from "./_ends.ts";
import { Mailbox } from "./_mailbox.ts";
import { udpPacket, udpPayload } from "./_peer.ts";
import {
  type Bench,
  DEVICE_MTU_BYTES,
  DEVICE_PREFIX_LENGTH,
  HOST,
  INNER_PORT,
  type Inside,
  PATIENCE_MS,
  REMOTE,
  within,
} from "./_rig.ts";

const DEVICE_NAME = "icxc0";
const REMOVED = "the device is removed";
/** A device in memory. */
function memoryInside(): Promise<Inside<TunDevice | ScriptDevice>> {
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
async function tunInside(library: Library): Promise<Inside<TunDevice | ScriptDevice>> {
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

const INSIDES = {
  memory: { make: memoryInside, breakages: ["read", "write"].map(failing) },
  tun: { make: tunInside, breakages: [REMOVED] },
} as const;

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

function open(device: TunDevice | ScriptDevice, underlay: Underlay, engine: Engine) {
  return TunDatapath.open({ device, underlay, engine, clock: hurried });
}
