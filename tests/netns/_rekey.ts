/** Rekeying under load. */
import assert from "node:assert/strict";
import { lostBefore } from "./_adversary.ts";
import { type Counters, type DatapathName, drops, eventually, Lab, privilegedOver } from "./_lab.ts";

/** Registers the test over each of these datapaths. */
export function rekeyTests(datapaths: readonly DatapathName[]): void {
  privilegedOver(
    datapaths,
    "rekey every second under load in both directions: not one packet is lost to it",
    async () => {
      await using lab = await Lab.create();
      const [a, b] = await lab.tunnel(["--rekey-interval", "1s", "--log-level", "debug"]);
      const server = lab.spawn(lab.b, ["iperf3", "--forceflush", "-s", "-B", lab.b.inner4]);
      await server.until("iperf3 listens", 10_000, () => /listening/i.test(server.stdout) || undefined);
      await lab.a.ok(["iperf3", "-c", lab.b.inner4, "-u", "-b", "40M", "-l", "1200", "-t", "10", "--bidir"]);
      // Counters of both ends must be read while nothing moves except keepalives, which come every 25 s.
      const settled = async (): Promise<[Counters, Counters]> => [await a.counters(), await b.counters()];
      const missing = (from: Counters, to: Counters) => (from["tx_packets"] ?? 0) - (to["rx_packets"] ?? 0);
      await eventually("both ends agree on what was sent, opened, and lost by the wire", 10_000, async () => {
        const [atA, atB] = await settled();
        const [forth, back] = [missing(atA, atB), missing(atB, atA)];
        return forth >= 0 && forth <= await lostBefore(b, lab.a, "phy") &&
          back >= 0 && back <= await lostBefore(a, lab.b, "phy");
      });
      const [atA, atB] = await settled();
      assert.deepEqual([drops(atA), drops(atB)], [{}, {}]);
      assert((atA["tx_packets"] ?? 0) > 20_000, `enough traffic: ${atA["tx_packets"]}`);
      const rekeys = a.events().filter((event) => event["event"] === "keys").length;
      assert(rekeys >= 9, `one exchange a second: ${rekeys}`);
      await a.stop();
      await b.stop();
    },
  );
}
