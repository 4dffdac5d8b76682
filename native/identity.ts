/**
 * Identities: private keys that stay in the library, and public keys as text.
 *
 * @module
 */

import { SyncHandle } from "./handle.ts";
import type { Library } from "./library.ts";
import { callJson, encodeJson, errBuffer, queryJson } from "./marshal.ts";

/** A public key as people see it. */
export interface KeyInfo {
  /** Base64 of the SPKI DER. */
  readonly publicKey: string;
  /** Base64 of its SHA-256, without padding. */
  readonly fingerprint: string;
}

/** Where {@linkcode NativeIdentity.generate} puts the private key. */
export interface GenerateOptions {
  /** The file to make, with mode 0600; `-` writes to standard output. */
  readonly path: string;
  /** Whether a file that exists is replaced. @default false */
  readonly force?: boolean | undefined;
}

/** Where {@linkcode NativeIdentity.load} finds the private key. */
export interface LoadOptions {
  /** The file; `-` reads standard input to its end. */
  readonly path: string;
}

/** A peer's key as it was given. */
export interface PeerKeyOptions {
  /** The key as text, or with `allowFile` perhaps a file's name. */
  readonly text: string;
  /** Whether a file of that name goes before the text itself. @default false */
  readonly allowFile?: boolean | undefined;
}

/** Two public keys as base64. */
export interface RoleOptions {
  /** This node's. */
  readonly local: string;
  /** The peer's. */
  readonly peer: string;
}

/** Who dials. */
export type Role = "initiator" | "responder";

/** A node's key pair. The private key never leaves the library. */
export class NativeIdentity extends SyncHandle {
  protected override readonly kind = "identity";

  /**
   * Makes a key pair and writes the private key as PKCS#8 PEM.
   *
   * @throws {NativeError} `EEXIST` for a file that exists, unless `force`; `EPERM`, `ENOENT`, `ESYS`.
   */
  static generate(library: Library, options: GenerateOptions): NativeIdentity {
    const { symbols } = library;
    const id = callJson(symbols, "icx_identity_generate", options, (...text) => symbols.icx_identity_generate(...text));
    return new NativeIdentity(library, id);
  }

  /**
   * Loads a key pair.
   *
   * @throws {NativeError} `EKEY` for what is no key, or is open to others; `ENOENT`, `EPERM`, `ESYS`.
   */
  static load(library: Library, options: LoadOptions): NativeIdentity {
    const { symbols } = library;
    const id = callJson(symbols, "icx_identity_load", options, (...text) => symbols.icx_identity_load(...text));
    return new NativeIdentity(library, id);
  }

  /** The public key. */
  info(): KeyInfo {
    const { symbols, id } = this.use("icx_identity_info");
    return queryJson(symbols, "icx_identity_info", (out, outBytes) => symbols.icx_identity_info(id, out, outBytes));
  }
}

/**
 * Checks a peer's public key.
 *
 * @throws {NativeError} `EKEY` when it is none; `EPERM`, `ESYS` when its file cannot be read.
 */
export function parsePeerKey(library: Library, options: PeerKeyOptions): KeyInfo {
  const { symbols } = library;
  const json = encodeJson(options);
  const err = errBuffer();
  return queryJson(
    symbols,
    "icx_peer_key_parse",
    (out, outBytes) => symbols.icx_peer_key_parse(json, json.byteLength, out, outBytes, err, err.byteLength),
    err,
  );
}

/**
 * Tells which role this node has towards a peer.
 *
 * @throws {NativeError} `EKEY` for equal keys, `EINVAL` for what is no key.
 */
export function roleOf(library: Library, options: RoleOptions): Role {
  const { symbols } = library;
  return callJson(symbols, "icx_role", options, (...text) => symbols.icx_role(...text)) === 1
    ? "initiator"
    : "responder";
}
