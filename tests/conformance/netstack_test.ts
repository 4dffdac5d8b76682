/** The conformance suite over the netstack datapath, which needs no rights. */

import { netstackBench } from "./_netstack.ts";
import { conformance } from "./_suite.ts";

conformance(netstackBench("memory"));
conformance(netstackBench("udp"));
