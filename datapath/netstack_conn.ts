/**
 * TCP connections of a network stack.
 *
 * @module
 */

import { type Argument, requireType } from "../native/arguments.ts";
import type { Buffer } from "../native/marshal.ts";
import type { NativeStream } from "../native/netstack.ts";
import { Resource } from "./_netstack_resource.ts";
import type { NetstackAddr } from "./netstack_address.ts";

/** Bytes of the buffers in which {@linkcode NetstackConn.readable} gives what came, where its reader brings none. */
const CHUNK_BYTES = 64 << 10;

const READ = "read from the connection";
const WRITE = "write to the connection";

/**
 * A TCP connection of a {@linkcode Netstack}, in the shape of `Deno.TcpConn`.
 *
 * - `read` and `write` are for one caller at a time each, and so are `readable` and `writable`, which do the same as streams of bytes.
 * - Nothing is read ahead: what nobody reads stays in the stack, whose receive buffer is what the peer may send before it waits.
 *   A write waits for room in the send buffer.
 * - `closeWrite`, and closing `writable`, end the sending side behind what was written; reading goes on.
 * - `close` delivers what was written, unless something has come that was not read: then the peer hears of a reset. A
 *   connection whose two streams have both ended closes by itself. Aborting `writable` resets it at once.
 * - A call that waits when the connection is closed rejects with `Deno.errors.Interrupted`, a later one with `BadResource`. The rest is
 *   `ConnectionReset`, `TimedOut`, `BrokenPipe` for a write behind `closeWrite`, `ConnectionAborted` when the stack was closed.
 */
export class NetstackConn implements Disposable {
  /** This end. */
  readonly localAddr: NetstackAddr;
  /** The other end. */
  readonly remoteAddr: NetstackAddr;
  readonly #resource: Resource<NativeStream>;
  #readable: ReadableStream<Uint8Array<ArrayBuffer>> | undefined;
  #writable: WritableStream<Uint8Array> | undefined;
  /** Streams that have not ended. */
  readonly #streams = new Set(["readable", "writable"]);

  /**
   * A connection that is there.
   *
   * @internal
   */
  constructor(native: NativeStream) {
    this.#resource = new Resource(native, "connection");
    const { local, remote } = native.info();
    this.localAddr = toAddr(local);
    this.remoteAddr = toAddr(remote);
  }

  /** What comes, as a stream of bytes; it takes the reader's own buffers too. The same one each time. */
  get readable(): ReadableStream<Uint8Array<ArrayBuffer>> {
    return this.#readable ??= new ReadableStream({
      type: "bytes",
      autoAllocateChunkSize: CHUNK_BYTES,
      pull: async (controller) => {
        const request = controller.byobRequest;
        if (request === null || request.view === null) return;
        const { buffer, byteOffset, byteLength } = request.view;
        const count = await this.#read(new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength));
        // Somebody has cancelled meanwhile.
        if (request.view === null) return;
        if (count === 0) {
          controller.close();
          this.#end("readable");
        }
        request.respond(count);
      },
      cancel: () => this.#end("readable"),
    });
  }

  /** What is sent, as a stream of bytes. The same one each time. */
  get writable(): WritableStream<Uint8Array> {
    let aborted: AbortSignal | undefined;
    return this.#writable ??= new WritableStream({
      start: (controller) => {
        aborted = controller.signal;
      },
      write: async (chunk) => {
        requireBytes(chunk, { operation: WRITE, name: "chunk" });
        for (let rest = chunk; rest.length > 0;) rest = rest.subarray(await this.#write(rest, aborted));
      },
      close: async () => {
        await this.closeWrite();
        this.#end("writable");
      },
      abort: () => {
        if (!this.#resource.isClosed) this.#resource.now("reset the connection", (native) => native.abort());
        this.close();
      },
    });
  }

  /**
   * Reads what has come, waiting until something has.
   *
   * @param p Where to. It must not be used until the promise has settled.
   * @returns How many bytes; `null` when the peer has ended.
   */
  async read(p: Uint8Array): Promise<number | null> {
    requireBytes(p, { operation: READ, name: "p" });
    if (p.length === 0) return 0;
    return await this.#read(p) || null;
  }

  /**
   * Hands over bytes to be sent, waiting until there is room for some.
   *
   * @param p The bytes.
   * @returns How many were taken, from the first on.
   */
  async write(p: Uint8Array): Promise<number> {
    requireBytes(p, { operation: WRITE, name: "p" });
    return await this.#write(p);
  }

  /** Ends the sending side behind what was written. Reading goes on. */
  closeWrite(): Promise<void> {
    return this.#resource.until("end the sending side", {
      ready: "writable",
      call: (native) => {
        native.closeSend();
        return null;
      },
    }).then(() => {});
  }

  /** Ends the connection. May be called again. */
  close(): void {
    this.#resource.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  #read(into: Uint8Array): Promise<number> {
    return this.#resource.until(READ, {
      ready: "readable",
      call: (native) => native.read(into as Buffer),
    });
  }

  #write(bytes: Uint8Array, signal?: AbortSignal): Promise<number> {
    return this.#resource.until(WRITE, {
      ready: "writable",
      call: (native) => native.write(bytes as Buffer),
      signal,
    });
  }

  #end(stream: "readable" | "writable"): void {
    this.#streams.delete(stream);
    if (this.#streams.size === 0) this.close();
  }
}

/** FFI calls take no memory that is shared with other threads. */
function requireBytes(value: unknown, argument: Argument): void {
  const holds = value instanceof Uint8Array && value.buffer instanceof ArrayBuffer;
  requireType(holds, value, { ...argument, allowed: "a Uint8Array over memory that is not shared" });
}

function toAddr(endpoint: string): NetstackAddr {
  const colon = endpoint.lastIndexOf(":");
  const hostname = endpoint.slice(0, colon).replace(/^\[|\]$/g, "");
  return { transport: "tcp", hostname, port: Number(endpoint.slice(colon + 1)) };
}
