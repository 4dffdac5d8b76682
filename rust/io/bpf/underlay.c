// SPDX-License-Identifier: Apache-2.0
/*
 * The filter on the network interface: takes the Geneve datagrams for the bound addresses and ports, and leaves all
 * else to the kernel, whatever is fragmented, tagged, or has IP options or extension headers included. A VLAN tag
 * that the network interface has taken off (the feature rx-vlan-hw-parse) is not in the frame, and so not seen.
 */
#include "icx_xdp.h"
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>

#define MAX_BOUND 16

/* More fragments follow, or an offset that is not 0 (RFC 791 section 3.1). Don't Fragment is as good as not. */
#define IPV4_FRAGMENT 0x3fff

/* Version: the upper two bits of a Geneve header (RFC 8926 section 3.4). */
#define GENEVE_VERSION 0xc0

struct geneve_header {
	__u8 version_and_option_length;
	__u8 flags;
	__be16 protocol;
	__u8 vni[3];
	__u8 reserved;
};

/* IPv4 addresses are the first word, the others are 0. */
struct destination {
	__be32 address[4];
	__be16 port;
	bool is_ipv6;
};

struct bound {
	__be32 address[4];
	__be16 port;
	__u8 is_ipv6;
	__u8 is_wildcard; /* the address matches every one of its family */
};

/* Set by the loader: exact addresses first. */
const volatile struct bound bound[MAX_BOUND];
const volatile __u32 bound_count;

static __always_inline bool is_bound(const struct destination *to)
{
	for (__u32 i = 0; i < MAX_BOUND; i++) {
		const volatile struct bound *b = &bound[i];

		if (i >= bound_count)
			break;
		if (b->port != to->port || b->is_ipv6 != to->is_ipv6)
			continue;
		if (b->is_wildcard || (b->address[0] == to->address[0] && b->address[1] == to->address[1] &&
				       b->address[2] == to->address[2] && b->address[3] == to->address[3]))
			return true;
	}
	return false;
}

/* The UDP header of a frame that is not a fragment and whose IP header has nothing besides; else NULL. */
static __always_inline const struct udphdr *find_udp(const void *data, const void *end, struct destination *to)
{
	const struct ethhdr *ethernet = data;

	if ((const void *)(ethernet + 1) > end)
		return NULL;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		const struct iphdr *ip = (const void *)(ethernet + 1);

		if ((const void *)(ip + 1) > end)
			return NULL;
		if (ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(IPV4_FRAGMENT) || ip->protocol != IPPROTO_UDP)
			return NULL;
		to->address[0] = ip->daddr;
		return (const void *)(ip + 1);
	}
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		const struct ipv6hdr *ip = (const void *)(ethernet + 1);

		if ((const void *)(ip + 1) > end)
			return NULL;
		if (ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return NULL;
		for (int i = 0; i < 4; i++)
			to->address[i] = ip->daddr.in6_u.u6_addr32[i];
		to->is_ipv6 = true;
		return (const void *)(ip + 1);
	}
	return NULL;
}

static __always_inline bool is_ours(const void *data, const void *end)
{
	struct destination to = {};
	const struct udphdr *udp = find_udp(data, end, &to);
	const struct geneve_header *geneve;

	if (!udp || (const void *)(udp + 1) > end)
		return false;
	to.port = udp->dest;
	geneve = (const void *)(udp + 1);
	/* The frame may be padded: the datagram itself must have room for the header too. */
	if ((const void *)(geneve + 1) > end || bpf_ntohs(udp->len) < sizeof(*udp) + sizeof(*geneve))
		return false;
	if (geneve->version_and_option_length & GENEVE_VERSION)
		return false;
	if (geneve->protocol != bpf_htons(ETH_P_IP) && geneve->protocol != bpf_htons(ETH_P_IPV6) && geneve->protocol != 0)
		return false;
	return is_bound(&to);
}

SEC("xdp")
int icx_underlay(struct xdp_md *context)
{
	const void *data = (const void *)(long)context->data;
	const void *end = (const void *)(long)context->data_end;
	struct counters *counters = own_counters();

	if (!counters)
		return XDP_ABORTED;
	if (is_ours(data, end))
		return redirect_to_socket(context, counters);
	counters->passed++;
	return XDP_PASS;
}
