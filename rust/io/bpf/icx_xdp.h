/* SPDX-License-Identifier: Apache-2.0 */
/* What the XDP programs share: the sockets of the queues, and the counters. */
#ifndef ICX_XDP_H
#define ICX_XDP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Frames, one entry for all. Each CPU has counters of its own. */
struct counters {
	__u64 redirected; /* to the socket of their queue */
	__u64 passed;     /* to the kernel's network stack */
	__u64 dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* By queue. The loader sets max_entries to the number of queues. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} sockets SEC(".maps");

static __always_inline struct counters *own_counters(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&counters, &key);
}

/*
 * Hands the frame to the socket of the queue that it came by, and drops it where there is none. The helper looks the
 * socket up itself and returns its flags where it finds none (Linux 5.3).
 */
static __always_inline int redirect_to_socket(const struct xdp_md *context, struct counters *counters)
{
	int action = bpf_redirect_map(&sockets, context->rx_queue_index, XDP_DROP);

	if (action == XDP_REDIRECT)
		counters->redirected++;
	else
		counters->dropped++;
	return action;
}

/* No helper that is called here is for GPL-compatible programs only (gpl_only in struct bpf_func_proto). */
char LICENSE[] SEC("license") = "Apache-2.0";

#endif
