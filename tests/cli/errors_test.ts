/** Every mistake on the command line that needs no root to be made. */

import { deepStrictEqual } from "node:assert/strict";
import fs from "node:fs/promises";
import { checkErrors, type ErrorRow, snapshot } from "./error_table.ts";
import { icx, LAUNCHER, type Outcome } from "./launcher.ts";

const P384 = `-----BEGIN PRIVATE KEY-----
MIG2AgEAMBAGByqGSM49AgEGBSuBBAAiBIGeMIGbAgEBBDA=
-----END PRIVATE KEY-----
`;
const SEC1 = `-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAoAoGCCqGSM49
-----END EC PRIVATE KEY-----
`;
const SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQ";
const DAMAGED = `-----BEGIN PRIVATE KEY-----\n${SECRET}\n-----END PRIVATE KEY-----\n`;

/** What every `up` needs; a row's own options come behind it. */
const KEYS = ["--identity-key", "{}/node.key", "--peer-key", "{}/peer.pub"];
const HELP = "See icx up --help.";

/** A value that an option of a command with a tunnel does not take. */
function valueOf(
  command: "up" | "proxy" | "ping",
  ...[option, given, ...says]: readonly [option: string, given: string, ...says: readonly (string | RegExp)[]]
): ErrorRow {
  return {
    name: `${command} ${option} ${JSON.stringify(given)}`,
    args: [command, ...KEYS, option, given, "p:1", ...(command === "ping" ? ["10.9.0.2"] : [])],
    code: 2,
    says: [option, given, ...says, `See icx ${command} --help.`],
  };
}

/** A value that an option of `up` does not take. */
function value(option: string, given: string, ...says: readonly (string | RegExp)[]): ErrorRow {
  return valueOf("up", option, given, ...says);
}

/** A peer that is none. */
function peer(given: string, ...says: readonly (string | RegExp)[]): ErrorRow {
  return {
    name: `the peer ${given}`,
    args: ["up", ...KEYS, given],
    code: 2,
    says: [given, "host:port", ...says, HELP],
  };
}

/** Values that are good each and do not fit together. */
function together(name: string, args: readonly string[], ...says: readonly (string | RegExp)[]): ErrorRow {
  return { name, args: ["up", ...KEYS, "--log-format", "text", ...args, "192.0.2.2:6081"], code: 2, says };
}

/** An identity key that cannot be used, for every command that takes one. */
function identity(
  name: string,
  file: string,
  ...[code, ...says]: readonly [ErrorRow["code"], ...(string | RegExp)[]]
): readonly ErrorRow[] {
  return [
    { name: `pubkey of ${name}`, args: ["pubkey", file], code, says: [file, ...says], hides: [SECRET] },
    {
      name: `up with ${name}`,
      args: ["up", "--log-format", "text", "--identity-key", file, "--peer-key", "{}/peer.pub", "p:1"],
      code,
      says: [file, ...says],
      hides: [SECRET],
    },
  ];
}

/** A peer's key that cannot be used. */
function peerKey(name: string, given: string, ...says: readonly (string | RegExp)[]): ErrorRow {
  const args = ["up", "--log-format", "text", "--identity-key", "{}/node.key", "--peer-key", given, "p:1"];
  return { name: `the peer key ${name}`, args, code: 2, says: [...says, "icx pubkey"], hides: [SECRET] };
}

/** The beginning of a script: descriptor 6 is a pipe whose reader has gone away. */
const UNREAD = 'p=$(mktemp -u /tmp/icx-pipe-XXXXXX) && mkfifo "$p" && exec 5<>"$p" 6>"$p" 5<&- && rm "$p" &&';

/** Every command that writes to standard output. */
const WRITERS = [
  ["genkey", "-"],
  ["pubkey", "{}/node.key"],
  ["--help"],
  ["--version"],
  ["up", "--help"],
  ["completion", "bash"],
];

