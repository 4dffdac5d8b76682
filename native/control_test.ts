import assert from "node:assert/strict";
import fs from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { ControlEndpoint, type ControlPeer, type PeerEvent } from "./control.ts";
import { NativeEngine } from "./engine.ts";
import { NativeIdentity } from "./identity.ts";
import { Library } from "./library.ts";

const VNI = 1;

/** One node: identity, engine, endpoint. */
interface Node {
  readonly identity: NativeIdentity;
  readonly engine: NativeEngine;
  readonly endpoint: ControlEndpoint;
}

/** Collects a peer's events and lets a test wait for the next of a kind. */
class Events {
  readonly #seen: PeerEvent[] = [];
  #changed = Promise.withResolvers<void>();

  constructor(peer: ControlPeer) {
    peer.onEvent((event) => {
      this.#seen.push(event);
      this.#changed.resolve();
    });
  }

  async next<T extends PeerEvent["type"]>(type: T): Promise<Extract<PeerEvent, { type: T }>> {
    while (this.#seen.length === 0) {
      await this.#changed.promise;
      this.#changed = Promise.withResolvers();
    }
    const event = this.#seen.shift();
    assert.equal(event?.type, type, JSON.stringify(event));
    return event as Extract<PeerEvent, { type: T }>;
  }
}

/** Two nodes on the loopback, the initiator first. */
async function withNodes(use: (initiator: Node, responder: Node, library: Library) => Promise<void>): Promise<void> {
  await using library = Library.open();
  const folder = await fs.mkdtemp(path.join(os.tmpdir(), "icx-native-"));
  try {
    const identities = ["a", "b"].map((name) => NativeIdentity.generate(library, { path: path.join(folder, name) }));
    const nodes = identities.map((identity): Node => {
      const engine = NativeEngine.create(library, { mode: "l3", underlay: "udp" });
      engine.addNetwork({ vni: VNI, peer: "127.0.0.1:6081", routes: [] });
      return {
        identity,
        engine,
        endpoint: ControlEndpoint.open(library, { identity, localAddress: "127.0.0.1", port: 0 }),
      };
    });
    const key = (node: Node) => atob(node.identity.info().publicKey);
    const [initiator, responder] = nodes.sort((a, b) => key(a) < key(b) ? -1 : 1);
    assert(initiator !== undefined && responder !== undefined);
    await use(initiator, responder, library);
  } finally {
    await fs.rm(folder, { recursive: true });
  }
}

function addPeer(node: Node, peer: Node): ControlPeer {
  const peerKey = peer.identity.info().publicKey;
  return node.endpoint.addPeer({ engine: node.engine, vni: VNI, peerKey, lifetimeMs: 3_600_000 });
}

Deno.test("two endpoints make a session, exchange keys again and again, and part", async () => {
  await withNodes(async (initiator, responder, library) => {
    const toResponder = addPeer(initiator, responder);
    const toInitiator = addPeer(responder, initiator);
    assert.deepEqual([toResponder.info().role, toInitiator.info().role], ["initiator", "responder"]);
    assert.equal(toResponder.info().fingerprint, responder.identity.info().fingerprint);
    const [here, there] = [new Events(toResponder), new Events(toInitiator)];

    assert.equal(toResponder.status().state, "idle");
    assert.throws(() => toResponder.exchange({ timeoutMs: 1000 }), { code: "ESTATE" });
    const { localAddress, port } = responder.endpoint.info();
    const addr = `${localAddress}:${port}`;
    assert.throws(() => toInitiator.dial({ addr, answerTimeoutMs: 1000 }), { code: "ESTATE" });
    toResponder.dial({ addr, answerTimeoutMs: 10_000 });
    const up = await here.next("sessionUp");
    assert.equal(up.remote, addr);
    await there.next("sessionUp");

    for (let exchanges = 1; exchanges <= 3; exchanges++) {
      toResponder.exchange({ timeoutMs: 10_000 });
      const mine = await here.next("exchangeDone");
      const theirs = await there.next("exchangeDone");
      assert.deepEqual([mine.rxSpi, mine.txSpi], [theirs.txSpi, theirs.rxSpi]);
      assert.deepEqual([mine.exchanges, theirs.exchanges], [exchanges, exchanges]);
      assert.equal(initiator.engine.saStatus(VNI).tx?.spi, mine.txSpi);
    }
    toResponder.probe();
    const status = toResponder.status();
    assert.deepEqual([status.state, status.sessions, status.exchanges, status.remote], ["connected", 1, 3, addr]);

    await initiator.endpoint.close();
    assert.equal(toResponder.state, "closed");
    const lost = await there.next("sessionLost");
    assert.deepEqual([lost.superseded, lost.reset], [false, false]);
    assert.equal(toInitiator.status().state, "idle");
    await responder.endpoint.close();
    assert.equal(library.handleCount(), 4);
  });
});

Deno.test("an endpoint turns strangers away and says so to both sides", async () => {
  await withNodes(async (initiator, responder) => {
    const rejected = Promise.withResolvers<string>();
    responder.endpoint.onEvent((event) => rejected.resolve(event.type));
    const peer = addPeer(initiator, responder);
    const events = new Events(peer);
    const { localAddress, port } = responder.endpoint.info();
    peer.dial({ addr: `${localAddress}:${port}`, answerTimeoutMs: 10_000 });
    assert.equal(await rejected.promise, "peerRejected");
    // On the dialling side the handshake ends before the other side has judged the key.
    await events.next("sessionUp");
    await events.next("sessionLost");
  });
});

Deno.test("a dial that nobody answers fails by time", async () => {
  await withNodes(async (initiator, responder) => {
    const peer = addPeer(initiator, responder);
    const events = new Events(peer);
    const { port } = responder.endpoint.info();
    await responder.endpoint.close();
    peer.dial({ addr: `127.0.0.1:${port}`, answerTimeoutMs: 200 });
    const { kind, reason } = await events.next("dialFailed");
    assert(kind === "timeout" || kind === "refused", kind);
    assert.notEqual(reason, "");
  });
});

Deno.test("an endpoint refuses peers that cannot be", async () => {
  await withNodes((initiator, responder, library) => {
    assert.throws(() => addPeer(initiator, initiator), { code: "EKEY" });
    addPeer(initiator, responder);
    assert.throws(() => addPeer(initiator, responder), { code: "EEXIST" });
    using manual = NativeEngine.create(library, { mode: "l3", underlay: "udp", dangerManualClock: true });
    const peerKey = responder.identity.info().publicKey;
    assert.throws(() => initiator.endpoint.addPeer({ engine: manual, vni: 2, peerKey, lifetimeMs: 1 }), {
      code: "ESTATE",
    });
    const { port } = initiator.endpoint.info();
    const again = () =>
      ControlEndpoint.open(library, { identity: initiator.identity, localAddress: "127.0.0.1", port });
    assert.throws(again, { code: "EBUSY", errno: 98 });
    return Promise.resolve();
  });
});
