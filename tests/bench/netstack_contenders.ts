/** What carries connections from host `a` of a lab to host `b` in `deno task bench:netstack`. */

import { Buffer } from "node:buffer";
import { generateKeyPairSync, type KeyObject } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { findProgram } from "../../cli/shell.ts";
import { type Host, ICX, type Lab, run, type Running } from "../netns/_lab.ts";

/** Port of the server on host `b`, and of whatever leads to it. */
export const PORT = 5201;
const LOOPBACK = "127.0.0.1";
const PINGS = 200;
const PING_INTERVAL_MS = 10;

const WIREGUARD_SOURCE = fileURLToPath(new URL("wireguard_netstack", import.meta.url));
const WIREGUARD_PORT = 6081;
const BUILD_MS = 600_000;

/** A contender at work. */
export interface Started {
  /** Address of host `a` or of the tunnel by which a client on host `a` reaches the server. */
  readonly address: string;
  /** The processes of both nodes. */
  readonly pids: readonly number[];
  stop(): Promise<void>;
}

/** One that carries connections. */
export interface Contender {
  readonly name: string;
  start(lab: Lab): Promise<Started>;
  /** Sends echo requests from side `a`; gives what ping prints, or icx ping. Nothing else of it runs. */
  ping?(lab: Lab): Promise<string>;
}

/** What a node of icx has for its inner side. */
type Inner = "tun" | "netstack";

/** icx, with what is inside on host `a` and on host `b`. */
export function icx(a: Inner, b: Inner): Contender {
  return {
    name: a === b ? `icx ${a}` : `icx ${a}, ${b}`,
    async start(lab) {
      const nodes = await lab.tunnel(clientSide(lab.b, a), serverSide(b));
      return {
        address: a === "tun" ? lab.b.inner4 : LOOPBACK,
        pids: nodes.map((node) => node.process.pid),
        stop: async () => void await Promise.all(nodes.map((node) => node.stop())),
      };
    },
    ping: a === "tun" ? (lab) => pingByKernel(lab, clientSide(lab.b, a), serverSide(b)) : (lab) => pingByIcx(lab, b),
  };
}

function clientSide(server: Host, inner: Inner): readonly string[] {
  const forward = ["--forward", `${LOOPBACK}:${PORT}=${server.inner4}:${PORT}`];
  return ["--datapath", inner, ...inner === "netstack" ? forward : []];
}

function serverSide(inner: Inner): readonly string[] {
  return ["--datapath", inner, ...inner === "netstack" ? ["--reverse", `${PORT}=${LOOPBACK}:${PORT}`] : []];
}

async function pingByKernel(lab: Lab, a: readonly string[], b: readonly string[]): Promise<string> {
  const nodes = await lab.tunnel(a, b);
  const interval = String(PING_INTERVAL_MS / 1000);
  const text = await lab.a.ok(["ping", "-n", "-c", String(PINGS), "-i", interval, "-W", "2", lab.b.inner4]);
  await Promise.all(nodes.map((node) => node.stop()));
  return text;
}

async function pingByIcx(lab: Lab, b: Inner): Promise<string> {
  const node = lab.start(lab.b, serverSide(b));
  const text = await lab.a.ok([
    ...[ICX, "ping", "--identity-key", lab.a.keyFile, "--peer-key", lab.b.publicKey],
    ...["--address", `${lab.a.inner4}/24`, "--allowed-route", "10.9.0.0/24"],
    ...["--count", String(PINGS), "--interval", `${PING_INTERVAL_MS}ms`],
    ...[`${lab.a.peerUnderlay}:6081`, lab.b.inner4],
  ]);
  await node.stop();
  return text;
}

/**
 * wireguard-go with the stack of gVisor, whose program is built into `directory`. A text: why there is none.
 */
export async function wireGuardNetstack(directory: string): Promise<Contender | string> {
  const go = await findProgram("go");
  if (go === undefined) return "Go is not installed";
  const program = `${directory}/wireguard_netstack`;
  const { code, stderr } = await run([go, "build", "-C", WIREGUARD_SOURCE, "-o", program, "."], BUILD_MS);
  if (code !== 0) return stderr.trim();
  return {
    name: "wireguard-go netstack",
    async start(lab) {
      const [a, b] = [generateKeyPairSync("x25519"), generateKeyPairSync("x25519")];
      const local = `${LOOPBACK}:${PORT}`;
      const inner = `${lab.b.inner4}:${PORT}`;
      const nodes = await Promise.all([
        startWireGuard(lab, lab.a, {
          program,
          own: a.privateKey,
          peer: b.publicKey,
          carry: ["-forward", `${local}=${inner}`],
        }),
        startWireGuard(lab, lab.b, {
          program,
          own: b.privateKey,
          peer: a.publicKey,
          carry: ["-reverse", `${inner}=${local}`],
        }),
      ]);
      return {
        address: LOOPBACK,
        pids: nodes.map(({ pid }) => pid),
        async stop() {
          for (const node of nodes) {
            node.kill("SIGTERM");
            await node.ended;
          }
        },
      };
    },
  };
}

async function startWireGuard(
  lab: Lab,
  host: Host,
  { program, own, peer, carry }: {
    readonly program: string;
    readonly own: KeyObject;
    readonly peer: KeyObject;
    readonly carry: readonly string[];
  },
): Promise<Running> {
  const config = `${host.keyFile}.wireguard`;
  const lines = [
    `private_key=${hex(own, "d")}`,
    `listen_port=${WIREGUARD_PORT}`,
    `public_key=${hex(peer, "x")}`,
    `endpoint=${host.peerUnderlay}:${WIREGUARD_PORT}`,
    `allowed_ip=${lab.other(host).inner4}/32`,
  ];
  await writeFile(config, `${lines.join("\n")}\n`, { mode: 0o600 });
  const node = lab.spawn(host, [program, "-config", config, "-address", host.inner4, ...carry]);
  await node.until("the node is ready", 10_000, () => node.stdout.includes("ready") || undefined);
  return node;
}

/** The raw bytes of a key (RFC 8037 section 2), as WireGuard's configuration protocol has them. */
function hex(key: KeyObject, part: "d" | "x"): string {
  return Buffer.from(key.export({ format: "jwk" })[part] ?? "", "base64url").toString("hex");
}
