/**
 * The tun datapath: a TUN device of the kernel, or one written in TypeScript, and an underlay of UDP datagrams.
 *
 * @module
 */

import { openParts } from "./_device_parts.ts";
import { requireObject } from "../native/arguments.ts";
import type { ScriptDevice } from "./device.ts";
import { DeviceDatapath, type NativeEndsOptions, type ScriptEndsOptions } from "./device_datapath.ts";
import { TunDevice, type TunDeviceOptions } from "./tun_device.ts";
import type { NativeUnderlay, Underlay } from "./underlay.ts";

/** What a {@linkcode TunDatapath} between native ends is made of. */
export interface TunDatapathOptions extends NativeEndsOptions {
  /** The inner side, or what to make it of. It belongs to the datapath from `open` on. */
  readonly device: TunDevice | TunDeviceOptions;
}

/** What a {@linkcode TunDatapath} between two given ends is made of. At least one of them is written in TypeScript. */
export interface TunDatapathEnds<D extends TunDevice | ScriptDevice, U extends Underlay> extends ScriptEndsOptions<U> {
  /** The inner side. It belongs to the datapath from `open` on. */
  readonly device: D;
}

/**
 * Moves packets between a device and an underlay. {@linkcode Datapath} says what each call does when, and {@linkcode DeviceDatapath} how.
 *
 * @example Packets flow until the process is told to stop
 * ```ts ignore
 * import { Engine, Library, TunDatapath } from "@icx/icx";
 *
 * await using library = Library.open();
 * using engine = Engine.create({ library, keepaliveMs: 25_000 });
 * engine.addNetwork({ vni: 1, peer: "192.0.2.2:6081", routes: [{ src: "10.9.0.0/24", dst: "10.9.0.0/24" }] });
 * await using datapath = await TunDatapath.open({
 *   device: { library, addresses: ["10.9.0.1/24"] },
 *   underlay: { library },
 *   engine,
 * });
 * await datapath.run({ signal: AbortSignal.timeout(60_000) });
 * ```
 *
 * @example Two tunnel ends in one process, over memory
 * ```ts
 * import { addressBytes, Engine, Library, MemoryDevice, MemoryUnderlay, TunDatapath } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * await using library = Library.open();
 * const underlays = MemoryUnderlay.pair();
 * const keys = ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"];
 * const sides = [];
 * for (const [at, underlay] of underlays.entries()) {
 *   const engine = Engine.create({ library, dangerIsolatedKeyHistory: true });
 *   const prefixes = ["10.1.0.0/16", "10.2.0.0/16"];
 *   const [src = "", dst = ""] = at === 0 ? prefixes : prefixes.toReversed();
 *   engine.addNetwork({ vni: 7, peer: at === 0 ? "192.0.2.2:6081" : "192.0.2.1:6081", routes: [{ src, dst }] });
 *   const [rxKey = "", txKey = ""] = at === 0 ? keys : keys.toReversed();
 *   engine.dangerInstall({ vni: 7, rxSpi: 1 + at, txSpi: 2 - at, rxKey, txKey, expiresAtNs: 2n ** 63n });
 *   const [device, host] = MemoryDevice.pair();
 *   const datapath = await TunDatapath.open({ device, underlay, engine });
 *   sides.push({ host, engine, datapath, running: datapath.run() });
 * }
 * const [left, right] = sides;
 *
 * const header = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
 * const packet = new Uint8Array([...header, ...addressBytes("10.1.0.1"), ...addressBytes("10.2.0.1")]);
 * await left?.host.push(packet);
 * deepStrictEqual(await right?.host.pull(), packet);
 *
 * for (const { datapath, running, engine } of sides) {
 *   await datapath.close();
 *   await running;
 *   engine.close();
 * }
 * ```
 */
export class TunDatapath<D extends TunDevice | ScriptDevice = TunDevice, U extends Underlay = NativeUnderlay>
  extends DeviceDatapath<D, U> {
  /** Which one it is. */
  override readonly kind = "tun";

  /**
   * Makes the device and binds the sockets, where they are not handed in. Nothing moves yet.
   *
   * @param options The parts.
   * @throws {DatapathError} When one of them cannot be had; `wrong-state` for an engine that cannot move real
   * traffic over UDP. Those that were made or handed in are closed then.
   * @throws {TypeError} When one of them is something else. Nothing is made or closed then.
   */
  static open(options: TunDatapathOptions): Promise<TunDatapath>;
  /** The same, where an end is written in TypeScript. */
  static open<D extends TunDevice | ScriptDevice, U extends Underlay>(
    options: TunDatapathEnds<D, U>,
  ): Promise<TunDatapath<D, U>>;
  static async open(
    options: TunDatapathOptions | TunDatapathEnds<TunDevice | ScriptDevice, Underlay>,
  ): Promise<TunDatapath<TunDevice | ScriptDevice, Underlay>> {
    const operation = "open the tun datapath";
    requireObject(options, { operation, name: "options" });
    const { device: given } = options;
    requireObject(given, { operation, name: "device" });
    const { underlay, engine, pump, device } = await openParts<TunDevice | ScriptDevice>(options, {
      operation,
      device: "kind" in given ? given : () => TunDevice.open(given),
    });
    return new TunDatapath(device, underlay, engine, pump);
  }
}