const ROWS: readonly ErrorRow[] = [
  // Commands and options as such.
  { name: "no such command", args: ["nonsense"], code: 2, says: ["nonsense", "See icx --help."] },
  { name: "a misspelt genkey", args: ["genkye", "x"], code: 2, says: ["genkye", "Did you mean", "`genkey`"] },
  { name: "a misspelt pubkey", args: ["pubky"], code: 2, says: ["pubky", "Did you mean", "`pubkey`"] },
  { name: "a misspelt demo", args: ["dmeo"], code: 2, says: ["dmeo", "Did you mean", "`demo`"] },
  { name: "a misspelt bench", args: ["bnech"], code: 2, says: ["bnech", "Did you mean", "`bench`"] },
  {
    name: "a misspelt option",
    args: ["up", "--vin", "3", "peer:6081"],
    code: 2,
    says: ["Did you mean --vni instead of --vin?", HELP],
  },
  {
    name: "a misspelt option of the bare form",
    args: ["--rekey-intervall=2m", "peer:6081"],
    code: 2,
    says: ["Did you mean --rekey-interval instead of --rekey-intervall?", HELP],
  },
  {
    name: "a misspelt option of genkey",
    args: ["genkey", "--forse", "x"],
    code: 2,
    says: ["Did you mean --force instead of --forse?", "See icx genkey --help."],
  },
  {
    name: "an option of another command",
    args: ["demo", "--log-level", "debug"],
    code: 2,
    says: ["--log-level", "See icx demo --help."],
  },
  // Measuring.
  {
    name: "a contender that is not known",
    args: ["bench", "--contender", "ipsec"],
    code: 2,
    says: ["--contender", "ipsec", "none, icx-tun, wireguard-go"],
  },
  {
    name: "a contender whose program is not there",
    args: ["bench", "--contender", "nebula={}/nothing"],
    code: 2,
    says: ["--contender nebula", "{}/nothing", "give the path"],
  },
  {
    name: "a contender that takes no program",
    args: ["bench", "--contender", "none=x"],
    code: 2,
    says: ["--contender none", "nothing after its name", '"x"'],
  },
  {
    name: "a contender twice",
    args: ["bench", "--contender", "none", "--contender", "none"],
    code: 2,
    says: ["--contender none", "twice"],
  },
  {
    name: "a network that is not known",
    args: ["bench", "--net", "dsl"],
    code: 2,
    says: ["--net", "dsl", "segmented"],
  },
  { name: "no rounds at all", args: ["bench", "--rounds", "0"], code: 2, says: ["--rounds", "0", "1 to 99"] },
  {
    name: "a name to measure to",
    args: ["bench", "--to", "peer"],
    code: 2,
    says: ["--to", "IP address", "peer", "See icx bench --help."],
  },
  {
    name: "measuring to an address and between namespaces",
    args: ["bench", "--to", "127.0.0.1", "--net", "veth", "--contender", "none"],
    code: 2,
    says: ["--to does not go with --contender, --net", "leave them out"],
  },
  {
    name: "both ends in one process",
    args: ["bench", "--listen", "127.0.0.1", "--to", "127.0.0.1"],
    code: 2,
    says: ["--listen does not go with --to"],
  },
  {
    name: "an end that nobody listens at",
    args: ["bench", "--to", "127.0.0.1:1"],
    code: 1,
    says: ["127.0.0.1:1", "ECONNREFUSED", "icx bench --listen 127.0.0.1:1"],
  },
  {
    name: "an address to listen on that this host does not have",
    args: ["bench", "--listen", "192.0.2.77"],
    code: 1,
    says: ["192.0.2.77:6083", "EADDRNOTAVAIL", "an address of this host"],
  },
  {
    name: "a report whose name has a comma",
    args: ["bench", "--html", "{}/a,b.html"],
    code: 2,
    says: ["--html", "without a comma", "{}/a,b.html"],
  },
  {
    name: "a report into a folder that is not there",
    args: ["bench", "--to", "127.0.0.1:1", "--json={}/none/report.json"],
    code: 1,
    says: ["{}/none/report.json", "folder that exists"],
  },
  { name: "an argument too many", args: ["pubkey", "a", "b"], code: 2, says: ["`b`", "See icx pubkey --help."] },
  { name: "an option without its value", args: ["up", "--vni"], code: 2, says: ["--vni", "VNI", HELP] },
  {
    name: "an option given twice",
    args: ["up", ...KEYS, "--port", "1", "--port", "2", "p:1"],
    code: 2,
    says: ["--port", "multiple times", HELP],
  },
  { name: "two peers", args: ["up", ...KEYS, "p:1", "q:1"], code: 2, says: ["q:1", HELP] },
  { name: "no peer", args: ["up", ...KEYS], code: 2, says: ["PEER-HOST:PORT", HELP] },
  {
    name: "no identity",
    args: ["up", "--peer-key", "k", "p:1"],
    code: 2,
    says: ["Missing option `--identity-key`", HELP],
  },
  {
    name: "no peer key",
    args: ["up", "--identity-key", "k", "p:1"],
    code: 2,
    says: ["Missing option `--peer-key`", HELP],
  },
  {
    name: "completion for an unknown shell",
    args: ["completion", "tcl"],
    code: 2,
    says: ['"tcl"', '"bash"', '"zsh"', "See icx completion --help."],
  },
  { name: "completion without a shell", args: ["completion"], code: 2, says: ["shell", "See icx completion --help."] },

  // Each value of `up`.
  peer("192.0.2.1", "192.0.2.1:6081"),
  peer("2001:db8::1:6081", "brackets", "[2001:db8::1:6081]:6081"),
  peer("peer:0"),
  peer("peer:65536"),
  value("--interface", "a/b", "interface name of 1 to 15"),
  value("-i", "sixteen-letters-", "interface name of 1 to 15"),
  value("--local-address", "eth0", "IPv4 or IPv6 address"),
  value("--vni", "16777216", "from 0 to 16777215"),
  value("-v", "0x10", "whole number"),
  value("--control-port", "0", "from 1 to 65535"),
  value("--peer-control-port", "http", "from 1 to 65535"),
  value("--port", "99999", "from 1 to 65535"),
  value("-p", "-1", "from 1 to 65535"),
  value("--rekey-interval", "120", "from 1s to 12h", "120s"),
  value("--rekey-interval", "10ms", "from 1s to 12h"),
  value("--rekey-interval", "13h", "from 1s to 12h"),
  value("--tun-device", "", "interface name"),
  value("-t", "x y", "interface name"),
  value("-t", "sixteen-letters-", "interface name of 1 to 15"),
  value("--tun-mtu", "67", "from 68 to 65535"),
  value("--tun-mtu", "Auto", "auto, or a whole number"),
  value("-m", "65536", "from 68 to 65535"),
  value("-m", "1500.5", "from 68 to 65535"),
  value("--rx-rate-limit", "-5", "from 0 to 4294967295"),
  value("--allowed-route", "10.9.0.1", "src=dst", "10.9.0.1/32"),
  value("--allowed-route", "a=b=c", "src=dst"),
  value("--address", "10.9.0.1", "prefix length", "10.9.0.1/24"),
  value("--datapath", "dpdk", '"auto"', '"tun"', '"afxdp"', '"netstack"'),
  value("--device", "tap", '"veth"', '"tun"'),
  value("--xdp-attach", "offload", '"native"', '"generic"'),
  value("--zero-copy", "yes", '"require"', '"off"'),
  value("--busy-poll", "0", "from 1 to 1000000"),
  value("--stats-interval", "fast", "from 100ms to 24h"),
  value("--log-level", "loud", /error.*warning.*info.*debug/),
  value("--log-format", "xml", '"text"', '"json"'),
  { ...value("--vni", "-1"), name: "a value of the bare form", args: [...KEYS, "--vni", "-1", "p:1"] },

  // What a node without a device serves, and asks.
  {
    name: "a proxy's option takes the peer",
    args: ["proxy", ...KEYS, "--socks5", "192.0.2.2:6081"],
    code: 2,
    says: ["PEER-HOST:PORT", "--socks5 took 192.0.2.2:6081 as the place to listen on", "in front of the options"],
  },
  valueOf("proxy", "--socks5", "0", "such as 1080", "file of users"),
  valueOf("proxy", "--socks5", "65536", "such as 1080"),
  valueOf("proxy", "--socks5", "127.0.0.1:1080,", "both with a comma"),
  valueOf("proxy", "--http-connect", "99999", "such as 8118"),
  valueOf("proxy", "--forward", "8080", "8080=10.9.0.2:80"),
  valueOf("proxy", "--forward", "8080=10.9.0.2", "8080=10.9.0.2:80"),
  valueOf("proxy", "--forward", "8080=300.0.0.1:80", "8080=10.9.0.2:80"),
  valueOf("proxy", "--forward", "here:8080=10.9.0.2:80", "a port of this host"),
  valueOf("proxy", "--forward", "sctp:8080=10.9.0.2:80", "udp:127.0.0.1:53=10.9.0.2:53"),
  valueOf("proxy", "--reverse", "80", "80=127.0.0.1:8080"),
  valueOf("proxy", "--reverse", "0=127.0.0.1:8080", "80=127.0.0.1:8080"),
  valueOf("proxy", "--reverse", "10.9.0.1:80=127.0.0.1:8080", "name the port alone"),
  valueOf("proxy", "--name-server", "dns.example", "IPv4 or IPv6 address on the other side"),
  valueOf("proxy", "--latency", "none", '"balanced"'),
  valueOf("ping", "--count", "0", "from 1 to 1000000"),
  valueOf("ping", "--interval", "1ms", "from 10ms to 1h"),
  valueOf("ping", "--timeout", "0s", "from 10ms to 1h"),
  valueOf("ping", "--size", "1201", "from 0 to 1200"),
  {
    name: "a datapath for a proxy",
    args: ["proxy", ...KEYS, "--datapath", "tun", "p:1"],
    code: 2,
    says: ["--datapath", "See icx proxy --help."],
  },
  {
    name: "a proxy for ping",
    args: ["ping", ...KEYS, "--socks5", "1080", "p:1", "10.9.0.2"],
    code: 2,
    says: ["--socks5", "See icx ping --help."],
  },
  {
    name: "a flag with a value",
    args: ["proxy", ...KEYS, "--open-proxy=yes", "p:1"],
    code: 2,
    says: ["--open-proxy", "yes", "See icx proxy --help."],
  },
  {
    name: "nobody to ping",
    args: ["ping", ...KEYS, "p:1"],
    code: 2,
    says: ["ADDRESS", "See icx ping --help."],
  },
  {
    name: "a name to ping",
    args: ["ping", ...KEYS, "p:1", "host.example"],
    code: 2,
    says: ["ADDRESS", "host.example", "on the other side of the tunnel", "See icx ping --help."],
  },
  {
    name: "a misspelt option of proxy",
    args: ["proxy", "--sock5", "1080", "p:1"],
    code: 2,
    says: ["Did you mean", "--socks5", "instead of --sock5", "See icx proxy --help."],
  },
  ...["proxy", "ping"].map((command): ErrorRow => ({
    name: `${command} without an inner address`,
    args: [command, ...KEYS, "--log-format", "text", "p:1", ...(command === "ping" ? ["10.9.0.2"] : [])],
    code: 2,
    says: ["--address", "1 to 8 entries", "a stack in the process"],
  })),
  together("no inner address for a stack", ["--datapath", "netstack"], "--address", "1 to 8 entries"),
  together(
    "a forward without a stack",
    ["--forward", "8080=10.9.0.2:80"],
    "--forward",
    "--datapath auto",
    "add --datapath netstack",
  ),

  {
    name: "an empty identity key",
    args: ["up", "--identity-key", "", "--peer-key", "k", "p:1"],
    code: 2,
    says: ["--identity-key", '""', "private identity key", HELP],
  },
  {
    name: "an empty peer key",
    args: ["up", "--identity-key", "k", "--peer-key", "", "p:1"],
    code: 2,
    says: ["--peer-key", '""', "public key", HELP],
  },

  // Values that do not fit together, or that only the library can judge.
  together(
    "equal ports",
    ["--port", "7000", "--control-port", "7000"],
    "--control-port",
    "must differ",
    "--port",
    "7000",
  ),
  together("host bits in a route", ["--allowed-route", "10.9.0.1/24"], "--allowed-route", "10.9.0.0/24", "10.9.0.1/24"),
  together("a route that is none", ["--allowed-route", "300.0.0.1/8"], "--allowed-route", "300.0.0.1/8", "10.9.0.0/24"),
  together("a route across IP versions", ["--allowed-route", "10.9.0.0/24=fd00::/64"], "--allowed-route", "IP version"),
  together("an address that is none", ["--address", "10.9.0.1/33"], "--address", "10.9.0.1/33", "10.9.0.1/24"),
  together("a multicast address", ["--address", "224.0.0.1/24"], "--address", "224.0.0.1/24", "unicast"),
  together("an address twice", ["--address", "10.9.0.1/24", "--address", "10.9.0.1/24"], "--address", "given once"),
  together("a small MTU for IPv6", ["--address", "fd00::1/64", "-m", "1279"], "--tun-mtu", "at least 1280", "1279"),
  together("a pattern for a name", ["--tun-device", "icx%d"], "--tun-device", "icx%d", "1 to 15 bytes"),
  together(
    "a local address that is none",
    ["--local-address", "300.0.0.1"],
    "--local-address",
    "300.0.0.1",
    "192.0.2.1",
  ),
  together(
    "a local address of another IP version",
    ["--local-address", "::1"],
    "PEER-HOST:PORT",
    "--local-address",
    "::1",
  ),
  together(
    "a checksum that cannot be left out",
    ["--outer-udp-checksum"],
    "--outer-udp-checksum",
    "leave it out",
  ),
  {
    name: "a peer address with a mistake",
    args: ["up", ...KEYS, "--log-format", "text", "256.1.1.1:6081"],
    code: 2,
    says: ["PEER-HOST:PORT", "host name or an IP address", "256.1.1.1"],
  },
  {
    name: "a peer that is everybody",
    args: ["up", ...KEYS, "--log-format", "text", "[ff02::1]:6081"],
    code: 2,
    says: ["PEER-HOST:PORT", "one host", "ff02::1"],
  },
  {
    name: "an error for a program that reads JSON",
    args: ["up", ...KEYS, "--log-format", "json", "--port", "6082", "p:1"],
    code: 2,
    says: ["--control-port must differ from --port", "6082"],
  },

  // Identity keys.
  ...identity("a file that is not there", "{}/absent.key", 1, "No such file", "icx genkey {}/absent.key"),
  ...identity("a directory", "{}/folder", 2, "is a directory", "name the file"),
  ...identity("a device", "/dev/null", 2, "is a device", "name the file"),
  ...identity("an empty file", "{}/empty.key", 2, "no private key", "icx genkey"),
  ...identity("a file of something else", "{}/garbage.key", 2, "no private key", "PKCS#8 PEM", "icx genkey"),
  ...identity("a damaged file", "{}/damaged.key", 2, "P-256", "icx genkey"),
  ...identity("a binary file", "{}/binary.key", 2, "no private key", "PKCS#8 PEM", "icx genkey"),
  ...identity("a huge file", "{}/huge.key", 2, "longer than 16384 bytes", "PKCS#8 PEM", "icx genkey"),
  ...identity("a P-384 key", "{}/p384.key", 2, "P-384", "are not accepted", "icx genkey"),
  ...identity("a SEC1 key", "{}/sec1.key", 2, "SEC1", "openssl pkcs8 -topk8 -nocrypt"),
  ...identity("a file that others may read", "{}/open.key", 2, "0644", "0600", "chmod 600 {}/open.key"),
  {
    name: "standard input that is no key",
    args: ["pubkey", "-"],
    stdin: DAMAGED,
    code: 2,
    says: ["standard input", "icx genkey"],
    hides: [SECRET],
  },
  { name: "empty standard input", args: ["pubkey"], stdin: "", code: 2, says: ["standard input", "icx genkey"] },
  {
    name: "two names for one file",
    args: ["pubkey", "a.key", "--identity-key", "b.key"],
    code: 2,
    says: ["a.key", "b.key", "one of them"],
  },

  // Peers' keys.
  peerKey(
    "that is neither file nor key",
    "absent.pub",
    '"absent.pub"',
    "neither a file that exists nor",
    "124 characters",
  ),
  peerKey("that is a path to nowhere", "/no/such/peer.pub", '"/no/such/peer.pub"', "neither a file that exists nor"),
  peerKey(
    "that is cut off",
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE",
    '"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"',
    "91 bytes",
  ),
  peerKey("in a file of something else", "{}/garbage.key", "{}/garbage.key", "124 characters"),
  peerKey("in an empty file", "{}/empty.key", "{}/empty.key", "124 characters"),
  peerKey("that is a private key", DAMAGED, "private key (not shown)", "icx genkey"),
  peerKey("in a file that holds a private key", "{}/node.key", "{}/node.key", "private key"),
  peerKey("that is the own one", "{}/own.pub", "this node's own"),
  peerKey("that is a directory", "{}/folder", "{}/folder", "is a directory"),
  peerKey("that is a device", "/dev/null", "/dev/null", "is a device"),
  peerKey("in a binary file", "{}/binary.key", "{}/binary.key", "binary"),
  peerKey("in a huge file", "{}/huge.key", "{}/huge.key", "longer than 4096 bytes"),
  peerKey(
    "that could be a part of a private one",
    SECRET,
    "27 characters (not shown",
    "neither a file that exists nor",
  ),

  // genkey.
  { name: "genkey without a file", args: ["genkey"], code: 2, says: ["no file is named", "-", "icx genkey node.key"] },
  { name: "genkey - --force", args: ["genkey", "-", "--force"], code: 2, says: ["--force", "leave one of them out"] },
  {
    name: "genkey with two names",
    args: ["genkey", "a.key", "--identity-key", "b.key"],
    code: 2,
    says: ["a.key", "b.key", "one of them"],
  },
  { name: "genkey with an empty name", args: ["genkey", ""], code: 2, says: ['""', "a file name, or -"] },
  {
    name: "genkey over a file",
    args: ["genkey", "{}/node.key"],
    code: 1,
    says: ["{}/node.key exists", "another path", "--force"],
  },
  {
    name: "genkey over a directory",
    args: ["genkey", "{}/folder"],
    code: 2,
    says: ["is a directory", "{}/folder/icx.key"],
  },
  {
    name: "genkey --force over a directory",
    args: ["genkey", "--force", "{}/folder"],
    code: 2,
    says: ["is a directory", "{}/folder/icx.key"],
  },
  {
    name: "genkey into a folder that is not there",
    args: ["genkey", "{}/absent/node.key"],
    code: 1,
    says: ["{}/absent/node.key", "mkdir -p {}/absent"],
  },
  {
    name: "genkey --force into a folder that is not there",
    args: ["genkey", "--force", "{}/absent/node.key"],
    code: 1,
    says: ["{}/absent/node.key", "mkdir -p {}/absent"],
  },
  {
    name: "genkey below a file",
    args: ["genkey", "{}/node.key/x"],
    code: 1,
    says: ["{}/node.key/x", "Not a directory"],
  },

  // Standard output that takes nothing.
  ...WRITERS.map((args): ErrorRow => ({
    name: `icx ${args.join(" ")} onto a full disk`,
    args,
    script: 'exec "$@" >/dev/full',
    code: 1,
    says: ["standard output", "No space left on device"],
  })),
  ...[
    ["genkey", "-"],
    ["genkey", "--identity-key", "-"],
    ["genkey", "--identity-key=-"],
    ["pubkey", "{}/node.key"],
  ].map((args): ErrorRow => ({
    name: `icx ${args.join(" ")} with standard output closed`,
    args,
    script: 'exec "$@" >&-',
    code: 1,
    says: ["standard output is closed", args[0] ?? "", ">FILE"],
  })),
  ...WRITERS.map((args): ErrorRow => ({
    name: `icx ${args.join(" ")} for a reader that has gone away`,
    args,
    script: `${UNREAD} exec "$@" >&6 6>&-`,
    code: 1,
    says: ["standard output", "Broken pipe"],
  })),

  // What the process may have.
  {
    name: "too few open files",
    args: ["pubkey", "{}/node.key"],
    script: 'ulimit -n 32; exec "$@"',
    code: 1,
    says: ["may open 32 files", "64 at least", "ulimit -n"],
  },
];

