//! TUN devices: the inner side of the tunnel, bare IP packets.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::IpAddr;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use icx_proto::offload::VnetHeader;
use netlink_packet_route::link::LinkAttribute;

use crate::claim::Claim;
use crate::device::{self, DeviceError};
use crate::leftovers::{self, LeftoverError, Namesake};
use crate::link::{self, is_valid_name};
use crate::netlink::{Netlink, NetlinkError};
use crate::sys;
use crate::udp::RUN_LIMITS;

const DEVICE_NODE: &str = "/dev/net/tun";

/// How many packets the device holds for a reader that is behind. One batch of every inner flow at full rate, but not
/// the hundreds of milliseconds that a longer queue would add under load.
const TX_QUEUE_PACKETS: u32 = 500;

/// What a TUN device shall look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunConfig {
    /// 1 to 15 bytes, without '/', ':', '%' and white space.
    pub name: String,
    /// In bytes of inner packet: 68 to 65535, at least 1280 where there is an IPv6 address.
    pub mtu: u32,
    /// Addresses with the prefix lengths of their networks. May be empty.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Over how many queues the kernel spreads the flows.
    pub queues: NonZero<u16>,
    pub offload: TunOffload,
}

/// What passes between the kernel and the reader of a device in one piece, where the kernel can, while a pump moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunOffload {
    /// The kernel hands over TCP uncut, and checksums unfinished.
    pub tso: bool,
    /// The same for UDP, of senders that give many datagrams at once.
    pub uso: bool,
    /// The kernel is handed TCP, and UDP where it knows `uso`, merged.
    pub gro: bool,
}

impl TunOffload {
    pub const NONE: TunOffload = TunOffload { tso: false, uso: false, gro: false };
    pub const ALL: TunOffload = TunOffload { tso: true, uso: true, gro: true };
}

impl Default for TunOffload {
    fn default() -> Self {
        TunOffload::ALL
    }
}

/// A TUN device that exists as long as this value, and no longer.
#[derive(Debug)]
pub struct Tun {
    name: String,
    index: u32,
    mtu: AtomicU32,
    /// What the MTU must be at least, for the addresses that it was opened with.
    least_mtu: u32,
    /// Nonblocking; one per queue, at least one.
    queues: Vec<File>,
    /// A virtio header of [`VnetHeader::LEN`] bytes stands before each packet, in both directions.
    has_headers: bool,
    offload: TunOffload,
    /// `TUN_F_*` bits for that.
    features: libc::c_uint,
    /// UDP that was merged may be written.
    merges_udp: bool,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunError {
    #[error("{0:?} is no device name: it has 1 to 15 bytes, and neither '/', ':', '%' nor white space")]
    BadName(String),
    #[error(
        "{DEVICE_NODE} does not exist: load the tun module (`modprobe tun`), or give the container the device (`--device {DEVICE_NODE}`)"
    )]
    NoDriver,
    #[error("no permission to {action}: run as root or with CAP_NET_ADMIN in this network namespace")]
    NoPermission { action: String, errno: i32 },
    #[error(
        "interface {0} exists already, probably held by another process: choose another --tun-device, or stop that process (what nobody holds goes with `ip link del {0}`)"
    )]
    Busy(String),
    #[error("cannot {action}: {source}")]
    System { action: String, source: io::Error },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Leftover(#[from] LeftoverError),
}

impl TunError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            TunError::NoDriver => Some(libc::ENOENT),
            TunError::NoPermission { errno, .. } => Some(*errno),
            TunError::Busy(_) => Some(libc::EBUSY),
            TunError::System { source, .. } => source.raw_os_error(),
            TunError::Device(error) => error.errno(),
            TunError::Leftover(error) => error.errno(),
            _ => None,
        }
    }
}

