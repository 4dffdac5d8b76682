/**
 * What every datapath must do, whatever its ends are.
 *
 * @module
 */

import { Buffer } from "node:buffer";
import { deepStrictEqual, ok, rejects, strictEqual } from "node:assert/strict";
import { socketAddress } from "../../control/prefix.ts";
import { addsUp } from "../../datapath/_adds_up.ts";
import { DatapathError, type DatapathErrorCode, delay, type Engine, Library } from "../../mod.ts";
import { type EngineChoice, keys, makeEngine, numbered, numberOf, Peer, sealed, udpPayload, VNI } from "./_peer.ts";
import { type Bench, INNER_MTU_BYTES, OUTSIDE, PATIENCE_MS, REMOTE, type Rig } from "./_rig.ts";

/** How long the absence of something is waited for, in milliseconds. */
const QUIET_MS = 100;

/** The interval of keepalives, in milliseconds. */
const KEEPALIVE_MS = 100;

/** IPv4 and UDP headers of an inner packet. */
const INNER_HEADERS_BYTES = 28;

/** How many packets a datapath may hold between its ends: a batch for each direction, the one that is read next, and some. */
const MOST_UNDER_WAY = 256;

/** A rig with its engine and its peer. */
interface Set {
  readonly library: Library;
  readonly engine: Engine;
  readonly rig: Rig;
  readonly peer: Peer;
}

/** Makes a rig for `body`, and checks that nothing is left of it afterwards. */
async function withRig(bench: Bench, choice: EngineChoice, body: (set: Set) => Promise<void>): Promise<void> {
  await using library = Library.open({ artifact: bench.artifact });
  const handles = library.handleCount();
  {
    // In the order in which they are made; the rig is gone before the engine is.
    const engines = new DisposableStack();
    using _engines = engines;
    await using rig = await bench.open(
      library,
      (peer, sides) => engines.use(makeEngine(library, peer, { innerMtuBytes: INNER_MTU_BYTES, ...choice, ...sides })),
    );
    using peer = new Peer(library, rig.outside.address);
    await body({ library, engine: rig.engine, rig, peer });
  }
  strictEqual(library.handleCount(), handles, "every handle has been given back");
}

/** Runs the datapath while `body` goes on, then aborts; the run must end well. */
async function running(set: Set, body: () => Promise<void>): Promise<void> {
  const controller = new AbortController();
  const run = set.rig.datapath.run({ signal: controller.signal });
  // A run that fails ends the test at once instead of at some timeout.
  await Promise.race([body(), run.then(() => Promise.reject(new Error("The run ended by itself")))]);
  controller.abort();
  await run;
}

function withCode(...codes: DatapathErrorCode[]): (error: unknown) => boolean {
  return (error) => {
    ok(error instanceof DatapathError, String(error));
    ok(codes.includes(error.code), `${error.code}: ${error.message}`);
    return true;
  };
}

async function until(what: string, isTrue: () => boolean | Promise<boolean>): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!await isTrue()) {
    if (performance.now() > end) throw new Error(`Not within ${PATIENCE_MS} ms: ${what}`);
    await delay(5);
  }
}

async function outside(rig: Rig): Promise<Uint8Array> {
  const datagram = await rig.outside.receive();
  ok(datagram !== undefined, "a datagram was expected");
  return datagram.bytes;
}

/** Keeps packets coming in both directions, whatever becomes of them, until `signal` aborts. */
async function traffic({ rig, peer }: Set, signal: AbortSignal): Promise<void> {
  const ignore = () => {};
  const inside = (async () => {
    for (let i = 0; !signal.aborted; i++) {
      await rig.inside.send(numbered(i), { signal }).catch(ignore);
      if (i % 8 === 0) await delay(0);
    }
  })();
  const outside = (async () => {
    for (let i = 0; !signal.aborted; i++) {
      await rig.outside.send(peer.seal(numbered(i)), { signal }).catch(ignore);
      if (i % 8 === 0) await delay(0);
    }
  })();
  const sinks = [
    (async () => {
      while (!signal.aborted) await rig.inside.receive(20);
    })(),
    (async () => {
      while (!signal.aborted) await rig.outside.receive(20);
    })(),
  ];
  await Promise.all([inside, outside, ...sinks]);
}

