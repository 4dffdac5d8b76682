//! The XDP programs (bpf/*.c): loading, attaching, and what they count.
//!
//! They are attached by BPF links, which the kernel takes away with the process that holds them (Linux 5.9). An
//! earlier kernel leaves them behind where a process was killed; the programs' names tell that they are ours, and
//! they are replaced.

use std::error::Error;
use std::fmt;
use std::io;
use std::iter;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{MapData, MapError, PerCpuArray, XskMap};
use aya::programs::xdp::{XdpError, XdpLink};
use aya::programs::{ProgramError, ProgramInfo, Xdp, XdpMode, loaded_programs};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use crate::netlink::{Netlink, NetlinkError};

/// `MAX_BOUND` of bpf/underlay.c.
pub(super) const MAX_BOUND: usize = 16;

/// Of `struct bound` of bpf/underlay.c.
const BOUND_BYTES: usize = 20;

const UNDERLAY_NAME: &str = "icx_underlay";
const VIRTUAL_NAME: &str = "icx_virtual";

static UNDERLAY_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/underlay.o"));
static VIRTUAL_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/virtual.o"));

/// From include/uapi/linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_FLAGS_REPLACE: u32 = 1 << 4;

/// How XDP programs are to be attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver, and in the kernel's stack where the driver cannot.
    #[default]
    Auto,
    Native,
    Generic,
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's stack, behind the driver.
    Generic,
}

impl AttachedMode {
    fn flags(self) -> u32 {
        match self {
            AttachedMode::Native => XDP_FLAGS_DRV_MODE,
            AttachedMode::Generic => XDP_FLAGS_SKB_MODE,
        }
    }
}

impl fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttachedMode::Native => "native",
            AttachedMode::Generic => "generic",
        })
    }
}

/// What became of the frames that an XDP program saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterCounters {
    /// Given to the AF_XDP socket of their queue, which may be without room for them.
    pub redirected: u64,
    /// Left to the kernel's network stack.
    pub passed: u64,
    /// Theirs is a queue without a socket, or the driver leaves no headroom.
    pub dropped: u64,
}

/// Why an XDP program is not attached, or does not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    #[error(
        "a filter takes 1 to {MAX_BOUND} addresses and ports, and {given} were given: leave some out, or use a \
         wildcard address"
    )]
    Bound { given: usize },
    #[error(
        "no permission to {action}: run as root, or with CAP_NET_ADMIN and CAP_BPF (CAP_SYS_ADMIN before Linux 5.8), \
         outside of user namespaces and with bpf(2) allowed by the container's seccomp profile"
    )]
    NoPermission { action: String, errno: i32 },
    #[error(
        "this kernel cannot {action}: it takes Linux 5.3 or later with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS ({})",
        Chain(&**.source)
    )]
    Unsupported { action: String, source: Box<dyn Error + Send + Sync> },
    #[error(
        "the driver of interface {interface} refuses a native XDP program ({source}): attach it in mode generic or \
         auto, or, where the driver has native XDP, lower the MTU, turn LRO off, or use fewer queues"
    )]
    NoNative { interface: String, source: io::Error },
    #[error("interface {0} is gone: `ip link` lists those there are")]
    InterfaceGone(String),
    #[error(
        "interface {interface} has an XDP program already: {} (id {id}, {mode} mode); stop what attached it, or detach \
         it with `ip link set {interface} {} off`",
        .program.as_deref().unwrap_or("one whose name takes CAP_SYS_ADMIN to see"),
        match .mode { AttachedMode::Native => "xdpdrv", AttachedMode::Generic => "xdpgeneric" }
    )]
    Occupied { interface: String, program: Option<String>, id: u32, mode: AttachedMode },
    #[error("cannot {action}: {}", Chain(&**.source))]
    System { action: String, errno: Option<i32>, source: Box<dyn Error + Send + Sync> },
}