impl Tun {
    /// Makes a device in the calling thread's network namespace, gives it its MTU and addresses, and sets it up. A veth
    /// pair that a killed instance left is removed where it has the name or one of the addresses. On error nothing remains.
    ///
    /// Needs CAP_NET_ADMIN and `/dev/net/tun`. The device has no link-local IPv6 address unless one is given, and so
    /// sends no router solicitations; duplicate address detection is off, as nobody else is on the link.
    pub fn open(config: TunConfig) -> Result<Tun, TunError> {
        let TunConfig { name, mtu, addresses, queues, offload } = config;
        if !is_valid_name(&name) {
            return Err(TunError::BadName(name));
        }
        device::check_addresses(&addresses)?;
        let least_mtu = device::least_mtu(&addresses);
        device::check_mtu(mtu, least_mtu)?;

        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
        if queues.get() > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let has_headers = offload != TunOffload::NONE;
        if has_headers {
            flags |= libc::IFF_VNET_HDR;
        }
        let attach = |flags| {
            let queue = open_node()?;
            sys::tun_attach(queue.as_fd(), &name, flags).map_err(|source| attach_error(&name, source))?;
            Ok::<_, TunError>(queue)
        };
        // Exclusive: a persistent device of that name would be somebody else's, and would stay when this ends.
        let make = || attach(flags | libc::IFF_TUN_EXCL);
        let mut open = vec![match make() {
            Err(TunError::Busy(_)) => in_place_of_leftover(&name, make)?,
            made => made?,
        }];
        for _ in 1..queues.get() {
            open.push(attach(flags)?);
        }
        let found =
            if has_headers { negotiate(&name, &open[0], offload)? } else { Found { offload, ..Found::default() } };
        let Found { offload, features, merges_udp } = found;
        let at_first = AtomicU32::new(mtu);
        let mut tun =
            Tun { name, index: 0, mtu: at_first, least_mtu, queues: open, has_headers, offload, features, merges_udp };
        tun.index = tun.configure(mtu, &addresses)?;
        Ok(tun)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The MTU it was last given here; an administrator may have changed the device's since.
    pub fn mtu(&self) -> u32 {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Gives the device another MTU: 68 to 65535, at least 1280 where it was opened with an IPv6 address, which the kernel
    /// would take away below.
    ///
    /// Needs CAP_NET_ADMIN, in the network namespace of the device, which must be the calling thread's.
    pub fn set_mtu(&self, mtu: u32) -> Result<(), DeviceError> {
        device::check_mtu(mtu, self.least_mtu)?;
        let mut netlink = Netlink::open().map_err(|source| self.failed("set the MTU", source))?;
        self.request_mtu(&mut netlink, self.index, mtu, None)?;
        self.mtu.store(mtu, Ordering::Relaxed);
        Ok(())
    }

    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// What was found possible, of what was asked for.
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// Lets the kernel hand packets over uncut from now on, where it can and is to.
    pub(crate) fn start_offload(&self) -> io::Result<()> {
        if self.has_headers { sys::tun_set_offload(self.queues[0].as_fd(), self.features) } else { Ok(()) }
    }

    /// Whether a virtio header stands before each packet.
    pub(crate) fn has_headers(&self) -> bool {
        self.has_headers
    }

    /// Whether the kernel takes UDP that was merged.
    pub(crate) fn merges_udp(&self) -> bool {
        self.merges_udp
    }

    /// Reads one packet of a queue, without waiting (EAGAIN: none there). EBADFD: the device is gone. A packet longer than
    /// `buffer` is cut.
    pub(crate) fn read(&self, queue: usize, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.queues[queue]).read(buffer)
    }

    /// Hands the kernel one packet. EIO: the device is set down. EINVAL: not an IP packet. EBADFD: the device is gone.
    pub(crate) fn write(&self, queue: usize, packet: &[u8]) -> io::Result<()> {
        (&self.queues[queue]).write(packet).map(drop)
    }

    /// As [`Tun::read`], without the header: for as long as there is nothing uncut to be read.
    pub(crate) fn read_bare(&self, queue: usize, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.has_headers {
            return self.read(queue, buffer);
        }
        let mut header = [0; VnetHeader::LEN];
        let length =
            (&self.queues[queue]).read_vectored(&mut [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)])?;
        Ok(length.saturating_sub(VnetHeader::LEN))
    }

