/** Every mistake that takes root, or the lack of it, to make; each in a network namespace of its own. */

import { deepStrictEqual, match, ok, strictEqual } from "node:assert/strict";
import { Buffer } from "node:buffer";
import fs from "node:fs/promises";
import { ICX, Lab, privileged } from "../../netns/_lab.ts";
import { checkErrors, type ErrorRow, snapshot } from "../error_table.ts";
import type { Outcome } from "../launcher.ts";

/** `up` as far as every row needs it; a row's own options and the peer come behind. */
const UP = [
  "up",
  ...["--log-format", "text", "--identity-key", "{}/a.key", "--peer-key", "{}/b.pub", "--address", "10.9.0.1/24"],
];
const PEER = "192.168.77.2:6081";
/** The same as a device-less node. */
const PROXY = ["proxy", ...UP.slice(1)];
/** Every user has this one, and it owns nothing. */
const NOBODY = 'exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"';
const NO_NET_ADMIN = 'exec setpriv --bounding-set -net_admin "$@"';
/** Holds the UDP port `$1` while the rest runs. */
const HOLD_UDP = 'port=$1; shift; socat -u "UDP4-RECV:$port" /dev/null & holder=$!; ' +
  'until ss -lunH | grep -q ":$port "; do sleep 0.1; done; "$@"; code=$?; kill $holder; wait $holder; exit $code';
/** The same for a TCP port on loopback. */
const HOLD_TCP = HOLD_UDP.replace("UDP4-RECV:$port", "TCP4-LISTEN:$port,bind=127.0.0.1").replace("-lunH", "-ltnH");
/** No row may run for ever, whatever goes wrong in it. */
const LIMIT = ["timeout", "-s", "KILL", "50"];