impl AttachError {
    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            AttachError::Bound { .. } | AttachError::Unsupported { .. } => None,
            AttachError::NoPermission { errno, .. } => Some(*errno),
            AttachError::NoNative { source, .. } => source.raw_os_error(),
            AttachError::InterfaceGone(_) => Some(libc::ENODEV),
            AttachError::Occupied { .. } => Some(libc::EBUSY),
            AttachError::System { errno, .. } => *errno,
        }
    }

    fn new(action: String, source: impl Error + Send + Sync + 'static) -> Self {
        match errno(&source) {
            Some(errno @ libc::EPERM) => AttachError::NoPermission { action, errno },
            errno => AttachError::System { action, errno, source: Box::new(source) },
        }
    }

    fn load(name: &str, source: EbpfError) -> Self {
        let action = format!("load the XDP program {name}");
        match errno(&source) {
            // What the verifier refuses is EACCES, EINVAL or E2BIG; a map or command that the kernel does not know is
            // EINVAL.
            None | Some(libc::ENOSYS | libc::EINVAL | libc::EACCES | libc::E2BIG | libc::EOPNOTSUPP) => {
                AttachError::Unsupported { action, source: Box::new(source) }
            }
            _ => AttachError::new(action, source),
        }
    }
}

/// An error and what caused it, but for causes that the error's own text names.
struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        for cause in causes(self.0).skip(1).map(ToString::to_string) {
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)
    }
}

/// The error, and then each that caused the one before.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    causes(error).find_map(|cause| {
        let netlink = match cause.downcast_ref::<ProgramError>() {
            Some(ProgramError::XdpError(XdpError::NetlinkError(error))) => error.raw_os_error(),
            _ => None,
        };
        netlink.or_else(|| cause.downcast_ref::<io::Error>()?.raw_os_error())
    })
}

/// A program in the kernel, attached to nothing, and its maps.
pub(super) struct LoadedProgram {
    name: &'static str,
    ebpf: Ebpf,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, [u64; 3]>,
}

impl LoadedProgram {
    /// The filter for the network interface, for datagrams to the addresses and ports `bound`. An IPv6 address that
    /// stands for an IPv4 one (RFC 4291 section 2.5.5.2) is that; an unspecified one stands for all of its family.
    pub(super) fn underlay(queues: u32, bound: &[SocketAddr]) -> Result<Self, AttachError> {
        if !(1..=MAX_BOUND).contains(&bound.len()) {
            return Err(AttachError::Bound { given: bound.len() });
        }
        let table = encode(bound);
        let mut loader = EbpfLoader::new();
        // It is at most MAX_BOUND, and so fits.
        let count = bound.len() as u32;
        loader.override_global("bound", &table[..], true).override_global("bound_count", &count, true);
        Self::load(&mut loader, UNDERLAY_NAME, UNDERLAY_OBJECT, queues)
    }

    /// The program for the virtual interface: frames reach their sockets with `headroom` more bytes in front.
    fn virtual_side(queues: u32, headroom: u32) -> Result<Self, AttachError> {
        let mut loader = EbpfLoader::new();
        loader.override_global("headroom", &headroom, true);
        Self::load(&mut loader, VIRTUAL_NAME, VIRTUAL_OBJECT, queues)
    }

