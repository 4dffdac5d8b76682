import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import { estimateSeconds, legsOf, stepsOf } from "./plan.ts";

Deno.test("legs are interleaved, and every other round goes backwards", () => {
  const legs = legsOf({ rounds: 2, networks: ["veth", "segmented"], contenders: ["none", "icx-tun", "boringtun"] });
  deepStrictEqual(legs.map(({ round, network, contender }) => `${round} ${network} ${contender}`), [
    "0 veth none",
    "0 veth icx-tun",
    "0 veth boringtun",
    "0 segmented none",
    "0 segmented icx-tun",
    "0 segmented boringtun",
    "1 veth boringtun",
    "1 veth icx-tun",
    "1 veth none",
    "1 segmented boringtun",
    "1 segmented icx-tun",
    "1 segmented none",
  ]);
});

for (const quick of [false, true]) {
  Deno.test(`every step and metric of the ${quick ? "quick" : "full"} list has a name of its own and takes some time`, () => {
    const steps = stepsOf({ quick });
    const metrics = steps.flatMap((step) => step.metrics);
    for (const ids of [steps.map(({ id }) => id), metrics.map(({ id }) => id), metrics.map(({ title }) => title)]) {
      strictEqual(new Set(ids).size, ids.length, ids.join());
    }
    ok(
      steps.every(({ metrics, measurement }) =>
        metrics.length > 0 && estimateSeconds(measurement, { seconds: 4, quick }) >= 0
      ),
    );
    ok(metrics.every(({ how }) => /^[A-Za-z].*\.$/.test(how)));
  });
}

Deno.test("the full list has flows, directions, segment sizes, both loads, packets, cost and memory", () => {
  const ids = stepsOf({ quick: false }).flatMap(({ metrics }) => metrics.map(({ id }) => id));
  for (
    const id of [
      ...["tcp-1-up", "tcp-4-up", "tcp-1-down", "tcp-4-down", "tcp-1-up-536", "udp-64-clean", "udp-1200-clean"],
      ...["rtt-idle-p50", "rtt-idle-p99", "rtt-loaded-p50", "request-response", "cpu-nodes", "cpu-machine", "memory"],
    ]
  ) ok(ids.includes(id), `${id} is not among ${ids}`);
});
