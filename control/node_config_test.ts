import { deepStrictEqual, ok, throws } from "node:assert/strict";
import { nodeConfigWarnings, parseNodeConfig } from "./node_config.ts";

const PEER = { host: "192.0.2.1", publicKey: "peer.pub" };
const NODE = { identityKeyFile: "node.key", peers: [PEER] };

Deno.test("parseNodeConfig() fills in the defaults of the protocol", () => {
  deepStrictEqual(parseNodeConfig(NODE), {
    identityKeyFile: "node.key",
    localAddress: undefined,
    interface: undefined,
    port: 6081,
    controlPort: 6082,
    device: { name: "icx0", addresses: [], mtuBytes: undefined },
    rekeyIntervalMs: 120_000,
    keepaliveMs: 25_000,
    peerFilter: true,
    sourcePortHashing: false,
    copyEcn: false,
    copyDscp: false,
    outerUdpChecksum: false,
    datapath: "auto",
    afxdp: {
      device: undefined,
      attach: "auto",
      zeroCopy: "auto",
      cpuPin: false,
      busyPoll: undefined,
      pcapFile: undefined,
    },
    netstack: {
      nameServers: [],
      receiveBufferBytes: 2 ** 19,
      sendBufferBytes: 2 ** 19,
      congestion: "cubic",
      maxConnections: 4096,
    },
    queues: undefined,
    latency: "balanced",
    clampMss: false,
    offload: { tso: true, uso: true, gro: true, udpGso: true, udpGro: true },
    peers: [{
      host: "192.0.2.1",
      port: 6081,
      controlPort: 6082,
      publicKey: "peer.pub",
      vni: 1,
      allowedRoutes: [{ src: "0.0.0.0/0", dst: "0.0.0.0/0" }, { src: "::/0", dst: "::/0" }],
      rxRateLimitPps: 0,
    }],
  });
});

Deno.test("parseNodeConfig() takes the peer's control port from the own one", () => {
  const config = parseNodeConfig({ ...NODE, controlPort: 7000 });
  deepStrictEqual(config.peers.map(({ controlPort }) => controlPort), [7000]);
});

/** What the message has to say: one fault in the same line, several in a line each. */
function faultsOf({ message }: Error): readonly string[] {
  const title = "Cannot use the configuration:";
  ok(message.startsWith(title), message);
  const rest = message.slice(title.length);
  return rest.startsWith("\n- ") ? rest.split("\n- ").slice(1) : [rest.slice(1)];
}