    /// As [`Tun::write`], for a packet without header.
    pub(crate) fn write_bare(&self, queue: usize, packet: &[u8]) -> io::Result<()> {
        if !self.has_headers {
            return self.write(queue, packet);
        }
        let header = VnetHeader::default().emit();
        (&self.queues[queue]).write_vectored(&[IoSlice::new(&header), IoSlice::new(packet)]).map(drop)
    }

    /// For waiting until a queue is readable, or tells an error.
    pub(crate) fn queue_fd(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue].as_fd()
    }

    /// Sets MTU, queue length, addresses and the up flag; returns the interface index.
    fn configure(&self, mtu: u32, addresses: &[(IpAddr, u8)]) -> Result<u32, TunError> {
        let failed = |source| self.failed("look up the index", source);
        let mut netlink = Netlink::open().map_err(failed)?;
        let found = link::find(&mut netlink, &self.name).map_err(failed)?;
        // The index stays the device's for its life; what else the kernel settled on is looked up when needed.
        let index = found.ok_or_else(|| failed(NetlinkError::Malformed("no such link".to_owned())))?.index;
        self.request_mtu(&mut netlink, index, mtu, Some(LinkAttribute::TxQueueLen(TX_QUEUE_PACKETS)))?;
        device::switch_off_link_local(&mut netlink, &self.name, index)?;
        leftovers::remove_holders(&mut netlink, &self.name, addresses)?;
        device::add_addresses(&mut netlink, &self.name, index, addresses)?;
        device::set_up(&mut netlink, &self.name, index, mtu)?;
        Ok(index)
    }

    /// Sets the MTU, and with it `other`, and what goes with it.
    fn request_mtu(
        &self,
        netlink: &mut Netlink,
        index: u32,
        mtu: u32,
        other: Option<LinkAttribute>,
    ) -> Result<(), DeviceError> {
        device::set_mtu(netlink, &self.name, index, mtu, other)?;
        if let Some(most) = most_uncut_bytes(mtu) {
            match link::set(netlink, index, vec![LinkAttribute::GsoMaxSize(most)]) {
                // It saves a send now and then; a kernel that does not let it be set is as good.
                Err(NetlinkError::Refused(_)) | Ok(()) => {}
                Err(source) => return Err(self.failed("set the largest size", source)),
            }
        }
        Ok(())
    }

    fn failed(&self, action: &str, source: NetlinkError) -> DeviceError {
        DeviceError::configure(&self.name, action, source)
    }
}

/// What the kernel can do for a device, of what it is to do.
#[derive(Default)]
struct Found {
    offload: TunOffload,
    features: libc::c_uint,
    merges_udp: bool,
}

/// Finds out how much of `wanted` the kernel can do, and lets it do nothing yet.
fn negotiate(name: &str, queue: &File, wanted: TunOffload) -> Result<Found, TunError> {
    let failed = |action: &str, source| TunError::System { action: format!("{action} of device {name}"), source };
    let fd = queue.as_fd();
    sys::tun_set_header_size(fd, VnetHeader::LEN as libc::c_int).map_err(|source| failed("set the header", source))?;
    let set = |features| match sys::tun_set_offload(fd, features) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(failed("set the offloads", error)),
    };
    const USO: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    const TSO: libc::c_uint = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let knows_uso = set(libc::TUN_F_CSUM | USO)?;
    let tso: &[libc::c_uint] = if wanted.tso { &[TSO | libc::TUN_F_TSO_ECN, TSO, 0] } else { &[0] };
    let uso: &[libc::c_uint] = if wanted.uso && knows_uso { &[USO, 0] } else { &[0] };
    for (&tso, &uso) in tso.iter().flat_map(|tso| uso.iter().map(move |uso| (tso, uso))) {
        let checksums = if tso | uso == 0 { 0 } else { libc::TUN_F_CSUM };
        let features = checksums | tso | uso;
        if set(features)? && set(0)? {
            let offload = TunOffload { tso: tso != 0, uso: uso != 0, gro: wanted.gro };
            return Ok(Found { offload, features, merges_udp: knows_uso });
        }
    }
    // Nothing at all is what every kernel can.
    Err(failed("set the offloads", io::Error::from_raw_os_error(libc::EINVAL)))
}

