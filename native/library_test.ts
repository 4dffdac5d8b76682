import assert from "node:assert/strict";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { runChild } from "./_child.ts";
import { NativeEngine } from "./engine.ts";
import { NativeError } from "./errors.ts";
import { Library } from "./library.ts";
import { resolveHost } from "./network.ts";

const LIBRARY_PATH = fileURLToPath(new URL("./lib/libicx.so", import.meta.url));

/** Opens `file` in a process that may, and tells how that failed. */
async function openingFails(file: string, flags: readonly string[] = [`--allow-ffi=${file}`]) {
  const { stdout, stderr } = await runChild(
    `
    import { Library } from "native/library.ts";
    try {
      Library.open({ path: ${JSON.stringify(file)} });
      console.log("{}");
    } catch ({ name, code, operation, message }) {
      console.log(JSON.stringify({ name, code, operation, message }));
    }`,
    flags,
  );
  assert.notEqual(stdout, "", stderr);
  return JSON.parse(stdout);
}

async function withFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "icx-native-"));
  try {
    await use(folder);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
}

Deno.test("Library.open opens the library of this checkout", async () => {
  await using library = Library.open();
  assert.equal(library.path, LIBRARY_PATH);
  assert.match(library.version(), /^\d+\.\d+\.\d+$/);
  assert.equal(library.handleCount(), 0);
});

Deno.test("Library.open says that a file is missing and how to make it", async () => {
  await withFolder(async (folder) => {
    const file = path.join(folder, "libicx.so");
    assert.deepEqual(await openingFails(file), {
      name: "NativeError",
      code: "ENOLIBRARY",
      operation: "dlopen",
      message: `Cannot open the icx library as there is no file ${file}: run "deno task build"`,
    });
  });
});

Deno.test("Library.open refuses a file that is no library", async () => {
  await withFolder(async (folder) => {
    const file = path.join(folder, "libicx.so");
    await fs.writeFile(file, "text");
    const { code, message } = await openingFails(file);
    assert.equal(code, "EBADLIBRARY");
    assert.match(message, /is not the icx library: run "deno task build"/);
  });
});

Deno.test("Library.open tells a want of file descriptors from a file that is no library", async () => {
  const { stdout, stderr } = await runChild(
    `
    import fs from "node:fs";
    import { Library } from "native/library.ts";
    try {
      while (true) fs.openSync("/dev/null");
    } catch ({ code }) {
      if (code !== "EMFILE") throw new Error(code);
    }
    try {
      Library.open();
    } catch ({ name, code, errno, message }) {
      console.log(JSON.stringify({ name, code, errno, message }));
    }`,
    [`--allow-ffi=${LIBRARY_PATH}`, "--allow-read=/dev/null"],
    { openFiles: 64 },
  );
  assert.notEqual(stdout, "", stderr);
  assert.deepEqual(JSON.parse(stdout), {
    name: "NativeError",
    code: "ESYS",
    errno: 24,
    message:
      `Cannot open the icx library ${LIBRARY_PATH} as this process has as many files open as it may (EMFILE): close ` +
      "some, or raise the limit (ulimit -n)",
  });
});

Deno.test("Library.open refuses a library of another kind or version", async () => {
  await withFolder(async (folder) => {
    const build = async (name: string, source: string) => {
      const file = path.join(folder, name);
      const { code, stderr } = await runChild(
        `
        const cc = new Deno.Command("/usr/bin/cc", {
          args: ["-shared", "-fPIC", "-x", "c", "-o", ${JSON.stringify(file)}, "-"],
          stdin: "piped",
        }).spawn();
        const writer = cc.stdin.getWriter();
        await writer.write(new TextEncoder().encode(${JSON.stringify(source)}));
        await writer.close();
        Deno.exit((await cc.status).code);`,
        ["--allow-run=/usr/bin/cc"],
      );
      assert.equal(code, 0, stderr);
      return file;
    };
    const other = await openingFails(await build("other.so", "int icx(void) { return 1; }"));
    assert.equal(other.code, "EBADLIBRARY");
    assert.match(other.message, /is not the icx library/);

    const future = await build("future.so", "unsigned icx_abi_version(void) { return 4711; }");
    const version = await openingFails(future);
    assert.equal(version.code, "EABIVERSION");
    assert.equal(
      version.message,
      `Cannot use ${future} as its interface must have version 1: it has 4711; run "deno task build"`,
    );

    const lacking = await openingFails(await build("lacking.so", "unsigned icx_abi_version(void) { return 1; }"));
    assert.equal(lacking.code, "EBADLIBRARY");
    assert.match(lacking.message, /lacks functions/);
  });
});

