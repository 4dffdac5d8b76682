/**
 * UDP sockets of tests.
 *
 * @module
 */

import { createSocket, type Socket } from "node:dgram";

export const LOOPBACK = "127.0.0.1";

/** A socket whose datagrams are kept until they are asked for. */
export class Mailbox {
  readonly #socket: Socket;
  readonly #messages: Uint8Array<ArrayBuffer>[] = [];
  #wake = () => {};

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("message", (message) => {
      this.#messages.push(new Uint8Array(message));
      this.#wake();
    });
    // What a send meets is for its callback.
    socket.on("error", () => {});
  }

  static async bind(address: string, port: number): Promise<Mailbox> {
    const socket = createSocket({ type: address.includes(":") ? "udp6" : "udp4", recvBufferSize: 1 << 21 });
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.bind(port, address, resolve);
    });
    return new Mailbox(socket);
  }

  get port(): number {
    return this.#socket.address().port;
  }

  async send(bytes: Uint8Array, address: string, port: number): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#socket.send(bytes, port, address, (error) => error === null ? resolve() : reject(error));
    });
  }

  /** The next datagram; `undefined` when there is none in time. For one caller at a time. */
  async receive(timeoutMs: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    if (this.#messages.length === 0) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, timeoutMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    return this.#messages.shift();
  }

  close(): Promise<void> {
    return new Promise((resolve) => this.#socket.close(resolve));
  }
}
