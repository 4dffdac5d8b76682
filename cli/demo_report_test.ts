import { deepStrictEqual, strictEqual } from "node:assert/strict";
import { bitRate, counterTable, grouped, plot, ratesOf, rekeyDrops, size } from "./demo_report.ts";
import { marks, sparkline } from "./sparkline.ts";

Deno.test("a sparkline is scaled to its peak and blank where nothing is", () => {
  strictEqual(sparkline([0, 1, 4, 8]), " ▁▄█");
  strictEqual(sparkline([5]), "█");
  strictEqual(sparkline([]), "");
  strictEqual(sparkline([0, -1, NaN]), "   ");
  strictEqual(marks([1, 3], 5), "·▲·▲·");
});

Deno.test("rates come from samples inside the span, and each rekey is marked once", () => {
  const samples = [0, 250, 500, 750, 1000].map((atMs, index) => ({ atMs, counters: { rx_bytes: index * 1_000_000 } }));
  const rates = ratesOf(samples, 200, 1000);
  deepStrictEqual(rates, [500, 750, 1000].map((atMs) => ({ atMs, bitsPerSecond: 32_000_000 })));
  deepStrictEqual(plot(rates, [600]), ["███", "·▲·"]);
});

Deno.test("only drops that a rekey can cause count as such", () => {
  const before = { rx_no_key: 2, rx_replayed: 0, rx_invalid_src: 0 };
  strictEqual(rekeyDrops(before, { rx_no_key: 2, rx_replayed: 0, rx_invalid_src: 9 }), 0);
  strictEqual(rekeyDrops(before, { rx_no_key: 3, rx_replayed: 1, rx_invalid_src: 0 }), 2);
});

Deno.test("the counter table shows the traffic and every drop that happened on either side", () => {
  const lines = counterTable({ tx_packets: 1234, rx_packets: 5, rx_replayed: 0 }, { tx_packets: 5, rx_bad_peer: 7 });
  deepStrictEqual(lines, [
    "             node a  node b",
    "tx_packets    1 234       5",
    "tx_bytes          0       0",
    "rx_packets        5       0",
    "rx_bytes          0       0",
    "rx_bad_peer       0       7",
  ]);
});

Deno.test("figures are short", () => {
  strictEqual(grouped(1234567), "1 234 567");
  strictEqual(grouped(999), "999");
  strictEqual(bitRate(2_340_000_000), "2.34 Gbit/s");
  strictEqual(bitRate(950_000_000), "950 Mbit/s");
  strictEqual(size(1_500_000), "1.5 MB");
});
