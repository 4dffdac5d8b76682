/** Rekeying under load. `tests/soak` has more datapaths. */
import { rekeyTests } from "./_rekey.ts";

rekeyTests(["tun", "afxdp, veth"]);