/** Registers the suite for one kind of datapath, or those of its tests whose names begin with `only`. */
export function conformance(bench: Bench, { only = "" }: { readonly only?: string } = {}): void {
  const register = (name: string, body: () => Promise<void>): void => {
    if (name.startsWith(only)) Deno.test(`${bench.name}: ${name}`, body);
  };
  const test = (name: string, body: (set: Set) => Promise<void>, choice: EngineChoice = {}): void =>
    register(name, () => withRig(bench, choice, body));

  /** Packets that a test with one too large packet finds written to the device besides. */
  const answered = bench.answersTooBig ? 1 : 0;

  test("the same inner packet, key and counter give the same bytes to the same port", async (set) => {
    const { rig, peer, library } = set;
    using reference = makeEngine(library, socketAddress(rig.outside.address, rig.outside.peerPort));
    await running(set, async () => {
      for (const bytes of [2, 37, 512, 1200, INNER_MTU_BYTES - INNER_HEADERS_BYTES]) {
        await rig.inside.send(numbered(bytes, bytes));
        const datagram = await rig.outside.receive();
        ok(datagram !== undefined);
        const { verdict, bytes: inner } = peer.open(datagram.bytes);
        strictEqual(verdict, "forward");
        deepStrictEqual(udpPayload(inner), numbered(bytes, bytes));
        const expected = sealed(reference, inner);
        deepStrictEqual(Buffer.from(datagram.bytes), Buffer.from(expected.bytes));
        strictEqual(datagram.port, expected.port);
      }
    });
    addsUp(rig.datapath);
  });

  test("packets of every size come out of the tunnel as they went in, in order", async (set) => {
    const { rig, peer } = set;
    await running(set, async () => {
      for (let bytes = 2; bytes <= INNER_MTU_BYTES - INNER_HEADERS_BYTES; bytes += 139) {
        await rig.outside.send(peer.seal(numbered(bytes, bytes)));
        deepStrictEqual(Buffer.from(await rig.inside.receive() ?? []), Buffer.from(numbered(bytes, bytes)));
      }
    });
    addsUp(rig.datapath);
  });

  test("every packet is counted once, and the counters add up", async (set) => {
    const { rig, peer, engine } = set;
    const patched = (at: number, value: number) => {
      const bytes = peer.seal(numbered(1)).slice();
      bytes[at] = value;
      return bytes;
    };
    await running(set, async () => {
      for (let i = 0; i < 5; i++) await rig.inside.send(numbered(i));
      for (let i = 0; i < 2; i++) await rig.inside.send(numbered(i), { to: OUTSIDE });
      await rig.inside.send(numbered(0, INNER_MTU_BYTES - INNER_HEADERS_BYTES + 1));
      const good = peer.seal(numbered(1));
      const wire = [
        good,
        good,
        ...[2, 3, 4].map((i) => peer.seal(numbered(i))),
        good.subarray(0, 10),
        ...(bench.leavesOthers ? [] : [new Uint8Array(0)]),
        patched(6, VNI + 1),
        patched(15, 99),
        patched(60, 0x5a),
        peer.seal(numbered(5)).slice(0, -1),
      ];
      for (const bytes of wire) await rig.outside.send(bytes);
      await until("all have been read", () => {
        const { deviceReadPackets, underlayReceived, underlaySent } = rig.datapath.stats().ends;
        return deviceReadPackets >= 8 && underlayReceived >= wire.length && underlaySent >= 5;
      });
      for (let i = 0; i < 5; i++) strictEqual(numberOf(peer.payload(await outside(rig))), i);
      for (let i = 1; i <= 4; i++) strictEqual(numberOf(await rig.inside.receive()), i);
    });
    const { tx_packets, tx_bytes, tx_too_big, rx_packets, rx_replayed, rx_no_key, rx_auth_failed } = engine.counters(
      VNI,
    );
    deepStrictEqual([tx_packets, tx_bytes, tx_too_big], [5n, 5n * (64n + 28n), 1n]);
    deepStrictEqual([rx_packets, rx_replayed, rx_no_key, rx_auth_failed], [4n, 1n, 1n, 2n]);
    const { tx_no_route, rx_malformed, rx_unknown_vni } = engine.counters();
    deepStrictEqual([tx_no_route, rx_malformed, rx_unknown_vni], [2n, bench.leavesOthers ? 1n : 2n, 1n]);
    addsUp(rig.datapath, { answered });
  });

  test("what would leave its routes is not delivered", async (set) => {
    const { rig, peer, engine } = set;
    peer.engine.updateNetwork({
      vni: VNI,
      peer: socketAddress(rig.outside.address, 6081),
      routes: [{ src: "10.0.0.0/8", dst: "10.0.0.0/8" }],
    });
    await running(set, async () => {
      await rig.outside.send(peer.seal(numbered(1), OUTSIDE));
      await rig.outside.send(peer.seal(numbered(2), REMOTE, OUTSIDE));
      await rig.outside.send(peer.seal(numbered(3)));
      strictEqual(numberOf(await rig.inside.receive()), 3);
    });
    const { rx_invalid_src, rx_invalid_dst } = engine.counters(VNI);
    deepStrictEqual([rx_invalid_src, rx_invalid_dst], [1n, 1n]);
    addsUp(rig.datapath);
  });

  test("run() works once, and a second call does no harm to the first", async (set) => {
    await running(set, async () => {
      await rejects(set.rig.datapath.run(), withCode("already-run"));
      await set.rig.inside.send(numbered(1));
      strictEqual(numberOf(set.peer.payload(await outside(set.rig))), 1);
    });
    await rejects(set.rig.datapath.run(), withCode("already-run"));
  });

  test("run() with an aborted signal resolves, moves nothing and counts as the one run", async ({ rig }) => {
    await rig.datapath.run({ signal: AbortSignal.abort() });
    strictEqual(rig.datapath.stats().ends.deviceReadPackets, 0);
    await rejects(rig.datapath.run(), withCode("already-run"));
  });

  test("run() after close() is an error, and stats() still works", async ({ rig }) => {
    await rig.datapath.close();
    await rejects(rig.datapath.run(), withCode("closed"));
    strictEqual(rig.datapath.stats().ends.underlaySent, 0);
  });

  for (const how of ["abort", "close"] as const) {
    register(`${how} at any moment under traffic ends the run cleanly, and nothing moves any more`, async () => {
      // Turns of the microtask queue, then milliseconds.
      for (const moment of [0, -1, -5, -20, 1, 4, 12, 33]) {
        await withRig(bench, {}, async (set) => {
          const { datapath } = set.rig;
          const [stop, quiet] = [new AbortController(), new AbortController()];
          const moving = traffic(set, quiet.signal);
          try {
            const run = datapath.run({ signal: stop.signal });
            for (let turn = moment; turn < 0; turn++) await Promise.resolve();
            if (moment > 0) await delay(moment);
            if (how === "abort") stop.abort();
            else await Promise.all([datapath.close(), datapath.close()]);
            await run;
            const before = datapath.stats().ends;
            addsUp(datapath);
            await delay(10);
            deepStrictEqual(datapath.stats().ends, before, `${moment}`);
          } finally {
            quiet.abort();
            await moving;
          }
        });
      }
    });
  }

  for (const way of bench.breakages) {
    test(`run() rejects when ${way}, and close() gives everything back`, async (set) => {
      const quiet = new AbortController();
      const { datapath } = set.rig;
      const run = datapath.run();
      run.catch(() => {});
      const moving = traffic(set, quiet.signal);
      try {
        await until("traffic", () => datapath.stats().ends.underlaySent > 0);
        const breakEnd = { ...set.rig.inside.breakages, ...set.rig.outside.breakages }[way];
        ok(breakEnd !== undefined);
        await breakEnd();
        const late = delay(PATIENCE_MS, { signal: quiet.signal }).then(() =>
          Promise.reject(new Error("still running"))
        );
        late.catch(() => {});
        await rejects(Promise.race([run, late]), withCode("end-failed", "system"));
        addsUp(datapath);
      } finally {
        quiet.abort();
        await moving;
      }
    });
  }

  test("more than the wire takes makes nothing grow, and traffic goes on after it", async (set) => {
    const { rig, peer } = set;
    const underWay = (): number => {
      const { ends, networks } = rig.datapath.stats();
      const dropped = Number(networks.get(VNI)?.tx_too_big ?? 0n);
      return ends.deviceReadPackets - ends.underlaySent - ends.underlaySendErrors - dropped;
    };
    await running(set, async () => {
      const stop = new AbortController();
      let most = 0;
      const flood = (async () => {
        for (let i = 0; i < 5000 && !stop.signal.aborted; i++) {
          await rig.inside.send(numbered(i, 1000), { signal: stop.signal });
          most = Math.max(most, underWay());
        }
      })().catch((error) => {
        if (!stop.signal.aborted) throw error;
      });
      const timer = setTimeout(() => stop.abort(), 250);
      await flood;
      clearTimeout(timer);
      ok(most <= MOST_UNDER_WAY, `${most} packets were under way`);
      // What is still on its way comes first. A device may have dropped the mark when its own queue was full.
      const mark = 9999;
      let seen: number | undefined;
      await until("a packet sent after the flood", async () => {
        for (let datagram; seen !== mark && (datagram = await rig.outside.receive(QUIET_MS)) !== undefined;) {
          seen = numberOf(peer.payload(datagram.bytes));
        }
        if (seen !== mark) await rig.inside.send(numbered(mark));
        return seen === mark;
      });
    });
    addsUp(rig.datapath);
  });

  test("a packet of the tunnel's MTU passes, one byte more is counted and goes nowhere", async (set) => {
    const { rig, peer, engine } = set;
    const largest = INNER_MTU_BYTES - INNER_HEADERS_BYTES;
    await running(set, async () => {
      await rig.inside.send(numbered(1, largest));
      strictEqual(peer.payload(await outside(rig)).length, largest);
      await rig.inside.send(numbered(2, largest + 1));
      await until("the drop", () => engine.counters(VNI).tx_too_big === 1n);
      strictEqual(await rig.outside.receive(QUIET_MS), undefined);
    });
    addsUp(rig.datapath, { answered });
  });

  test("keepalives go out at once and then at intervals, and those of the peer are delivered nowhere", async (set) => {
    const { rig, peer, engine } = set;
    const keepalive = peer.keepalive();
    const startMs = performance.now();
    await running(set, async () => {
      for (let i = 0; i < 3; i++) {
        const datagram = await outside(rig);
        strictEqual(datagram.length, 48);
        strictEqual(peer.open(datagram).verdict, "consumed");
        await rig.outside.send(keepalive);
      }
      await until("the peer's keepalives", () => {
        const { rx_packets, rx_replayed } = engine.counters(VNI);
        return rx_packets + rx_replayed === 3n;
      });
      strictEqual(await rig.inside.receive(QUIET_MS), undefined);
    });
    const most = 1 + Math.floor((performance.now() - startMs) / KEEPALIVE_MS);
    const { last_keepalive, last_tx, tx_packets, rx_replayed } = engine.counters(VNI);
    ok(tx_packets <= most, `${tx_packets} keepalives, an interval of ${KEEPALIVE_MS} ms allows ${most}`);
    ok(last_keepalive > 0n && last_tx === 0n);
    strictEqual(rx_replayed, 2n);
    addsUp(rig.datapath, { made: Number(tx_packets), consumed: 1 });
  }, { keepaliveMs: KEEPALIVE_MS });

  test("a key past its expiry neither seals nor opens, and new ones do", async (set) => {
    const { rig, peer, engine } = set;
    /** Whether a packet passed both ways, rather than being dropped for want of a key. */
    const passes = async (number: number): Promise<boolean> => {
      const before = keyless();
      await rig.inside.send(numbered(number));
      await rig.outside.send(peer.seal(numbered(number)));
      await until("the two packets are dealt with", () => {
        const { rx_packets, tx_packets } = engine.counters(VNI);
        return rx_packets + tx_packets + keyless() - before - done === 2n;
      });
      done = engine.counters(VNI).rx_packets + engine.counters(VNI).tx_packets;
      if (keyless() > before) return false;
      strictEqual(numberOf(peer.payload(await outside(rig))), number);
      strictEqual(numberOf(await rig.inside.receive()), number);
      return true;
    };
    // A key that has expired may be gone already.
    const keyless = () => {
      const { tx_expired_key, tx_no_key, rx_expired_key, rx_no_key } = engine.counters(VNI);
      return tx_expired_key + tx_no_key + rx_expired_key + rx_no_key;
    };
    let done = 0n;
    await running(set, async () => {
      ok(await passes(1));
      // A busy machine may let the first lives pass before a packet does.
      let generation = 1;
      for (let lifeNs = 250_000_000n;; generation++, lifeNs *= 4n) {
        peer.rekey(generation);
        engine.dangerInstall(keys(generation, engine.counters(VNI).last_tx + lifeNs));
        if (await passes(2)) break;
        while (await rig.outside.receive(0) !== undefined || await rig.inside.receive(0) !== undefined);
      }
      await until("the keys expire", () => (engine.saStatus(VNI).tx?.expiresInMs ?? 0) === 0);
      // Less than a millisecond may be left.
      await delay(2);
      const before = keyless();
      ok(!await passes(3));
      strictEqual(keyless() - before, 2n, "neither way");
      strictEqual(await rig.outside.receive(QUIET_MS), undefined);
      strictEqual(await rig.inside.receive(QUIET_MS), undefined);
      peer.rekey(generation + 1);
      engine.dangerInstall(keys(generation + 1));
      ok(await passes(4));
    });
    addsUp(rig.datapath);
  });

  test("keys that change in mid flight lose no packet and no order", async (set) => {
    const { rig, peer, engine } = set;
    const window = 16;
    await running(set, async () => {
      // A TUN device with several queues gives out a flow by the queue that the flow comes in by, once it has seen that (`tun_flow_update` in
      // drivers/net/tun.c). What it gave out before may be overtaken, and that is not what this is about.
      await rig.outside.send(peer.seal(numbered(0)));
      strictEqual(numberOf(await rig.inside.receive()), 0);
      for (let generation = 1; generation <= 25; generation++) {
        for (let i = 0; i < window; i++) {
          await rig.inside.send(numbered(generation * window + i));
          await rig.outside.send(peer.seal(numbered(generation * window + i)));
          if (i !== window / 2) continue;
          peer.rekey(generation);
          engine.dangerInstall(keys(generation));
        }
        for (let i = 0; i < window; i++) {
          strictEqual(numberOf(peer.payload(await outside(rig))), generation * window + i);
          strictEqual(numberOf(await rig.inside.receive()), generation * window + i);
        }
      }
    });
    const { rx_packets, tx_packets } = engine.counters(VNI);
    deepStrictEqual([rx_packets, tx_packets], [401n, 400n]);
    addsUp(rig.datapath);
  });
}
