import { deepStrictEqual, ok, strictEqual, throws } from "node:assert/strict";
import { UsageError } from "./exit.ts";
import { type Arguments, parseArguments, type UpArguments } from "./options.ts";
import { inTermsOfOptions, nodeConfigOf } from "./tunnel_config.ts";

function parse(...args: readonly string[]): UpArguments {
  const parsed: Arguments = parseArguments(["--identity-key", "node.key", "--peer-key", "peer.pub", ...args], {
    onError: (_, message) => {
      throw new Error(JSON.stringify(message));
    },
    stderr: () => {},
  });
  if (parsed.command !== "up") throw new Error(`parsed as ${parsed.command}`);
  return parsed;
}

Deno.test("the defaults are those of the protocol", () => {
  const config = nodeConfigOf(parse("peer.example:6081"));
  strictEqual(config.port, 6081);
  strictEqual(config.controlPort, 6082);
  strictEqual(config.rekeyIntervalMs, 120_000);
  strictEqual(config.keepaliveMs, 25_000);
  ok(config.peerFilter);
  ok(!config.sourcePortHashing);
  ok(!config.copyEcn);
  ok(!config.copyDscp);
  strictEqual(config.queues, undefined);
  strictEqual(config.latency, "balanced");
  deepStrictEqual(config.offload, { tso: true, uso: true, gro: true, udpGso: true, udpGro: true });
  strictEqual(config.localAddress, undefined);
  deepStrictEqual(config.device, { name: "icx0", addresses: [], mtuBytes: undefined });
  deepStrictEqual(config.peers, [{
    host: "peer.example",
    port: 6081,
    controlPort: 6082,
    publicKey: "peer.pub",
    vni: 1,
    allowedRoutes: [{ src: "0.0.0.0/0", dst: "0.0.0.0/0" }, { src: "::/0", dst: "::/0" }],
    rxRateLimitPps: 0,
  }]);
});

/** What is said of AF_XDP where nothing is asked for. */
const NO_AFXDP = {
  device: undefined,
  attach: "auto",
  zeroCopy: "auto",
  cpuPin: false,
  busyPoll: undefined,
  pcapFile: undefined,
} as const;

Deno.test("the options of AF_XDP reach the configuration", () => {
  const config = nodeConfigOf(parse(
    ...["--datapath", "afxdp", "--device", "tun", "--xdp-attach", "generic", "--zero-copy", "off", "--cpu-pin"],
    ...[
      "--busy-poll",
      "20",
      "--busy-poll-budget",
      "8",
      "--pcap-file",
      "both.pcapng",
      "--outer-udp-checksum",
      "peer:6081",
    ],
  ));
  strictEqual(config.datapath, "afxdp");
  ok(config.outerUdpChecksum);
  deepStrictEqual(config.afxdp, {
    device: "tun",
    attach: "generic",
    zeroCopy: "off",
    cpuPin: true,
    busyPoll: { microseconds: 20, budget: 8 },
    pcapFile: "both.pcapng",
  });
  deepStrictEqual(nodeConfigOf(parse("--datapath", "afxdp", "peer:6081")).afxdp, NO_AFXDP);
});

const USUAL_STACK = {
  nameServers: [],
  receiveBufferBytes: 2 ** 19,
  sendBufferBytes: 2 ** 19,
  congestion: "cubic",
  maxConnections: 4096,
};

Deno.test("each option reaches the configuration", () => {
  const config = nodeConfigOf(parse(
    ...["--local-address", "2001:db8::1", "-p", "7081", "--control-port", "7082", "--peer-control-port", "7083"],
    ...["--interface", "eth3"],
    ...["-v", "42", "--rekey-interval", "90s", "-t", "tun7", "-m", "1280", "--source-port-hash", "--no-peer-ip-filter"],
    ...["--copy-ecn", "--copy-dscp"],
    ...["--queues", "3", "--latency", "low", "--clamp-mss", "--offload", "all=off,udp-gro=on", "--offload", "tso=on"],
    ...["--rx-rate-limit", "1000", "--address", "10.9.0.1/24", "--address", "fd00::1/64"],
    ...["--allowed-route", "10.9.0.1/32=10.9.0.2/32", "--allowed-route", "fd00::/64", "[2001:db8::2]:7084"],
  ));
  deepStrictEqual(config, {
    identityKeyFile: "node.key",
    localAddress: "2001:db8::1",
    interface: "eth3",
    port: 7081,
    controlPort: 7082,
    device: { name: "tun7", addresses: ["10.9.0.1/24", "fd00::1/64"], mtuBytes: 1280 },
    rekeyIntervalMs: 90_000,
    keepaliveMs: 25_000,
    peerFilter: false,
    sourcePortHashing: true,
    copyEcn: true,
    copyDscp: true,
    outerUdpChecksum: false,
    datapath: "auto",
    afxdp: NO_AFXDP,
    netstack: USUAL_STACK,
    queues: 3,
    latency: "low",
    clampMss: true,
    offload: { tso: true, uso: false, gro: false, udpGso: false, udpGro: true },
    peers: [{
      host: "2001:db8::2",
      port: 7084,
      controlPort: 7083,
      publicKey: "peer.pub",
      vni: 42,
      allowedRoutes: [{ src: "10.9.0.1/32", dst: "10.9.0.2/32" }, { src: "fd00::/64", dst: "fd00::/64" }],
      rxRateLimitPps: 1000,
    }],
  });
});

