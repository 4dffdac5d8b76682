import { deepStrictEqual, strictEqual, throws } from "node:assert/strict";
import {
  NoFigure,
  readBusySeconds,
  readKibibytes,
  readPing,
  readProcessSeconds,
  readTcp,
  readUdp,
} from "./readings.ts";

Deno.test("a TCP run gives the rate without the warm-up and the bits with it", () => {
  const text = JSON.stringify({
    intervals: [{ sum: { bytes: 1000, omitted: true } }, { sum: { bytes: 2000, omitted: false } }],
    end: { sum_sent: { bits_per_second: 9 }, sum_received: { bits_per_second: 16_000 } },
  });
  deepStrictEqual(readTcp(text), { receivedBps: 16_000, totalBits: 24_000 });
});

Deno.test("a UDP run gives what arrived, in packets and in bits of payload, and what was lost", () => {
  const text = JSON.stringify({ end: { sum: { packets: 1000, lost_packets: 250, seconds: 2, bits_per_second: 7 } } });
  deepStrictEqual(readUdp(text, 100), {
    deliveredPps: 375,
    deliveredBps: 300_000,
    offeredBps: 400_000,
    loss: 0.25,
  });
});

Deno.test("datagrams that arrived out of order are not more than were sent", () => {
  const text = JSON.stringify({ end: { sum: { packets: 100, lost_packets: -3, seconds: 1 } } });
  deepStrictEqual([readUdp(text, 1).deliveredPps, readUdp(text, 1).loss], [100, 0]);
});

for (
  const [name, text, says] of [
    ["an error in its JSON", '{"error": "unable to connect"}', /unable to connect/],
    ["no JSON", "Segmentation fault", /no JSON, but: Segmentation fault/],
    ["nothing", "", /no JSON$/],
    ["JSON without figures", "{}", /gave no/],
  ] as const
) {
  Deno.test(`iperf3 that prints ${name} gives no figure, and says so`, () => {
    for (const read of [readTcp, (given: string) => readUdp(given, 64)]) {
      throws(() => read(text), (error) => error instanceof NoFigure && says.test(error.message));
    }
  });
}

function pings(times: readonly number[], sent: number): string {
  const lines = times.map((ms, index) => `64 bytes from 10.9.0.2: icmp_seq=${index + 1} ttl=64 time=${ms} ms`);
  return `${lines.join("\n")}\n\n${sent} packets transmitted, ${times.length} received, 0% packet loss, time 990ms\n`;
}

Deno.test("round trips come in seconds, by percentile", () => {
  const times = Array.from({ length: 100 }, (_, index) => (index + 1) / 10);
  deepStrictEqual(readPing(pings(times, 100)), { p50: 0.005, p90: 0.009, p99: 0.0099 });
});

Deno.test("pings that mostly went unanswered give no figure", () => {
  throws(() => readPing(pings([], 10)), /none of 10/);
  throws(() => readPing(pings([1, 2, 3], 10)), /only 3 of 10/);
});

Deno.test("processor time is read past a process name that imitates what follows it", () => {
  strictEqual(readProcessSeconds("42 (a) b) (c 1 2) S 1 42 42 0 -1 4194560 1 2 3 4 250 130 9 9 20 0 4 0 5"), 3.8);
});

Deno.test("the machine is busy in user and system mode and in interrupts, not while it waits", () => {
  strictEqual(readBusySeconds("cpu  100 20 300 99999 888 40 60 0 0 0\ncpu0 1 2 3 4 5 6 7 0 0 0\n"), 5.2);
});

Deno.test("memory is read in bytes", () => {
  strictEqual(readKibibytes("Name:\tdeno\nVmHWM:\t   91900 kB\nVmRSS:\t   80000 kB\n", "VmHWM"), 91_900 * 1024);
  strictEqual(readKibibytes("Name:\tdeno\n", "VmHWM"), undefined);
});
