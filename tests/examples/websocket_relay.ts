/**
 * A node whose sealed packets travel as messages of a WebSocket, where a network lets nothing else through. The device is the
 * kernel's, the underlay is written in TypeScript: {@linkcode WebSocketUnderlay} is all that is special here.
 *
 * Keys are exchanged over UDP, as always. One side waits for the WebSocket, the other one opens it:
 *
 * ```sh
 * deno run --allow-ffi=native/lib/libicx.so --allow-net tests/examples/websocket_relay.ts '{
 *   "identityKeyFile": "a.key", "peerKey": "<public key of B>", "peerHost": "192.0.2.2",
 *   "address": "10.9.0.1", "peerAddress": "10.9.0.2", "listen": { "hostname": "192.0.2.1", "port": 8080 }
 * }'
 * deno run … '{ …, "address": "10.9.0.2", "peerAddress": "10.9.0.1", "dial": "ws://192.0.2.1:8080" }'    # on B
 * ```
 *
 * @module
 */

import process from "node:process";
import {
  addressBytes,
  ControlEndpoint,
  delay,
  Engine,
  Identity,
  Library,
  MAX_PACKET_BYTES,
  type PacketBatch,
  type ScriptUnderlay,
  supervise,
  TunDatapath,
  TunDevice,
  Tunnel,
} from "@icx/icx";

/** What stands for the other end of the WebSocket in the engine, which knows peers by address and port. */
export const PEER = "192.0.2.1:6081";
const PEER_ENDPOINT = { address: addressBytes("192.0.2.1"), port: 6081 };

/** Messages that may wait to be read. More are dropped, as a full socket buffer does: a tunnel copes with loss, not with delay. */
const MOST_WAITING = 1024;

/** Bytes that the WebSocket may hold before a send waits. */
const MOST_BUFFERED_BYTES = 1 << 20;

/** An underlay on an open WebSocket: one message for each datagram. When the WebSocket closes, the datapath ends with code `closed`. */
export class WebSocketUnderlay implements ScriptUnderlay {
  readonly kind = "script";
  readonly #socket: WebSocket;
  readonly #waiting: Uint8Array[] = [];
  #changed = Promise.withResolvers<void>();

