/**
 * The conformance suite over AF_XDP in the variant that its argument names. It takes an interface and a gate to the peer behind it:
 * `tests/netns/_conformance.ts` runs it in namespaces of its own.
 */

import process from "node:process";
import { afxdpBench, type AfxdpBenchOptions } from "./_afxdp.ts";
import { conformance } from "./_suite.ts";

conformance(afxdpBench(JSON.parse(process.argv[2] ?? "") as AfxdpBenchOptions));
