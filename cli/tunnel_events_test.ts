import { deepStrictEqual, ok, strictEqual } from "node:assert/strict";
import type { TunnelEvent } from "../control/lifecycle.ts";
import { TunnelNarrator } from "./tunnel_events.ts";

const CONTEXT = { peer: "peer.example:7081", peerPort: 7081, port: 6081, vni: 42 };

function narrate(...events: readonly TunnelEvent[]): readonly (readonly [string, string] | undefined)[] {
  const narrator = new TunnelNarrator(CONTEXT);
  return events.map((event) => {
    const line = narrator.tell(event);
    return line && [line.level, line.fields.event];
  });
}

Deno.test("a tunnel that comes up and renews its keys is told once, the routine at debug level", () => {
  deepStrictEqual(
    narrate(
      { type: "state", state: "dialing", previous: "resolving" },
      { type: "session-up", remote: "192.0.2.2:6082", sessions: 1 },
      { type: "keys", rxSpi: 1, txSpi: 2, exchanges: 1 },
      { type: "keys", rxSpi: 3, txSpi: 4, exchanges: 2 },
    ),
    [["info", "waiting"], ["info", "handshake"], ["info", "up"], ["debug", "keys"]],
  );
});

Deno.test("that a peer is called is told once, however often it takes", () => {
  deepStrictEqual(
    narrate(
      { type: "state", state: "dialing", previous: "resolving" },
      { type: "state", state: "waiting", previous: "dialing" },
      { type: "state", state: "dialing", previous: "resolving" },
    ),
    [["info", "waiting"], ["trace", "state"], ["trace", "state"]],
  );
});

Deno.test("a lost session is a warning, and its return is told", () => {
  deepStrictEqual(
    narrate(
      { type: "state", state: "listening", previous: "idle" },
      { type: "session-up", remote: "192.0.2.2:6082", sessions: 1 },
      { type: "keys", rxSpi: 1, txSpi: 2, exchanges: 1 },
      { type: "session-lost", reason: "timed out", superseded: false },
      { type: "session-up", remote: "192.0.2.2:6082", sessions: 2 },
      { type: "keys", rxSpi: 3, txSpi: 4, exchanges: 2 },
    ).slice(3),
    [["warning", "session-lost"], ["info", "handshake"], ["info", "keys"]],
  );
});

Deno.test("a superseded session is no loss", () => {
  deepStrictEqual(
    narrate({ type: "session-lost", reason: "superseded", superseded: true }),
    [["info", "session-superseded"]],
  );
});

Deno.test("when nothing opens, both ports and the VNI are named", () => {
  const told = new TunnelNarrator(CONTEXT).tell({ type: "no-return-traffic", afterMs: 5000 });
  strictEqual(told?.level, "warning");
  for (const part of ["6081", "7081", "42", "5 s"]) ok(told.text.includes(part), told.text);
});

Deno.test("an unreachable peer is named with the reason and the next try", () => {
  const told = new TunnelNarrator(CONTEXT).tell({
    type: "unreachable",
    reason: "timed out",
    attempts: 3,
    delayMs: 1600,
  });
  strictEqual(told?.level, "warning");
  for (const part of ["peer.example:7081", "3 tries", "timed out", "1.6 s"]) ok(told.text.includes(part), told.text);
});
