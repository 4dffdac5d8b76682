/** What holds for the counters of any datapath when its run has ended. */

import { strictEqual } from "node:assert/strict";
import type { Datapath } from "./datapath.ts";

/** Packets that are for or from the datapath itself. */
export interface OwnPackets {
  /** Keepalives sealed. @default 0 */
  readonly made?: number;
  /** Keepalives opened. @default 0 */
  readonly consumed?: number;
  /** Packets written to the device that did not come out of the tunnel, such as ICMP errors. @default 0 */
  readonly answered?: number;
}

/** Checks that packets in = packets out + each kind of drop, in both directions. */
export function addsUp(datapath: Datapath, { made = 0, consumed = 0, answered = 0 }: OwnPackets = {}): void {
  const { engine, networks, ends } = datapath.stats();
  let [opened, rxDrops, sealed, txDrops, refused] = [0, 0, 0, 0, 0];
  for (const counters of [engine, ...networks.values()]) {
    for (const [name, value] of Object.entries(counters)) {
      const count = Number(value);
      if (name === "rx_packets") opened += count;
      else if (name === "tx_packets") sealed += count;
      else if (name === "tx_errors") refused += count;
      else if (name.startsWith("rx_") && name !== "rx_bytes") rxDrops += count;
      else if (name.startsWith("tx_") && name !== "tx_bytes") txDrops += count;
    }
  }
  strictEqual(ends.deviceReadPackets, sealed - made + txDrops, "read = sealed + dropped");
  strictEqual(ends.underlaySent + ends.underlaySendErrors, sealed, "sealed = sent + refused");
  strictEqual(ends.underlaySendErrors, refused, "refused by the underlay = tx_errors");
  strictEqual(ends.underlayReceived - ends.underlayTruncated, opened + rxDrops, "received = opened + dropped");
  strictEqual(
    ends.deviceWritePackets + ends.deviceWriteErrors,
    opened - consumed + answered,
    "opened = written + refused",
  );
}