    fn load(loader: &mut EbpfLoader<'_>, name: &'static str, object: &[u8], queues: u32) -> Result<Self, AttachError> {
        let mut load = || {
            let mut ebpf = loader.map_max_entries("sockets", queues).load(object)?;
            let mut take =
                |name: &str| ebpf.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.to_owned() });
            let (sockets, counters) = (XskMap::try_from(take("sockets")?)?, PerCpuArray::try_from(take("counters")?)?);
            let mut loaded = LoadedProgram { name, ebpf, sockets, counters };
            loaded.xdp()?.load()?;
            Ok(loaded)
        };
        load().map_err(|source| AttachError::load(name, source))
    }

    fn xdp(&mut self) -> Result<&mut Xdp, ProgramError> {
        let program = self.ebpf.program_mut(self.name);
        program.ok_or_else(|| ProgramError::InvalidName { name: self.name.to_owned() })?.try_into()
    }

    fn attach_once(&mut self, index: u32, mode: AttachedMode) -> Result<XdpLink, ProgramError> {
        let program = self.xdp()?;
        let link = program.attach_to_if_index(
            index,
            match mode {
                AttachedMode::Native => XdpMode::Driver,
                AttachedMode::Generic => XdpMode::Skb,
            },
        )?;
        program.take_link(link)
    }

    fn attach_as(&mut self, index: u32, mode: AttachMode) -> Result<(XdpLink, AttachedMode), ProgramError> {
        let mut attach = |mode| self.attach_once(index, mode).map(|link| (link, mode));
        match mode {
            AttachMode::Native => attach(AttachedMode::Native),
            AttachMode::Generic => attach(AttachedMode::Generic),
            AttachMode::Auto => match attach(AttachedMode::Native) {
                Err(error) if is_refused_by_driver(errno(&error)) => attach(AttachedMode::Generic),
                result => result,
            },
        }
    }

    fn attach<Side>(
        mut self,
        interface: &str,
        index: u32,
        mode: AttachMode,
    ) -> Result<AttachedProgram<Side>, AttachError> {
        let mut result = self.attach_as(index, mode);
        if matches!(&result, Err(error) if matches!(errno(error), Some(libc::EBUSY | libc::EEXIST))) {
            remove_leftovers(interface, index)?;
            result = self.attach_as(index, mode);
        }
        match result {
            Ok((link, mode)) => Ok(AttachedProgram {
                _link: link,
                loaded: self,
                interface: interface.to_owned(),
                mode,
                side: PhantomData,
            }),
            Err(error) => Err(match errno(&error) {
                Some(libc::ENODEV) => AttachError::InterfaceGone(interface.to_owned()),
                Some(errno) if mode == AttachMode::Native && is_refused_by_driver(Some(errno)) => {
                    let source = io::Error::from_raw_os_error(errno);
                    AttachError::NoNative { interface: interface.to_owned(), source }
                }
                _ => AttachError::new(format!("attach the XDP program {} to interface {interface}", self.name), error),
            }),
        }
    }

    fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), MapError> {
        self.sockets.set(queue, socket.as_raw_fd(), 0)
    }

    fn counters(&self) -> Result<FilterCounters, MapError> {
        let mut sum = FilterCounters::default();
        for [redirected, passed, dropped] in self.counters.get(&0, 0)?.iter() {
            sum.redirected += redirected;
            sum.passed += passed;
            sum.dropped += dropped;
        }
        Ok(sum)
    }
}

/// Drivers refuse with nearly every number (EOPNOTSUPP, ERANGE for the MTU, ENOSPC and ENOMEM for the queues,
/// EINVAL); these are the kernel's own.
fn is_refused_by_driver(errno: Option<i32>) -> bool {
    !matches!(errno, None | Some(libc::EPERM | libc::ENODEV | libc::EBUSY | libc::EEXIST))
}

