/** A third namespace that sees the wire and sends a node what an attacker could, while traffic runs. */
import assert from "node:assert/strict";
import {
  attack,
  capture,
  discard,
  gains,
  iperf,
  overflows,
  RX_DROPS,
  settled,
  sum,
  underLoad,
  UNRELATED_PORT,
} from "./_adversary.ts";
import { INTRUSION, Lab, privileged } from "./_lab.ts";

privileged(
  "every kind of hostile frame costs exactly its counter, and nothing of the traffic beside it is lost",
  async () => {
    await using lab = await Lab.create({ intruder: true });
    const [a, b] = await lab.tunnel();
    const file = await capture(lab);
    const before = await settled(b);
    const sentBefore = (await a.statistics()).counters["tx_packets"] ?? 0;
    const lost = await overflows(lab.b);

    const client = await iperf(lab, ["-u", "-b", "10M", "-l", "1000", "-t", "4"]);
    const done = await attack(lab, file, ["--frames", "33000", "--rate", "8000", "--stranger", INTRUSION.stranger]);
    await client.ended;
    const after = await settled(b);

    assert.equal(await overflows(lab.b), lost, "at this rate the kernel drops nothing");
    assert.equal(done.sent, 33_000);
    assert.equal(Object.keys(done.kinds).length, 11);
    assert.deepEqual(gains(before.counters, after.counters, RX_DROPS), done.counters);
    const opened = (after.counters["rx_packets"] ?? 0) - (before.counters["rx_packets"] ?? 0);
    const arrived = (after.ends["underlayReceived"] ?? 0) - (before.ends["underlayReceived"] ?? 0);
    assert.equal(opened + done.sent, arrived, "what arrived is what opened and what was dropped");
    assert.equal(opened, ((await a.statistics()).counters["tx_packets"] ?? 0) - sentBefore);
    assert(opened > 4000, `traffic ran beside it: ${opened} packets`);
    await a.stop();
    await b.stop();
  },
);

privileged(
  "100000 hostile frames a second: all are counted, and traffic goes on as beside as many unrelated packets",
  async () => {
    await using lab = await Lab.create({ intruder: true });
    const [a, b] = await lab.tunnel();
    const file = await capture(lab);
    await discard(lab);
    const options = { seconds: 2, attack: ["--rate", "100000"] };
    const unrelated = await underLoad(lab, file, { port: UNRELATED_PORT, ...options });
    const before = await settled(b);
    const lost = await overflows(lab.b);
    const hostile = await underLoad(lab, file, { port: 6081, ...options });
    const after = await settled(b);

    const dropped = gains(before.counters, after.counters, RX_DROPS);
    assert.deepEqual(Object.keys(dropped).sort(), Object.keys(hostile.attack.counters).sort());
    // The kernel may have had no room for some, hostile or not; whatever the node was given is accounted for.
    const missed = hostile.attack.sent - sum(dropped);
    assert(missed >= 0 && missed <= (await overflows(lab.b)) - lost, `${missed} frames are not accounted for`);
    const opened = (after.counters["rx_packets"] ?? 0) - (before.counters["rx_packets"] ?? 0);
    assert.equal(
      (after.ends["underlayReceived"] ?? 0) - (before.ends["underlayReceived"] ?? 0),
      opened + sum(dropped),
    );
    const ratio = hostile.bitsPerSecond / unrelated.bitsPerSecond;
    const figures = {
      pps: hostile.attack.pps,
      hostile: hostile.bitsPerSecond,
      unrelated: unrelated.bitsPerSecond,
      ratio,
    };
    // What the machine has besides decides about both figures.
    assert(ratio > 0.4, JSON.stringify(figures));
    assert(hostile.attack.pps > 20_000, JSON.stringify(figures));
    await a.stop();
    await b.stop();
  },
);

privileged(
  "rate limit: it bounds what forged frames can make a node decrypt, and other frames spend nothing of it",
  async () => {
    const limit = 1000;
    await using lab = await Lab.create({ intruder: true });
    const [a, b] = await lab.tunnel([], ["--rx-rate-limit", String(limit)]);
    const file = await capture(lab);
    const attacked = async (kinds: string) => {
      const before = await settled(b);
      const done = await attack(lab, file, ["--frames", "60000", "--rate", "20000", "--kinds", kinds]);
      return { done, dropped: gains(before.counters, (await settled(b)).counters, RX_DROPS) };
    };

    // Who sees the wire can spend the budget: that is what it is for. The processor is safe, the traffic waits.
    const forged = await attacked("forged,tampered");
    const { rx_auth_failed: decrypted = 0, rx_rate_limited: limited = 0, ...others } = forged.dropped;
    assert.deepEqual(others, {});
    assert.equal(decrypted + limited, forged.done.sent);
    // A second begins anywhere in the limiter's periods.
    assert(decrypted <= limit * (forged.done.seconds + 1), `${decrypted} of ${JSON.stringify(forged.done)}`);
    assert(decrypted >= limit, `the limit was reached: ${decrypted}`);

    // Who only guesses spends none of it, and pings pass meanwhile.
    const ping = lab.spawn(lab.a, ["ping", "-q", "-c", "100", "-i", "0.02", "-W", "2", lab.b.inner4]);
    const guessed = await attacked("malformed,truncated,unknown-vni,unknown-spi,spi-mismatch,reflected");
    assert.deepEqual(guessed.dropped, guessed.done.counters);
    assert.match((await ping.ended).stdout, /100 packets transmitted, 100 received/);
    await a.stop();
    await b.stop();
  },
);
