/**
 * Opening and closing libicx.
 *
 * @module
 */

import { fileURLToPath } from "node:url";
import { requireObject, requireType } from "./arguments.ts";
import { NativeError } from "./errors.ts";
import { EventLoop } from "./events.ts";
import { check, decodeText } from "./marshal.ts";
import { ABI_VERSION, SYMBOLS, type Symbols } from "./symbols.ts";

/** Where `deno task build` puts the artifacts of the library. */
const ARTIFACTS: Readonly<Record<Artifact, URL>> = {
  core: new URL("./lib/libicx.so", import.meta.url),
  afxdp: new URL("./lib/libicx-afxdp.so", import.meta.url),
};

/** The error number of Linux for too many open files. */
const EMFILE = 24;

/**
 * One of the library's artifacts: `core` needs nothing but the C library; `afxdp` has all that the core has, the forwarder over AF_XDP
 * besides, and needs libelf and zlib.
 */
export type Artifact = "core" | "afxdp";

/** What can be chosen when a library is opened. */
export interface LibraryOptions {
  /** Which artifact of this checkout. A process opens one of them. @default "core" */
  readonly artifact?: Artifact | undefined;
  /** The library's file, in place of an artifact of this checkout. @default that of the artifact */
  readonly path?: string | URL | undefined;
}

/** Something that must be closed before its library is: every handle. */
export interface LibraryPart {
  /** Gives everything back, also the second time. Neither throws nor rejects. */
  close(): void | Promise<void>;
}

/** A library file that is mapped, however many {@linkcode Library} objects stand for it. */
class Mapping {
  readonly path: string;
  readonly dynamic: Deno.DynamicLibrary<typeof SYMBOLS>;
  readonly events: EventLoop;
  users = 0;
  /** Resolves when nobody waits for events any more; set once the last user has gone. */
  idle: Promise<void> | undefined;

  constructor(path: string, after?: Promise<void>) {
    this.path = path;
    this.dynamic = load(path);
    this.events = new EventLoop(this.dynamic.symbols, after);
  }
}

/** Mappings of this realm by path: each has one event loop, and the library allows one in a process. */
const mappings = new Map<string, Mapping>();

/**
 * libicx, open. Everything else in `native/` is made from one of these.
 *
 * The same file may be opened any number of times; what the objects share is closed with the last of them.
 */
export class Library implements AsyncDisposable {
  readonly #mapping: Mapping;
  readonly #parts = new Set<LibraryPart>();
  readonly #pending = new Set<Promise<unknown>>();
  #closing: Promise<void> | undefined;
  #closed = false;

  private constructor(mapping: Mapping) {
    this.#mapping = mapping;
    mapping.users += 1;
  }

  /**
   * Opens the library. Asks for the permission to use exactly this file, if it is not granted yet.
   *
   * @throws {NativeError} `ENOLIBRARY` when there is no such file, `EPERM` when Deno refuses, `EBADLIBRARY` when the file
   * is something else, `EABIVERSION` when it belongs to another version, `ESYS` when this process may open no more files.
   */
  static open(options: LibraryOptions = {}): Library {
    requireObject(options, { operation: "open the icx library", name: "options" });
    const { artifact = "core" } = options;
    requireType(Object.hasOwn(ARTIFACTS, artifact), artifact, {
      operation: "open the icx library",
      name: "artifact",
      allowed: '"core" or "afxdp"',
    });
    const path = toPath(options.path ?? ARTIFACTS[artifact]);
    let mapping = mappings.get(path);
    if (mapping === undefined || mapping.idle !== undefined) {
      mapping = new Mapping(path, mapping?.idle);
      mappings.set(path, mapping);
    }
    return new Library(mapping);
  }

  /** The file. */
  get path(): string {
    return this.#mapping.path;
  }

  /**
   * The C functions. After `close` they must not be called, so nobody keeps them: ask for each call.
   *
   * @throws {NativeError} `ECLOSED`.
   *
   * @internal
   */
  get symbols(): Symbols {
    if (this.#closed) {
      throw new NativeError("Cannot call into the icx library as it is closed: open it again", {
        code: "ECLOSED",
        operation: "symbols",
      });
    }
    return this.#mapping.dynamic.symbols;
  }

  /**
   * Who hears of which handle's events.
   *
   * @internal
   */
  get events(): EventLoop {
    return this.#mapping.events;
  }

  /** Which artifact it is. */
  get artifact(): Artifact {
    return this.symbols.icx_forwarder_open === null ? "core" : "afxdp";
  }

  /** The library's release, such as `0.1.0`. */
  version(): string {
    const out = new Uint8Array(64);
    const symbols = this.symbols;
    return decodeText(out, check(symbols, "icx_version", symbols.icx_version(out, out.byteLength)));
  }

