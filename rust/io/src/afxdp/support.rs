//! What this host, process and interface can do of AF_XDP.

use std::fs;
use std::net::Ipv4Addr;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, Nla, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;
use socket2::{Domain, Socket, Type};

use super::offload::Ethtool;
use super::program::{AttachError, LoadedProgram};
use crate::link::{self, LinkError};
use crate::netlink::{Netlink, NetlinkError};

/// What there is for AF_XDP on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdpSupport {
    /// The name of the interface's driver, where it says.
    pub driver: Option<String>,
    /// Queues that it receives on, where the driver says.
    pub queues: Option<u32>,
    /// Whether the driver runs XDP programs and redirects out of them itself. `None`: this kernel does not say (before
    /// Linux 6.3), attaching tells.
    pub native: Option<bool>,
    /// Whether the driver reads and writes frames in the UMEM. `None`: as above.
    pub zero_copy: Option<bool>,
    /// What the process or the kernel lacks to use AF_XDP at all. Empty: nothing.
    pub missing: Vec<Lack>,
}

/// Something without which AF_XDP cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub kind: LackKind,
    /// In words, for the place of an object.
    pub what: String,
}

/// Who can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LackKind {
    /// A right that this process could be given.
    Permission,
    /// A part that this kernel was built without, or is too old for.
    Kernel,
    /// Anything else that a system call said, such as too little memory.
    System,
}

/// Looks up what an interface of the calling thread's network namespace can do, and whether this process may use it.
/// It changes nothing: a program is loaded, but not attached.
pub fn probe(interface: &str) -> Result<XdpSupport, LinkError> {
    let link = link::by_name(interface)?;
    let ethtool = Ethtool::open().ok();
    let driver = ethtool.as_ref().and_then(|ethtool| ethtool.driver(interface));
    let channels = ethtool.and_then(|ethtool| ethtool.channels(interface).ok().flatten());
    let features = features(link.index).map_err(|source| LinkError::Lookup { name: interface.to_owned(), source })?;
    Ok(XdpSupport {
        driver,
        queues: channels.map(|channels| channels.rx + channels.combined).filter(|queues| *queues > 0),
        native: features.map(|bits| bits & NATIVE_FEATURES == NATIVE_FEATURES),
        zero_copy: features.map(|bits| bits & XDP_FEATURE_ZERO_COPY != 0),
        missing: missing(),
    })
}

/// Capabilities by bit (include/uapi/linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn missing() -> Vec<Lack> {
    let mut missing = Vec::new();
    let mut lack = |kind, what: String| missing.push(Lack { kind, what });
    let effective =
        fs::read_to_string("/proc/thread-self/status").ok().and_then(|status| effective_capabilities(&status));
    // Where /proc does not say, what is tried does.
    let has = |capability: u32| effective.is_none_or(|bits| bits & 1 << capability != 0);
    let net_raw = has(CAP_NET_RAW);
    let bpf = has(CAP_BPF) || has(CAP_SYS_ADMIN);
    for (is_there, name) in [
        (has(CAP_NET_ADMIN), "CAP_NET_ADMIN"),
        (net_raw, "CAP_NET_RAW"),
        (bpf, "CAP_BPF (CAP_SYS_ADMIN before Linux 5.8)"),
        // Without it the verifier refuses arithmetic with pointers into packets (`bpf_allow_ptr_leaks` in include/linux/bpf.h).
        (has(CAP_PERFMON) || has(CAP_SYS_ADMIN), "CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"),
    ] {
        if !is_there {
            lack(LackKind::Permission, format!("the capability {name}"));
        }
    }
    if let Err(error) = Socket::new(Domain::from(libc::AF_XDP), Type::RAW, None) {
        match error.raw_os_error() {
            Some(libc::EPERM) if !net_raw => {}
            Some(libc::EAFNOSUPPORT) => {
                lack(LackKind::Kernel, "AF_XDP sockets in the kernel (CONFIG_XDP_SOCKETS)".to_owned());
            }
            Some(libc::EPERM | libc::EACCES) => lack(LackKind::Permission, format!("AF_XDP sockets ({error})")),
            _ => lack(LackKind::System, format!("AF_XDP sockets ({error})")),
        }
    }
    match LoadedProgram::underlay(1, &[(Ipv4Addr::UNSPECIFIED, 0).into()]) {
        Ok(_) => {}
        Err(AttachError::NoPermission { .. }) if has(CAP_NET_ADMIN) && bpf => lack(
            LackKind::Permission,
            "the right to load XDP programs: a user namespace, a seccomp profile, or the kernel's lockdown forbids it"
                .to_owned(),
        ),
        Err(AttachError::NoPermission { .. }) => {}
        Err(error @ AttachError::Unsupported { .. }) => lack(LackKind::Kernel, error.to_string()),
        Err(error) => lack(LackKind::System, error.to_string()),
    }
    missing
}

