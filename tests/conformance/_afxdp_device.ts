/**
 * The conformance suite over AF_XDP. It takes an interface and a gate to the peer behind it: `tests/netns/conformance_test.ts` runs it in
 * namespaces of its own.
 */

import { afxdpBench } from "./_afxdp.ts";
import { conformance } from "./_suite.ts";

conformance(afxdpBench({ device: "veth", attach: "native" }));
conformance(afxdpBench({ device: "tun", attach: "generic" }));
