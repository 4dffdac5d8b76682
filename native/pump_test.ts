import assert from "node:assert/strict";
import { Library } from "./library.ts";
import { PUMP_COUNTERS, pumpCounterNames } from "./pump.ts";
import { NativeUdp } from "./udp.ts";

Deno.test("PUMP_COUNTERS are those of the library", async () => {
  await using library = Library.open();
  const names = pumpCounterNames(library).map((name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase()));
  assert.deepEqual(names, PUMP_COUNTERS);
});

Deno.test("NativeUdp tells its port, and that another one has it", async () => {
  await using library = Library.open();
  const options = { localAddress: "127.0.0.1", sourcePortHashing: false, family: "ipv4" } as const;
  using udp = NativeUdp.open(library, { ...options, port: 0 });
  const { localAddress, port } = udp.info();
  assert.equal(localAddress, "127.0.0.1");
  assert(port > 0);
  assert.throws(() => NativeUdp.open(library, { ...options, port }), { code: "EBUSY", errno: 98 });
  assert.throws(() => NativeUdp.open(library, { ...options, family: "ipv6", port: 0 }), { code: "EINVAL" });
  udp.close();
  assert.throws(() => udp.info(), { code: "ECLOSED" });
  NativeUdp.open(library, { ...options, port }).close();
});