  /** @param socket It is open, and belongs to the underlay from here on. */
  constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    socket.addEventListener("message", ({ data }) => {
      if (!(data instanceof ArrayBuffer) || data.byteLength > MAX_PACKET_BYTES) return;
      if (this.#waiting.length < MOST_WAITING) this.#waiting.push(new Uint8Array(data));
      this.#wake();
    });
    for (const end of ["close", "error"]) socket.addEventListener(end, () => this.#wake());
  }

  async receive(batch: PacketBatch, { signal }: { readonly signal?: AbortSignal | undefined } = {}): Promise<number> {
    while (this.#waiting.length === 0) {
      if (this.#socket.readyState !== WebSocket.OPEN) return 0;
      await abortable(this.#changed.promise, signal);
    }
    let count = 0;
    for (let next; (next = this.#waiting[0]) !== undefined && batch.append(next, PEER_ENDPOINT); count++) {
      this.#waiting.shift();
    }
    return count;
  }

  async send(
    batch: PacketBatch,
    { from = 0, signal }: { readonly from?: number; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    while (this.#socket.bufferedAmount > MOST_BUFFERED_BYTES) await delay(1, { signal });
    if (this.#socket.readyState !== WebSocket.OPEN) throw new Error("The WebSocket is closed");
    // A copy: the batch is the caller's again when this returns.
    for (let i = from; i < batch.length; i++) this.#socket.send(batch.packet(i).slice());
    return batch.length - from;
  }

  async close(): Promise<void> {
    this.#waiting.length = 0;
    this.#wake();
    if (this.#socket.readyState === WebSocket.CLOSED) return;
    const closed = new Promise((resolve) => this.#socket.addEventListener("close", resolve, { once: true }));
    this.#socket.close();
    await closed;
  }

  #wake(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** `promise`, or a rejection with the signal's reason if that comes first. */
async function abortable<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  signal?.throwIfAborted();
  const aborted = Promise.withResolvers<never>();
  const onAbort = () => aborted.reject(signal?.reason);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([promise, aborted.promise]);
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
}

/** Waits for the other side to open a WebSocket; closing the underlay is what lets go of the server too. */
export function listen(where: { readonly hostname: string; readonly port: number }): {
  readonly port: number;
  readonly connected: Promise<WebSocketUnderlay>;
  readonly stop: () => Promise<void>;
} {
  const connected = Promise.withResolvers<WebSocketUnderlay>();
  let taken = false;
  const server = Deno.serve({ ...where, onListen() {} }, (request) => {
    if (request.headers.get("upgrade") !== "websocket") return new Response("A WebSocket is expected", { status: 426 });
    if (taken) return new Response("The other side is connected already", { status: 409 });
    taken = true;
    const { socket, response } = Deno.upgradeWebSocket(request);
    socket.addEventListener("open", () => connected.resolve(new WebSocketUnderlay(socket)), { once: true });
    return response;
  });
  return { port: server.addr.port, connected: connected.promise, stop: () => server.shutdown() };
}

/** Opens a WebSocket to the other side. */
export async function dial(url: string): Promise<WebSocketUnderlay> {
  const socket = new WebSocket(url);
  await new Promise<void>((resolve, reject) => {
    socket.addEventListener("open", () => resolve(), { once: true });
    socket.addEventListener("error", () => reject(new Error(`Cannot open a WebSocket to ${url}`)), { once: true });
  });
  return new WebSocketUnderlay(socket);
}

/** What the program takes as its argument, as JSON. */
export interface RelayNodeConfig {
  readonly identityKeyFile: string;
  /** Public key of the other side. */
  readonly peerKey: string;
  /** Where the other side exchanges keys. */
  readonly peerHost: string;
  /** Inner addresses of this side and of the other one. */
  readonly address: string;
  readonly peerAddress: string;
  /** Either of the two. */
  readonly listen?: { readonly hostname: string; readonly port: number };
  readonly dial?: string;
}

/** Runs a node until `signal` aborts. */
export async function runNode(config: RelayNodeConfig, signal: AbortSignal): Promise<void> {
  const vni = 1;
  await using parts = new AsyncDisposableStack();
  const library = parts.use(Library.open());
  const identity = parts.use(Identity.load(config.identityKeyFile, { library }));
  const engine = parts.use(Engine.create({ library }));
  engine.addNetwork({
    vni,
    peer: PEER,
    routes: [{ src: `${config.address}/32`, dst: `${config.peerAddress}/32` }],
  });

  let underlay: WebSocketUnderlay;
  if (config.listen === undefined) {
    underlay = await dial(config.dial ?? "ws://localhost:8080");
  } else {
    const server = listen(config.listen);
    parts.defer(server.stop);
    underlay = await abortable(server.connected, signal);
  }
  const datapath = parts.use(
    await TunDatapath.open({
      device: TunDevice.open({ library, addresses: [`${config.address}/24`] }),
      underlay,
      engine,
    }),
  );
  const control = parts.use(ControlEndpoint.open({ library, identity }));
  const tunnel = new Tunnel({
    peer: control.addPeer({ engine, vni, publicKey: config.peerKey }),
    resolve: () => Promise.resolve([`${config.peerHost}:6082`]),
    sampleTraffic: () => {
      const { tx_packets, rx_packets, last_keepalive } = engine.counters(vni);
      return { txPackets: tx_packets, rxPackets: rx_packets, lastKeepalive: last_keepalive };
    },
  });
  tunnel.ready.then(() => process.stdout.write("up\n"), () => {});
  await supervise([
    { name: "tunnel", run: (signal) => tunnel.run({ signal }) },
    { name: "datapath", run: (signal) => datapath.run({ signal }) },
  ], { signal });
}

if (import.meta.main) {
  const stop = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => stop.abort());
  await runNode(JSON.parse(process.argv[2] ?? "{}"), stop.signal);
}
