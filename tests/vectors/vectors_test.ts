/**
 * The protocol's known answers, through the native library: whatever of them the C interface exposes. The rest, key
 * derivation and wire formats above all, runs in Rust only.
 *
 * A `quirk` records an answer that looked doubtful. The tables here say, by case name, which way ours goes and why; they
 * agree with those of the Rust tests. Of a quirk that no table names only the counters are checked, where there are any.
 *
 * @module
 */

import { deepStrictEqual, fail, ok, strictEqual, throws } from "node:assert/strict";
import { Buffer } from "node:buffer";
import { existsSync, readFileSync } from "node:fs";
import { isIPv6 } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { parsePeerKey, tunnelRole } from "../../control/identity.ts";
import { addressBytes } from "../../control/prefix.ts";
import { Engine, type EngineRoute } from "../../datapath/engine.ts";
import { DatapathError } from "../../datapath/errors.ts";
import { innerMtu } from "../../datapath/mtu.ts";
import { type DropReason, PacketBatch, type Verdict } from "../../datapath/packet_batch.ts";
import { NativeError } from "../../native/errors.ts";
import { Library } from "../../native/library.ts";

const FOLDER = process.env.ICX_VECTORS_DIR ?? import.meta.dirname ?? fail("the vectors lie beside this file");

/** Operations of the vectors that the C interface does not expose; the Rust tests run them. */
const RUST_ONLY = new Set([
  "aes_cmac",
  "allocate",
  "derive_master_keys",
  "derive_sa",
  "derive_sa_key",
  "encap_in_place_fit",
  "make_spi",
  "map_port",
  "pair_sas",
  "split_spi",
]);

/** An object of a vector file, with its fields checked as they are read. */
class Fields {
  readonly #fields: Record<string, unknown>;

  constructor(value: unknown) {
    if (typeof value !== "object" || value === null) fail(`not an object: ${JSON.stringify(value)}`);
    this.#fields = value as Record<string, unknown>;
  }

  has(name: string): boolean {
    return this.#fields[name] !== undefined && this.#fields[name] !== null;
  }

  text(name: string): string {
    const value = this.#fields[name];
    return typeof value === "string" ? value : fail(`"${name}" is no text in ${JSON.stringify(this.#fields)}`);
  }

  number(name: string): number {
    const value = this.#fields[name];
    return typeof value === "number" ? value : fail(`"${name}" is no number in ${JSON.stringify(this.#fields)}`);
  }

  flag(name: string): boolean {
    return this.#fields[name] === true;
  }

  big(name: string): bigint {
    return BigInt(this.text(name));
  }

  bytes(name: string): Uint8Array {
    return this.has(name) ? Buffer.from(this.text(name), "hex") : new Uint8Array(0);
  }

  object(name: string): Fields {
    return new Fields(this.#fields[name]);
  }

  list(name: string): Fields[] {
    const value = this.#fields[name] ?? [];
    return Array.isArray(value) ? value.map((item) => new Fields(item)) : fail(`"${name}" is no list`);
  }

