/** What 100000 hostile frames a second cost the traffic, measured beside as many unrelated packets. */
import assert from "node:assert/strict";
import { floodTests, kindTests, rateLimitTests } from "../netns/_attacks.ts";
import { capture, discard, underLoad, UNRELATED_PORT } from "../netns/_adversary.ts";
import { Lab, privileged } from "../netns/_lab.ts";
import { figure } from "./_report.ts";

const ROUNDS = 5;

function median(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[values.length >> 1] ?? 0;
}

kindTests(["afxdp, tun"]);
floodTests(["afxdp, veth", "afxdp, tun"]);
rateLimitTests(["afxdp, tun"]);

for (const [what, kinds] of [["hostile frames of all kinds", []], ["forged frames", ["--kinds", "forged"]]] as const) {
  privileged(`${what} at 100000 a second, and as many unrelated packets, in turn: median of ${ROUNDS}`, async () => {
    await using lab = await Lab.create({ intruder: true });
    const [a, b] = await lab.tunnel();
    const file = await capture(lab);
    await discard(lab);
    const rates: Record<number, number[]> = { 6081: [], [UNRELATED_PORT]: [] };
    const pps: number[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      for (const port of [6081, UNRELATED_PORT]) {
        const outcome = await underLoad(lab, file, { port, seconds: 4, attack: ["--rate", "100000", ...kinds] });
        rates[port]?.push(outcome.bitsPerSecond);
        if (port === 6081) pps.push(outcome.attack.pps);
      }
    }
    const [hostile, unrelated] = [median(rates[6081] ?? []), median(rates[UNRELATED_PORT] ?? [])];
    const ratio = hostile / unrelated;
    const mbit = (bits: number) => Math.round(bits / 1e6);
    figure(`${what} at 100000 a second`, {
      pps: median(pps),
      mbitPerSecond: mbit(hostile),
      besideUnrelatedPackets: mbit(unrelated),
      ratio: ratio.toFixed(2),
      rounds: rates[6081]?.map((rate, n) => (rate / (rates[UNRELATED_PORT]?.[n] ?? rate)).toFixed(2)),
    });
    assert(ratio > 0.6, `${ratio}`);
    await a.stop();
    await b.stop();
  });
}