const ROWS: readonly ErrorRow[] = [
  {
    name: "a data port in use",
    args: [...UP, "--port", "7001", PEER],
    script: `set -- 7001 "$@"; ${HOLD_UDP}`,
    code: 1,
    says: ["UDP port 7001", "in use", "--port", "ss -lunp"],
  },
  {
    name: "a control port in use",
    args: [...UP, "--control-port", "7002", PEER],
    script: `set -- 7002 "$@"; ${HOLD_UDP}`,
    code: 1,
    says: ["7002", "in use", "--control-port", "ss -lunp"],
  },
  {
    name: "a device that is there",
    args: [...UP, "--tun-device", "phy", PEER],
    code: 1,
    says: ["phy", "exists already", "--tun-device"],
  },
  {
    name: "a local address of another host",
    args: [...UP, "--local-address", "192.168.77.9", PEER],
    code: 1,
    says: ["192.168.77.9", "not an address of this machine", "ip addr", "--local-address"],
  },
  {
    name: "an interface that is not there",
    args: [...UP, "--interface", "eth7", PEER],
    code: 1,
    says: ["eth7", "ip link"],
  },
  {
    name: "an interface that does not lead to the peer",
    args: [...UP, "--interface", "lo", PEER],
    code: 1,
    says: ["--interface says lo", "phy", "ip route get 192.168.77.2"],
  },
  {
    name: "a path too small for anything",
    args: [...UP, "127.0.0.1:6081"],
    script: 'ip link set lo mtu 100; "$@"; code=$?; ip link set lo mtu 65536; exit $code',
    code: 2,
    says: ["112 bytes at least", "100", "raise the MTU"],
  },
  {
    name: "IPv6 switched off",
    args: [...UP, "--address", "fd00::1/64", PEER],
    script: 'sysctl -qw net.ipv6.conf.default.disable_ipv6=1; "$@"; code=$?; ' +
      "sysctl -qw net.ipv6.conf.default.disable_ipv6=0; exit $code",
    code: 1,
    says: ["fd00::1", "IPv6 is switched off", "sysctl"],
  },
  {
    name: "no right to administer the network",
    args: [...UP, "--datapath", "tun", PEER],
    script: NO_NET_ADMIN,
    code: 4,
    says: ["icx0", "no permission", "CAP_NET_ADMIN"],
  },
  {
    name: "no right to administer the network, for a program that reads JSON",
    args: [...UP.toSpliced(2, 1, "json"), "--datapath", "tun", PEER],
    script: NO_NET_ADMIN,
    code: 4,
    says: ["icx0", "no permission", "CAP_NET_ADMIN"],
  },
  {
    name: "no TUN driver",
    args: [...UP, "--datapath", "tun", PEER],
    script: `exec unshare -m sh -c 'mount -t tmpfs none /dev/net && exec "$@"' sh "$@"`,
    code: 1,
    says: ["/dev/net/tun does not exist", "modprobe tun", "--device /dev/net/tun"],
  },
  {
    name: "a port for root alone",
    args: [...UP.map((arg) => arg === "{}/a.key" ? "{}/nobody.key" : arg), "--port", "700", PEER],
    script: NOBODY,
    code: 4,
    says: ["700", "1024 or higher", "CAP_NET_BIND_SERVICE"],
  },
  {
    name: "somebody else's identity key",
    args: [...UP, PEER],
    script: NOBODY,
    code: 4,
    says: ["{}/a.key", "Permission denied", "owner of the file"],
  },
  {
    name: "pubkey of somebody else's identity key",
    args: ["pubkey", "{}/a.key"],
    script: NOBODY,
    code: 4,
    says: ["{}/a.key", "Permission denied", "owner of the file"],
  },
  {
    name: "genkey into somebody else's folder",
    args: ["genkey", "{}/new.key"],
    script: NOBODY,
    code: 4,
    says: ["{}/new.key", "Permission denied", "choose a directory"],
  },
  {
    name: "genkey onto a read-only file system",
    args: ["genkey", "{}/new.key"],
    script:
      `exec unshare -m sh -c 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"' sh {} "$@"`,
    code: 1,
    says: ["{}/new.key", "Read-only", "choose a directory"],
  },
  {
    name: "genkey onto a full file system",
    args: ["genkey", "{}/full/new.key"],
    // Room for the name of a file and none for what is in it.
    script: `exec unshare -m sh -c 'mount -t tmpfs -o size=4k none "$1/full" && head -c 4096 /dev/zero >"$1/full/x" &&
      shift && "$@"; code=$?; test -z "$(find "$0/full" -name "*new*")" || exit 99; exit $code' {} {} "$@"`,
    code: 1,
    says: ["{}/full/new.key", "No space left", "free some space"],
  },
  ...[
    ["--socks5", "0.0.0.0:1080", "the SOCKS5 proxy"],
    ["--http-connect", "[::]:8118", "the HTTP proxy"],
    ["--forward", "192.168.77.1:8080=10.9.0.2:80", "the TCP forward to 10.9.0.2:80"],
    ["--forward", "udp:192.168.77.1:53=10.9.0.2:53", "the UDP forward to 10.9.0.2:53"],
  ].map(([option = "", given = "", what = ""]): ErrorRow => ({
    name: `${option} ${given}, for everybody`,
    args: [...PROXY, option, given, PEER],
    code: 2,
    says: [what, given.replace(/^udp:|=.*/g, ""), "loopback address", "USER-FILE", "--open-proxy"],
  })),
  {
    name: "a proxy's port in use",
    args: [...PROXY, "--socks5", "7003", PEER],
    script: `set -- 7003 "$@"; ${HOLD_TCP}`,
    code: 1,
    says: ["the SOCKS5 proxy", "127.0.0.1:7003", "in use", "another port", "ss -lnp"],
  },
  {
    name: "a port for two proxies",
    args: [...PROXY, "--socks5", "7003", "--http-connect", "7003", PEER],
    code: 1,
    says: ["the HTTP proxy", "127.0.0.1:7003", "in use", "another port"],
  },
  {
    name: "a proxy on an address of another host",
    args: [...PROXY, "--socks5", "192.168.77.9:1080,{}/users", PEER],
    code: 1,
    says: ["the SOCKS5 proxy", "192.168.77.9:1080", "ip addr"],
  },
  {
    name: "a proxy's port for root alone",
    args: [...PROXY.map((arg) => arg === "{}/a.key" ? "{}/nobody.key" : arg), "--socks5", "81", PEER],
    script: NOBODY,
    code: 4,
    says: ["the SOCKS5 proxy", "127.0.0.1:81", "1024 or higher", "CAP_NET_BIND_SERVICE"],
  },
  {
    name: "a file of users that is not there",
    args: [...PROXY, "--socks5", "{}/none", PEER],
    code: 1,
    says: ["{}/none", "No such file", "user:password"],
  },
  {
    name: "somebody else's file of users",
    args: [...PROXY.map((arg) => arg === "{}/a.key" ? "{}/nobody.key" : arg), "--socks5", "{}/users", PEER],
    script: NOBODY,
    code: 4,
    says: ["{}/users", "Permission denied", "chown"],
  },
  {
    name: "a file of users that others may read",
    args: [...PROXY, "--socks5", "{}/open.users", PEER],
    code: 2,
    says: ["{}/open.users", "mode 644", "chmod 600"],
  },
  {
    name: "a file of users that has none",
    args: [...PROXY, "--http-connect", "{}/a.key", PEER],
    code: 2,
    says: ["{}/a.key", "line 1 has no colon", "user:password"],
  },
  {
    name: "bench without root",
    args: ["bench", "--contender", "none"],
    script: NOBODY,
    code: 4,
    says: ["needs root", "icx bench --to ADDRESS"],
  },
  {
    name: "bench without the programs that measure",
    args: ["bench", "--net", "veth", "--contender", "none"],
    script:
      'set -- {} "$@"; mkdir "$1/bin" && for name in timeout readlink sed; do ln -s "$(command -v $name)" "$1/bin"; done; ' +
      'folder=$1; shift; PATH=$folder/bin "$@"; code=$?; rm -r "$folder/bin"; exit $code',
    code: 1,
    says: ["iperf3, ping, perl", "not installed", "apt-get install iperf3 iputils-ping perl-base"],
  },
];