  get keys(): string[] {
    return Object.keys(this.#fields);
  }

  get name(): string {
    return this.text("name");
  }
}

/** Runs over the cases of one file; skips with a note when the file is not there. */
function vectors(file: string, run: (library: Library, cases: readonly Fields[]) => void): void {
  const path = join(FOLDER, file);
  if (!existsSync(path)) {
    Deno.test({ name: `${file}: not in the folder of vectors`, ignore: true, fn() {} });
    return;
  }
  const cases = new Fields(JSON.parse(readFileSync(path, "utf8"))).list("cases").filter((each) => !each.flag("crash"));
  Deno.test(`${file}: ${cases.length} cases`, async () => {
    await using library = Library.open();
    run(library, cases);
  });
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString("hex");
}

function mac(digits: string): string {
  return digits.match(/../g)?.join(":") ?? fail(`"${digits}" is no hardware address`);
}

function addressAndPort(endpoint: Fields): string {
  const ip = endpoint.text("ip");
  return isIPv6(ip) ? `[${ip}]:${endpoint.number("port")}` : `${ip}:${endpoint.number("port")}`;
}

function routesOf(owner: Fields): EngineRoute[] {
  return owner.list("routes").map((route) => ({ src: route.text("src"), dst: route.text("dst") }));
}

/** An engine as a handler object describes it, or its peer. */
function engineOf(library: Library, handler: Fields, side: "itself" | "peer" = "itself"): Engine {
  const mirrored = side === "peer";
  const locals = handler.list("local");
  const [network] = handler.list("networks");
  const local = locals[0] ?? fail("a handler has an address");
  const own = mirrored && network !== undefined ? [network.object("remote")] : locals;
  const engine = Engine.create({
    library,
    ...(handler.text("mode") === "l2"
      ? { ethernet: { hostMac: mac(handler.text("virt_mac")), gatewayMac: mac(handler.text("src_mac")) } }
      : {}),
    rawUnderlay: {
      local: own.map((each) => ({ addr: addressAndPort(each), mac: mac(each.text("mac")) })),
      outerUdpChecksum: handler.flag("outer_udp_checksum"),
      // The vectors were recorded without it.
      dontFragment: false,
    },
    peerFilter: handler.flag("outer_src_validation"),
    ...(handler.flag("source_port_hashing")
      ? { sourcePortHashing: true, dangerFlowHashKey: handler.text("flow_hash_key") }
      : {}),
    keepaliveMs: handler.has("keepalive_ms") ? handler.number("keepalive_ms") : 0,
    dangerManualClock: true,
    dangerIsolatedKeyHistory: true,
  });
  engine.dangerSetClock(handler.big("now_ns"));
  for (const each of handler.list("networks")) {
    const remote = mirrored ? local : each.object("remote");
    const vni = each.number("vni");
    engine.addNetwork({
      vni,
      peer: addressAndPort(remote),
      peerMac: mac(remote.text("mac")),
      routes: mirrored ? routesOf(each).map(({ src, dst }) => ({ src: dst, dst: src })) : routesOf(each),
      rxRateLimitPps: handler.number("rx_rate_limit_pps"),
    });
    for (const sa of each.list("sas")) {
      const [rx, tx] = mirrored ? ["tx", "rx"] : ["rx", "tx"];
      engine.dangerInstall({
        vni,
        rxSpi: sa.number(`${rx}_spi`),
        txSpi: sa.number(`${tx}_spi`),
        rxKey: sa.text(`${rx}_key`),
        txKey: sa.text(`${tx}_key`),
        expiresAtNs: sa.big("expires_ns"),
      });
    }
  }
  return engine;
}

function vniOf(handler: Fields): number {
  return handler.list("networks")[0]?.number("vni") ?? fail("a handler has a network");
}

interface Result {
  readonly verdict: Verdict;
  readonly bytes: Uint8Array;
}

/** One packet through an engine. */
function transform(engine: Engine, way: "seal" | "open", packet: Uint8Array, outputBytes = 16_384): Result {
  const input = new PacketBatch({ capacity: 1, bufferBytes: Math.max(1, packet.length) });
  const output = new PacketBatch({ capacity: 1, bufferBytes: Math.max(1, outputBytes) });
  ok(input.append(packet));
  strictEqual(way === "seal" ? engine.virtToPhy(input, output) : engine.phyToVirt(input, output), 1);
  const verdict = output.verdict(0);
  return { verdict, bytes: verdict === "forward" || verdict === "handled" ? output.packet(0) : new Uint8Array(0) };
}

/** All counters of an engine but the times, summed over its networks; those that are zero are left out. */
function totals(engine: Engine): Record<string, bigint> {
  const sum: Record<string, bigint> = {};
  for (const counters of [engine.counters(), ...engine.networks.map((vni) => engine.counters(vni))]) {
    for (const [name, value] of Object.entries(counters)) {
      if (!name.startsWith("last_") && value > 0n) sum[name] = (sum[name] ?? 0n) + value;
    }
  }
  return sum;
}

function moved(before: Record<string, bigint>, after: Record<string, bigint>): Record<string, bigint> {
  const changes = Object.entries(after).map(([name, value]) => [name, value - (before[name] ?? 0n)] as const);
  return Object.fromEntries(changes.filter(([, change]) => change !== 0n));
}

// aead_packets.json

/** `recorded`: the recorded frame stands. Otherwise it is refused, and no counter value is used up. */
const SEND_QUIRKS: Record<string, { readonly ours: "recorded" | DropReason; readonly why: string }> = {
  "inner total length lies": {
    ours: "recorded",
    why: "bytes behind the inner length travel along, so that length is not checked",
  },
  "hashing on, inner header invalid: source port 49152": {
    ours: "recorded",
    why: "a packet that cannot be hashed has hash 0, hence the first port",
  },
  "version nibble 5 with a ::/0 route present: counted and uses up a counter": {
    ours: "tx_malformed",
    why: "other IP versions are malformed whatever the routes, and a refused packet burns no counter value",
  },
  "no local address of the remote's family: uses up a counter": {
    ours: "tx_no_local",
    why: "a refused packet burns no counter value",
  },
  "l2 ethertype says IPv6, packet is IPv4: sent as IPv4": { ours: "recorded", why: "the version nibble decides" },
};

function refusalOf(each: Fields): DropReason {
  const ethertype = hex(each.bytes("eth")).slice(24);
  const reason = each.text("reason");
  switch (reason) {
    case "counter_limit":
      return "tx_exhausted";
    case "tx_expired":
      return "tx_expired_key";
    case "no_route":
      return "tx_no_route";
    case "no_key":
      return "tx_no_key";
    case "no_local":
      return "tx_no_local";
    case "truncated_inner":
    case "runt":
      return "tx_malformed";
    case "not_ip":
      // Ethernet says what is no IP at all; behind that, a wrong version is a malformed packet.
      return ethertype === "" || ethertype === "0800" || ethertype === "86dd" ? "tx_malformed" : "tx_not_ip";
    default:
      return fail(`${each.name}: unknown reason ${reason}`);
  }
}

vectors("aead_packets.json", (library, cases) => {
  for (const each of cases) {
    const quirk = SEND_QUIRKS[each.name];
    if (each.flag("quirk") && quirk === undefined) continue;
    const handler = each.object("handler");
    const vni = vniOf(handler);
    using engine = engineOf(library, handler);
    if (each.has("at_ns")) engine.dangerSetClock(each.big("at_ns"));
    const frame = Buffer.concat([each.bytes("eth"), each.bytes("inner")]);
    const kind = each.text("kind");
    if (kind === "data") {
      const counter = each.big("counter");
      if (counter > 1n) ok(engine.dangerSkipTxCounter(vni, counter - 1n), each.name);
      const sealed = transform(engine, "seal", frame);
      strictEqual(sealed.verdict, "forward", each.name);
      strictEqual(hex(sealed.bytes), each.text("frame"), each.name);
      const innerBytes = each.bytes("inner").length;
      deepStrictEqual(totals(engine), { tx_packets: 1n, tx_bytes: BigInt(innerBytes) }, each.name);
      using peer = engineOf(library, handler, "peer");
      const opened = transform(peer, "open", sealed.bytes);
      strictEqual(opened.verdict, "forward", each.name);
      strictEqual(hex(opened.bytes.subarray(opened.bytes.length - innerBytes)), hex(each.bytes("inner")), each.name);
    } else if (kind === "keepalive") {
      const counter = each.big("counter");
      const output = new PacketBatch();
      for (let sent = 1n; sent <= counter; sent++) {
        engine.dangerSetClock(
          handler.big("now_ns") + (sent - 1n) * BigInt(handler.number("keepalive_ms")) * 1_000_000n,
        );
        strictEqual(engine.toPhy(output), 1, `${each.name}: one is due`);
      }
      strictEqual(hex(output.packet(0)), each.text("frame"), each.name);
      strictEqual(output.sourcePort(0), 0, `${each.name}: keepalives leave from the unhashed port`);
      strictEqual(engine.toPhy(new PacketBatch()), 0, `${each.name}: one per interval`);
      using peer = engineOf(library, handler, "peer");
      strictEqual(transform(peer, "open", output.packet(0)).verdict, "consumed", each.name);
    } else if (kind === "refused") {
      const before = each.big("tx_counter_before");
      if (before > 0n) ok(engine.dangerSkipTxCounter(vni, before), each.name);
      const expected = quirk === undefined ? refusalOf(each) : quirk.ours;
      strictEqual(transform(engine, "seal", frame).verdict, expected, each.name);
      deepStrictEqual(totals(engine), { [expected]: 1n }, each.name);
      engine.dangerSetClock(handler.big("now_ns"));
      strictEqual(engine.saStatus(vni).tx?.sealed, before, `${each.name}: a refused packet burns no counter value`);
    } else {
      fail(`${each.name}: unknown kind ${kind}`);
    }
  }
});

// rx_drops.json

type StepResult = DropReason | "deliver" | "consumed";

/** What each step ends in; `recorded`: as recorded. */
const RECEIVE_QUIRKS: Record<string, { readonly ours: "recorded" | readonly StepResult[]; readonly why: string }> = {
  "control: counter 0 is accepted once": {
    ours: ["rx_replayed", "rx_replayed"],
    why: "senders start at 1: counter 0 is never accepted",
  },
  "control: any UDP destination port is accepted": { ours: ["rx_malformed"], why: "our own port is checked" },
  "control: any outer destination address is accepted": {
    ours: "recorded",
    why: "the AEAD says for whom the frame is",
  },
  "control: outer checksum present and wrong is ignored": {
    ours: "recorded",
    why: "the AEAD authenticates more than the checksum",
  },
  "control: outer IPv4 header checksum wrong is ignored": {
    ours: ["rx_malformed"],
    why: "the outer IPv4 header checksum must be valid where we see raw frames",
  },
  "control: bytes after the IPv6 payload length are ignored": { ours: "recorded", why: "Ethernet padding" },
  "control: bytes after the IPv4 total length are ignored": { ours: "recorded", why: "Ethernet padding" },
  "control: outer over IPv6, zero UDP checksum": {
    ours: "recorded",
    why: "a zero outer UDP checksum never makes a receiver drop",
  },
  "control: outer IPv4 header with options": {
    ours: ["rx_malformed"],
    why: "its header checksum is wrong; with a valid one it would be accepted",
  },
  "control: outer IPv4 more-fragments bit is ignored": { ours: ["rx_malformed"], why: "fragments are dropped" },
  "control: geneve version 1 is accepted when authentic": {
    ours: ["rx_malformed"],
    why: "RFC 8926 section 3.4: the version must be 0",
  },
  "control: protocol type does not match the inner packet": {
    ours: ["rx_bad_inner"],
    why: "the version must agree with the protocol type",
  },
  "control: protocol type IPv6, inner IPv4, L2 receiver": {
    ours: ["rx_bad_inner"],
    why: "the version must agree with the protocol type",
  },
  "control: inner total length lies": {
    ours: "recorded",
    why: "bytes behind the inner length travel along, so it is not compared",
  },
  "control: inner header length of 4 bytes": {
    ours: "recorded",
    why: "only the fixed header is ours to read; the rest is the host's",
  },
  "UDP length shorter than the IP payload": {
    ours: ["rx_malformed"],
    why: "the UDP length must be that of the IP payload: refused before the AEAD",
  },
  "third option after the standard two: header length is misjudged": {
    ours: ["rx_malformed"],
    why: "more than two options are refused before the AEAD",
  },
  "unknown critical third option": { ours: ["rx_malformed"], why: "an unknown critical option is refused" },
  "control: source and destination may match different route pairs": {
    ours: ["rx_invalid_dst"],
    why: "source and destination must match one and the same allowed route",
  },
  "rate limit 1/s still admits one frame each 100 ms": {
    ours: ["deliver", "rx_rate_limited", "rx_rate_limited", "rx_rate_limited"],
    why: "the limit is exact for small values: one frame a second",
  },
  "forged frames use up the budget": {
    ours: "recorded",
    why: "the limit bounds what reaches the AEAD, forged frames included",
  },
};

const RECORDED_COUNTERS: Record<string, DropReason> = {
  rx_drops_no_key: "rx_no_key",
  rx_drops_expired_key: "rx_expired_key",
  rx_drops_spi_mismatch: "rx_spi_mismatch",
  rx_drops_bad_peer: "rx_bad_peer",
  rx_rate_limit_drops: "rx_rate_limited",
  rx_decrypt_errors: "rx_auth_failed",
  rx_replay_drops: "rx_replayed",
  rx_invalid_src: "rx_invalid_src",
  rx_invalid_dst: "rx_invalid_dst",
};

function recordedResult(each: Fields, step: Fields): StepResult {
  const result = step.text("result");
  if (result === "deliver" || result === "consumed") return result;
  const reason = each.text("reason");
  const counters = step.object("counters");
  const [vni] = counters.keys;
  const [counter] = vni === undefined ? [] : counters.object(vni).keys;
  if (counter === undefined) {
    if (reason === "unknown_vni") return "rx_unknown_vni";
    if (reason === "truncated" || reason === "not_udp" || reason === "no_tx_counter") return "rx_malformed";
  } else {
    if (reason === "truncated_inner" || reason === "not_ip") return "rx_bad_inner";
    const ours = RECORDED_COUNTERS[counter];
    if (ours !== undefined) return ours;
  }
  return fail(`${each.name}: unknown drop ${counter}, ${reason}`);
}

vectors("rx_drops.json", (library, cases) => {
  for (const each of cases) {
    const handler = each.object("handler");
    const quirk = RECEIVE_QUIRKS[each.name];
    const unknown = each.flag("quirk") && quirk === undefined;
    using engine = engineOf(library, handler);
    for (const [index, step] of each.list("steps").entries()) {
      const context = `${each.name}, step ${index}`;
      if (step.has("now_ns")) engine.dangerSetClock(step.big("now_ns"));
      const before = totals(engine);
      const { verdict, bytes } = transform(engine, "open", step.bytes("frame"));
      const changes = moved(before, totals(engine));
      if (verdict === "forward") {
        const front = handler.text("mode") === "l2" ? 14 : 0;
        deepStrictEqual(changes, { rx_packets: 1n, rx_bytes: BigInt(bytes.length - front) }, context);
      } else if (verdict === "consumed") {
        strictEqual(changes.rx_packets, 1n, context);
      } else {
        deepStrictEqual(changes, { [verdict]: 1n }, context);
      }
      if (unknown) continue;
      const expected = quirk === undefined || quirk.ours === "recorded"
        ? recordedResult(each, step)
        : quirk.ours[index];
      strictEqual(verdict === "forward" ? "deliver" : verdict, expected, context);
      if (expected === "deliver" && step.has("output")) strictEqual(hex(bytes), step.text("output"), context);
    }
  }
});

// arp_nd.json

/** `recorded`: the recorded answer or frame stands. `replies`: as recorded for the same request elsewhere. */
const NEIGHBOR_QUIRKS: Record<string, { readonly ours: "recorded" | "replies" | DropReason; readonly why: string }> = {
  "ARP request for an address outside every route": { ours: "recorded", why: "the gateway answers for any address" },
  "ARP request for the sender's own address (gratuitous)": {
    ours: "tx_not_ip",
    why: "an announcement: an answer would be a conflict",
  },
  "ARP probe (sender 0.0.0.0)": { ours: "tx_not_ip", why: "duplicate address detection must work" },
  "solicitation for an address outside every route": { ours: "recorded", why: "the gateway answers for any address" },
  "duplicate address detection (source ::)": { ours: "tx_malformed", why: "RFC 4862: it must stay unanswered" },
  "solicitation for the sender's own address": {
    ours: "recorded",
    why: "no duplicate address detection: the source is set",
  },
  "solicitation for a multicast target": { ours: "tx_malformed", why: "RFC 4861 section 7.1.1 wants it discarded" },
  "solicitation with a wrong ICMPv6 checksum": { ours: "tx_malformed", why: "the checksum is checked" },
  "solicitation with a zero-length option": { ours: "tx_malformed", why: "RFC 4861 section 4.6 wants it discarded" },
  "solicitation whose source link-layer option names another MAC": {
    ours: "recorded",
    why: "the reply goes to the Ethernet source",
  },
  "hop limit 64, unicast destination inside the routes": { ours: "tx_malformed", why: "never tunnelled" },
  "code 1, unicast destination inside the routes": { ours: "tx_malformed", why: "never tunnelled" },
  "solicitation of 23 bytes": { ours: "tx_malformed", why: "never tunnelled" },
  "frame cut, payload length says more": { ours: "tx_malformed", why: "never tunnelled" },
  "solicitation behind a hop-by-hop header": { ours: "tx_malformed", why: "never tunnelled" },
  "single buffer, ARP request at offset 0": { ours: "replies", why: "a reply needs no headroom" },
  "single buffer, neighbour solicitation at offset 0": { ours: "replies", why: "a reply needs no headroom" },
  "single buffer, ARP request at offset 93": { ours: "replies", why: "a reply needs no headroom" },
  "single buffer, neighbour solicitation at offset 93": { ours: "replies", why: "a reply needs no headroom" },
};

vectors("arp_nd.json", (library, cases) => {
  const setup = cases.find((each) => each.has("handler")) ?? fail("a case holds the handler");
  const handler = setup.object("handler");
  for (const each of cases) {
    const result = each.text("result");
    const quirk = NEIGHBOR_QUIRKS[each.name];
    if (result === "setup" || (each.flag("quirk") && quirk === undefined)) continue;
    using engine = engineOf(library, handler);
    const { verdict, bytes } = transform(engine, "seal", each.bytes("request"));
    const ours = quirk?.ours ?? "recorded";
    if (ours === "replies" || (ours === "recorded" && result === "reply")) {
      const same = (other: Fields) => other.has("reply") && other.text("request") === each.text("request");
      const recorded = each.has("reply") ? each : cases.find((other) => other.has("request") && same(other));
      strictEqual(verdict, "handled", each.name);
      strictEqual(hex(bytes), recorded?.text("reply"), each.name);
      deepStrictEqual(totals(engine), {}, each.name);
    } else if (ours === "recorded" && result === "tunnelled") {
      strictEqual(verdict, "forward", each.name);
      strictEqual(hex(bytes), each.text("frame"), each.name);
    } else if (ours === "recorded" && result === "dropped") {
      ok(verdict === "tx_not_ip" || verdict === "tx_malformed", `${each.name}: ${verdict}`);
      deepStrictEqual(totals(engine), { [verdict]: 1n }, each.name);
    } else if (ours !== "recorded") {
      strictEqual(verdict, ours, each.name);
      deepStrictEqual(totals(engine), { [ours]: 1n }, each.name);
    } else {
      fail(`${each.name}: unknown result ${result}`);
    }
  }
});

// routing.json

/** Answers of ours, by the index of the step. */
const ROUTING_QUIRKS: Record<string, { readonly ours: Record<number, unknown>; readonly why: string }> = {
  "no fallback: once the longest destination is chosen, a missing source there is a drop": {
    ours: { 3: 1 },
    why: "if the longest destination prefix has no entry for the source, shorter ones are tried",
  },
  "two route pairs: sending needs a matching pair, receiving takes any source and any destination": {
    ours: { 6: "bad_dst", 7: "bad_dst" },
    why: "on receive, source and destination must match one and the same allowed route",
  },
  "host bits are masked off; a pair listed twice in one network is fine": {
    ours: { 2: "refused", 3: null, 4: "unknown_vni" },
    why: "a prefix with host bits set is rejected",
  },
  "IPv6": { ours: { 5: 3 }, why: "shorter destination prefixes are tried" },
  "families: sending treats IPv4 as ::ffff:0:0/96, so ::/0 catches IPv4 and IPv4 routes catch mapped addresses; receiving keeps the families apart":
    {
      ours: { 1: null, 6: 1 },
      why: "IPv4 never matches an IPv6 prefix nor the reverse; IPv4-mapped IPv6 is IPv6 on the inside",
    },
  "a pair mixing families": {
    ours: { 0: "refused", 1: null, 2: null, 3: "unknown_vni", 4: "refused", 5: null },
    why: "families never mix",
  },
  "wildcards, no routes, VNI 0 and the highest VNI": { ours: {}, why: "the data plane knows every VNI of 24 bits" },
};

/** A bare IP header between two addresses. */
function packetBetween(src: string, dst: string): Uint8Array {
  if (isIPv6(src)) {
    const packet = new Uint8Array(40);
    packet.set([0x60, 0, 0, 0, 0, 0, 59, 64]);
    packet.set(addressBytes(src), 8);
    packet.set(addressBytes(dst), 24);
    return packet;
  }
  const packet = new Uint8Array(20);
  packet.set([0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253]);
  packet.set(addressBytes(src), 12);
  packet.set(addressBytes(dst), 16);
  return packet;
}

/** A table of routes, seen through what an engine seals and opens. */
class RouteTable implements Disposable {
  readonly #library: Library;
  readonly #engine: Engine;
  readonly #peers = new Map<number, Engine>();
  readonly #strangers: Engine[] = [];
  #generation = 0;