/** What to do where standard error takes nothing, and how that ends: as with standard error. */
const UNHEARD: readonly (readonly [args: readonly string[], code: number])[] = [
  [[], 2],
  [["nonsense"], 2],
  [["genkey", "{}/node.key"], 1],
  [["pubkey", "{}/absent.key"], 1],
  [["up", ...KEYS, "--port", "6082", "p:1"], 2],
  [["up", "--identity-key", "{}/absent.key", "--peer-key", "k", "p:1"], 1],
  [["--version"], 0],
];

/** A folder with the files that the rows speak of; gone with the test. */
async function openFolder(): Promise<
  AsyncDisposable & { readonly fill: (text: string) => string; readonly path: string }
> {
  const path = await fs.mkdtemp("/tmp/icx-errors-");
  const fill = (text: string) => text.replaceAll("{}", path);
  const own = (await icx(["genkey", fill("{}/node.key")])).stderr;
  const other = (await icx(["genkey", fill("{}/other.key")])).stderr;
  await fs.mkdir(fill("{}/folder"));
  const files = {
    "own.pub": own,
    "peer.pub": other,
    "empty.key": "",
    "garbage.key": "no key at all\n",
    "damaged.key": DAMAGED,
    "p384.key": P384,
    "sec1.key": SEC1,
    "huge.key": "A".repeat(20_000),
    "open.key": await fs.readFile(fill("{}/node.key"), "utf8"),
    "binary.key": new Uint8Array([0x30, 0x80, 0, 0xff]),
  };
  for (const [name, content] of Object.entries(files)) {
    await fs.writeFile(`${path}/${name}`, content, { mode: name === "open.key" ? 0o644 : 0o600 });
  }
  return { fill, path, [Symbol.asyncDispose]: () => fs.rm(path, { recursive: true }) };
}