/// The longest uncut packet whose segments, of `mtu` bytes each, leave in one segmented send once they are sealed. `None`:
/// not even two do.
pub fn most_uncut_bytes(mtu: u32) -> Option<u32> {
    // Sealing adds 32 bytes of header and 16 of tag; IPv4 and TCP take 40 bytes of every segment.
    let segments = (RUN_LIMITS.bytes as u32 / (mtu + 48)).min(RUN_LIMITS.datagrams as u32);
    (segments > 1).then(|| segments * mtu.saturating_sub(40) + 40)
}

fn open_node() -> Result<File, TunError> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE_NODE).map_err(|source| {
        match source.raw_os_error() {
            // ENODEV, ENXIO: a node without a driver behind it.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TunError::NoDriver,
            Some(errno @ (libc::EPERM | libc::EACCES)) => {
                TunError::NoPermission { action: format!("open {DEVICE_NODE}"), errno }
            }
            _ => TunError::System { action: format!("open {DEVICE_NODE}"), source },
        }
    })
}

/// Makes the device `name` once nothing of that name is left of a killed instance. Anything else of that name stays.
fn in_place_of_leftover(name: &str, make: impl FnOnce() -> Result<File, TunError>) -> Result<File, TunError> {
    // Without a claim there is no telling what it is.
    let Ok(mut claim) = Claim::take(name) else { return Err(TunError::Busy(name.to_owned())) };
    let mut netlink =
        Netlink::open().map_err(|source| DeviceError::configure(name, "look for leftovers in the way", source))?;
    match leftovers::remove_namesake(&mut netlink, name, &mut claim)? {
        Namesake::Gone => make(),
        Namesake::Living(_) | Namesake::Foreign => Err(TunError::Busy(name.to_owned())),
    }
}

