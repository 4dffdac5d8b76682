/** What an intruder's frames do to a node, over any datapath. */
import assert from "node:assert/strict";
import {
  attack,
  capture,
  costs,
  countAtKernel,
  discard,
  gains,
  iperf,
  isFiltered,
  lostBefore,
  RX_DROPS,
  settled,
  sum,
  underLoad,
  UNRELATED_PORT,
} from "./_adversary.ts";
import { type Counters, type DatapathName, DISGUISES, Lab, privilegedOver } from "./_lab.ts";

/** Checks that each frame cost its counter, but for what was lost on the way; gives how many of them were lost. */
function assertCost(gained: Counters, cost: Counters, lost: number): number {
  const what = JSON.stringify({ gained, cost, lost });
  assert.deepEqual(Object.keys(gained).sort(), Object.keys(cost).sort());
  for (const [name, count] of Object.entries(cost)) assert((gained[name] ?? 0) <= count, `${name}: ${what}`);
  const missed = sum(cost) - sum(gained);
  assert(missed <= lost, `${missed} frames are not accounted for: ${what}`);
  return missed;
}

/** Registers a test over each of these datapaths: what each kind of frame costs. */
export function kindTests(datapaths: readonly DatapathName[]): void {
  privilegedOver(
    datapaths,
    "every kind of hostile frame costs exactly its counter, and nothing of the traffic beside it is lost",
    async () => {
      await using lab = await Lab.create({ intruder: true });
      const [a, b] = await lab.tunnel();
      const file = await capture(lab);
      const before = await settled(b);
      const sentBefore = (await a.statistics()).counters["tx_packets"] ?? 0;
      const lostEarlier = await lostBefore(b, lab.intruder, "side-b");
      const seenByKernel = await countAtKernel(lab.b);

      const client = await iperf(lab, ["-u", "-b", "10M", "-l", "1000", "-t", "4"]);
      const done = await attack(lab, file, ["--frames", "16500", "--rate", "4000", "--stranger", DISGUISES.stranger]);
      await client.ended;
      const after = await settled(b);

      assert.equal(done.sent, 16_500);
      assert.equal(Object.keys(done.kinds).length, 11);
      // A busy machine may leave the queues of the wire full for a moment; without that all of this is exact.
      const lost = await lostBefore(b, lab.intruder, "side-b") - lostEarlier;
      assert(lost < 0.1 * done.sent, `${lost} lost`);
      const gained = gains(before.counters, after.counters, RX_DROPS);
      let missed = assertCost(gained, costs(done, b), lost);
      const opened = (after.counters["rx_packets"] ?? 0) - (before.counters["rx_packets"] ?? 0);
      const arrived = (after.ends["underlayReceived"] ?? 0) - (before.ends["underlayReceived"] ?? 0);
      assert.equal(opened + sum(gained), arrived, "what arrived is what opened and what was dropped");
      const sent = ((await a.statistics()).counters["tx_packets"] ?? 0) - sentBefore;
      assert(opened <= sent, `${opened} opened of ${sent}`);
      missed += sent - opened;
      if (isFiltered(b)) {
        const left = sum(done.left) - await seenByKernel();
        assert(left >= 0, "the filter leaves what is no Geneve, and only that");
        missed += left;
      }
      assert(missed <= lost, `${missed} packets are not accounted for, ${lost} were lost`);
      assert(opened > 4000, `traffic ran beside it: ${opened} packets`);
      await a.stop();
      await b.stop();
    },
  );
}

/** Registers a test over each of these datapaths: more of them than anybody would send. */
export function floodTests(datapaths: readonly DatapathName[]): void {
  privilegedOver(
    datapaths,
    "100000 hostile frames a second: all are counted, and traffic goes on as beside as many unrelated packets",
    async () => {
      await using lab = await Lab.create({ intruder: true });
      const [a, b] = await lab.tunnel();
      const file = await capture(lab);
      await discard(lab);
      const options = { seconds: 2, attack: ["--rate", "100000"] };
      const unrelated = await underLoad(lab, file, { port: UNRELATED_PORT, ...options });
      const before = await settled(b);
      const lostEarlier = await lostBefore(b, lab.intruder, "side-b");
      const hostile = await underLoad(lab, file, { port: 6081, ...options });
      const after = await settled(b);

      // The kernel may have had no room for some, hostile or not; whatever the node was given is accounted for.
      const dropped = gains(before.counters, after.counters, RX_DROPS);
      assertCost(dropped, costs(hostile.attack, b), await lostBefore(b, lab.intruder, "side-b") - lostEarlier);
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
}

/** Registers a test over each of these datapaths: what they can spend of a node's rate limit. */
export function rateLimitTests(datapaths: readonly DatapathName[]): void {
  privilegedOver(
    datapaths,
    "rate limit: it bounds what forged frames can make a node decrypt, and other frames spend nothing of it",
    async () => {
      const limit = 1000;
      await using lab = await Lab.create({ intruder: true });
      const [a, b] = await lab.tunnel([], ["--rx-rate-limit", String(limit)]);
      const file = await capture(lab);
      const attacked = async (kinds: string) => {
        const [before, lostEarlier] = [await settled(b), await lostBefore(b, lab.intruder, "side-b")];
        const done = await attack(lab, file, ["--frames", "15000", "--rate", "5000", "--kinds", kinds]);
        const dropped = gains(before.counters, (await settled(b)).counters, RX_DROPS);
        return {
          seconds: done.seconds,
          cost: costs(done, b),
          dropped,
          lost: await lostBefore(b, lab.intruder, "side-b") - lostEarlier,
        };
      };

      // Who sees the wire can spend the budget: that is what it is for. The processor is safe, the traffic waits.
      const forged = await attacked("forged,tampered");
      const { rx_auth_failed: decrypted = 0, rx_rate_limited: limited = 0, ...others } = forged.dropped;
      assert.deepEqual(others, {});
      assertCost({ rx_auth_failed: decrypted + limited }, forged.cost, forged.lost);
      // A second begins anywhere in the limiter's periods.
      assert(decrypted <= limit * (forged.seconds + 1), `${decrypted} of ${JSON.stringify(forged)}`);
      assert(decrypted >= limit, `the limit was reached: ${decrypted}`);

      // Who only guesses spends none of it, and pings pass meanwhile.
      const ping = lab.spawn(lab.a, ["ping", "-q", "-c", "100", "-i", "0.02", "-W", "2", lab.b.inner4]);
      const guessed = await attacked("malformed,truncated,unknown-vni,unknown-spi,spi-mismatch,reflected");
      assertCost(guessed.dropped, guessed.cost, guessed.lost);
      const answered = Number(/100 packets transmitted, (\d+) received/.exec((await ping.ended).stdout)?.[1]);
      assert(
        100 - answered <= guessed.lost,
        `${answered} of 100 echo requests were answered, ${guessed.lost} packets lost`,
      );
      await a.stop();
      await b.stop();
    },
  );
}
