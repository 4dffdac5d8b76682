// SPDX-License-Identifier: Apache-2.0
/*
 * On the virtual interface: takes every frame, with room in front for the headers that encapsulation adds. What is in
 * that room is whatever was there before.
 */
#include "icx_xdp.h"

/* In bytes. Set by the loader. */
const volatile __u32 headroom;

SEC("xdp")
int icx_virtual(struct xdp_md *context)
{
	struct counters *counters = own_counters();

	if (!counters)
		return XDP_ABORTED;
	if (bpf_xdp_adjust_head(context, -(int)headroom)) {
		counters->dropped++;
		return XDP_DROP;
	}
	return redirect_to_socket(context, counters);
}
