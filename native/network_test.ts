import assert from "node:assert/strict";
import { Library } from "./library.ts";
import { interfaceLookup, resolveHost, routeLookup } from "./network.ts";

Deno.test("routeLookup gives the kernel's way", async () => {
  await using library = Library.open();
  const route = await routeLookup(library, { destination: "127.0.0.1" });
  assert.deepEqual([route.interface, route.source, route.gateway], ["lo", "127.0.0.1", null]);
  const { index, mtu, up, name } = interfaceLookup(library, "lo");
  assert.deepEqual([route.index, route.mtu, name, up], [index, mtu, "lo", true]);
});

Deno.test("routeLookup tells a wrong question from a missing way", async () => {
  await using library = Library.open();
  await assert.rejects(routeLookup(library, { destination: "example.org" }), {
    code: "EINVAL",
    message: /option 'destination': 'example.org' is not an IP address/,
  });
  await assert.rejects(routeLookup(library, { destination: "127.0.0.1", source: "::1" }), { code: "EINVAL" });
  await assert.rejects(routeLookup(library, { destination: "127.0.0.1", source: "192.0.2.77" }), (error) => {
    assert.equal((error as { code: string }).code, "ENOENT");
    assert.notEqual((error as { errno: number | undefined }).errno, undefined);
    return true;
  });
});

Deno.test("interfaceLookup tells a wrong name from a missing interface", async () => {
  await using library = Library.open();
  assert.throws(() => interfaceLookup(library, "no-such-link0"), { code: "ENOENT" });
  assert.throws(() => interfaceLookup(library, "a b"), { code: "EINVAL" });
});

Deno.test("resolveHost resolves addresses of the family that is asked for", async () => {
  await using library = Library.open();
  assert.deepEqual(await resolveHost(library, { host: "192.0.2.1", port: 6081 }), ["192.0.2.1:6081"]);
  assert.deepEqual(await resolveHost(library, { host: "::1", port: 1, family: "ipv6" }), ["[::1]:1"]);
  await assert.rejects(resolveHost(library, { host: "192.0.2.1", port: 1, family: "ipv6" }), { code: "ENOENT" });
  await assert.rejects(resolveHost(library, { host: "host.invalid", port: 1 }), { code: "ENOENT" });
  await assert.rejects(resolveHost(library, { host: "::1", port: 65536 }), { code: "EINVAL" });
});

Deno.test("waiting ends with the signal's reason", async () => {
  await using library = Library.open();
  const reason = new Error("enough");
  await assert.rejects(resolveHost(library, { host: "::1", port: 1, signal: AbortSignal.abort(reason) }), reason);
  const controller = new AbortController();
  const pending = routeLookup(library, { destination: "127.0.0.1", signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(pending, reason);
});
