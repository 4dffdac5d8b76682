/**
 * What the two ends of `icx bench --to` say to each other, over TCP to one port:
 * the caller's first line asks for something, as JSON, and what follows on that connection depends on it.
 *
 * - `receive`: the caller streams and half-closes; the answer is a {@linkcode Received} line.
 * - `send`: the answer is a stream for so many milliseconds.
 * - `echo`: every byte comes back.
 * - `datagrams`: the answer is an {@linkcode Opened} line; the caller sends datagrams to the same port over UDP, each beginning
 *   with the token, and half-closes; the answer is a {@linkcode Received} line.
 *
 * Nothing is ever sent over UDP by the side that listens, so that it cannot be made to flood anybody.
 */

import type net from "node:net";

/** Version of what is spoken. */
const VERSION = 1;
/** A first line is never longer. */
const LINE_BYTES = 256;
/** Longest stream that can be asked for. */
export const LONGEST_MS = 600_000;
/** Bytes at the start of a datagram that say whose it is. */
export const TOKEN_BYTES = 8;

const ASKS = ["receive", "send", "echo", "datagrams"] as const;

/** What a caller wants of its connection. */
export interface Ask {
  readonly icxBench: typeof VERSION;
  readonly ask: typeof ASKS[number];
  /** For `send`: how long. */
  readonly forMs?: number;
}

/** What arrived. */
export interface Received {
  readonly bytes: number;
  /** Datagrams, zero for a stream. */
  readonly datagrams: number;
  /** From the first to the last. */
  readonly elapsedMs: number;
}

/** The side that listens counts datagrams that begin with this token, in hex. */
export interface Opened {
  readonly token: string;
}

/** A line as it goes over the wire. */
export function line(message: Ask | Received | Opened | { readonly error: string }): string {
  return `${JSON.stringify(message)}\n`;
}

/** An ask with the version in it. */
export function askFor(ask: Ask["ask"], forMs?: number): Ask {
  return { icxBench: VERSION, ask, ...(forMs === undefined ? {} : { forMs }) };
}

/**
 * Reads an ask.
 *
 * @throws {TypeError} When it is none, or of another version.
 */
export function parseAsk(text: string): Ask {
  const given = JSON.parse(text) as Partial<Record<keyof Ask, unknown>> | null;
  if (given?.icxBench !== VERSION) {
    throw new TypeError(`this end speaks version ${VERSION}, not ${JSON.stringify(given?.icxBench)}`);
  }
  const ask = ASKS.find((name) => name === given.ask);
  if (ask === undefined) throw new TypeError(`ask must be one of ${ASKS.join(", ")}, not ${JSON.stringify(given.ask)}`);
  const { forMs = 0 } = given;
  if (typeof forMs !== "number" || !(forMs >= 0 && forMs <= LONGEST_MS)) {
    throw new TypeError(`forMs must be from 0 to ${LONGEST_MS}, not ${JSON.stringify(given.forMs)}`);
  }
  return askFor(ask, forMs);
}

/** Reads the first line of a connection; what came behind it is put back. */
export function readLine(socket: net.Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let got = new Uint8Array(0);
    const settle = (action: () => void) => {
      socket.off("data", onData).off("end", onEnd).off("error", onError);
      socket.pause();
      action();
    };
    const onData = (chunk: Uint8Array) => {
      const joined = new Uint8Array(got.length + chunk.length);
      joined.set(got);
      joined.set(chunk, got.length);
      got = joined;
      const end = got.indexOf(10);
      if (end < 0 && got.length <= LINE_BYTES) return;
      if (end < 0 || end > LINE_BYTES) return settle(() => reject(new TypeError("the first line is too long")));
      settle(() => {
        const rest = got.subarray(end + 1);
        if (rest.length > 0) socket.unshift(rest);
        resolve(new TextDecoder().decode(got.subarray(0, end)));
      });
    };
    const onEnd = () => settle(() => reject(new Error("the other end closed the connection")));
    const onError = (error: Error) => settle(() => reject(error));
    socket.on("data", onData).on("end", onEnd).on("error", onError);
    // One that was paused stays so, whoever listens.
    socket.resume();
  });
}
