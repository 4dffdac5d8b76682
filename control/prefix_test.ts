import { deepStrictEqual, strictEqual, throws } from "node:assert/strict";
import fc from "fast-check";
import { addressBytes, addressText, parsePrefix, socketAddress } from "./prefix.ts";

Deno.test("parsePrefix() takes prefixes and addresses of both families", () => {
  const rows: [string, string, number, 4 | 6, string][] = [
    ["10.9.0.1/24", "10.9.0.1", 24, 4, "10.9.0.0/24"],
    ["0.0.0.0/0", "0.0.0.0", 0, 4, "0.0.0.0/0"],
    ["255.255.255.255/1", "255.255.255.255", 1, 4, "128.0.0.0/1"],
    ["192.0.2.1", "192.0.2.1", 32, 4, "192.0.2.1/32"],
    ["::/0", "::", 0, 6, "::/0"],
    ["2001:DB8::1/64", "2001:db8::1", 64, 6, "2001:db8::/64"],
    ["1:0:0:2:0:0:0:3/128", "1:0:0:2::3", 128, 6, "1:0:0:2::3/128"],
    ["1:2:3:4:5:6:0:8", "1:2:3:4:5:6:0:8", 128, 6, "1:2:3:4:5:6:0:8/128"],
    ["::ffff:192.0.2.1/96", "::ffff:c000:201", 96, 6, "::ffff:0:0/96"],
    ["fe80::", "fe80::", 128, 6, "fe80::/128"],
  ];
  for (const [text, address, length, family, network] of rows) {
    deepStrictEqual(parsePrefix(text), { address, length, family, network }, text);
  }
});

Deno.test("parsePrefix() refuses everything else", () => {
  const rows = [
    "",
    "/24",
    "10.9.0.0/",
    "10.9.0.0/33",
    "10.9.0.0/08",
    "10.9.0.0/-1",
    "10.9.0.0/1e1",
    "10.9.0.0/24/3",
    "10.9.0/24",
    "2001:db8::/129",
    "fe80::1%eth0/64",
    "host/24",
  ];
  for (const text of rows) throws(() => parsePrefix(text), SyntaxError, text);
});

Deno.test("parsePrefix() finds the same network in what it wrote", () => {
  fc.assert(fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), fc.nat(128), (address, length) => {
    const bits = address.includes(":") ? 128 : 32;
    const prefix = parsePrefix(`${address}/${Math.min(length, bits)}`);
    const again = parsePrefix(prefix.network);
    strictEqual(again.network, prefix.network);
    strictEqual(`${again.address}/${again.length}`, prefix.network);
    strictEqual(parsePrefix(`${prefix.address}/${prefix.length}`).network, prefix.network);
  }));
});

Deno.test("addressBytes() gives 4 or 16 bytes in network order", () => {
  deepStrictEqual([...addressBytes("10.0.255.1")], [10, 0, 255, 1]);
  deepStrictEqual([...addressBytes("::")], Array(16).fill(0));
  deepStrictEqual([...addressBytes("fd00::102:3")], [0xfd, ...Array(11).fill(0), 1, 2, 0, 3]);
  deepStrictEqual([...addressBytes("::ffff:192.0.2.1")].slice(10), [0xff, 0xff, 192, 0, 2, 1]);
  for (const text of ["", "10.0.0", "fe80::1%eth0", "10.0.0.0/8"]) throws(() => addressBytes(text), SyntaxError, text);
});

Deno.test("addressText() writes what addressBytes() reads", () => {
  fc.assert(fc.property(fc.oneof(fc.ipV4(), fc.ipV6()), (address) => {
    const bytes = addressBytes(address);
    deepStrictEqual(addressBytes(addressText(bytes)), bytes);
  }));
  throws(() => addressText(new Uint8Array(5)), RangeError);
});

Deno.test("socketAddress() puts brackets around IPv6 alone", () => {
  strictEqual(socketAddress("192.0.2.1", 80), "192.0.2.1:80");
  strictEqual(socketAddress("2001:db8::1", 80), "[2001:db8::1]:80");
});