/** Runs a command from a shell script that has it as `"$@"`. */
function shell(script: string, args: readonly string[], stdin?: string): Promise<Outcome> {
  return icx(["-c", script, "sh", LAUNCHER, ...args], {
    launcher: "/bin/sh",
    ...(stdin === undefined ? {} : { stdin }),
  });
}

Deno.test("each mistake on the command line is told in one line with what was given, what is allowed and what to do", async () => {
  await using folder = await openFolder();
  const { fill, path } = folder;
  const before = await snapshot(path);
  await checkErrors(
    ROWS.map((row) => ({ ...row, says: row.says.map((part) => typeof part === "string" ? fill(part) : part) })),
    ({ args, stdin, script = 'exec "$@"' }) => shell(fill(script), args.map(fill), stdin),
  );
  deepStrictEqual(await snapshot(path), before, "a command that failed has changed something");
});

Deno.test("where nobody reads standard error the exit code still says how it ended", async () => {
  await using folder = await openFolder();
  const { fill, path } = folder;
  const before = await snapshot(path);
  const closed = 'exec "$@" >/dev/null 2>&-';
  const gone = `${UNREAD} exec "$@" >/dev/null 2>&6 6>&-`;
  const full = 'exec "$@" >/dev/null 2>/dev/full';
  const faults: string[] = [];
  for (const [args, expected] of UNHEARD) {
    const outcomes = await Promise.all([closed, gone, full].map((script) => shell(script, args.map(fill))));
    const codes = outcomes.map(({ code }) => code);
    if (codes.some((code) => code !== expected)) faults.push(`icx ${args.join(" ")}: ${codes}, not ${expected}`);
    faults.push(...outcomes.map(({ stdout, stderr }) => stdout + stderr).filter((text) => text !== ""));
  }
  deepStrictEqual(faults, []);
  deepStrictEqual(await snapshot(path), before);
});