Deno.test("parseNodeConfig() names the field, what it must be and what it is", () => {
  const rows: [string, unknown, string][] = [
    ["nothing at all", undefined, "the configuration must be given"],
    ["a text", "x", 'the configuration must be an object: current value is "x"'],
    ["no identity", { peers: [PEER] }, '"identityKeyFile" must be given'],
    [
      "an unknown field",
      { ...NODE, portt: 1 },
      'the configuration must have known fields only: current value has "portt"',
    ],
    ["no peers", { ...NODE, peers: [] }, '"peers" must have at least one entry: current value is []'],
    ["port 0", { ...NODE, port: 0 }, '"port" must be an integer from 1 to 65535: current value is 0'],
    ["a fractional port", { ...NODE, port: 1.5 }, '"port" must be an integer from 1 to 65535: current value is 1.5'],
    ["no queues", { ...NODE, queues: 0 }, '"queues" must be an integer from 1 to 64: current value is 0'],
    [
      "an unknown latency",
      { ...NODE, latency: "none" },
      '"latency" must be "low", "balanced" or "idle": current value is "none"',
    ],
    [
      "an offload that is neither on nor off",
      { ...NODE, offload: { tso: "on" } },
      '"offload.tso" must be true or false: current value is "on"',
    ],
    ["equal ports", { ...NODE, port: 6082 }, '"controlPort" must differ from "port"'],
    [
      "a short rekey interval",
      { ...NODE, rekeyIntervalMs: 10 },
      '"rekeyIntervalMs" must be an integer from 1000 to 43200000: current value is 10',
    ],
    [
      "a local name",
      { ...NODE, localAddress: "eth0" },
      '"localAddress" must be an IP address, such as 192.0.2.1 or 2001:db8::1: current value is "eth0"',
    ],
    [
      "a long device name",
      { ...NODE, device: { name: "a-name-of-16-byt" } },
      '"device.name" must be an interface name: 1 to 15 bytes without space, slash, colon or percent sign: current value is "a-name-of-16-byt"',
    ],
    [
      "a device address without sense",
      { ...NODE, device: { addresses: ["10.9.0.1/24", "10.9.0.x/24"] } },
      '"device.addresses[1]" must be an IP address with prefix length, such as 10.9.0.1/24: current value is "10.9.0.x/24"',
    ],
    [
      "a VNI of 25 bits",
      { ...NODE, peers: [{ ...PEER, vni: 2 ** 24 }] },
      '"peers[0].vni" must be an integer from 0 to 16777215: current value is 16777216',
    ],
    [
      "one VNI for two peers",
      { ...NODE, peers: [PEER, { ...PEER, allowedRoutes: [{ src: "10.0.0.0/8", dst: "10.0.0.0/8" }] }] },
      '"peers[1].vni" must differ from that of peers[0]',
    ],
    [
      "one route for two peers",
      { ...NODE, peers: [PEER, { ...PEER, vni: 2 }] },
      '"peers[1].allowedRoutes[0]" must belong to one peer: 0.0.0.0/0=0.0.0.0/0 is among those of peers[0] too',
    ],
    [
      "host bits in a route",
      { ...NODE, peers: [{ ...PEER, allowedRoutes: [{ src: "10.9.0.1/24", dst: "10.8.0.0/16" }] }] },
      '"peers[0].allowedRoutes[0].src" must have no bits set behind the prefix: 10.9.0.0/24 would do: current value is "10.9.0.1/24"',
    ],
    [
      "a route across IP versions",
      { ...NODE, peers: [{ ...PEER, allowedRoutes: [{ src: "10.9.0.0/24", dst: "::/0" }] }] },
      '"peers[0].allowedRoutes[0]" must have "src" and "dst" of one IP version',
    ],
    [
      "a host with a port",
      { ...NODE, peers: [{ ...PEER, host: "[::1]:6081" }] },
      '"peers[0].host" must be a host name or an IP address, without brackets or port: current value is "[::1]:6081"',
    ],
    [
      "a route that is none",
      { ...NODE, peers: [{ ...PEER, allowedRoutes: [{ src: "300.0.0.1/8", dst: "10.8.0.0/16" }] }] },
      '"peers[0].allowedRoutes[0].src" must be a prefix, such as 10.9.0.0/24 or 2001:db8::/32: current value is "300.0.0.1/8"',
    ],
    [
      "an address with a mistake in it",
      { ...NODE, peers: [{ ...PEER, host: "256.1.1.1" }] },
      '"peers[0].host" must be a host name or an IP address: current value is "256.1.1.1"',
    ],
    ...["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"].map((host): [string, unknown, string] => [
      `the peer ${host}`,
      { ...NODE, peers: [{ ...PEER, host }] },
      `"peers[0].host" must be an address that one host can have: current value is "${host}"`,
    ]),
    [
      "a peer of another IP version than the local address",
      { ...NODE, localAddress: "2001:db8::1" },
      '"peers[0].host" must be of the IP version of "localAddress", which is 2001:db8::1: current value is "192.0.2.1"',
    ],
    [
      "a local address with a zone",
      { ...NODE, localAddress: "fe80::1%eth0" },
      '"localAddress" must be an IP address, such as 192.0.2.1 or 2001:db8::1: current value is "fe80::1%eth0"',
    ],
    [
      "an interface that cannot be one",
      { ...NODE, interface: "a/b" },
      '"interface" must be an interface name: 1 to 15 bytes without space, slash, colon or percent sign: current value is "a/b"',
    ],
    [
      "a pattern for a device name",
      { ...NODE, device: { name: "icx%d" } },
      '"device.name" must be an interface name',
    ],
    [
      "a multicast device address",
      { ...NODE, device: { addresses: ["224.0.0.1/24"] } },
      '"device.addresses[0]" must be a unicast address, such as 10.9.0.1/24: current value is "224.0.0.1/24"',
    ],
    [
      "a device address given twice",
      { ...NODE, device: { addresses: ["10.9.0.1/24", "10.9.0.1/16"] } },
      '"device.addresses[1]" must be given once: it is that of addresses[0], 10.9.0.1/24, too',
    ],
    [
      "an MTU too small for IPv6",
      { ...NODE, device: { addresses: ["fd00::1/64"], mtuBytes: 1279 } },
      '"device.mtuBytes" must be at least 1280 with an IPv6 address (RFC 8200 section 5): current value is 1279',
    ],
    ["a bigint", { ...NODE, port: 5n }, '"port" must be an integer from 1 to 65535: current value is 5n'],
    [
      "a filter that is a text",
      { ...NODE, peerFilter: "no" },
      '"peerFilter" must be true or false: current value is "no"',
    ],
    ["a number for ECN", { ...NODE, copyEcn: 1 }, '"copyEcn" must be true or false: current value is 1'],
    ["a text for DSCP", { ...NODE, copyDscp: "EF" }, '"copyDscp" must be true or false: current value is "EF"'],
  ];
  for (const [name, input, line] of rows) {
    throws(() => parseNodeConfig(input), (error) => {
      ok(error instanceof TypeError, name);
      ok(faultsOf(error).some((found) => found.startsWith(line)), `${name}: ${error.message}`);
      return true;
    });
  }
});

Deno.test("parseNodeConfig() reports every fault at once", () => {
  throws(() => parseNodeConfig({ ...NODE, port: 0, keepaliveMs: -1 }), /"port".*\n.*"keepaliveMs"/);
});

Deno.test("parseNodeConfig() takes what it gave", () => {
  const config = parseNodeConfig({ ...NODE, interface: "eth0", device: { mtuBytes: 1280, addresses: ["fd00::1/64"] } });
  deepStrictEqual(parseNodeConfig(config), config);
});

Deno.test("nodeConfigWarnings() points at open routes and an open filter", () => {
  const open = nodeConfigWarnings(parseNodeConfig({ ...NODE, peerFilter: false }));
  ok(open[0]?.includes("192.0.2.1 (0.0.0.0/0=0.0.0.0/0 and ::/0=::/0)"));
  ok(open[1]?.includes("peer filter is off"));
  const route = { src: "10.9.0.0/24", dst: "10.8.0.0/16" };
  deepStrictEqual(nodeConfigWarnings(parseNodeConfig({ ...NODE, peers: [{ ...PEER, allowedRoutes: [route] }] })), []);
});
