/** Every mistake with the public API: which error it is, and what its message has to say. */

import assert from "node:assert/strict";
import fs from "node:fs/promises";
import * as api from "../../mod.ts";

/** What a mistake ends with: a built-in class, or the code of ours. */
type Expected =
  | typeof TypeError
  | typeof RangeError
  | typeof SyntaxError
  | typeof Deno.errors.BadResource
  | api.DatapathErrorCode
  | api.NativeErrorCode;

/** The call, what it ends with, and what was given, what is allowed or what to do in parts of the message. */
type Row = readonly [name: string, call: () => unknown, expected: Expected, ...says: readonly (string | RegExp)[]];

/** A value of a type that the compiler would refuse: what a caller without types can give. */
// deno-lint-ignore no-explicit-any
function wrong(value?: unknown): any {
  return value;
}

async function check([name, call, expected, ...says]: Row): Promise<string | undefined> {
  let error: unknown;
  try {
    await call();
    return `${name}: nothing was thrown`;
  } catch (thrown) {
    error = thrown;
  }
  if (!(error instanceof Error)) return `${name}: ${error} is no Error`;
  const { message, code } = error as Error & { readonly code?: unknown };
  const fits = typeof expected === "string" ? code === expected : error.constructor === expected;
  if (!fits) return `${name}: it is ${error.name} ${code ?? ""}: ${message}`;
  for (const part of says) {
    if (!(typeof part === "string" ? message.includes(part) : part.test(message))) {
      return `${name}: ${part} is not in: ${message}`;
    }
  }
  if (!/^Cannot /.test(message)) return `${name}: it does not say what cannot be done: ${message}`;
  if (/Cannot read properties|destructure|is not a function|FFI|private member|icx_/.test(message)) {
    return `${name}: it speaks of the program instead of the value: ${message}`;
  }
  return undefined;
}

async function checkAll(rows: readonly Row[]): Promise<void> {
  const faults: string[] = [];
  for (const row of rows) {
    const fault = await check(row);
    if (fault !== undefined) faults.push(fault);
  }
  assert.equal(faults.length, 0, `${faults.length} of ${rows.length} rows:\n${faults.join("\n")}`);
}

const ROUTES = [{ src: "10.0.0.0/8", dst: "10.0.0.0/8" }];
const NETWORK: api.NetworkOptions = { vni: 1, peer: "192.0.2.1:6081", routes: ROUTES };

Deno.test("opening the library", async () => {
  await checkAll([
    ["null", () => api.Library.open(wrong(null)), TypeError, '"options"', "an object", "null"],
    ["a number for a path", () => api.Library.open({ path: wrong(5) }), TypeError, '"path"', "a path or a URL", "5"],
    [
      "a file that is not allowed",
      () => api.Library.open({ path: "deno.json" }),
      "EPERM",
      "deno.json",
      "--allow-ffi=deno.json",
    ],
  ]);
});

