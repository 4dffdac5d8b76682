/**
 * The netstack datapath over native underlays and such as are written in TypeScript.
 *
 * @module
 */

import { delay, type Library, Netstack, NetstackDatapath } from "../../mod.ts";
import { hurried, OUTSIDES } from "./_ends.ts";
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

/** A stack, and a socket on it: the host is the stack itself. */
function stackInside(library: Library): Inside<Netstack> {
  const stack = Netstack.open({
    library,
    mtuBytes: DEVICE_MTU_BYTES,
    addresses: [`${HOST}/${DEVICE_PREFIX_LENGTH}`],
  });
  const host = stack.listenDatagram({ port: INNER_PORT });
  return {
    device: stack,
    async send(payload, { to = REMOTE, signal } = {}) {
      await host.send(payload, { hostname: to, port: INNER_PORT }, { signal });
    },
    async receive(timeoutMs = PATIENCE_MS) {
      try {
        const received = await within(timeoutMs, (signal) => host.receive({ signal }));
        return received?.[0];
      } catch (error) {
        if (!(error instanceof Deno.errors.ConnectionAborted)) throw error;
        // Of a stack that has ended nothing comes any more.
        await delay(timeoutMs);
        return undefined;
      }
    },
    breakages: {},
    [Symbol.asyncDispose]() {
      host.close();
      return Promise.resolve();
    },
  };
}

/** The netstack datapath over one kind of underlay. */
export function netstackBench(outer: keyof typeof OUTSIDES): Bench {
  return {
    name: `netstack datapath to ${outer}`,
    answersTooBig: outer === "udp",
    breakages: OUTSIDES[outer].breakages,

    async open(library, makeEngine) {
      await using parts = new AsyncDisposableStack();
      const outside = parts.use(await OUTSIDES[outer].make(library, {}));
      const engine = makeEngine(`${outside.address}:${outside.peerPort}`);
      const inside = parts.use(stackInside(library));
      const { device: stack } = inside;
      const { underlay } = outside;
      if (stack === undefined || underlay === undefined) throw new Error("The netstack datapath is made of two ends");
      const datapath = parts.use(
        underlay.kind === "script"
          ? await NetstackDatapath.open({ stack, underlay, engine, clock: hurried })
          : await NetstackDatapath.open({ stack, underlay, engine }),
      );
      const owned = parts.move();
      return { engine, datapath, inside, outside, [Symbol.asyncDispose]: () => owned.disposeAsync() };
    },
  };
}
