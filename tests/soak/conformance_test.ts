/** The conformance suite over AF_XDP where `tests/netns` does not run it: with those, every two values of what varies meet. */
import { conformsOverAfxdp } from "../netns/_conformance.ts";

conformsOverAfxdp({ device: "veth", attach: "native", underlay: "ipv6", queues: 2 });
conformsOverAfxdp({ device: "veth", attach: "generic", underlay: "ipv4", queues: 2 });
conformsOverAfxdp({ device: "tun", attach: "native", underlay: "ipv6", queues: 1 });
conformsOverAfxdp({ device: "tun", attach: "generic", underlay: "ipv4", queues: 1 });
