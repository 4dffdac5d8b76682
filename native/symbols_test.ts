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
const NONBLOCKING = ["icx_close_wait", "icx_events_wait", "icx_pump_stop", "icx_resolve", "icx_route_lookup"];

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

Deno.test("the library exports nothing else", async () => {
  const exported = await elfExports(new URL("./lib/libicx.so", import.meta.url));
  assert.deepEqual(exported.sort(), Object.keys(SYMBOLS).sort());
});

/** Names of the functions and variables that a 64-bit little-endian ELF file offers to others. */
async function elfExports(file: URL): Promise<string[]> {
  const bytes = await fs.readFile(file);
  const number = (at: number) => Number(bytes.readBigUInt64LE(at));
  const sections = number(0x28);
  const section = (index: number) => {
    const at = sections + index * bytes.readUInt16LE(0x3a);
    return {
      type: bytes.readUInt32LE(at + 4),
      offset: number(at + 24),
      size: number(at + 32),
      link: bytes.readUInt32LE(at + 40),
    };
  };
  const DYNAMIC_SYMBOLS = 11;
  const names: string[] = [];
  for (let index = 0; index < bytes.readUInt16LE(0x3c); index++) {
    const { type, offset, size, link } = section(index);
    if (type !== DYNAMIC_SYMBOLS) continue;
    const strings = section(link).offset;
    for (let at = offset; at < offset + size; at += 24) {
      const definedIn = bytes.readUInt16LE(at + 6);
      if (definedIn === 0) continue;
      const start = strings + bytes.readUInt32LE(at);
      names.push(bytes.toString("latin1", start, bytes.indexOf(0, start)));
    }
  }
  return names;
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
