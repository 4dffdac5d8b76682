/**
 * TCP listeners of a network stack.
 *
 * @module
 */

import type { NativeListener } from "../native/netstack.ts";
import { Resource } from "./_netstack_resource.ts";
import type { NetstackAddr } from "./netstack_address.ts";
import { NetstackConn } from "./netstack_conn.ts";

/** What a call that waits for something on a {@linkcode Netstack} takes. */
export interface NetstackWaitOptions {
  /** Ends the wait; the promise then rejects with the signal's reason. @default none */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Hears TCP connections on a port of a {@linkcode Netstack}, in the shape of `Deno.TcpListener`: iterating over it gives the connections until it is
 * closed. Those beyond 256 that wait to be accepted are not answered, so that the peers try again.
 */
export class NetstackListener implements AsyncIterable<NetstackConn>, Disposable {
  /** Where it listens. */
  readonly addr: NetstackAddr;
  readonly #resource: Resource<NativeListener>;

  /**
   * A listener on all addresses.
   *
   * @internal
   */
  constructor(native: NativeListener, hostname: string) {
    this.#resource = new Resource(native, "listener");
    this.addr = { transport: "tcp", hostname, port: native.info().port };
  }

  /**
   * Waits for the next connection.
   *
   * @throws {Deno.errors.Interrupted} When the listener is closed meanwhile; `BadResource` when it is closed, `ConnectionAborted` when the stack
   * was.
   */
  async accept({ signal }: NetstackWaitOptions = {}): Promise<NetstackConn> {
    const native = await this.#resource.until("accept a connection", {
      ready: "readable",
      call: (native) => native.accept(),
      signal,
    });
    return new NetstackConn(native);
  }

  /** Listens no more. Connections that were not accepted are reset. May be called again. */
  close(): void {
    this.#resource.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The connections that come, until the listener or the stack is closed. Leaving the loop closes the listener. */
  async *[Symbol.asyncIterator](): AsyncGenerator<NetstackConn, void, undefined> {
    try {
      while (!this.#resource.isClosed) yield await this.accept();
    } catch (error) {
      if (!this.#resource.isClosed && !(error instanceof Deno.errors.ConnectionAborted)) throw error;
    } finally {
      this.close();
    }
  }
}