privileged("each mistake of a run is told in one line, and leaves neither device nor socket nor file", async () => {
  await using lab = await Lab.create();
  const folder = lab.directory;
  const fill = (text: string) => text.replaceAll("{}", folder);
  // Nobody has to get as far as the key.
  await fs.chmod(folder, 0o755);
  await fs.mkdir(`${folder}/full`);
  await fs.writeFile(`${folder}/b.pub`, lab.b.publicKey, { mode: 0o644 });
  await fs.writeFile(`${folder}/users`, "ann:secret\n", { mode: 0o600 });
  await fs.writeFile(`${folder}/open.users`, "ann:secret\n", { mode: 0o644 });
  await fs.copyFile(lab.a.keyFile, `${folder}/nobody.key`);
  await fs.chmod(`${folder}/nobody.key`, 0o600);
  await lab.a.ok(["chown", "65534:65534", `${folder}/nobody.key`]);
  const state = async () => [
    ...await snapshot(folder),
    await lab.a.ok(["ip", "-o", "link"]),
    // The kernel takes those of IPv6 away and checks them as it likes.
    await lab.a.ok(["ip", "-4", "-o", "addr"]),
    await lab.a.ok(["ss", "-lunH"]),
  ];
  const before = await state();
  const run = async ({ name, args, script = 'exec "$@"' }: ErrorRow): Promise<Outcome> => {
    const { code, ...output } = await lab.a.run([
      "/bin/sh",
      "-c",
      fill(script),
      "sh",
      ...LIMIT,
      ICX,
      ...args.map(fill),
    ]);
    deepStrictEqual(await state(), before, `${name} left something behind`);
    return { code: code ?? -1, ...output };
  };
  const rows = ROWS.map((row) => ({
    ...row,
    says: row.says.map((part) => typeof part === "string" ? fill(part) : part),
  }));
  // One after the other: each may change what the others look at.
  await checkErrors(rows, run, { atOnce: 1 });
});