Deno.test("values without the library", async () => {
  const batch = new api.PacketBatch({ capacity: 2, bufferBytes: 100 });
  const one = new Uint8Array(1);
  const four = new Uint8Array(4);
  const peer: api.TunnelPeer = {
    role: "initiator",
    dial() {},
    exchange() {},
    probe() {},
    disconnect() {},
    subscribe: () => () => {},
  };
  const sampleTraffic = () => ({ txPackets: 0n, rxPackets: 0n, lastKeepalive: 0n });
  const source = { subscribe: () => () => {} };
  const rejected = () => Promise.reject(new Error("boom"));
  const [underlay] = api.MemoryUnderlay.pair();
  const [device] = api.MemoryDevice.pair();
  const impaired = (options: object) => new api.ImpairedUnderlay(wrong({ underlay, seed: 1, ...options }));
  await checkAll([
    ["no options for a batch", () => new api.PacketBatch(wrong(null)), TypeError, '"options"', "null"],
    ["capacity 0", () => new api.PacketBatch({ capacity: 0 }), RangeError, '"capacity"', "from 1 to 65536", "is 0"],
    ["capacity as text", () => new api.PacketBatch({ capacity: wrong("4") }), TypeError, '"capacity"', '"4"'],
    ["capacity NaN", () => new api.PacketBatch({ capacity: NaN }), RangeError, '"capacity"', "NaN"],
    ["negative bytes", () => new api.PacketBatch({ bufferBytes: -1 }), RangeError, '"bufferBytes"', "from 1", "is -1"],
    ["a text for a packet", () => batch.append(wrong("abc")), TypeError, '"packet"', "a Uint8Array", '"abc"'],
    ["no packet", () => batch.append(wrong()), TypeError, '"packet"', "undefined"],
    ["port 70000", () => batch.append(one, { address: four, port: 70000 }), RangeError, "port", "65535", "70000"],
    ["an address as text", () => batch.append(one, { address: wrong("::1"), port: 1 }), TypeError, "address", '"::1"'],
    [
      "3 bytes of address",
      () => batch.append(one, { address: new Uint8Array(3), port: 1 }),
      RangeError,
      "4 or 16",
      "3",
    ],
    ["half a byte", () => batch.commit(1.5), RangeError, '"length"', "whole number", "1.5"],
    ["more than there is room for", () => batch.commit(101), RangeError, '"length"', "0 to 100", "101"],
    ["a packet that is not there", () => batch.packet(0), RangeError, "packet 0", "holds 0"],
    ["a verdict that is not there", () => batch.verdict(-1), RangeError, "packet -1", "holds 0"],

    ["no options for delays", () => new api.Backoff(wrong()), TypeError, '"options"', "undefined"],
    ["delays from 0", () => new api.Backoff({ baseMs: 0, maxMs: 1 }), RangeError, '"baseMs"', "above 0", "is 0"],
    ["a delay as text", () => new api.Backoff({ baseMs: wrong("1"), maxMs: 1 }), TypeError, '"baseMs"', '"1"'],
    ["a limit below", () => new api.Backoff({ baseMs: 10, maxMs: 9 }), RangeError, '"maxMs"', "from 10", "is 9"],
    ["a limit without end", () => new api.Backoff({ baseMs: 1, maxMs: Infinity }), RangeError, '"maxMs"', "Infinity"],
    ["a factor below 1", () => new api.Backoff({ baseMs: 1, maxMs: 1, factor: 0.5 }), RangeError, '"factor"', "0.5"],
    ["jitter above 1", () => new api.Backoff({ baseMs: 1, maxMs: 1, jitter: 2 }), RangeError, '"jitter"', "0 to 1"],
    ["chance as a number", () => new api.Backoff({ baseMs: 1, maxMs: 1, random: wrong(4) }), TypeError, '"random"'],

    ["a negative delay", () => api.delay(-1), RangeError, '"delayMs"', "from 0", "-1"],
    ["a delay that is none", () => api.delay(NaN), RangeError, '"delayMs"', "NaN"],
    ["a delay as text", () => api.delay(wrong("5")), TypeError, '"delayMs"', '"5"'],
    ["time backwards", () => new api.ManualClock().advance(-1), RangeError, '"delayMs"', "-1"],

    ["tasks as text", () => api.supervise(wrong("x")), TypeError, '"tasks"', "a list", '"x"'],
    [
      "a task that does nothing",
      () => api.supervise([wrong({ name: "x" })]),
      TypeError,
      '"tasks[0].run"',
      "a function",
    ],
    [
      "a negative time to stop",
      () => api.supervise([], { shutdownTimeoutMs: -1 }),
      RangeError,
      "shutdownTimeoutMs",
      "-1",
    ],
    [
      "a time to stop without end",
      () => api.supervise([], { shutdownTimeoutMs: Infinity }),
      RangeError,
      "shutdownTimeoutMs",
      "Infinity",
    ],
    [
      "restarts without a delay",
      () => api.supervise([{ name: "x", run: rejected, restart: { baseMs: 0, maxMs: 1 } }]),
      RangeError,
      '"baseMs"',
    ],
    [
      "fewer than no restarts",
      () => api.supervise([{ name: "x", run: rejected, restart: { baseMs: 1, maxMs: 1, maxRestarts: -1 } }]),
      RangeError,
      '"tasks[0].restart.maxRestarts"',
      "-1",
    ],

    ["no options for signals", () => new api.ShutdownSignals(wrong()), TypeError, '"options"'],
    ["no source", () => new api.ShutdownSignals(wrong({ onForce() {} })), TypeError, '"source"', "undefined"],
    ["nothing to force", () => new api.ShutdownSignals(wrong({ source })), TypeError, '"onForce"', "a function"],
    [
      "a negative grace",
      () => new api.ShutdownSignals({ source, onForce() {}, graceMs: -5 }),
      RangeError,
      '"graceMs"',
      "-5",
    ],

    ["no options for a life", () => new api.Lifecycle(wrong()), TypeError, '"options"'],
    [
      "a role that is none",
      () => new api.Lifecycle({ role: wrong("boss") }),
      TypeError,
      '"role"',
      '"boss"',
      "initiator",
    ],
    [
      "keys for no time",
      () => new api.Lifecycle({ role: "initiator", rekeyIntervalMs: 0 }),
      RangeError,
      "above 0",
      "is 0",
    ],
    ["no options for a tunnel", () => new api.Tunnel(wrong()), TypeError, '"options"'],
    ["a tunnel to nobody", () => new api.Tunnel(wrong({ sampleTraffic })), TypeError, '"peer"', "undefined"],
    ["no traffic to look at", () => new api.Tunnel(wrong({ peer })), TypeError, '"sampleTraffic"', "a function"],
    [
      "an address to resolve",
      () => new api.Tunnel(wrong({ peer, sampleTraffic, resolve: "a" })),
      TypeError,
      '"resolve"',
    ],
    [
      "an interval beyond timers",
      () => new api.Tunnel({ peer, sampleTraffic, rekeyIntervalMs: 1e12 }),
      RangeError,
      "rekeyIntervalMs",
      "2147483647",
    ],

    ["no options for a device", () => api.MemoryDevice.pair(wrong(null)), TypeError, '"options"', "null"],
    [
      "an MTU of 19",
      () => api.MemoryDevice.pair({ mtuBytes: 19 }),
      RangeError,
      '"mtuBytes"',
      "from 20 to 65535",
      "is 19",
    ],
    ["an MTU of NaN", () => api.MemoryDevice.pair({ mtuBytes: NaN }), RangeError, '"mtuBytes"', "NaN"],
    ["room for nothing", () => api.MemoryDevice.pair({ capacity: 0 }), RangeError, '"capacity"', "from 1", "is 0"],
    ["room as text", () => api.MemoryUnderlay.pair({ capacity: wrong("9") }), TypeError, '"capacity"', '"9"'],
    ["no options for an underlay", () => api.MemoryUnderlay.pair(wrong(null)), TypeError, '"options"', "null"],
    ["no options to impair by", () => new api.ImpairedUnderlay(wrong()), TypeError, '"options"', "undefined"],
    ["nothing to impair", () => new api.ImpairedUnderlay(wrong({ seed: 1 })), TypeError, '"underlay"', "undefined"],
    ["no seed", () => new api.ImpairedUnderlay(wrong({ underlay })), TypeError, '"seed"', "undefined"],
    ["half a seed", () => new api.ImpairedUnderlay({ underlay, seed: 0.5 }), RangeError, '"seed"', "whole", "0.5"],
    ["a loss above all", () => impaired({ lossRate: 1.1 }), RangeError, '"lossRate"', "from 0 to 1", "is 1.1"],
    ["a loss of NaN", () => impaired({ lossRate: NaN }), RangeError, '"lossRate"', "NaN"],
    ["a loss as text", () => impaired({ lossRate: "1%" }), TypeError, '"lossRate"', '"1%"'],
    ["a delay backwards", () => impaired({ delayMs: -1 }), RangeError, '"delayMs"', "from 0 to 60000", "is -1"],
    ["jitter for ever", () => impaired({ jitterMs: Infinity }), RangeError, '"jitterMs"', "60000", "Infinity"],
    ["no options to record by", () => new api.RecordingDevice(wrong()), TypeError, '"options"', "undefined"],
    ["nothing to record", () => new api.RecordingDevice(wrong({})), TypeError, '"device"', "undefined"],
    ["a record of nothing", () => new api.RecordingDevice({ device, capacity: 0 }), RangeError, '"capacity"', "is 0"],

    ["a prefix as a number", () => api.parsePrefix(wrong(5)), TypeError, '"text"', "text", "5"],
    ["a prefix of a name", () => api.parsePrefix("eth0"), SyntaxError, "eth0", "10.9.0.0/24"],
    ["a prefix too long", () => api.parsePrefix("1.2.3.4/40"), SyntaxError, "0 to 32", "1.2.3.4/40"],
    ["an address of a name", () => api.addressBytes("eth0"), SyntaxError, "an IP address", "eth0"],
    ["an address as a number", () => api.addressBytes(wrong(5)), TypeError, '"address"', "5"],
    ["a configuration of nothing", () => api.parseNodeConfig(undefined), TypeError, "must be given"],
    ["a node of nothing", () => api.Node.open(wrong()), TypeError, "configuration must be given"],
    ["a node of an empty object", () => api.Node.open(wrong({})), TypeError, '"identityKeyFile"', '"peers"'],
  ]);
  assert.equal(batch.length, 0, "a packet that was refused is in the batch");
});

