import assert from "node:assert/strict";
import fs from "node:fs/promises";
import { SYMBOLS, type Symbols } from "./symbols.ts";

const ABI_SOURCES = new URL("../rust/ffi/src/abi/", import.meta.url);

/** What Deno calls each type that the exports use. */
const TYPES: Readonly<Record<string, string>> = {
  "u32": "u32",
  "i32": "i32",
  "*const u8": "buffer",
  "*mut u8": "buffer",
  "*mut u64": "buffer",
  "*mut IcxPacket": "buffer",
};

/** Calls that may wait: all others must not cost a thread. */
const NONBLOCKING = [
  "icx_close_wait",
  "icx_events_wait",
  "icx_forwarder_stop",
  "icx_proxy_stop",
  "icx_pump_stop",
  "icx_resolve",
  "icx_route_lookup",
];

interface Signature {
  readonly parameters: readonly string[];
  readonly result: string;
}

/** The exported functions as the Rust sources declare them. */
async function rustExports(): Promise<Map<string, Signature>> {
  const exports = new Map<string, Signature>();
  for (const name of (await fs.readdir(ABI_SOURCES)).filter((name) => name.endsWith(".rs"))) {
    const source = await fs.readFile(new URL(name, ABI_SOURCES), "utf8");
    const declarations = source.matchAll(
      /#\[unsafe\(no_mangle\)\]\s+pub (?:unsafe )?extern "C" fn (\w+)\(([^)]*)\) -> ([^{]+?) \{/g,
    );
    let count = 0;
    for (const [, symbol = "", parameters = "", result = ""] of declarations) {
      count += 1;
      assert(!exports.has(symbol), `${symbol} is declared twice`);
      const types = parameters.split(",").map((parameter) => parameter.split(":")[1]?.trim()).filter((type) =>
        type !== undefined
      );
      exports.set(symbol, { parameters: types.map(toDeno), result: toDeno(result) });
    }
    // A declaration that the pattern above does not see would go unchecked.
    assert.equal(count, source.match(/no_mangle/g)?.length ?? 0, `${name} declares exports in another form`);
  }
  return exports;
}

function toDeno(type: string): string {
  const known = TYPES[type];
  assert(known !== undefined, `The type ${type} has no counterpart here`);
  return known;
}

Deno.test("SYMBOLS and the Rust exports are the same functions with the same types", async () => {
  const exports = await rustExports();
  assert(exports.size > 40, `only ${exports.size} exports were found`);
  assert.deepEqual(Object.keys(SYMBOLS).sort(), [...exports.keys()].sort());
  for (const [name, { parameters, result }] of Object.entries(SYMBOLS)) {
    assert.deepEqual({ parameters: [...parameters], result }, exports.get(name), name);
  }
});

Deno.test("SYMBOLS lets only calls that may wait leave the thread", () => {
  const nonblocking = Object.entries(SYMBOLS).filter(([, symbol]) => "nonblocking" in symbol).map(([name]) => name);
  assert.deepEqual(nonblocking.sort(), NONBLOCKING);
});

for (const [file, isCore] of [["libicx.so", true], ["libicx-afxdp.so", false]] as const) {
  Deno.test(`${file} exports nothing else`, async () => {
    const exported = await elfExports(new URL(`./lib/${file}`, import.meta.url));
    const expected = Object.entries(SYMBOLS).filter(([, symbol]) => !(isCore && "optional" in symbol));
    assert.deepEqual(exported.sort(), expected.map(([name]) => name).sort());
  });
}

Deno.test("libicx.so needs no library beyond that of C, and libicx-afxdp.so those of Debian's libelf1 and zlib1g", async () => {
  const needed = async (file: string) =>
    (await elfNeeded(new URL(`./lib/${file}`, import.meta.url))).filter((name) =>
      !/^(libc|libgcc_s|ld-linux)/.test(name)
    );
  assert.deepEqual(await needed("libicx.so"), []);
  assert.deepEqual((await needed("libicx-afxdp.so")).sort(), ["libelf.so.1", "libz.so.1"]);
});

/** The entries of the sections of one type in a 64-bit little-endian ELF file. */
class Elf {
  readonly #bytes: Awaited<ReturnType<typeof readBytes>>;

  private constructor(bytes: Awaited<ReturnType<typeof readBytes>>) {
    this.#bytes = bytes;
  }

  static async read(file: URL): Promise<Elf> {
    return new Elf(await readBytes(file));
  }

  /** Each entry of a section with where it starts and where the strings are that it speaks of. */
  *entries(type: number, entryBytes: number): Generator<{ readonly at: number; readonly strings: number }> {
    const sections = this.number(0x28);
    const field = (index: number, offset: number) => sections + index * this.#bytes.readUInt16LE(0x3a) + offset;
    for (let index = 0; index < this.#bytes.readUInt16LE(0x3c); index++) {
      if (this.#bytes.readUInt32LE(field(index, 4)) !== type) continue;
      const strings = this.number(field(this.#bytes.readUInt32LE(field(index, 40)), 24));
      const start = this.number(field(index, 24));
      for (let at = start; at < start + this.number(field(index, 32)); at += entryBytes) yield { at, strings };
    }
  }

  number(at: number): number {
    return Number(this.#bytes.readBigUInt64LE(at));
  }

  half(at: number): number {
    return this.#bytes.readUInt16LE(at);
  }

  word(at: number): number {
    return this.#bytes.readUInt32LE(at);
  }

  text(at: number): string {
    return this.#bytes.toString("latin1", at, this.#bytes.indexOf(0, at));
  }
}

function readBytes(file: URL) {
  return fs.readFile(file);
}

/** Names of the functions and variables that a library offers to others. */
async function elfExports(file: URL): Promise<string[]> {
  const DYNAMIC_SYMBOLS = 11;
  const elf = await Elf.read(file);
  const defined = [...elf.entries(DYNAMIC_SYMBOLS, 24)].filter(({ at }) => elf.half(at + 6) !== 0);
  return defined.map(({ at, strings }) => elf.text(strings + elf.word(at)));
}

/** Names of the libraries that a library needs. */
async function elfNeeded(file: URL): Promise<string[]> {
  const [DYNAMIC, NEEDED] = [6, 1];
  const elf = await Elf.read(file);
  const needed = [...elf.entries(DYNAMIC, 16)].filter(({ at }) => elf.number(at) === NEEDED);
  return needed.map(({ at, strings }) => elf.text(strings + elf.number(at + 8)));
}

Deno.test("the types of the symbols refuse wrong calls", () => {
  // Compiled, never run: each line but the good ones must be a type error.
  const calls = async (symbols: Symbols) => {
    const result: number = symbols.icx_close(1);
    const later: number = await symbols.icx_close_wait(result);
    symbols.icx_tun_info(later, null, 0);
    // @ts-expect-error A handle is a number.
    symbols.icx_close("1");
    // @ts-expect-error There are no 64-bit scalars.
    symbols.icx_engine_set_clock(1, 1n, 0);
    // @ts-expect-error A text is not a buffer.
    symbols.icx_identity_load("{}", 2, null, 0);
    // @ts-expect-error An argument is missing.
    symbols.icx_engine_counters(1, 2, new BigUint64Array(28));
    // @ts-expect-error A nonblocking call gives a promise.
    const now: number = symbols.icx_pump_stop(1);
    // @ts-expect-error There is no such function.
    symbols.icx_engine_keys(now);
  };
  assert.equal(typeof calls, "function");
});