/// `bound` of bpf/underlay.c, exact addresses first.
fn encode(bound: &[SocketAddr]) -> [u8; MAX_BOUND * BOUND_BYTES] {
    let mut addresses: Vec<_> = bound.iter().map(|address| (address.ip().to_canonical(), address.port())).collect();
    addresses.sort_by_key(|(ip, _)| ip.is_unspecified());
    let mut table = [0; MAX_BOUND * BOUND_BYTES];
    for (entry, (ip, port)) in table.chunks_exact_mut(BOUND_BYTES).zip(addresses) {
        match ip {
            IpAddr::V4(v4) => entry[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => entry[..16].copy_from_slice(&v6.octets()),
        }
        entry[16..18].copy_from_slice(&port.to_be_bytes());
        entry[18] = ip.is_ipv6().into();
        entry[19] = ip.is_unspecified().into();
    }
    table
}

/// The network interface's side.
pub(crate) enum Underlay {}

/// The virtual interface's side.
pub(crate) enum Virtual {}

pub(crate) type UnderlayProgram = AttachedProgram<Underlay>;
pub(crate) type VirtualProgram = AttachedProgram<Virtual>;

/// An XDP program on an interface. It is detached when dropped, and by the kernel when the process ends.
pub(crate) struct AttachedProgram<Side> {
    // Before the program, whose descriptor it takes to detach what is attached without a BPF link.
    _link: XdpLink,
    loaded: LoadedProgram,
    interface: String,
    mode: AttachedMode,
    side: PhantomData<Side>,
}

impl UnderlayProgram {
    /// Puts the filter of `LoadedProgram::underlay` on an interface, given by name and index, of the calling thread's
    /// network namespace. `queues`, at least 1: the interface's receive queues; what matches on others is dropped.
    ///
    /// Needs CAP_NET_ADMIN and CAP_BPF, in the initial user namespace. One of ours that a killed process left is
    /// replaced, which takes CAP_SYS_ADMIN too.
    pub(crate) fn attach(
        interface: &str,
        index: u32,
        queues: u32,
        bound: &[SocketAddr],
        mode: AttachMode,
    ) -> Result<Self, AttachError> {
        LoadedProgram::underlay(queues, bound)?.attach(interface, index, mode)
    }
}

impl VirtualProgram {
    /// Lets every frame of an interface be given to the socket of its queue, with `headroom` bytes of whatever in
    /// front. The rest is as for [`UnderlayProgram::attach`].
    pub(crate) fn attach(
        interface: &str,
        index: u32,
        queues: u32,
        headroom: u32,
        mode: AttachMode,
    ) -> Result<Self, AttachError> {
        LoadedProgram::virtual_side(queues, headroom)?.attach(interface, index, mode)
    }
}

impl<Side> AttachedProgram<Side> {
    pub(crate) fn mode(&self) -> AttachedMode {
        self.mode
    }

    /// Gives the frames of a queue to an AF_XDP socket, which must be bound to that queue of the interface to receive
    /// them, until it is closed.
    pub(crate) fn set_socket(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), AttachError> {
        self.loaded.set_socket(queue, socket).map_err(|source| {
            AttachError::new(format!("hand queue {queue} of interface {} to its socket", self.interface), source)
        })
    }

    /// Summed over the CPUs, since it was attached.
    pub(crate) fn counters(&self) -> Result<FilterCounters, AttachError> {
        self.loaded.counters().map_err(|source| {
            AttachError::new(format!("read the counters of the XDP program on interface {}", self.interface), source)
        })
    }
}

/// Detaches those of our programs that are attached without a BPF link. Any other is an error, as is one of ours with
/// a link, which some process holds.
fn remove_leftovers(interface: &str, index: u32) -> Result<(), AttachError> {
    let failed = |source: NetlinkError| match source.errno() {
        Some(libc::ENODEV) => AttachError::InterfaceGone(interface.to_owned()),
        _ => AttachError::new(format!("look up the XDP programs of interface {interface}"), source),
    };
    let mut netlink = Netlink::open().map_err(failed)?;
    for (id, mode) in attached(&mut netlink, index).map_err(failed)? {
        let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id);
        let program = info.as_ref().and_then(ProgramInfo::name_as_str).map(str::to_owned);
        let is_removed = match info {
            Some(info) if matches!(program.as_deref(), Some(UNDERLAY_NAME | VIRTUAL_NAME)) => {
                detach(&mut netlink, index, &info, mode)
            }
            _ => false,
        };
        if !is_removed {
            return Err(AttachError::Occupied { interface: interface.to_owned(), program, id, mode });
        }
    }
    Ok(())
}

/// The ids of the programs on an interface. Those that its hardware runs are left out: they are in nobody's way.
fn attached(netlink: &mut Netlink, index: u32) -> Result<Vec<(u32, AttachedMode)>, NetlinkError> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let mut found = Vec::new();
    for answer in netlink.request(RouteNetlinkMessage::GetLink(request), 0)? {
        let RouteNetlinkMessage::NewLink(link) = answer else { continue };
        let xdp = link.attributes.into_iter().filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(xdp) => Some(xdp),
            _ => None,
        });
        found.extend(xdp.flatten().filter_map(|attribute| match attribute {
            LinkXdp::DrvProgId(id) => Some((id, AttachedMode::Native)),
            LinkXdp::SkbProgId(id) => Some((id, AttachedMode::Generic)),
            _ => None,
        }));
    }
    Ok(found)
}

/// Detaches a program that is attached without a BPF link; false where it has one, or is not there any more
/// (`dev_xdp_attach` in net/core/dev.c).
fn detach(netlink: &mut Netlink, index: u32, program: &ProgramInfo, mode: AttachedMode) -> bool {
    let Ok(program) = program.fd() else { return false };
    let program = program.as_fd().as_raw_fd();
    let flags = mode.flags() | XDP_FLAGS_REPLACE;
    let request = set_program(index, vec![LinkXdp::Fd(-1), LinkXdp::Flags(flags), LinkXdp::ExpectedFd(program as u32)]);
    netlink.request(request, 0).is_ok()
}

fn set_program(index: u32, attributes: Vec<LinkXdp>) -> RouteNetlinkMessage {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::Xdp(attributes));
    RouteNetlinkMessage::SetLink(request)
}

#[cfg(test)]
mod tests;
