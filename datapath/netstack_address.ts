/**
 * Where things on a network stack are.
 *
 * @module
 */

/** An address with a port, in the shape of `Deno.NetAddr`. */
export interface NetstackAddr {
  /** The protocol. */
  readonly transport: "tcp" | "udp";
  /** An IP address; of something that listens, the one that stands for all. */
  readonly hostname: string;
  /** The port. */
  readonly port: number;
}
