/**
 * The netstack datapath: a TCP/IP stack in this process and an underlay of UDP datagrams.
 *
 * @module
 */

import { openParts } from "./_device_parts.ts";
import type { DatapathStats } from "./datapath.ts";
import { requireObject } from "../native/arguments.ts";
import { DeviceDatapath, type NativeEndsOptions, type ScriptEndsOptions } from "./device_datapath.ts";
import { Netstack, type NetstackOptions } from "./netstack_device.ts";
import type { NativeUnderlay, ScriptUnderlay, Underlay } from "./underlay.ts";

/** What a {@linkcode NetstackDatapath} between native ends is made of. */
export interface NetstackDatapathOptions extends NativeEndsOptions {
  /** The inner side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly stack: Netstack | NetstackOptions;
}

/** What a {@linkcode NetstackDatapath} over an underlay that is written in TypeScript is made of. */
export interface NetstackDatapathEnds<U extends ScriptUnderlay> extends ScriptEndsOptions<U> {
  /** The inner side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly stack: Netstack | NetstackOptions;
}

/**
 * Moves packets between a network stack and an underlay, without a device and without rights. {@linkcode Datapath} says what each call
 * does when, and {@linkcode DeviceDatapath} how; {@linkcode Netstack} is what programs use it for.
 *
 * @example A node without root
 * ```ts ignore
 * import { Engine, Library, NetstackDatapath } from "@icx/icx";
 *
 * await using library = Library.open();
 * using engine = Engine.create({ library, keepaliveMs: 25_000 });
 * engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
 * await using datapath = await NetstackDatapath.open({
 *   stack: { library, addresses: ["10.9.0.1/24"] },
 *   underlay: { library },
 *   engine,
 * });
 * const running = datapath.run();
 * using conn = await datapath.stack.connect({ hostname: "10.9.0.2", port: 80 });
 * await conn.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * await conn.readable.pipeTo(Deno.stdout.writable, { preventClose: true });
 * await datapath.close();
 * await running;
 * ```
 */
export class NetstackDatapath<U extends Underlay = NativeUnderlay> extends DeviceDatapath<Netstack, U> {
  /** Which one it is. */
  override readonly kind = "netstack";

  /**
   * Makes the stack and binds the sockets, where they are not handed in. Nothing moves yet.
   *
   * @param options The parts.
   * @throws {DatapathError} When one of them cannot be had; `wrong-state` for an engine that cannot move real
   * traffic over UDP. Those that were made or handed in are closed then.
   * @throws {TypeError} When one of them is something else. Nothing is made or closed then.
   */
  static open(options: NetstackDatapathOptions): Promise<NetstackDatapath>;
  /** The same, over an underlay that is written in TypeScript. */
  static open<U extends ScriptUnderlay>(options: NetstackDatapathEnds<U>): Promise<NetstackDatapath<U>>;
  static async open(
    options: NetstackDatapathOptions | NetstackDatapathEnds<ScriptUnderlay>,
  ): Promise<NetstackDatapath<Underlay>> {
    const operation = "open the netstack datapath";
    requireObject(options, { operation, name: "options" });
    const { stack: given } = options;
    requireObject(given, { operation, name: "stack" });
    const { device, underlay, engine, pump } = await openParts<Netstack>(options, {
      operation,
      device: "kind" in given ? given : () => Netstack.open(given),
    });
    return new NetstackDatapath(device, underlay, engine, pump);
  }

  /** The counters, with those of the stack. */
  override stats(): DatapathStats {
    return { ...super.stats(), stack: this.stack.stats() };
  }

  /** The stack: its `device`, by the name of what it is. */
  get stack(): Netstack {
    return this.device;
  }
}
