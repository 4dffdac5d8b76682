/**
 * The conformance suite over a TUN device. It changes the network that it runs in: `tests/netns/conformance_test.ts` runs it in a
 * namespace of its own.
 */

import { conformance } from "./_suite.ts";
import { tunBench } from "./_tun.ts";

conformance(tunBench("tun", "udp"));
conformance(tunBench("tun", "memory"));
