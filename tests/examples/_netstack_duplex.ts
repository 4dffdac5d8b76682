/**
 * A connection of a network stack as the stream that Node's modules take for a socket.
 *
 * @module
 */

import { Duplex } from "node:stream";
import type { NetstackConn } from "@icx/icx";

/** Owns the connection, which ends with it. */
export function duplexOf(conn: NetstackConn): Duplex {
  // Their types of the same standard differ from Deno's.
  const streams = { readable: conn.readable, writable: conn.writable } as unknown as Parameters<
    typeof Duplex.fromWeb
  >[0];
  return Duplex.fromWeb(streams).once("close", () => conn.close());
}