/// `CapEff` of proc_pid_status(5), a bit for each capability.
fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Numbers of generic netlink (include/uapi/linux/genetlink.h) and of its family `netdev`
/// (include/uapi/linux/netdev.h).
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const XDP_FEATURE_BASIC: u64 = 1 << 0;
const XDP_FEATURE_REDIRECT: u64 = 1 << 1;
const XDP_FEATURE_ZERO_COPY: u64 = 1 << 3;
const NATIVE_FEATURES: u64 = XDP_FEATURE_BASIC | XDP_FEATURE_REDIRECT;

/// The XDP features of an interface's driver. `None` where the kernel has no family `netdev`.
fn features(index: u32) -> Result<Option<u64>, NetlinkError> {
    let mut netlink = Netlink::open_protocol(NETLINK_GENERIC)?;
    let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, b"netdev\0".to_vec());
    let family = match netlink.request(GenericMessage::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name), 0) {
        Ok(answers) => answers.iter().find_map(|answer| answer.attribute(CTRL_ATTR_FAMILY_ID)),
        Err(error) if error.errno() == Some(libc::ENOENT) => None,
        Err(error) => return Err(error),
    };
    let Some(family) = family.map(u16::from_ne_bytes) else { return Ok(None) };
    let interface = DefaultNla::new(NETDEV_A_DEV_IFINDEX, index.to_ne_bytes().to_vec());
    let answers = netlink.request(GenericMessage::new(family, NETDEV_CMD_DEV_GET, interface), 0)?;
    Ok(answers.iter().find_map(|answer| answer.attribute(NETDEV_A_DEV_XDP_FEATURES)).map(u64::from_ne_bytes))
}

/// A message of generic netlink: `struct genlmsghdr` and attributes.
struct GenericMessage {
    family: u16,
    command: u8,
    attributes: Vec<DefaultNla>,
}

/// Of `struct genlmsghdr`: command, version, and two reserved bytes.
const GENERIC_HEADER_BYTES: usize = 4;

impl GenericMessage {
    fn new(family: u16, command: u8, attribute: DefaultNla) -> Self {
        GenericMessage { family, command, attributes: vec![attribute] }
    }

    /// An attribute's value, if it is `N` bytes long.
    fn attribute<const N: usize>(&self, kind: u16) -> Option<[u8; N]> {
        let attribute = self.attributes.iter().find(|attribute| attribute.kind() == kind)?;
        let mut value = [0; N];
        (attribute.value_len() == N).then(|| attribute.emit_value(&mut value))?;
        Some(value)
    }
}

impl NetlinkSerializable for GenericMessage {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        GENERIC_HEADER_BYTES + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // Both families are of version 1.
        buffer[..GENERIC_HEADER_BYTES].copy_from_slice(&[self.command, 1, 0, 0]);
        self.attributes.as_slice().emit(&mut buffer[GENERIC_HEADER_BYTES..]);
    }
}

impl NetlinkDeserializable for GenericMessage {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (head, attributes) = payload
            .split_at_checked(GENERIC_HEADER_BYTES)
            .ok_or_else(|| DecodeError::from("a message of generic netlink without its header"))?;
        let attributes = NlasIterator::new(attributes)
            .map(|attribute| attribute.map(|attribute| DefaultNla::new(attribute.kind(), attribute.value().to_vec())))
            .collect::<Result<_, _>>()?;
        Ok(GenericMessage { family: header.message_type, command: head[0], attributes })
    }
}

#[cfg(test)]
mod tests {
    use super::{LinkError, effective_capabilities, probe};
    use crate::test_support::NetNs;

    #[test]
    fn drivers_are_told_apart() {
        let Some(namespace) = NetNs::new() else { return };
        let Some(other) = NetNs::new() else { return };
        namespace.connect(&other, ([10, 9, 0, 1].into(), 24), ([10, 9, 0, 2].into(), 24));
        namespace.run(|| {
            let veth = probe("under").unwrap();
            assert_eq!(veth.driver.as_deref(), Some("veth"));
            assert_eq!((veth.native, veth.zero_copy), (Some(true), Some(false)));
            assert_eq!(veth.missing, []);
            let loopback = probe("lo").unwrap();
            assert_eq!((loopback.native, loopback.zero_copy), (Some(false), Some(false)));
            assert!(matches!(probe("no-such-link0"), Err(LinkError::NotFound(_))));
        });
    }

    #[test]
    fn capabilities_are_read() {
        let status = "Name:\ticx\nCapPrm:\t000001ffffffffff\nCapEff:\t0000008000003000\nCapBnd:\t0\n";
        assert_eq!(effective_capabilities(status), Some(1 << 39 | 1 << 12 | 1 << 13));
        assert_eq!(effective_capabilities("CapEff:\tnone\n"), None);
        assert_eq!(effective_capabilities(""), None);
    }
}
