/**
 * How datapaths between a device and an underlay come by their parts.
 *
 * @module
 */

import { requireObject, requireType } from "../native/arguments.ts";
import type { PumpNotice } from "../native/pump.ts";
import type { Device } from "./device.ts";
import type { NativeEndsOptions, ScriptEndsOptions } from "./device_datapath.ts";
import { Engine } from "./engine.ts";
import { DatapathError } from "./errors.ts";
import { type Pump, ThreadPump } from "./pump.ts";
import { ScriptPump } from "./script_pump.ts";
import { UdpUnderlay } from "./udp_underlay.ts";
import type { Underlay } from "./underlay.ts";

/** What a datapath moves packets through. */
export interface Parts<D extends Device> {
  readonly device: D;
  readonly underlay: Underlay;
  readonly engine: Engine;
  readonly pump: Pump;
}

/**
 * Makes the device and the underlay, where they are not handed in, and what moves packets between them.
 *
 * @param options What `open` was given.
 * @param device The device, or what makes it.
 */
export async function openParts<D extends Device>(
  options: NativeEndsOptions | ScriptEndsOptions<Underlay>,
  { operation, device: given }: { readonly operation: string; readonly device: D | (() => D) },
): Promise<Parts<D>> {
  const { underlay: underlayOption, engine } = options;
  requireObject(underlayOption, { operation, name: "underlay" });
  requireType(engine instanceof Engine, engine, { operation, name: "engine", allowed: "an Engine" });
  await using parts = new AsyncDisposableStack();
  if ("kind" in underlayOption) parts.adopt(underlayOption, (underlay) => underlay.close());
  const device = parts.adopt(typeof given === "function" ? given() : given, (device) => device.close());
  const underlay = "kind" in underlayOption ? underlayOption : parts.use(UdpUnderlay.open(underlayOption));
  const pump = pumpFor(device, underlay, { options, operation });
  parts.move();
  return { device, underlay, engine, pump };
}

/** What moves packets between two ends of these kinds. */
function pumpFor(
  device: Device,
  underlay: Underlay,
  { options, operation }: {
    readonly options: NativeEndsOptions | ScriptEndsOptions<Underlay>;
    readonly operation: string;
  },
): Pump {
  const { engine } = options;
  if (device.kind !== "script" && underlay.kind !== "script") {
    const { latency, clampMss, onOffloadRefused = () => {}, onPathMtu = () => {} } = options as NativeEndsOptions;
    const onNotice = (notice: PumpNotice) => {
      switch (notice.notice) {
        case "segmentation-refused":
          onOffloadRefused({ offload: "udp-gso", local: notice.local, reason: notice.message });
          return;
        case "path-mtu":
          onPathMtu({
            vni: notice.vni,
            pathMtuBytes: notice.pathMtu ?? undefined,
            innerMtuBytes: notice.innerMtu ?? undefined,
            reason: notice.reason,
          });
          return;
      }
    };
    return new ThreadPump({ device, underlay, engine, latency, clampMss, onNotice });
  }
  if ((device.kind !== "script" || underlay.kind !== "script") && engine.obstacle !== undefined) {
    throw new DatapathError(`Cannot move packets of a native end through the engine as ${engine.obstacle}`, {
      code: "wrong-state",
      operation,
    });
  }
  return new ScriptPump({ device, underlay, engine, clock: "clock" in options ? options.clock : undefined });
}
