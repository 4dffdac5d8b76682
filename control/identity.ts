/**
 * Who a node is: its key pair, and its peers' public keys.
 *
 * @module
 */

import { NativeIdentity, parsePeerKey as nativeParsePeerKey, roleOf } from "../native/identity.ts";
import { requireObject, requireText } from "../native/arguments.ts";
import { type Library, libraryOf } from "../native/library.ts";
import type { TunnelRole } from "./lifecycle.ts";

/** A public key as people see it. */
export interface PublicKey {
  /** Base64 of the SPKI DER: what goes into a peer's configuration. */
  readonly publicKey: string;
  /** Base64 of its SHA-256, without padding: short enough to compare by eye. */
  readonly fingerprint: string;
}

/** Options of {@linkcode Identity.generate}. */
export interface GenerateIdentityOptions {
  /** The library; it must stay open as long as the identity. */
  readonly library: Library;
  /** Whether a file that exists is replaced. @default false */
  readonly force?: boolean | undefined;
}

/** Options of {@linkcode Identity.load}. */
export interface LoadIdentityOptions {
  /** The library; it must stay open as long as the identity. */
  readonly library: Library;
}

/** Options of {@linkcode parsePeerKey}. */
export interface ParsePeerKeyOptions {
  /** The library. */
  readonly library: Library;
  /** Whether a readable file of that name wins: its content is the key then. @default false */
  readonly allowFile?: boolean | undefined;
}

/**
 * A node's key pair, ECDSA P-256. The private key stays inside the library: nothing here shows it.
 *
 * @example Make an identity and load it again
 * ```ts
 * import { Identity, Library } from "@icx/icx";
 * import { strictEqual } from "node:assert";
 * import { mkdtemp, rm } from "node:fs/promises";
 * import { tmpdir } from "node:os";
 * import { join } from "node:path";
 *
 * await using library = Library.open();
 * const folder = await mkdtemp(join(tmpdir(), "icx-"));
 * const file = join(folder, "node.key");
 * using made = Identity.generate(file, { library });
 * using loaded = Identity.load(file, { library });
 * strictEqual(loaded.publicKey, made.publicKey);
 * await rm(folder, { recursive: true });
 * ```
 */
export class Identity implements PublicKey, Disposable {
  readonly publicKey: string;
  readonly fingerprint: string;
  readonly #native: NativeIdentity;

  private constructor(native: NativeIdentity) {
    const { publicKey, fingerprint } = native.info();
    this.publicKey = publicKey;
    this.fingerprint = fingerprint;
    this.#native = native;
  }

  /**
   * Makes a key pair and writes the private key, as PKCS#8 PEM that its owner alone can read.
   *
   * @param file The file to make; `-` writes to stdout.
   * @param options The library, and whether a file that exists is replaced.
   * @throws {NativeError} When the file exists and is not to be replaced (`EEXIST`), or cannot be written.
   */
  static generate(file: string, options: GenerateIdentityOptions): Identity {
    const operation = "generate an identity";
    const library = libraryOf(options, operation);
    requireText(file, { operation, name: "file" });
    const { force = false } = options;
    return new Identity(NativeIdentity.generate(library, { path: file, force }));
  }

  /**
   * Loads a key pair.
   *
   * @param file The file with the private key; `-` reads stdin.
   * @param options The library.
   * @throws {NativeError} When the file cannot be read, others than its owner may read it, or it holds no P-256 key in
   * PKCS#8 PEM (`EKEY`).
   */
  static load(file: string, options: LoadIdentityOptions): Identity {
    const operation = "load an identity";
    const library = libraryOf(options, operation);
    requireText(file, { operation, name: "file" });
    return new Identity(NativeIdentity.load(library, { path: file }));
  }

  /**
   * The native identity, for control endpoints.
   *
   * @internal
   */
  get native(): NativeIdentity {
    return this.#native;
  }

  /** Closes it and erases the key. May be called again. Control endpoints that use it go on. */
  close(): void {
    this.#native.close();
  }

  /** Closes it. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Reads a peer's public key.
 *
 * @param text Base64 of the SPKI DER of a P-256 key, or with `allowFile` the path of a file that holds that.
 * @param options The library, and whether a path is acceptable.
 * @returns The key in its standard form, and its fingerprint.
 * @throws {NativeError} When it is not such a key (`EKEY`); the message says what was found instead.
 */
export function parsePeerKey(text: string, options: ParsePeerKeyOptions): PublicKey {
  const operation = "read a peer's public key";
  const library = libraryOf(options, operation);
  requireText(text, { operation, name: "text" });
  const { allowFile = false } = options;
  return nativeParsePeerKey(library, { text, allowFile });
}

/** Two public keys. */
export interface KeyPairForRole {
  /** The own one, base64 of the SPKI DER. */
  readonly local: string;
  /** The peer's. */
  readonly peer: string;
}

/**
 * Tells which side dials: the one whose key sorts lower.
 *
 * @param library The library.
 * @param keys The two keys.
 * @throws {NativeError} When the keys are equal, or one is not acceptable (`EKEY`).
 */
export function tunnelRole(library: Library, keys: KeyPairForRole): TunnelRole {
  const operation = "tell the role of a node";
  libraryOf({ library }, operation);
  requireObject(keys, { operation, name: "keys" });
  return roleOf(library, keys);
}
