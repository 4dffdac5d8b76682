/** The conformance suite over the ends of the tun datapath that need no rights. `tests/netns` runs it over the others. */

import { conformance } from "./_suite.ts";
import { tunBench } from "./_tun.ts";

conformance(tunBench("memory", "memory"));
conformance(tunBench("memory", "udp"));
