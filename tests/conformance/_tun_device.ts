/**
 * The conformance suite over a TUN device. It changes the network that it runs in: `tests/netns/conformance_test.ts` runs it in a
 * namespace of its own.
 */

import { conformance } from "./_suite.ts";
import { tunBench } from "./_tun.ts";

/** Whoever made the namespace looks at the outer headers of what leaves from this port. */
const port = 6081;

conformance(tunBench("tun", "udp", { port }));
conformance(tunBench("tun", "memory"));
// Runs whole without rights; here, for its outer headers.
conformance(tunBench("memory", "udp", { port }), { only: "the same inner packet" });