fn attach_error(name: &str, source: io::Error) -> TunError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => TunError::Busy(name.to_owned()),
        Some(errno @ (libc::EPERM | libc::EACCES)) => {
            TunError::NoPermission { action: format!("make device {name}"), errno }
        }
        _ => TunError::System { action: format!("make device {name}"), source },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};
    use std::num::NonZero;
    use std::time::Duration;

    use super::{Tun, TunConfig, TunError, TunOffload};
    use crate::device::DeviceError;
    use crate::link::{self, LinkError};
    use crate::sys::{self, Interest};
    use crate::test_support::{NetNs, delete, set_up};

    fn config(name: &str, mtu: u32, addresses: &[(&str, u8)]) -> TunConfig {
        let addresses = addresses.iter().map(|(address, prefix)| (address.parse().unwrap(), *prefix)).collect();
        TunConfig { name: name.to_owned(), mtu, addresses, queues: NonZero::<u16>::MIN, offload: TunOffload::NONE }
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_made() {
        let refused = |config| Tun::open(config).unwrap_err();
        for name in ["", "much-too-long-name", "a b", "a/b", "icx%d"] {
            assert!(matches!(refused(config(name, 1392, &[])), TunError::BadName(_)), "{name:?}");
        }
        for (mtu, addresses, least) in
            [(67, &[][..], 68), (65_536, &[][..], 68), (1279, &[("fd00::1", 64)][..], 1280), (0, &[][..], 68)]
        {
            let error = refused(config("icx9", mtu, addresses));
            assert!(
                matches!(error, TunError::Device(DeviceError::BadMtu { given, least: l }) if given == mtu && l == least),
                "{error:?}"
            );
        }
        for (address, prefix) in [("10.9.0.1", 33), ("fd00::1", 129), ("0.0.0.0", 0), ("ff02::1", 64), ("224.0.0.1", 4)]
        {
            let error = refused(config("icx9", 1392, &[(address, prefix)]));
            assert!(matches!(error, TunError::Device(DeviceError::BadAddress { .. })), "{address}/{prefix}: {error:?}");
            assert!(error.to_string().contains(address), "{error}");
        }
    }

    #[test]
    fn a_device_has_what_was_asked_for_and_goes_with_its_value() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let addresses = [("10.9.0.1", 24), ("fd00:9::1", 64)];
            let tun = Tun::open(config("icx0", 1392, &addresses)).unwrap();
            let link = link::by_name("icx0").unwrap();
            assert_eq!((tun.name(), tun.index(), tun.mtu()), ("icx0", link.index, 1392));
            assert_eq!((link.mtu, link.up, link.mac), (1392, true, None));
            // An address that still waits for duplicate address detection cannot be bound.
            for (address, _) in addresses {
                let ip: IpAddr = address.parse().unwrap();
                UdpSocket::bind((ip, 0)).unwrap_or_else(|error| panic!("{address}: {error}"));
            }
            drop(tun);
            assert!(matches!(link::by_name("icx0"), Err(LinkError::NotFound(_))));
        });
    }

    #[test]
    fn a_new_device_is_silent() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let tun = Tun::open(config("icx0", 1392, &[("10.9.0.1", 24), ("fd00:9::1", 64)])).unwrap();
            let mut waiting = [Interest::readable(tun.queue_fd(0))];
            // Router solicitations and multicast reports would come within the first second.
            assert_eq!(sys::poll(&mut waiting, Some(Duration::from_millis(1200))).unwrap(), 0);
        });
    }

    #[test]
    fn an_occupied_name_is_explained_and_failure_leaves_nothing() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let tun = Tun::open(config("icx0", 1392, &[])).unwrap();
            for name in ["icx0", "lo"] {
                let error = Tun::open(config(name, 1392, &[])).unwrap_err();
                assert!(matches!(error, TunError::Busy(_)), "{error:?}");
                assert!(error.to_string().contains("choose another --tun-device"), "{error}");
                assert_eq!(error.errno(), Some(libc::EBUSY));
            }
            drop(tun);
            // The kernel refuses the second of two equal addresses, after the device was made.
            let error = Tun::open(config("icx0", 1392, &[("10.9.0.1", 24), ("10.9.0.1", 24)])).unwrap_err();
            assert!(
                matches!(&error, TunError::Device(DeviceError::Configure { .. }))
                    && error.errno() == Some(libc::EEXIST),
                "{error:?}"
            );
            assert!(error.to_string().contains("10.9.0.1/24"), "{error}");
            assert!(matches!(link::by_name("icx0"), Err(LinkError::NotFound(_))));
        });
    }

    #[test]
    fn an_ipv6_address_where_ipv6_is_off_is_explained() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
            let error = Tun::open(config("icx0", 1392, &[("fd00:9::1", 64)])).unwrap_err();
            assert!(matches!(error, TunError::Device(DeviceError::Ipv6Disabled { .. })), "{error:?}");
            assert!(matches!(link::by_name("icx0"), Err(LinkError::NotFound(_))));
            Tun::open(config("icx0", 1392, &[("10.9.0.1", 24)])).expect("IPv4 alone does not need it");
        });
    }

    #[test]
    fn a_link_set_down_and_a_removed_device_are_told_apart() {
        let Some(namespace) = NetNs::new() else { return };
        namespace.run(|| {
            let tun = Tun::open(config("icx0", 1392, &[("10.9.0.1", 24)])).unwrap();
            let packet = [0x45; 40];
            tun.write(0, &packet).unwrap();
            let mut buffer = [0; 100];
            let read_errno = |buffer: &mut [u8]| tun.read(0, buffer).unwrap_err().raw_os_error();
            set_up("icx0", false).unwrap();
            assert_eq!(tun.write(0, &packet).unwrap_err().raw_os_error(), Some(libc::EIO));
            assert_eq!(read_errno(&mut buffer), Some(libc::EAGAIN));
            set_up("icx0", true).unwrap();
            tun.write(0, &packet).unwrap();
            delete("icx0").unwrap();
            assert_eq!(sys::poll(&mut [Interest::readable(tun.queue_fd(0))], None).unwrap(), 1);
            assert_eq!(read_errno(&mut buffer), Some(libc::EBADFD));
            assert_eq!(tun.write(0, &packet).unwrap_err().raw_os_error(), Some(libc::EBADFD));
        });
    }
}
