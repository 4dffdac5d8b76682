import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import {
  addressWithPort,
  endpoint,
  formatDuration,
  formatEndpoint,
  mtu,
  offloads,
  parseDuration,
  queues,
  route,
} from "./values.ts";

Deno.test("durations are read in milliseconds and written in their largest whole unit", () => {
  const rows = [
    ["2m", 120_000, "2m"],
    ["90s", 90_000, "90s"],
    ["500ms", 500, "500ms"],
    ["1m30s", 90_000, "90s"],
    ["1.5h", 5_400_000, "90m"],
    ["1h", 3_600_000, "1h"],
  ] as const;
  for (const [text, ms, written] of rows) {
    strictEqual(parseDuration(text), ms, text);
    strictEqual(formatDuration(ms), written);
  }
  for (const text of ["", "2", "m", "-2m", "2 m", "2d", "1.m", "1e3s"]) {
    strictEqual(parseDuration(text), undefined, text);
  }
});

Deno.test("an MTU is a number of bytes in its range, or left to the node", () => {
  const rows = [["auto", undefined], ["68", 68], ["1392", 1392], ["65535", 65535]] as const;
  for (const [given, bytes] of rows) {
    const result = mtu(68, 65535).parse(given);
    ok(result.success, given);
    strictEqual(result.value.bytes, bytes);
    strictEqual(mtu(68, 65535).format(result.value), given);
  }
  for (const given of ["", "67", "65536", "-1", "1e3", "1392.5", "AUTO", "auto "]) {
    ok(!mtu(68, 65535).parse(given).success, given);
  }
});

Deno.test("endpoints are names, IPv4 addresses or IPv6 addresses in brackets", () => {
  for (const text of ["peer.example:6081", "192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0]:6081"]) {
    const result = endpoint().parse(text);
    ok(result.success, text);
    strictEqual(formatEndpoint(result.value), text);
  }
  for (const text of ["", ":1", "peer", "peer:", "peer:0", "[]:1", "[peer]:1", "a b:1", "2001:db8::1:6081"]) {
    ok(!endpoint().parse(text).success, text);
  }
});

Deno.test("one prefix of an allowed route stands for both", () => {
  const both = route().parse("10.9.0.0/24");
  ok(both.success);
  deepStrictEqual(both.value, { src: "10.9.0.0/24", dst: "10.9.0.0/24" });
  const pair = route().parse("fd00::1/128=::/0");
  ok(pair.success);
  deepStrictEqual(pair.value, { src: "fd00::1/128", dst: "::/0" });
});

Deno.test("offloads are switched by name, the later one counting", () => {
  const rows = [
    ["tso=off", { tso: false }],
    ["udp-gso=off,udp-gro=on", { "udp-gso": false, "udp-gro": true }],
    ["all=off,gro=on", { tso: false, uso: false, gro: true, "udp-gso": false, "udp-gro": false }],
    ["tso=on,tso=off", { tso: false }],
  ] as const;
  for (const [text, expected] of rows) {
    const result = offloads().parse(text);
    ok(result.success, text);
    deepStrictEqual(result.value, expected);
  }
  for (const text of ["", "tso", "tso=", "tso=yes", "lro=off", "tso=off,", "tso=off gro=off", "TSO=off"]) {
    ok(!offloads().parse(text).success, text);
  }
});

Deno.test("queues are a number or left to the node", () => {
  for (const [text, count] of [["auto", undefined], ["1", 1], ["64", 64]] as const) {
    const result = queues().parse(text);
    ok(result.success, text);
    deepStrictEqual(result.value, { count });
  }
  for (const text of ["", "0", "65", "1.5", "-1", "many"]) ok(!queues().parse(text).success, text);
});

Deno.test("addresses to measure to may leave out the port, and need no brackets then", () => {
  const rows = [
    ["10.9.0.2", "10.9.0.2", 6083],
    ["10.9.0.2:7000", "10.9.0.2", 7000],
    ["fd00::2", "fd00::2", 6083],
    ["[fd00::2]", "fd00::2", 6083],
    ["[fd00::2]:7000", "fd00::2", 7000],
  ] as const;
  for (const [text, host, port] of rows) {
    const result = addressWithPort(6083).parse(text);
    ok(result.success, text);
    deepStrictEqual(result.value, { host, port });
  }
  for (const text of ["", "peer", "10.9.0", "10.9.0.2:", "10.9.0.2:0", "10.9.0.2:65536", "fd00::2:x", "[10.9.0]:1"]) {
    ok(!addressWithPort(6083).parse(text).success, text);
  }
});