  /** How many handles are open in the whole process. */
  handleCount(): number {
    return this.symbols.icx_handle_count();
  }

  /** Keeps the library open until a nonblocking call has returned. */
  track<T>(call: Promise<T>): Promise<T> {
    this.#pending.add(call);
    const forget = () => this.#pending.delete(call);
    call.then(forget, forget);
    return call;
  }

  /**
   * Lets the library close a part before itself.
   *
   * @returns What the part calls when it has closed on its own.
   * @throws {NativeError} `ECLOSED`, also while the library is closing.
   */
  own(part: LibraryPart): () => void {
    if (this.#closing !== undefined) {
      throw new NativeError("Cannot make anything new as the icx library is closing: open it again", {
        code: "ECLOSED",
        operation: "own",
      });
    }
    this.#parts.add(part);
    return () => this.#parts.delete(part);
  }

  /** Closes what is still open, newest first, waits for calls in flight, and lets go of the file. May be called again. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Closes it. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    for (const part of [...this.#parts].reverse()) await part.close();
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
    const mapping = this.#mapping;
    this.#closed = true;
    mapping.users -= 1;
    if (mapping.users > 0) return;
    mapping.idle = mapping.events.close();
    await mapping.idle;
    if (mappings.get(mapping.path) === mapping) mappings.delete(mapping.path);
    mapping.dynamic.close();
  }
}

/**
 * The library among the options of something that needs one.
 *
 * @throws {TypeError} When there are no options, or it is none.
 */
export function libraryOf(options: { readonly library: Library }, operation: string): Library {
  requireObject(options, { operation, name: "options" });
  requireType(options.library instanceof Library, options.library, {
    operation,
    name: "library",
    allowed: "what Library.open() gave",
  });
  return options.library;
}

function toPath(path: string | URL): string {
  requireType(typeof path === "string" || path instanceof URL, path, {
    operation: "open the icx library",
    name: "path",
    allowed: "a path or a URL",
  });
  return path instanceof URL || path.startsWith("file:") ? fileURLToPath(path) : path;
}

/** Maps the file and makes sure that it is the library of this version. */
function load(path: string): Deno.DynamicLibrary<typeof SYMBOLS> {
  requirePermission(path);
  const fail = (code: "ENOLIBRARY" | "EBADLIBRARY" | "EABIVERSION", message: string, cause?: unknown) =>
    new NativeError(message, { code, operation: "dlopen", cause });
  // First the version alone: a library of another one may lack functions of this one.
  let found: number;
  try {
    const probe = Deno.dlopen(path, { icx_abi_version: SYMBOLS.icx_abi_version });
    found = probe.symbols.icx_abi_version();
    probe.close();
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    if (/no such file/i.test(reason) && reason.includes(path)) {
      throw fail("ENOLIBRARY", `Cannot open the icx library as there is no file ${path}: run "deno task build"`, cause);
    }
    if (/too many open files/i.test(reason)) {
      throw new NativeError(
        `Cannot open the icx library ${path} as this process has as many files open as it may (EMFILE): close some, or ` +
          "raise the limit (ulimit -n)",
        { code: "ESYS", operation: "dlopen", errno: EMFILE, cause },
      );
    }
    const missing = /lib(elf|z)\.so/.exec(reason)?.[1];
    if (missing !== undefined) {
      const debianPackage = missing === "elf" ? "libelf1" : "zlib1g";
      throw fail(
        "EBADLIBRARY",
        `Cannot open ${path} as lib${missing} is missing: install it (Debian: apt-get install ${debianPackage}), or do ` +
          `without AF_XDP (--datapath tun) (${reason})`,
        cause,
      );
    }
    throw fail(
      "EBADLIBRARY",
      `Cannot open ${path} as it is not the icx library: run "deno task build" (${reason})`,
      cause,
    );
  }
  if (found !== ABI_VERSION) {
    throw fail(
      "EABIVERSION",
      `Cannot use ${path} as its interface must have version ${ABI_VERSION}: it has ${found}; run "deno task build"`,
    );
  }
  try {
    return Deno.dlopen(path, SYMBOLS);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw fail("EBADLIBRARY", `Cannot use ${path} as it lacks functions: run "deno task build" (${reason})`, cause);
  }
}

function requirePermission(path: string): void {
  const permission = { name: "ffi", path } as const;
  let { state } = Deno.permissions.querySync(permission);
  if (state === "prompt") state = Deno.permissions.requestSync(permission).state;
  if (state !== "granted") {
    throw new NativeError(
      `Cannot open the icx library as Deno does not permit it: run with --allow-ffi=${path}`,
      { code: "EPERM", operation: "dlopen" },
    );
  }
}
