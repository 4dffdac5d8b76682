/** The two examples of HTTP over a network stack, each other's counterpart. */

import { deepStrictEqual, rejects, strictEqual } from "node:assert/strict";
import { netstackPair } from "../../datapath/_netstack_pair.ts";
import { fetchThrough } from "./netstack_fetch.ts";
import { type Handler, serve } from "./netstack_serve.ts";

const SERVER = "http://10.9.0.2:8080";

/** A server on one stack for `body`, which fetches through the other one. */
async function withServer(
  handler: Handler,
  body: (fetch: (path: string, init?: RequestInit) => Promise<Response>) => Promise<void>,
): Promise<void> {
  await using pair = await netstackPair();
  const handles = pair.library.handleCount();
  const listener = pair.right.listen({ port: 8080 });
  const serving = serve(listener, handler);
  await body((path, init) => fetchThrough(pair.left, `${SERVER}${path}`, init));
  listener.close();
  await serving;
  // Connections end in their own time.
  const end = performance.now() + 20_000;
  while (pair.library.handleCount() > handles && performance.now() < end) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  strictEqual(pair.library.handleCount(), handles);
}

Deno.test("a handler answers requests that come through the tunnel", async () => {
  const handler: Handler = async (request) => {
    const { pathname } = new URL(request.url);
    const text = await request.text();
    return new Response(`${request.method} ${pathname} ${text}`, { status: 201, headers: { "x-seen": "yes" } });
  };
  await withServer(handler, async (fetch) => {
    const response = await fetch("/a?b=c", { method: "POST", body: "question" });
    deepStrictEqual([response.status, response.headers.get("x-seen")], [201, "yes"]);
    strictEqual(await response.text(), "POST /a question");
    strictEqual(await (await fetch("/")).text(), "GET / ");
    const head = await fetch("/", { method: "HEAD" });
    deepStrictEqual([head.status, head.body], [201, null]);
  });
});

Deno.test("bodies pass as streams, however long, both ways at once", async () => {
  await withServer((request) => new Response(request.body), async (fetch) => {
    const sent = Uint8Array.from({ length: 4 << 20 }, (_, i) => i * 31 + (i >> 8));
    const response = await fetch("/", { method: "PUT", body: sent });
    deepStrictEqual(await response.bytes(), sent);
  });
});

Deno.test("many requests pass at once", async () => {
  await withServer((request) => new Response(new URL(request.url).pathname), async (fetch) => {
    const paths = Array.from({ length: 50 }, (_, i) => `/${i}`);
    const texts = await Promise.all(paths.map(async (path) => await (await fetch(path)).text()));
    deepStrictEqual(texts, paths);
  });
});

Deno.test("what cannot be fetched says why", async () => {
  await using pair = await netstackPair();
  await rejects(fetchThrough(pair.left, `${SERVER}/`), Deno.errors.ConnectionRefused);
  await rejects(fetchThrough(pair.left, "https://10.9.0.2/"), TypeError);
  await rejects(fetchThrough(pair.left, SERVER, { signal: AbortSignal.abort(new Error("enough")) }), /enough/);
});