Deno.test("Library.open asks for the one file and explains a refusal", async () => {
  const refused = await openingFails(LIBRARY_PATH, ["--allow-ffi=/elsewhere/libicx.so"]);
  assert.equal(refused.code, "EPERM");
  assert.equal(
    refused.message,
    `Cannot open the icx library as Deno does not permit it: run with --allow-ffi=${LIBRARY_PATH}`,
  );
  assert.deepEqual(await openingFails(LIBRARY_PATH), {});
});

Deno.test("Library.close leaves the library to others that have opened it", async () => {
  const first = Library.open();
  await using second = Library.open({ path: new URL("./lib/libicx.so", import.meta.url) });
  await first.close();
  await first.close();
  assert.equal(second.handleCount(), 0);
  assert.throws(() => first.version(), { name: "NativeError", code: "ECLOSED" });
});

Deno.test("Library.close closes what is open, and what is closed says so", async () => {
  const library = Library.open();
  const engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
  const closing = library.close();
  assert.throws(() => NativeEngine.create(library, { mode: "l3", underlay: "udp" }), { code: "ECLOSED" });
  await closing;
  assert.equal(engine.state, "closed");
  assert.throws(() => engine.setInnerMtu(1), (error) => {
    assert(error instanceof NativeError);
    assert.equal(error.code, "ECLOSED");
    assert.equal(error.message, "Cannot use the engine as it is closed: open another one");
    return true;
  });
  assert.throws(() => NativeEngine.create(library, { mode: "l3", underlay: "udp" }), { code: "ECLOSED" });
  engine.close();
  await using again = Library.open();
  assert.equal(again.handleCount(), 0);
});

Deno.test("Library.close waits for calls in flight", async () => {
  const library = Library.open();
  const order: string[] = [];
  const call = resolveHost(library, { host: "127.0.0.1", port: 1 }).then(() => order.push("call"));
  await library.close().then(() => order.push("close"));
  await call;
  assert.deepEqual(order, ["call", "close"]);
});

Deno.test("Library.close ends a wait for events", async () => {
  const library = Library.open();
  const engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
  library.events.subscribe(engine.unsafeId("test"), { onEvent() {}, onError: (error) => assert.fail(error) });
  // The wait has begun once this later call has come back.
  await resolveHost(library, { host: "127.0.0.1", port: 1 });
  await library.close();
});

Deno.test("Library.open works again while the last one closes", async () => {
  const first = Library.open();
  first.events.subscribe(1, { onEvent() {}, onError: (error) => assert.fail(error) });
  await resolveHost(first, { host: "127.0.0.1", port: 1 });
  const closing = first.close();
  // Until the first has let go of the wait for events, a second wait would be refused.
  const second = Library.open();
  const errors: string[] = [];
  second.events.subscribe(1, { onEvent() {}, onError: (error) => errors.push(error.code) });
  await closing;
  await resolveHost(second, { host: "127.0.0.1", port: 1 });
  await second.close();
  assert.deepEqual(errors, []);
});

Deno.test("opening and closing a thousand times leaves nothing behind", async () => {
  await using library = Library.open();
  const round = () => {
    const engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
    engine.close();
    engine.close();
  };
  for (let i = 0; i < 200; i++) round();
  const before = Deno.memoryUsage().rss;
  for (let i = 0; i < 1000; i++) round();
  assert.equal(library.handleCount(), 0);
  const grownBytes = Deno.memoryUsage().rss - before;
  // An engine that stayed would be several KiB, a thousand of them several MiB.
  assert(grownBytes < 16 * 1024 * 1024, `${grownBytes} bytes more`);
  for (let i = 0; i < 20; i++) await Library.open().close();
});
