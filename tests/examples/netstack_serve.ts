/**
 * An HTTP/1.1 server inside the tunnel, without root and without a permission beyond the library's: handlers are those of
 * `Deno.serve`, connections come from a {@linkcode Netstack}.
 *
 * ```ts ignore
 * const listener = datapath.stack.listen({ port: 80 });
 * await serve(listener, (request) => new Response(`You asked for ${request.url}`));
 * ```
 *
 * @module
 */

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { NetstackListener } from "@icx/icx";
import { duplexOf } from "./_netstack_duplex.ts";

/** Answers requests, as handlers of `Deno.serve` do. */
export type Handler = (request: Request) => Response | Promise<Response>;

/** Serves connections until the listener closes. One that fails is its client's to notice. */
export async function serve(listener: NetstackListener, handler: Handler): Promise<void> {
  const server = createServer((incoming, outgoing) => {
    answer(incoming, outgoing, handler).catch(() => outgoing.destroy());
  });
  for await (const conn of listener) {
    server.emit("connection", duplexOf(conn).on("error", () => {}));
  }
}

async function answer(incoming: IncomingMessage, outgoing: ServerResponse, handler: Handler): Promise<void> {
  const { method = "GET", url = "/" } = incoming;
  const hasBody = method !== "GET" && method !== "HEAD";
  const request = new Request(new URL(url, `http://${incoming.headers.host ?? "localhost"}`), {
    method,
    headers: headersOf(incoming),
    ...(hasBody ? { body: Readable.toWeb(incoming) as ReadableStream<Uint8Array>, duplex: "half" } : {}),
  });
  const response = await handler(request);
  outgoing.writeHead(response.status, Object.fromEntries(response.headers));
  if (response.body === null) outgoing.end();
  else await pipeline(response.body, outgoing);
}

/** The header of a message. */
export function headersOf({ rawHeaders }: IncomingMessage): Headers {
  const headers = new Headers();
  for (let at = 0; at < rawHeaders.length; at += 2) headers.append(rawHeaders[at] ?? "", rawHeaders[at + 1] ?? "");
  return headers;
}
