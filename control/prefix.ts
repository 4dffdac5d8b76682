/**
 * IP prefixes as text.
 *
 * @module
 */

import { isIP, isIPv4 } from "node:net";
import { requireText } from "../native/arguments.ts";

/** An IP prefix, taken apart. */
export interface Prefix {
  /** The address in its shortest form, as it was given otherwise: bits behind the prefix may be set. */
  readonly address: string;
  /** How many leading bits count. 0 to 32 for IPv4, 0 to 128 for IPv6. */
  readonly length: number;
  /** The IP version. */
  readonly family: 4 | 6;
  /** The prefix with every bit behind it cleared, as text: what two equal prefixes have in common. */
  readonly network: string;
}

/**
 * Parses `address/length`. A bare address counts as a prefix of full length.
 *
 * @param text For example `10.9.0.1/24` or `2001:db8::/32`.
 * @returns The prefix.
 * @throws {SyntaxError} When `text` is not a prefix.
 *
 * @example Clear the host bits
 * ```ts
 * import { parsePrefix } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * strictEqual(parsePrefix("10.9.0.1/24").network, "10.9.0.0/24");
 * strictEqual(parsePrefix("2001:DB8:0:0::1/32").network, "2001:db8::/32");
 * ```
 */
export function parsePrefix(text: string): Prefix {
  requireText(text, { operation: "parse the prefix", name: "text" });
  const slash = text.indexOf("/");
  const address = slash < 0 ? text : text.slice(0, slash);
  const family = address.includes("%") ? 0 : isIP(address);
  if (family !== 4 && family !== 6) {
    throw new SyntaxError(
      `Cannot parse the prefix as it must be "address/length", such as 10.9.0.0/24: current value is "${text}"`,
    );
  }
  const bits = family === 4 ? 32 : 128;
  const lengthText = slash < 0 ? String(bits) : text.slice(slash + 1);
  const length = Number(lengthText);
  if (!/^(0|[1-9]\d{0,2})$/.test(lengthText) || length > bits) {
    throw new SyntaxError(
      `Cannot parse the prefix as its length must be 0 to ${bits} for IPv${family}: current value is "${text}"`,
    );
  }
  const value = toBigInt(address);
  const host = BigInt(bits - length);
  const format = family === 4 ? formatIPv4 : formatIPv6;
  return { address: format(value), length, family, network: `${format((value >> host) << host)}/${length}` };
}

/**
 * The bytes of an IP address.
 *
 * @param address For example `192.0.2.1` or `2001:db8::1`.
 * @returns 4 or 16 bytes, in network order.
 * @throws {SyntaxError} When `address` is not an IP address.
 *
 * @example Both families
 * ```ts
 * import { addressBytes } from "@icx/icx";
 * import { deepStrictEqual } from "node:assert";
 *
 * deepStrictEqual([...addressBytes("192.0.2.1")], [192, 0, 2, 1]);
 * deepStrictEqual(addressBytes("2001:db8::1").length, 16);
 * ```
 */
export function addressBytes(address: string): Uint8Array {
  requireText(address, { operation: "parse the address", name: "address" });
  const family = address.includes("%") ? 0 : isIP(address);
  if (family === 0) {
    throw new SyntaxError(`Cannot parse the address as it must be an IP address: current value is "${address}"`);
  }
  const digits = toBigInt(address).toString(16).padStart(family === 4 ? 8 : 32, "0");
  return Uint8Array.from({ length: digits.length / 2 }, (_, i) => parseInt(digits.slice(2 * i, 2 * i + 2), 16));
}

/**
 * The text of an IP address.
 *
 * @param bytes 4 or 16 bytes, in network order.
 * @returns The shortest form.
 * @throws {RangeError} When there are neither 4 nor 16 bytes.
 *
 * @example What addressBytes() gave
 * ```ts
 * import { addressBytes, addressText } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 *
 * strictEqual(addressText(addressBytes("2001:DB8:0::1")), "2001:db8::1");
 * ```
 */
export function addressText(bytes: Uint8Array): string {
  if (bytes.length !== 4 && bytes.length !== 16) {
    throw new RangeError(`Cannot write the address as it must have 4 or 16 bytes: it has ${bytes.length}`);
  }
  const value = bytes.reduce((value, byte) => value << 8n | BigInt(byte), 0n);
  return bytes.length === 4 ? formatIPv4(value) : formatIPv6(value);
}

/**
 * An IP address with a port.
 *
 * @param address The address.
 * @param port The port.
 * @returns `ip:port`, with brackets around an IPv6 address.
 */
export function socketAddress(address: string, port: number): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

function toBigInt(address: string): bigint {
  if (isIPv4(address)) return BigInt(`0x${hexOfIPv4(address)}`);
  // The last 32 bits may be written like an IPv4 address.
  const dotted = address.lastIndexOf(":") + 1;
  const tail = address.slice(dotted);
  const text = tail.includes(".")
    ? `${address.slice(0, dotted)}${hexOfIPv4(tail).slice(0, 4)}:${hexOfIPv4(tail).slice(4)}`
    : address;
  const [head = "", rest] = text.split("::");
  const left = head === "" ? [] : head.split(":");
  const right = rest === undefined || rest === "" ? [] : rest.split(":");
  const groups = [...left, ...Array<string>(8 - left.length - right.length).fill("0"), ...right];
  return BigInt(`0x${groups.map((group) => group.padStart(4, "0")).join("")}`);
}

function hexOfIPv4(address: string): string {
  return address.split(".").map((part) => Number(part).toString(16).padStart(2, "0")).join("");
}

function formatIPv4(value: bigint): string {
  return [24n, 16n, 8n, 0n].map((shift) => String((value >> shift) & 0xffn)).join(".");
}

/** RFC 5952: lower case, no leading zeros, the longest run of two or more zero groups (the first of equals) as `::`. */
function formatIPv6(value: bigint): string {
  const groups = Array.from({ length: 8 }, (_, i) => ((value >> BigInt(112 - 16 * i)) & 0xffffn).toString(16));
  let best = { start: 0, length: 0 };
  for (let start = 0; start < 8; start++) {
    let length = 0;
    while (start + length < 8 && groups[start + length] === "0") length += 1;
    if (length > best.length) best = { start, length };
  }
  if (best.length < 2) return groups.join(":");
  return `${groups.slice(0, best.start).join(":")}::${groups.slice(best.start + best.length).join(":")}`;
}
