//! The header that a TUN device puts before packets, and expects before them, when it offloads (`struct
//! virtio_net_hdr` in include/uapi/linux/virtio_net.h; byte order of the machine).

/// How a packet is to be cut, and which checksum in it is yet to be completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    /// Bytes of all headers, as a hint; the packet itself decides.
    pub hdr_len: u16,
    /// Payload bytes of each segment but the last.
    pub gso_size: u16,
    /// Where the checksum's data starts in the packet.
    pub csum_start: u16,
    /// Where the checksum is, counted from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    pub const LEN: usize = 10;

    /// The checksum field holds the sum of the pseudo-header only.
    pub const NEEDS_CSUM: u8 = 1;

    pub const GSO_NONE: u8 = 0;
    pub const GSO_TCPV4: u8 = 1;
    pub const GSO_TCPV6: u8 = 4;
    pub const GSO_UDP_L4: u8 = 5;
    /// With one of the TCP types: the first segment has CWR set, and no other shall.
    pub const GSO_ECN: u8 = 0x80;

    pub fn parse(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        VnetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    pub fn emit(&self) -> [u8; Self::LEN] {
        let ([h0, h1], [g0, g1]) = (self.hdr_len.to_ne_bytes(), self.gso_size.to_ne_bytes());
        let ([s0, s1], [o0, o1]) = (self.csum_start.to_ne_bytes(), self.csum_offset.to_ne_bytes());
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    pub(super) fn is_segmented(&self) -> bool {
        self.gso_type != Self::GSO_NONE
    }
}
