/** ECN, DSCP and TTL between inner and outer headers, on a real wire with a router that marks. */
import assert from "node:assert/strict";
import { gains, RX_DROPS, settled } from "./_adversary.ts";
import { type Host, Lab, privileged } from "./_lab.ts";
import { transfer } from "./_transfer.ts";

/** What tcpdump says of an IP header. */
interface Header {
  readonly trafficClass: number;
  readonly hopLimit: number;
  readonly bytes: number;
}

/** The IP headers of what passes `device` of `host` while `body` runs. */
async function headers(
  lab: Lab,
  { host, device, filter }: { readonly host: Host; readonly device: string; readonly filter: string },
  body: () => Promise<unknown>,
): Promise<Header[]> {
  const capture = lab.spawn(host, ["tcpdump", "-l", "-nn", "-v", "-B", "8192", "-i", device, ...filter.split(" ")]);
  await capture.until("tcpdump listens", 10_000, () => /listening on/.test(capture.stderr) || undefined);
  await body();
  await new Promise((resolve) => setTimeout(resolve, 300));
  capture.kill("SIGINT");
  const { stdout, stderr } = await capture.ended;
  assert.match(stderr, /\b0 packets dropped by kernel/);
  const v4 = [...stdout.matchAll(/\bIP \(tos 0x([0-9a-f]+).*?, ttl (\d+),.*, length (\d+)/g)];
  const v6 = [
    ...stdout.matchAll(/\bIP6 \((?:class 0x([0-9a-f]+), )?(?:flowlabel .*?, )?hlim (\d+),.*payload length: (\d+)/g),
  ];
  return [...v4, ...v6].map(([, trafficClass = "0", hopLimit, bytes]) => ({
    trafficClass: Number.parseInt(trafficClass, 16),
    hopLimit: Number(hopLimit),
    bytes: Number(bytes),
  }));
}

/** Lets the wire from `host` do something to the tunnel's datagrams: the rest of an nftables rule. */
async function route(host: Host, rule: string): Promise<void> {
  await host.ok(["nft", "add table inet t"]);
  await host.ok(["nft", "add chain inet t post { type filter hook postrouting priority 100; }"]);
  await host.ok(["nft", `add rule inet t post udp dport 6081 ${rule}`]);
}

/** Only what a test sends passes, and nothing that a kernel sends of itself. */
const INNER_ONLY = ["--allowed-route", "10.9.0.0/24", "--allowed-route", "fd09::/64"];
const COPY = ["--copy-ecn", "--copy-dscp", ...INNER_ONLY];

/** Expedited forwarding with each ECN field, and a few others. */
const CLASSES = [0x00, 0x01, 0x02, 0x03, 0xb8, 0xb9, 0xba, 0xbb, 0x28, 0xff];

function ping(host: Host, to: string, trafficClass: number, count = 1): Promise<string> {
  return host.ok(["ping", "-Q", String(trafficClass), "-c", String(count), "-i", "0.02", "-W", "2", to]);
}

for (const underlay of ["ipv4", "ipv6"] as const) {
  privileged(
    `${underlay} underlay: the outer class is 0, or that of the inner packet where it is asked for`,
    async () => {
      const rows = [
        { options: INNER_ONLY, mask: 0x00 },
        { options: ["--copy-ecn", ...INNER_ONLY], mask: 0x03 },
        { options: ["--copy-dscp", ...INNER_ONLY, "--source-port-hash"], mask: 0xfc },
        { options: COPY, mask: 0xff },
      ];
      for (const { options, mask } of rows) {
        await using lab = await Lab.create({ underlay });
        const [a, b] = await lab.tunnel(options);
        // Keepalives are shorter.
        const filter = `src host ${lab.a.underlay} and udp dst port 6081 and greater 150`;
        const seen = await headers(lab, { host: lab.b, device: "phy", filter }, async () => {
          for (const inner of [lab.b.inner4, lab.b.inner6]) {
            for (const trafficClass of CLASSES) await ping(lab.a, inner, trafficClass);
          }
        });
        const expected = CLASSES.map((trafficClass) => trafficClass & mask);
        assert.deepEqual(seen.map((header) => header.trafficClass), [...expected, ...expected], options.join(" "));
        assert(seen.every((header) => header.hopLimit === 64), JSON.stringify(seen));
        await a.stop();
        await b.stop();
      }
    },
  );

  privileged(`${underlay} underlay: a mark of the way reaches who can be told, and drops what cannot`, async () => {
    await using lab = await Lab.create({ underlay });
    await route(lab.a, `${underlay === "ipv4" ? "ip" : "ip6"} ecn set ce`);
    const [a, b] = await lab.tunnel(COPY);
    for (
      const [inner, filter] of [[lab.b.inner4, "icmp[0] == 8"], [lab.b.inner6, "icmp6 and ip6[40] == 128"]] as const
    ) {
      const before = (await settled(b)).counters;
      const marked = await headers(lab, { host: lab.b, device: "icx0", filter }, async () => {
        for (const sent of [0x02, 0x01, 0xba, 0x03]) await ping(lab.a, inner, sent, 20);
      });
      const expected = [0x03, 0x03, 0xbb, 0x03].flatMap((arrived) => Array<number>(20).fill(arrived));
      assert.deepEqual(marked.map((header) => header.trafficClass), expected, `to ${inner}`);
      const refused = await headers(lab, { host: lab.b, device: "icx0", filter }, async () => {
        for (const sent of [0x00, 0xb8]) {
          const flags = ["-Q", String(sent), "-c", "20", "-i", "0.02", "-W", "1"];
          assert.notEqual((await lab.a.run(["ping", ...flags, inner])).code, 0);
        }
      });
      assert.deepEqual(refused, []);
      assert.deepEqual(gains(before, (await settled(b)).counters, RX_DROPS), { rx_bad_ecn: 40 });
    }
    assert((await a.counters())["rx_bad_ecn"] === 0, "nobody marks on the way back");
    await a.stop();
    await b.stop();
  });

  privileged(
    `${underlay} underlay: of a TCP flow, as many segments arrive marked as were marked, merged or not`,
    async () => {
      await using lab = await Lab.create({ underlay });
      for (const host of [lab.a, lab.b]) {
        await host.ok(["sysctl", "-qw", "net.ipv4.tcp_ecn=1"]);
        // The receiving kernel merges what comes one by one.
        await host.ok(["ethtool", "-K", "phy", "gro", "on"]);
      }
      const ip = underlay === "ipv4" ? "ip" : "ip6";
      await route(lab.a, `${ip} ecn ect0 numgen inc mod 16 0 counter ${ip} ecn set ce`);
      const [a, b] = await lab.tunnel(["--offload", "udp-gso=off", ...COPY]);
      const seen = await headers(
        lab,
        { host: lab.b, device: "icx0", filter: `tcp dst port 5001` },
        () => transfer(lab, { from: lab.a, to: lab.b, address: lab.b.inner4, bytes: 4 << 20 }),
      );
      // 20 bytes of IP, 32 of TCP with timestamps.
      const [headersBytes, segmentBytes] = [52, 1392 - 52];
      const marked = seen.filter((header) => (header.trafficClass & 3) === 3)
        .reduce((sum, { bytes }) => sum + Math.ceil((bytes - headersBytes) / segmentBytes), 0);
      const rule = await lab.a.ok(["nft", "list", "chain", "inet", "t", "post"]);
      const marks = Number(rule.match(/counter packets (\d+)/)?.[1]);
      assert(marks > 100, rule);
      // What is lost of them on the way is sent again, and that is not marked (RFC 3168 section 6.1.5).
      const again = await lab.a.ok(["nstat", "-asz", "TcpRetransSegs"]);
      const lost = Number(/TcpRetransSegs +(\d+)/.exec(again)?.[1]);
      assert(
        marked <= marks && marks - marked <= lost,
        `${marked} of ${marks} arrived, ${lost} segments were sent again`,
      );
      assert(seen.some(({ bytes }) => bytes > 2 * 1392), "packets are merged");
      assert.match(await lab.a.ok(["nstat", "-asz", "TcpExtTCPDeliveredCE"]), /TcpExtTCPDeliveredCE +[1-9]/);
      await a.stop();
      await b.stop();
    },
  );
}

privileged(
  "a packet's TTL is what it is all the way through the tunnel, which is one hop; the outer one is 64",
  async () => {
    await using lab = await Lab.create();
    const [a, b] = await lab.tunnel(COPY);
    for (const [inner, echo] of [[lab.b.inner4, "icmp"], [lab.b.inner6, "icmp6"]] as const) {
      for (const hopLimit of [1, 2, 255]) {
        const flags = ["-t", String(hopLimit), "-c", "3", "-i", "0.02", "-W", "2"];
        let outer: Header[] = [];
        const delivered = await headers(
          lab,
          { host: lab.b, device: "icx0", filter: `${echo} and dst host ${inner}` },
          async () => {
            const filter = `src host ${lab.a.underlay} and udp dst port 6081`;
            outer = await headers(
              lab,
              { host: lab.b, device: "phy", filter },
              () => lab.a.ok(["ping", ...flags, inner]),
            );
          },
        );
        assert.deepEqual(delivered.map((header) => header.hopLimit), Array(3).fill(hopLimit), inner);
        assert(outer.length >= 3 && outer.every((header) => header.hopLimit === 64), JSON.stringify(outer));
      }
    }
    await a.stop();
    await b.stop();
  },
);