  constructor(library: Library) {
    this.#library = library;
    this.#engine = this.#create();
  }

  change(step: Fields): "done" | "refused" {
    const vni = step.number("vni");
    const network = { vni, peer: "192.0.2.2:6081", routes: routesOf(step) };
    try {
      if (step.text("op") === "add") {
        this.#engine.addNetwork(network);
        this.#key(vni);
      } else if (step.text("op") === "update") {
        this.#engine.updateNetwork(network);
      } else {
        this.#engine.removeNetwork(vni);
      }
      return "done";
    } catch (error) {
      if (error instanceof DatapathError) return "refused";
      throw error;
    }
  }

  lookup(src: string, dst: string): number | null {
    const input = new PacketBatch({ capacity: 1 });
    const output = new PacketBatch({ capacity: 1 });
    input.append(packetBetween(src, dst));
    this.#engine.virtToPhy(input, output);
    const verdict = output.verdict(0);
    if (verdict === "forward") return output.vni(0);
    strictEqual(verdict, "tx_no_route");
    return null;
  }

  receive(vni: number, packet: Uint8Array): string {
    const peer = this.#peers.get(vni) ?? this.#strangerOf(vni);
    const sealed = new PacketBatch({ capacity: 1 });
    const input = new PacketBatch({ capacity: 1 });
    const output = new PacketBatch({ capacity: 1 });
    input.append(packet);
    peer.virtToPhy(input, sealed);
    strictEqual(sealed.verdict(0), "forward");
    input.clear();
    input.append(sealed.packet(0), { address: new Uint8Array([192, 0, 2, 2]), port: 6081 });
    this.#engine.phyToVirt(input, output);
    const names: Partial<Record<Verdict, string>> = {
      forward: "accept",
      rx_invalid_src: "bad_src",
      rx_invalid_dst: "bad_dst",
      rx_unknown_vni: "unknown_vni",
    };
    return names[output.verdict(0)] ?? output.verdict(0);
  }

