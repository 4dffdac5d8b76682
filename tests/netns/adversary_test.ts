/** A third namespace that sees the wire and sends a node what an attacker could, while traffic runs. `tests/soak` has more. */
import { adversaryTests } from "./_attacks.ts";

adversaryTests(["tun", "afxdp, veth"]);
