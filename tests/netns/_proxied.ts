/** A node with a network stack in its process on host `a`, its proxies there, and what is behind the node on host `b`. */
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { DENO, type Host, type Lab, type Node } from "./_lab.ts";

const SERVERS = fileURLToPath(new URL("./_servers.ts", import.meta.url));
const SOCKS_CLIENTS = fileURLToPath(new URL("./_socks_clients.ts", import.meta.url));
const HEX = /\b[0-9a-f]{64}\b/;

/** An address behind host `b`, which nothing but the tunnel leads to. */
export const BEHIND = "10.8.0.1";

/** Its name, which only the name server at that address knows. */
export const NAME_BEHIND = "web.inner.test";

/** Options of curl that lead through each kind of proxy. */
export const PROXIES = {
  "SOCKS5": ["--proxy", "socks5h://127.0.0.1:1080"],
  "HTTP CONNECT": ["--proxy", "http://127.0.0.1:8118", "--proxytunnel"],
} as const;

/** Options of `icx` for both. */
export const BOTH_PROXIES: readonly string[] = ["--socks5", "--http-connect"];

/** How a helper of this folder is run. */
export function helper(file: string, ...args: readonly string[]): string[] {
  return [DENO, "run", "--no-prompt", "--cached-only", "--allow-net", file, ...args];
}

/** Starts the servers behind host `b`, which end with the lab. */
export async function serveBehind(lab: Lab): Promise<void> {
  await lab.b.ok(["ip", "addr", "add", `${BEHIND}/32`, "dev", "lo"]);
  const servers = lab.spawn(lab.b, helper(SERVERS, BEHIND));
  await servers.until("the servers listen", 30_000, () => servers.stdout.includes("listening") || undefined);
}

/** Starts a node on host `b`, and one that is proxies on host `a`; waits until the tunnel is up on both. */
export async function proxied(lab: Lab, options: readonly string[]): Promise<[proxy: Node, far: Node]> {
  const nodes: [Node, Node] = [lab.start(lab.a, options, { command: "proxy" }), lab.start(lab.b)];
  await Promise.all(nodes.map((node) => node.event("up")));
  return nodes;
}

/** Runs curl on `host` and gives what it got. */
export async function curl(host: Host, args: readonly string[], timeoutMs?: number): Promise<string> {
  return await host.ok(["curl", "-sS", "--fail", ...args], timeoutMs);
}

/** What a transfer through a proxy took, in seconds. */
export interface ExchangeSeconds {
  /** From what is behind `b`. */
  readonly down: number;
  /** To there. */
  readonly up: number;
}

/** Moves so many bytes each way between a client on host `a` and the web server behind `b`; both ends have the same SHA-256. */
export async function exchange(
  lab: Lab,
  options: { readonly proxy: readonly string[]; readonly bytes: number; readonly timeoutMs?: number },
): Promise<ExchangeSeconds> {
  const { proxy, bytes, timeoutMs = 120_000 } = options;
  const url = `http://${BEHIND}`;
  const expected = (await curl(lab.a, [...proxy, `${url}/digest/${bytes}`])).trim();
  assert.match(expected, HEX);
  const through = ["curl", "-sS", "--fail", ...proxy].join(" ");
  const timed = async (what: string, script: string): Promise<number> => {
    const startMs = performance.now();
    const { code, stdout, stderr } = await lab.a.shell(script, timeoutMs);
    assert.equal(code, 0, stderr);
    assert.equal(stdout.match(HEX)?.[0], expected, `checksums of both ends, ${what}`);
    return (performance.now() - startMs) / 1000;
  };
  const zeros = "0".repeat(32);
  return {
    down: await timed("down", `${through} ${url}/bytes/${bytes} | openssl dgst -sha256 -r`),
    up: await timed(
      "up",
      `head -c ${bytes} /dev/zero | openssl enc -aes-128-ctr -K ${zeros} -iv ${zeros} | ${through} -T - ${url}/`,
    ),
  };
}

/** So many connections through the SOCKS5 proxy on host `a` to the echo behind `b`, at once or one after the other. */
export async function echoThroughSocks(
  lab: Lab,
  options: { readonly how: "at-once" | "in-turn"; readonly count: number; readonly timeoutMs?: number },
): Promise<void> {
  const { how, count, timeoutMs = 120_000 } = options;
  const printed = await lab.a.ok(helper(SOCKS_CLIENTS, how, BEHIND, String(count)), timeoutMs);
  assert.deepEqual(JSON.parse(printed), { echoed: count });
}