  [Symbol.dispose](): void {
    for (const engine of [this.#engine, ...this.#strangers]) engine.close();
  }

  #create(): Engine {
    const engine = Engine.create({ library: this.#library, dangerManualClock: true, dangerIsolatedKeyHistory: true });
    engine.dangerSetClock(1n);
    return engine;
  }

  /** An engine that seals anything for a network. */
  #strangerOf(vni: number): Engine {
    const peer = this.#create();
    const routes = [{ src: "0.0.0.0/0", dst: "0.0.0.0/0" }, { src: "::/0", dst: "::/0" }];
    peer.addNetwork({ vni, peer: "192.0.2.1:6081", routes });
    this.#strangers.push(peer);
    this.#peers.set(vni, peer);
    peer.dangerInstall({ vni, ...this.#keys("peer"), expiresAtNs: 10n });
    return peer;
  }

  #key(vni: number): void {
    this.#generation += 1;
    this.#strangerOf(vni);
    this.#engine.dangerInstall({ vni, ...this.#keys("own"), expiresAtNs: 10n });
  }

  #keys(side: "own" | "peer") {
    const [low, high] = [2 * this.#generation + 1, 2 * this.#generation + 2];
    const key = (n: number) => n.toString(16).padStart(32, "0");
    return side === "own"
      ? { rxSpi: low, txSpi: high, rxKey: key(low), txKey: key(high) }
      : { rxSpi: high, txSpi: low, rxKey: key(high), txKey: key(low) };
  }
}

vectors("routing.json", (library, cases) => {
  for (const each of cases) {
    const quirk = ROUTING_QUIRKS[each.name];
    if (each.flag("quirk") && quirk === undefined) continue;
    using table = new RouteTable(library);
    for (const [index, step] of each.list("steps").entries()) {
      const context = `${each.name}, step ${index}`;
      const op = step.text("op");
      const changed = quirk !== undefined && index in quirk.ours;
      if (op === "add" || op === "update" || op === "remove") {
        const expected = changed ? quirk.ours[index] : step.flag("ok") ? "done" : "refused";
        strictEqual(table.change(step), expected, context);
      } else if (op === "lookup") {
        const expected = changed ? quirk.ours[index] : step.has("vni") ? step.number("vni") : null;
        strictEqual(table.lookup(step.text("src"), step.text("dst")), expected, context);
      } else if (op === "receive") {
        const expected = changed ? quirk.ours[index] : step.text("result");
        const packet = packetBetween(step.text("src"), step.text("dst"));
        strictEqual(table.receive(step.number("vni"), packet), expected, context);
      } else {
        fail(`${context}: unknown op ${op}`);
      }
    }
  }
});

// mtu.json

vectors("mtu.json", (library, cases) => {
  const engineFor = (mode: string, outer: number): Engine => {
    const [own, remote] = outer === 4
      ? ["192.0.2.1:6081", "198.51.100.7:6081"]
      : ["[2001:db8::1]:6081", "[2001:db8::2]:6081"];
    const engine = Engine.create({
      library,
      ...(mode === "l2" ? { ethernet: { hostMac: "02:00:00:00:00:01", gatewayMac: "02:00:00:00:00:02" } } : {}),
      rawUnderlay: { local: [{ addr: own, mac: "02:02:02:02:02:02" }] },
      dangerManualClock: true,
      dangerIsolatedKeyHistory: true,
    });
    const routes = [{ src: "0.0.0.0/0", dst: "0.0.0.0/0" }];
    engine.addNetwork({ vni: 1, peer: remote, peerMac: "04:04:04:04:04:04", routes });
    engine.dangerInstall({
      vni: 1,
      rxSpi: 1,
      txSpi: 2,
      rxKey: "01".repeat(16),
      txKey: "02".repeat(16),
      expiresAtNs: 1_000_000n,
    });
    return engine;
  };
  const virtualFrame = (mode: string, innerBytes: number): Uint8Array => {
    const front = mode === "l2" ? [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0] : [];
    const frame = new Uint8Array(front.length + innerBytes);
    frame.set(front);
    frame[front.length] = 0x45;
    return frame;
  };
  for (const each of cases) {
    const op = each.text("op");
    if (RUST_ONLY.has(op)) continue;
    if (op === "inner_mtu") {
      const expected = each.number("inner_mtu");
      // The record goes to zero and below; a path that cannot carry a packet has no inner MTU.
      if (expected > 0) strictEqual(innerMtu(library, each.number("path_mtu")), expected, each.name);
      else throws(() => innerMtu(library, each.number("path_mtu")), DatapathError, each.name);
    } else if (op === "header_length" || op === "payload_offset") {
      const outer = op === "payload_offset" ? each.number("outer") : 4;
      using engine = engineFor("l3", outer);
      const { bytes } = transform(engine, "seal", virtualFrame("l3", 20));
      const headers = bytes.length - 20 - 16;
      if (op === "payload_offset") strictEqual(headers - 32, each.number("offset"), each.name);
      else strictEqual(headers - 42, each.number("length"), each.name);
    } else if (op === "encap_fit") {
      const mode = each.text("mode");
      using engine = engineFor(mode, each.number("outer"));
      const frame = virtualFrame(mode, each.number("inner_len"));
      const { verdict, bytes } = transform(engine, "seal", frame, each.number("frame_buffer"));
      const fits = each.flag("ok");
      strictEqual(verdict, fits ? "forward" : "tx_too_big", each.name);
      strictEqual(bytes.length, fits ? each.number("frame_len") : 0, each.name);
      // The record burns a counter value for a refused packet; ours takes one only for what is certain to be sealed.
      strictEqual(engine.saStatus(1).tx?.sealed, fits ? 1n : 0n, each.name);
    } else {
      fail(`${each.name}: unknown op ${op}`);
    }
  }
});

// flow_hash.json

vectors("flow_hash.json", (library, cases) => {
  let seen = 0;
  for (const each of cases) {
    const op = each.text("op");
    if (RUST_ONLY.has(op)) continue;
    strictEqual(op, "hash", `${each.name}: unknown op`);
    using engine = Engine.create({
      library,
      sourcePortHashing: true,
      dangerFlowHashKey: each.text("key"),
      dangerManualClock: true,
      dangerIsolatedKeyHistory: true,
    });
    const routes = [{ src: "0.0.0.0/0", dst: "0.0.0.0/0" }, { src: "::/0", dst: "::/0" }];
    engine.addNetwork({ vni: 1, peer: "192.0.2.1:6081", routes });
    const [rxKey, txKey] = ["01".repeat(16), "02".repeat(16)];
    engine.dangerInstall({ vni: 1, rxSpi: 1, txSpi: 2, rxKey, txKey, expiresAtNs: 1_000_000n });
    const input = new PacketBatch({ capacity: 1, bufferBytes: 16_384 });
    const output = new PacketBatch({ capacity: 1, bufferBytes: 16_384 });
    input.append(each.bytes("packet"));
    engine.virtToPhy(input, output);
    if (output.verdict(0) !== "forward") {
      // Only what is sent has a port.
      strictEqual(output.verdict(0), "tx_malformed", each.name);
      continue;
    }
    ok(output.sourcePort(0) >= 49_152, each.name);
    if (each.flag("quirk")) continue;
    strictEqual(output.sourcePort(0), each.number("port"), each.name);
    seen += 1;
  }
  ok(seen > 0 || cases.length === 0, "no case got as far as a port");
});

// kdf.json

vectors("kdf.json", (library, cases) => {
  for (const each of cases) {
    const op = each.text("op");
    if (RUST_ONLY.has(op)) continue;
    const succeeds = each.flag("ok");
    if (op === "canonical_initiator") {
      const keys = { local: each.text("local_spki_b64"), peer: each.text("peer_spki_b64") };
      if (!succeeds) throws(() => tunnelRole(library, keys), NativeError, each.name);
      else strictEqual(tunnelRole(library, keys) === "initiator", each.flag("local_is_initiator"), each.name);
    } else if (op === "parse_peer_key") {
      const input = each.text("input");
      if (!succeeds) throws(() => parsePeerKey(input, { library }), NativeError, each.name);
      else strictEqual(parsePeerKey(input, { library }).publicKey, each.text("spki_b64"), each.name);
    } else {
      fail(`${each.name}: unknown op ${op}`);
    }
  }
});
