/**
 * Requests over HTTP/1.1 to servers behind the tunnel, without root and without a permission beyond the library's.
 *
 * ```ts ignore
 * const response = await fetchThrough(datapath.stack, "http://10.9.0.2/");
 * console.log(await response.text());
 * ```
 *
 * @module
 */

import { type IncomingMessage, request as send } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { Netstack } from "@icx/icx";
import { duplexOf } from "./_netstack_duplex.ts";
import { headersOf } from "./netstack_serve.ts";

/** Statuses of responses that have no body (RFC 9110 section 6.4.1). */
const WITHOUT_BODY: ReadonlySet<number> = new Set([204, 205, 304]);

/** As `fetch`, for `http:` alone, each over a connection of its own through `stack`. Redirections are not followed. */
export async function fetchThrough(
  stack: Netstack,
  input: string | URL | Request,
  init?: RequestInit,
): Promise<Response> {
  const request = new Request(input, init);
  const { protocol, hostname, port, pathname, search } = new URL(request.url);
  if (protocol !== "http:") throw new TypeError(`Cannot fetch ${request.url} as it must be an http: URL`);
  const { signal, method } = request;
  const conn = await stack.connect({ hostname, port: Number(port || 80), signal });
  const incoming = await new Promise<IncomingMessage>((resolve, reject) => {
    const outgoing = send({
      // The socket is given, so this is for the header alone.
      host: hostname,
      port: port || 80,
      path: pathname + search,
      method,
      headers: Object.fromEntries(request.headers),
      signal,
      // Without an agent: one would connect by itself, past the tunnel.
      createConnection: () => duplexOf(conn),
    }, resolve);
    outgoing.on("error", (error) => {
      conn.close();
      reject(error);
    });
    if (request.body === null) outgoing.end();
    else pipeline(request.body, outgoing).catch(reject);
  });
  const { statusCode: status = 0, statusMessage: statusText = "" } = incoming;
  const body = WITHOUT_BODY.has(status) || method === "HEAD" ? null : Readable.toWeb(incoming) as ReadableStream;
  if (body === null) incoming.resume();
  return new Response(body, { status, statusText, headers: headersOf(incoming) });
}
