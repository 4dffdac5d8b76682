/**
 * The other side of the tunnel, and inner packets.
 *
 * @module
 */

import { strictEqual } from "node:assert/strict";
import { socketAddress } from "../../control/prefix.ts";
import { addressBytes, type DangerInstallOptions, Engine, type Library, PacketBatch, type Verdict } from "../../mod.ts";
import { type EngineSides, HOST, INNER_PORT, REMOTE, TUNNEL_PREFIX } from "./_rig.ts";

export const VNI = 7;

const FAR_FUTURE_NS = 2n ** 63n;
const HEADERS_BYTES = 28;

/** The `generation`th keys of the datapath under test. */
export function keys(generation: number, expiresAtNs: bigint = FAR_FUTURE_NS): DangerInstallOptions {
  const key = (salt: number) => Array.from({ length: 16 }, (_, i) => hex(generation * 32 + salt * 16 + i)).join("");
  const [rxSpi, txSpi] = [2 * generation + 1, 2 * generation + 2];
  return { vni: VNI, rxSpi, txSpi, rxKey: key(0), txKey: key(1), expiresAtNs };
}

const hex = (byte: number) => (byte & 255).toString(16).padStart(2, "0");

/** An IPv4 packet with a UDP datagram in it. */
export function udpPacket(from: string, to: string, payload: Uint8Array): Uint8Array<ArrayBuffer> {
  const packet = new Uint8Array(HEADERS_BYTES + payload.length);
  const view = new DataView(packet.buffer);
  packet.set([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17]);
  view.setUint16(2, packet.length);
  packet.set([...addressBytes(from), ...addressBytes(to)], 12);
  let sum = 0;
  for (let at = 0; at < 20; at += 2) sum += view.getUint16(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
  view.setUint16(10, ~sum & 0xffff);
  view.setUint16(20, INNER_PORT);
  view.setUint16(22, INNER_PORT);
  view.setUint16(24, 8 + payload.length);
  // No checksum: RFC 768 allows that over IPv4.
  packet.set(payload, HEADERS_BYTES);
  return packet;
}

/** The payload of a packet that {@linkcode udpPacket}, or a kernel, made. */
export function udpPayload(packet: Uint8Array): Uint8Array {
  strictEqual(packet[0], 0x45);
  strictEqual(packet[9], 17);
  return packet.subarray(HEADERS_BYTES);
}

/** A payload of `bytes` bytes that carries a number; at least two. */
export function numbered(number: number, bytes = 64): Uint8Array {
  const payload = new Uint8Array(bytes).fill(number & 255);
  payload.set([number >> 8, number & 255]);
  return payload;
}

/** The number of such a payload; `undefined` for none. */
export function numberOf(payload: Uint8Array | undefined): number | undefined {
  return payload === undefined ? undefined : (payload[0] ?? 0) << 8 | (payload[1] ?? 0);
}

/** An engine with the datapath's own keys, or with the peer's. */
export function makeEngine(library: Library, peer: string, options: EngineChoice = {}): Engine {
  const { side = "datapath", generation = 0, ...rest } = options;
  const engine = Engine.create({ library, dangerIsolatedKeyHistory: true, ...rest });
  engine.addNetwork({ vni: VNI, peer, routes: [{ src: TUNNEL_PREFIX, dst: TUNNEL_PREFIX }] });
  const own = keys(generation);
  engine.dangerInstall(side === "datapath" ? own : mirrored(own));
  return engine;
}

/** How {@linkcode makeEngine} makes one. */
export interface EngineChoice extends EngineSides {
  readonly side?: "datapath" | "peer";
  readonly generation?: number;
  readonly keepaliveMs?: number;
  readonly innerMtuBytes?: number;
}

/** The same keys for the other side. */
export function mirrored(own: DangerInstallOptions): DangerInstallOptions {
  const { rxSpi, txSpi, rxKey, txKey } = own;
  return { ...own, rxSpi: txSpi, txSpi: rxSpi, rxKey: txKey, txKey: rxKey };
}

/** The peer: it opens what the datapath sends, and seals what the datapath shall get. */
export class Peer implements Disposable {
  readonly engine: Engine;
  readonly #source: { readonly address: Uint8Array; readonly port: number };
  readonly #input = new PacketBatch({ capacity: 1, bufferBytes: 1 << 16 });
  readonly #output = new PacketBatch({ capacity: 1, bufferBytes: 1 << 16 });

  constructor(library: Library, address: string) {
    this.#source = { address: addressBytes(address), port: 40_000 };
    this.engine = makeEngine(library, socketAddress(address, 6081), { side: "peer", keepaliveMs: 3_600_000 });
  }

  open(datagram: Uint8Array): { readonly verdict: Verdict; readonly bytes: Uint8Array } {
    this.#input.clear();
    this.#input.append(datagram, this.#source);
    this.engine.phyToVirt(this.#input, this.#output);
    return { verdict: this.#output.verdict(0), bytes: this.#output.packet(0).slice() };
  }

  /** The payload that a datagram carries; it must be a good one. */
  payload(datagram: Uint8Array): Uint8Array {
    const { verdict, bytes } = this.open(datagram);
    strictEqual(verdict, "forward");
    return udpPayload(bytes);
  }

  /** A datagram for the datapath. */
  seal(payload: Uint8Array, from: string = REMOTE, to: string = HOST): Uint8Array {
    return sealed(this.engine, udpPacket(from, to, payload)).bytes;
  }

  /** The datagram of the peer's one keepalive. */
  keepalive(): Uint8Array {
    strictEqual(this.engine.toPhy(this.#output), 1);
    return this.#output.packet(0).slice();
  }

  rekey(generation: number, expiresAtNs?: bigint): void {
    this.engine.dangerInstall(mirrored(keys(generation, expiresAtNs)));
  }

  [Symbol.dispose](): void {
    this.engine.close();
  }
}

/** Seals one inner packet, which the engine must not refuse. */
export function sealed(engine: Engine, packet: Uint8Array): { readonly bytes: Uint8Array; readonly port: number } {
  const [input, output] = [
    new PacketBatch({ capacity: 1, bufferBytes: 1 << 16 }),
    new PacketBatch({ capacity: 1, bufferBytes: 1 << 16 }),
  ];
  input.append(packet);
  engine.virtToPhy(input, output);
  strictEqual(output.verdict(0), "forward");
  return { bytes: output.packet(0), port: output.endpoint(0).port };
}