privileged(
  "a name or a way that is not there yet is waited for, said once, and given up at once when told to",
  async () => {
    await using lab = await Lab.create();
    const common = ["--identity-key", lab.a.keyFile, "--peer-key", lab.b.publicKey, "--log-format", "json"];
    const before = await lab.a.ok(["ip", "-o", "link"]);
    for (
      const [peer, ...says] of [
        ["nosuch.invalid:6081", "nosuch.invalid", "check the spelling"],
        ["192.0.2.1:6081", "no route to 192.0.2.1", "ip route get 192.0.2.1"],
      ] as const
    ) {
      const node = lab.spawn(lab.a, [ICX, "up", ...common, peer]);
      await node.until("the report", 30_000, () => node.stderr.includes('"locating"') || undefined);
      strictEqual(await lab.a.ok(["ip", "-o", "link"]), before, "there is a device before there is a peer");
      node.kill("SIGTERM");
      const { code, stderr } = await node.ended;
      strictEqual(code, 0, stderr);
      for (const part of says) ok(stderr.includes(part), stderr);
      strictEqual(stderr.match(/"locating"/g)?.length, 1, stderr);
    }
  },
);

privileged("two signals within a second are one wish: the node says goodbye and ends with 0", async () => {
  await using lab = await Lab.create();
  const [a, b] = await lab.tunnel();
  a.process.kill("SIGINT");
  await new Promise((resolve) => setTimeout(resolve, 2));
  a.process.kill("SIGINT");
  const { code, stderr } = await a.process.ended;
  strictEqual(code, 0, stderr);
  match(stderr, /"event":"stopped"/);
  strictEqual((await lab.a.run(["ip", "link", "show", "icx0"])).code, 1, "the device is still there");
  await b.event("session-lost");
  await b.stop();
});

privileged("a peer with a wrong key that tries for ever is told of at once, and then ever less often", async () => {
  await using lab = await Lab.create();
  // Neither is the peer of the other one: both pin a third key, one that the caller, whose own is lower, is to call.
  const der = (key: string) => Buffer.from(key, "base64");
  const inOrder = Buffer.compare(der(lab.a.publicKey), der(lab.b.publicKey)) < 0;
  const [caller, callee] = inOrder ? [lab.a, lab.b] : [lab.b, lab.a];
  const stranger = `${lab.directory}/stranger.key`;
  let pinned: string;
  do {
    pinned = (await lab.a.run([ICX, "genkey", "--force", stranger])).stderr.trim();
  } while (Buffer.compare(der(caller.publicKey), der(pinned)) > 0);
  const start = (host: Lab["a"], peer: Lab["a"]) =>
    lab.spawn(host, [
      ICX,
      "up",
      ...["--identity-key", host.keyFile, "--peer-key", pinned, "--log-format", "json"],
      `${peer.underlay}:6081`,
    ]);
  const startedAt = performance.now();
  const called = start(callee, caller);
  start(caller, callee);
  const rejections = () => called.stderr.match(/"event":"rejected"/g)?.length ?? 0;
  await called.until("a rejection", 30_000, () => rejections() || undefined);
  // The caller tries several times a second at first.
  await new Promise((resolve) => setTimeout(resolve, 4000));
  // After one second, two more, four more, eight more.
  const seconds = (performance.now() - startedAt) / 1000;
  ok(rejections() <= 1 + Math.log2(1 + seconds), `${rejections()} lines within ${seconds} s`);
});
