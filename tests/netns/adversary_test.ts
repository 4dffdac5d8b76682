/** A third namespace that sees the wire and sends a node what an attacker could, while traffic runs. `tests/soak` has more. */
import { floodTests, kindTests, rateLimitTests } from "./_attacks.ts";

kindTests(["tun", "afxdp, veth"]);
floodTests(["tun"]);
rateLimitTests(["tun", "afxdp, veth"]);