Deno.test("an engine and its networks", async () => {
  await using library = api.Library.open();
  using engine = api.Engine.create({ library });
  engine.addNetwork(NETWORK);
  const other = { ...NETWORK, vni: 2, routes: [{ src: "11.0.0.0/8", dst: "11.0.0.0/8" }] };
  const create = (options: object) => () => api.Engine.create(wrong({ library, ...options }));
  const add = (options: object) => () => engine.addNetwork(wrong({ ...other, ...options }));
  const [input, output] = [new api.PacketBatch(), new api.PacketBatch()];
  input.append(new Uint8Array(100));
  const key = "00112233445566778899aabbccddeeff";
  const install = { vni: 1, rxSpi: 1, txSpi: 2, rxKey: key, txKey: key, expiresAtNs: 1n };
  await checkAll([
    ["no options", () => api.Engine.create(wrong()), TypeError, '"options"', "undefined"],
    ["no library", () => api.Engine.create(wrong({})), TypeError, '"library"', "Library.open()", "undefined"],
    ["a library that is none", () => api.Engine.create({ library: wrong({}) }), TypeError, '"library"', "an object"],
    ["an unknown option", create({ bogus: 1 }), "invalid-argument", "bogus", "keepaliveMs"],
    [
      "a negative keepalive",
      create({ keepaliveMs: -1 }),
      "invalid-argument",
      "keepaliveMs",
      "-1",
      "from 0 to 4294967295",
    ],
    ["a keepalive that is none", create({ keepaliveMs: NaN }), TypeError, "keepaliveMs", "a finite number", "NaN"],
    ["a keepalive as a bigint", create({ keepaliveMs: 5n }), TypeError, "keepaliveMs", "5n"],
    ["a keepalive as text", create({ keepaliveMs: "25" }), "invalid-argument", "keepaliveMs", '"25"', "whole number"],
    ["a filter as text", create({ peerFilter: "no" }), "invalid-argument", "peerFilter", '"no"', "boolean"],
    ["ECN as a number", create({ copyEcn: 1 }), "invalid-argument", "copyEcn", "1", "boolean"],
    ["a large inner MTU", create({ innerMtuBytes: 70000 }), RangeError, '"innerMtuBytes"', "65535", "70000"],
    ["an inner MTU as text", create({ innerMtuBytes: "1" }), TypeError, '"innerMtuBytes"', '"1"'],
    ["a short hash key", create({ dangerFlowHashKey: "zz" }), "invalid-argument", "16 hexadecimal digits"],
    ["a hardware address", create({ ethernet: { hostMac: "x" } }), "invalid-argument", "hostMac", "'x'", "02:00:00"],
    ["half an Ethernet", create({ ethernet: {} }), "invalid-argument", "both", "gatewayMac"],
    ["an underlay as text", create({ rawUnderlay: "x" }), "invalid-argument", "underlay.raw", '"x"', "an object"],

    ["no network", () => engine.addNetwork(wrong()), TypeError, '"options"', "undefined"],
    ["a network twice", () => engine.addNetwork(NETWORK), "exists", "VNI 1", "exists already"],
    ["a VNI of 25 bits", add({ vni: 2 ** 24 }), "invalid-argument", "vni", "16777216", "0 to 16777215"],
    ["a VNI that is none", add({ vni: NaN }), TypeError, "vni", "NaN"],
    ["a peer by name", add({ peer: "example.org:1" }), "invalid-argument", "example.org:1", "192.0.2.1:6081"],
    ["no routes", add({ routes: undefined }), "invalid-argument", "routes"],
    ["routes as text", add({ routes: "x" }), "invalid-argument", "routes", '"x"', "a list"],
    ["host bits", add({ routes: [{ src: "10.0.0.1/8", dst: "10.0.0.0/8" }] }), "invalid-argument", "10.0.0.0/8?"],
    ["two IP versions", add({ routes: [{ src: "::/0", dst: "10.0.0.0/8" }] }), "invalid-argument", "IPv4 and IPv6"],
    ["another's route", add({ routes: ROUTES }), "invalid-argument", "10.0.0.0/8", /VNI 1|network 1/],
    ["a negative rate", add({ rxRateLimitPps: -1 }), "invalid-argument", "rxRateLimitPps", "-1", "from 0 to"],
    ["an update of nothing", () => engine.updateNetwork(other), "not-found", "VNI 2"],
    ["a removal of nothing", () => engine.removeNetwork(9), "not-found", "VNI 9", "there is 1", "add it first"],
    ["a removal of NaN", () => engine.removeNetwork(NaN), RangeError, '"vni"', "NaN"],
    ["a removal of a text", () => engine.removeNetwork(wrong("1")), TypeError, '"vni"', '"1"'],
    ["counters of nothing", () => engine.counters(9), "not-found", "VNI 9", "there is 1"],
    ["counters of VNI -1", () => engine.counters(-1), RangeError, '"vni"', "-1"],
    ["counters of the whole by its number", () => engine.counters(2 ** 32 - 1), RangeError, '"vni"', "16777215"],
    ["-1 refused packets", () => engine.countTxErrors(1, -1), RangeError, '"packets"', "from 0", "is -1"],
    ["NaN refused packets", () => engine.countTxErrors(1, NaN), RangeError, '"packets"', "NaN"],
    ["keys of nothing", () => engine.saStatus(9), "not-found", "VNI 9"],
    ["a negative inner MTU", () => engine.setInnerMtu(-1), RangeError, '"bytes"', "from 0 to 65535", "-1"],
    ["half a byte of inner MTU", () => engine.setInnerMtu(1.5), RangeError, '"bytes"', "1.5"],
    ["the system's clock", () => engine.dangerSetClock(1n), "wrong-state", "dangerManualClock"],
    ["a time that is no bigint", () => engine.dangerSetClock(wrong(1)), TypeError, '"nowNs"', "a bigint", "1"],
    ["SPI 0", () => engine.dangerInstall({ ...install, rxSpi: 0 }), "invalid-argument", "rxSpi", "from 1", "0"],
    [
      "keys for nothing",
      () => engine.dangerInstall({ ...install, vni: 9 }),
      "not-found",
      "9",
    ],
    ["a short key", () => engine.dangerInstall({ ...install, rxKey: "ab" }), "invalid-argument", "rxKey", "not shown"],

    ["a batch into itself", () => engine.virtToPhy(input, input), TypeError, "into itself", "another one"],
    ["no batch to read", () => engine.virtToPhy(wrong({}), output), TypeError, '"input"', "a PacketBatch"],
    ["no batch to fill", () => engine.phyToVirt(input, wrong()), TypeError, '"output"', "a PacketBatch", "undefined"],
    ["a start beyond the end", () => engine.virtToPhy(input, output, { from: 9 }), RangeError, "0 to 1", "9"],
    [
      "an output without room for what is due",
      () => engine.toPhy(new api.PacketBatch({ bufferBytes: 8 })),
      RangeError,
      "room for one packet",
      "8 bytes",
      '"bufferBytes"',
    ],

    ["a path of 90 bytes", () => api.innerMtu(library, 90), "invalid-argument", "112 bytes at least", "90"],
    ["a path of -1 bytes", () => api.innerMtu(library, -1), RangeError, '"pathMtuBytes"', "-1"],
    ["a path for no library", () => api.innerMtu(wrong(), 1500), TypeError, '"library"', "Library.open()"],
  ]);
  assert.deepEqual(engine.networks, [1], "a network that was refused is there");
  engine.addNetwork(other);

  engine.close();
  await checkAll([
    ["a closed engine", () => engine.addNetwork(NETWORK), "closed", "engine", "closed", "open another one"],
    ["counters of a closed engine", () => engine.counters(), "closed", "engine"],
    ["a network of a closed engine", () => engine.saStatus(77), "closed", "engine"],
  ]);
  await library.close();
  await checkAll([
    ["an engine of a closed library", () => api.Engine.create({ library }), "closed", "closed", "open it again"],
  ]);
});