Deno.test("name servers reach the configuration of a stack in the process", () => {
  const args = ["--datapath", "netstack", "--address", "10.9.0.1/24"];
  const { datapath, netstack } = nodeConfigOf(
    parse(...args, "--name-server", "10.9.0.53", "--name-server", "fd00::53", "peer:6081"),
  );
  strictEqual(datapath, "netstack");
  deepStrictEqual(netstack, { ...USUAL_STACK, nameServers: ["10.9.0.53", "fd00::53"] });
});

Deno.test("the peer's control port follows the own one", () => {
  strictEqual(nodeConfigOf(parse("--control-port", "7082", "peer:6081")).peers[0]?.controlPort, 7082);
});

Deno.test("what does not fit together is told in terms of the options", () => {
  const rows = [
    [["--port", "6082"], "--control-port", "6082"],
    [["--allowed-route", "10.9.0.1/24"], "--allowed-route", "10.9.0.0/24"],
    [["--allowed-route", "10.9.0.0/24=fd00::/64"], "--allowed-route", "IP version"],
    [["--address", "10.9.0.1/33"], "--address", "10.9.0.1/33"],
    [["--local-address", "300.0.0.1"], "--local-address", "300.0.0.1"],
    [["--outer-udp-checksum"], "--outer-udp-checksum", "leave it out, or add --datapath afxdp"],
    [["--datapath", "afxdp", "--busy-poll-budget", "8"], "--busy-poll-budget", "add it"],
    [["--datapath", "afxdp", "-t", "twelve-bytes"], "--tun-device", "11 bytes"],
    [["--datapath", "afxdp", "--zero-copy", "require"], "--zero-copy", 'use device "tun"'],
    [["--datapath", "netstack"], "--address", "1 to 8 entries"],
    [
      ["--datapath", "netstack", "--address", "10.9.0.1/24", "--name-server", "300.0.0.1"],
      "--name-server",
      "300.0.0.1",
    ],
  ] as const;
  for (const [args, option, told] of rows) {
    throws(() => nodeConfigOf(parse(...args, "peer:6081")), (error) => {
      ok(error instanceof UsageError);
      ok(error.message.includes(option) && error.message.includes(told), error.message);
      return true;
    }, args.join(" "));
  }
});

Deno.test("what only AF_XDP can do is refused elsewhere", () => {
  const rows = [
    ["--device", "veth"],
    ["--xdp-attach", "generic"],
    ["--zero-copy", "off"],
    ["--cpu-pin"],
    ["--busy-poll", "20"],
    ["--pcap-file", "/tmp/x.pcapng"],
    ["--outer-udp-checksum"],
  ];
  for (const [option = "", ...values] of rows) {
    for (const datapath of ["tun", "auto"]) {
      const args = [option, ...values, "--datapath", datapath, "peer:6081"];
      throws(() => nodeConfigOf(parse(...args)), (error) => {
        ok(error instanceof UsageError);
        ok(error.message.includes(option) && error.message.includes(`--datapath ${datapath}`), error.message);
        ok(error.message.includes("--datapath afxdp"), error.message);
        return true;
      }, args.join(" "));
    }
  }
});

Deno.test("what only a stack in the process can serve is refused elsewhere", () => {
  const rows = [
    ["--socks5", "1080"],
    ["--http-connect", "8118"],
    ["--forward", "8080=10.9.0.2:80"],
    ["--reverse", "80=127.0.0.1:8080"],
    ["--name-server", "10.9.0.53"],
    ["--open-proxy"],
  ];
  for (const [option = "", ...values] of rows) {
    throws(() => nodeConfigOf(parse(option, ...values, "--datapath", "tun", "peer:6081")), (error) => {
      ok(error instanceof UsageError);
      ok(error.message.includes(option) && error.message.includes("--datapath tun"), error.message);
      ok(error.message.includes("add --datapath netstack"), error.message);
      return true;
    }, option);
  }
});

Deno.test("only names of fields are replaced in a message", () => {
  strictEqual(
    inTermsOfOptions('"peers[0].vni" must be 1: current value is "x"'),
    '--vni must be 1: current value is "x"',
  );
  strictEqual(inTermsOfOptions('"peers[0].allowedRoutes[1].src" is off'), "--allowed-route is off");
  strictEqual(inTermsOfOptions('"somethingElse" is off'), '"somethingElse" is off');
});