Deno.test("devices, sockets and datapaths", async () => {
  await using library = api.Library.open();
  using engine = api.Engine.create({ library });
  await using taken = api.UdpUnderlay.open({ library, port: 0, localAddress: "127.0.0.1" });
  const tun = (options: object) => () => api.TunDevice.open(wrong({ library, name: "icxq", ...options }));
  const udp = (options: object) => () => api.UdpUnderlay.open(wrong({ library, port: 0, ...options }));
  await checkAll([
    ["no options for a device", () => api.TunDevice.open(wrong()), TypeError, '"options"'],
    ["no library for a device", () => api.TunDevice.open(wrong({})), TypeError, '"library"', "Library.open()"],
    ["a name with a space", tun({ name: "a b" }), "invalid-argument", "'a b'", "1 to 15 bytes"],
    ["a name of 16", tun({ name: "sixteen-letters-" }), "invalid-argument", "sixteen-letters-", "1 to 15 bytes"],
    ["a pattern", tun({ name: "icx%d" }), "invalid-argument", "icx%d", "'%'"],
    ["an MTU of 1", tun({ mtuBytes: 1 }), "invalid-argument", "MTU 1", "68 to 65535"],
    ["an MTU for IPv4 alone", tun({ mtuBytes: 1000, addresses: ["fd00::1/64"] }), "invalid-argument", "1280"],
    ["an address that is none", tun({ addresses: ["x"] }), "invalid-argument", "addresses[0]", "'x'", "10.9.0.1/24"],
    ["a multicast address", tun({ addresses: ["224.0.0.1/24"] }), "invalid-argument", "224.0.0.1/24", "unicast"],
    ["addresses as text", tun({ addresses: "10.0.0.1/8" }), "invalid-argument", "addresses", "a list"],

    ["no library for sockets", () => api.UdpUnderlay.open(wrong({})), TypeError, '"library"', "Library.open()"],
    ["port 70000", udp({ port: 70000 }), "invalid-argument", "port", "70000", "from 0 to 65535"],
    ["port -1", udp({ port: -1 }), "invalid-argument", "port", "-1", "from 0 to 65535"],
    ["an address as a number", udp({ localAddress: 5 }), "invalid-argument", "localAddress", "5"],
    ["an address of a name", udp({ localAddress: "x" }), "invalid-argument", "localAddress", "'x'", "192.0.2.1"],
    ["an address of another host", udp({ localAddress: "192.0.2.99" }), "system", "192.0.2.99", "ip addr"],
    ["two IP versions", udp({ localAddress: "127.0.0.1", family: "ipv6" }), "invalid-argument", "127.0.0.1", "IPv6"],
    ["a family that is none", udp({ family: "x" }), "invalid-argument", "family", "`x`", "dual"],
    [
      "a port in use",
      udp({ localAddress: "127.0.0.1", port: taken.port }),
      "busy",
      String(taken.port),
      "in use",
      "ss -lunp",
    ],

    ["no options for a datapath", () => api.TunDatapath.open(wrong()), TypeError, '"options"'],
    ["a datapath of nothing", () => api.TunDatapath.open(wrong({})), TypeError, '"device"', "undefined"],
    [
      "a datapath without an engine",
      () => api.TunDatapath.open(wrong({ device: { library }, underlay: { library, port: 0 } })),
      TypeError,
      '"engine"',
      "an Engine",
    ],
    [
      "a datapath without an underlay",
      () => api.TunDatapath.open(wrong({ device: { library }, engine })),
      TypeError,
      '"underlay"',
      "undefined",
    ],
  ]);
});

Deno.test("identities, peers and control endpoints", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-api-");
  try {
    await using library = api.Library.open();
    const file = `${folder}/node.key`;
    using identity = api.Identity.generate(file, { library });
    using other = api.Identity.generate(`${folder}/other.key`, { library });
    const pem = await fs.readFile(file, "utf8");
    using engine = api.Engine.create({ library });
    engine.addNetwork(NETWORK);
    await using endpoint = api.ControlEndpoint.open({ library, identity, localAddress: "127.0.0.1", port: 0 });
    const open = (options: object) => () => api.ControlEndpoint.open(wrong({ library, identity, port: 0, ...options }));
    const peer = { engine, vni: 1, publicKey: other.publicKey };
    const add = (options: object) => () => endpoint.addPeer(wrong({ ...peer, ...options }));
    await checkAll([
      ["no options for a key", () => api.Identity.load(file, wrong()), TypeError, '"options"'],
      ["no library for a key", () => api.Identity.load(file, wrong({})), TypeError, '"library"', "Library.open()"],
      ["a number for a file", () => api.Identity.load(wrong(5), { library }), TypeError, '"file"', "5"],
      ["no such key", () => api.Identity.load("/nonexistent", { library }), "ENOENT", "/nonexistent", "icx genkey"],
      ["a folder", () => api.Identity.load(folder, { library }), "EKEY", folder, "is a directory"],
      ["a key that exists", () => api.Identity.generate(file, { library }), "EEXIST", file, "another path"],
      ["a key without a name", () => api.Identity.generate("", { library }), "EINVAL", "names no file"],
      ["a key into nothing", () => api.Identity.generate(`${folder}/a/b`, { library }), "ENOENT", "mkdir -p"],
      ["a key for no library", () => api.parsePeerKey("x", wrong({})), TypeError, '"library"'],
      ["a key as a number", () => api.parsePeerKey(wrong(5), { library }), TypeError, '"text"', "5"],
      ["a key that is none", () => api.parsePeerKey("x", { library }), "EKEY", "124 characters", "icx pubkey"],
      ["an empty key", () => api.parsePeerKey("", { library }), "EKEY", "124 characters", "nothing"],
      ["neither", () => api.parsePeerKey("x.pub", { library, allowFile: true }), "EKEY", '"x.pub"', "neither a file"],
      ["a private key", () => api.parsePeerKey(pem, { library, allowFile: true }), "EKEY", "not shown"],
      ["a file of one", () => api.parsePeerKey(file, { library, allowFile: true }), "EKEY", file, "private key"],
      ["no keys", () => api.tunnelRole(library, wrong()), TypeError, '"keys"'],
      [
        "equal keys",
        () => api.tunnelRole(library, { local: identity.publicKey, peer: identity.publicKey }),
        "EKEY",
        "this node's own",
        "icx pubkey",
      ],

      ["no options for an endpoint", () => api.ControlEndpoint.open(wrong()), TypeError, '"options"'],
      ["an endpoint of nobody", open({ identity: undefined }), TypeError, '"identity"', "an Identity", "undefined"],
      ["an endpoint at port -1", open({ port: -1 }), "EINVAL", "port", "-1", "from 0 to 65535"],
      ["an endpoint elsewhere", open({ localAddress: "192.0.2.99" }), "ESYS", "192.0.2.99", "ip addr"],
      ["an endpoint nowhere", open({ localAddress: "x" }), "EINVAL", "localAddress", "'x'"],
      [
        "a port in use",
        open({ localAddress: "127.0.0.1", port: endpoint.port }),
        "EBUSY",
        String(endpoint.port),
        "ss -lunp",
      ],
      ["a peer of nothing", () => endpoint.addPeer(wrong()), TypeError, '"options"'],
      ["a peer without an engine", add({ engine: undefined }), TypeError, '"engine"', "an Engine"],
      ["a peer of no network", add({ vni: 9 }), "ENOENT", '"vni"', "1", "is 9", "add the network first"],
      ["a peer with our key", add({ publicKey: identity.publicKey }), "EKEY", "this node's own"],
      ["a peer with no key", add({ publicKey: "x" }), "EINVAL", "peerKey", "124 characters"],
      ["keys for no time", add({ keyLifetimeMs: 0 }), RangeError, '"keyLifetimeMs"', "from 1 to 4294967295", "is 0"],
      ["keys for less than none", add({ keyLifetimeMs: -1 }), RangeError, '"keyLifetimeMs"', "from 1", "is -1"],
      ["keys for ever", add({ keyLifetimeMs: Infinity }), RangeError, '"keyLifetimeMs"', "4294967295", "Infinity"],
      ["keys for 50 days", add({ keyLifetimeMs: 2 ** 32 }), RangeError, '"keyLifetimeMs"', "4294967295", "4294967296"],
      ["keys for NaN", add({ keyLifetimeMs: NaN }), RangeError, '"keyLifetimeMs"', "NaN"],
      ["keys for half a millisecond", add({ keyLifetimeMs: 1.5 }), RangeError, '"keyLifetimeMs"', "whole", "1.5"],
      ["keys for a text", add({ keyLifetimeMs: "1h" }), TypeError, '"keyLifetimeMs"', '"1h"'],
    ]);
    const first = endpoint.addPeer(peer);
    const dial = (address: unknown, answerTimeoutMs: unknown) => () =>
      first.dial(wrong(address), { answerTimeoutMs: wrong(answerTimeoutMs) });
    await checkAll([
      ["a peer twice", add({}), "EEXIST", other.fingerprint, "another peer"],
      ["a dial of a number", dial(1, 1000), TypeError, '"address"', "text", "1"],
      ["a dial without options", () => first.dial("127.0.0.1:1", wrong()), TypeError, '"options"', "undefined"],
      ["a dial in no time", dial("127.0.0.1:1", 0), RangeError, '"answerTimeoutMs"', "above 0", "is 0"],
      [
        "a dial again at once",
        () => first.dial("127.0.0.1:1", { answerTimeoutMs: 1, repeatAfterMs: 0 }),
        RangeError,
        '"repeatAfterMs"',
        "above 0",
        "is 0",
      ],
      ["a dial in NaN", dial("127.0.0.1:1", NaN), RangeError, '"answerTimeoutMs"', "NaN"],
      ["an exchange without options", () => first.exchange(wrong()), TypeError, '"options"', "undefined"],
      ["an exchange in no time", () => first.exchange({ timeoutMs: 0 }), RangeError, '"timeoutMs"', "above 0", "is 0"],
      ["an exchange in -1 ms", () => first.exchange({ timeoutMs: -1 }), RangeError, '"timeoutMs"', "is -1"],
      ["an exchange for ever", () => first.exchange({ timeoutMs: Infinity }), RangeError, '"timeoutMs"', "Infinity"],
    ]);
    await endpoint.close();
    await checkAll([
      ["a peer of a closed endpoint", add({}), "ECLOSED", "closed", "open another one"],
      ["a dial of a closed endpoint", () => first.dial("127.0.0.1:1", { answerTimeoutMs: 1 }), "ECLOSED", "closed"],
    ]);
    identity.close();
    await checkAll([["an endpoint of a closed identity", open({}), "ECLOSED", "identity", "closed"]]);
    assert.deepEqual((await fs.readdir(folder)).sort(), ["node.key", "other.key"]);
    assert.equal(await fs.readFile(file, "utf8"), pem);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

Deno.test("nodes, before anything of the system is asked for", async () => {
  const folder = await fs.mkdtemp("/tmp/icx-api-");
  try {
    await using library = api.Library.open();
    using identity = api.Identity.generate(`${folder}/node.key`, { library });
    using other = api.Identity.generate(`${folder}/other.key`, { library });
    const peer = (vni: number, publicKey: string) => ({
      host: "192.0.2.1",
      publicKey,
      vni,
      allowedRoutes: [{ src: "10.0.0.0/16", dst: `10.${vni}.0.0/16` }],
    });
    const config = (more: object) =>
      wrong({ identityKeyFile: `${folder}/node.key`, port: 1, peers: [peer(1, other.publicKey)], ...more });
    await checkAll([
      [
        "an unknown field",
        () => api.Node.open(config({ bogus: 1 }), { library }),
        TypeError,
        '"bogus"',
        "known fields",
      ],
      [
        "one key for two peers",
        () => api.Node.open(config({ peers: [peer(1, other.publicKey), peer(2, other.publicKey)] }), { library }),
        TypeError,
        "peers[1].publicKey",
        "peers[0]",
        other.fingerprint,
      ],
      [
        "the own key",
        () => api.Node.open(config({ peers: [peer(1, identity.publicKey)] }), { library }),
        "EKEY",
        "this node's own",
      ],
      [
        "no identity",
        () => api.Node.open(config({ identityKeyFile: "/nonexistent" }), { library }),
        "ENOENT",
        "genkey",
      ],
      [
        "no interface",
        () => api.Node.open(config({ interface: "nosuch0" }), { library }),
        "ENOENT",
        "nosuch0",
        "ip link",
      ],
      [
        "a listener that is none",
        () => api.Node.open(config({}), { library, onEvent: wrong(1) }),
        TypeError,
        '"onEvent"',
      ],
      ["a library that is none", () => api.Node.open(config({}), { library: wrong({}) }), TypeError, '"library"'],
      [
        "nobody",
        () => api.Node.open(config({}), { library, identity: wrong({}) }),
        TypeError,
        '"identity"',
        "an Identity",
      ],
    ]);
    assert.equal(library.handleCount(), 2, "something of a node that was not opened is still there");
  } finally {
    await fs.rm(folder, { recursive: true });
  }
});

Deno.test("network stacks", async () => {
  await using library = api.Library.open();
  using engine = api.Engine.create({ library });
  const [underlay] = api.MemoryUnderlay.pair();
  const open = (options: object) => api.Netstack.open({ library, addresses: ["10.0.0.1/8"], ...options });
  await using stack = open({});
  using socket = stack.listenDatagram({ port: 0 });
  const to = { hostname: "10.0.0.2", port: 1 };
  const closed = open({});
  await closed.close();
  await checkAll([
    ["no options", () => api.Netstack.open(wrong()), TypeError, '"options"', "undefined"],
    ["no library", () => open({ library: undefined }), TypeError, '"library"', "Library.open()"],
    ["no address", () => open({ addresses: [] }), "invalid-argument", "1 to 8 addresses", "0"],
    ["an address without a prefix length", () => open({ addresses: ["10.0.0.1"] }), "invalid-argument", "'10.0.0.1'"],
    ["addresses as text", () => open({ addresses: "10.0.0.1/8" }), "invalid-argument", "'addresses'", "a list"],
    ["an MTU of 67", () => open({ mtuBytes: 67 }), "invalid-argument", "MTU 67", "68 to 65535"],
    [
      "an MTU too small for IPv6",
      () => open({ addresses: ["fd00::1/64"], mtuBytes: 1279 }),
      "invalid-argument",
      "1280",
    ],
    ["a buffer of 1 byte", () => open({ sendBufferBytes: 1 }), "invalid-argument", "a send buffer", "4096", "not 1"],
    ["a negative timeout", () => open({ connectTimeoutMs: -1 }), "invalid-argument", "'connectTimeoutMs'", "-1"],
    ["no such control", () => open({ congestion: "vegas" }), "invalid-argument", "'congestion'", "vegas"],
    ["a name for a server", () => open({ nameServers: ["dns"] }), "invalid-argument", "'nameServers[0]'", "dns"],
    ["five servers", () => open({ nameServers: Array(5).fill("10.0.0.3") }), "invalid-argument", "at most 4", "5"],
    ["an option too many", () => open({ colour: 1 }), "invalid-argument", "'colour'", "unknown"],

    ["nowhere to connect", () => stack.connect(wrong()), TypeError, '"options"', "undefined"],
    ["a number for a host", () => stack.connect({ hostname: wrong(5), port: 1 }), TypeError, '"hostname"', "text", "5"],
    ["port 0 to connect", () => stack.connect({ ...to, port: 0 }), RangeError, '"port"', "from 1 to 65535", "is 0"],
    ["a port as text", () => stack.connect({ ...to, port: wrong("80") }), TypeError, '"port"', '"80"'],
    ["no port to listen", () => stack.listen(wrong({})), TypeError, '"port"', "from 0 to 65535", "undefined"],
    ["port 65536 to listen", () => stack.listen({ port: 65536 }), RangeError, '"port"', "65536"],
    ["port -1 for datagrams", () => stack.listenDatagram({ port: -1 }), RangeError, '"port"', "-1"],
    ["text for a datagram", () => socket.send(wrong("x"), to), TypeError, '"p"', "a Uint8Array", '"x"'],
    ["a datagram to nobody", () => socket.send(new Uint8Array(1), wrong()), TypeError, '"addr"', "undefined"],
    [
      "a datagram to port 0",
      () => socket.send(new Uint8Array(1), { ...to, port: 0 }),
      RangeError,
      '"addr.port"',
      "is 0",
    ],
    ["a datagram to a name", () => socket.send(new Uint8Array(1), { ...to, hostname: "x" }), SyntaxError, '"x"'],
    ["1201 bytes to ping", () => stack.ping("10.0.0.2", { payloadBytes: 1201 }), RangeError, "0 to 1200", "1201"],
    ["no time to ping", () => stack.ping("10.0.0.2", { timeoutMs: NaN }), RangeError, '"timeoutMs"', "NaN"],
    ["no name", () => stack.resolve(wrong(null)), TypeError, '"name"', "null"],
    ["a name and no server", () => stack.resolve("a.example"), Deno.errors.NotSupported, "a.example", "give one"],
    ["a closed stack", () => closed.connect(to), Deno.errors.BadResource, "is closed", "open another one"],

    ["no parts", () => api.NetstackDatapath.open(wrong()), TypeError, '"options"', "undefined"],
    ["no stack", () => api.NetstackDatapath.open({ stack: wrong(), underlay, engine }), TypeError, '"stack"'],
    ["no underlay", () => api.NetstackDatapath.open({ stack, underlay: wrong(), engine }), TypeError, '"underlay"'],
    [
      "no engine",
      () => api.NetstackDatapath.open({ stack, underlay, engine: wrong(1) }),
      TypeError,
      '"engine"',
      "an Engine",
    ],
  ]);
});
