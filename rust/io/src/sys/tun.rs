use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the TUN device `name` and attaches the open `/dev/net/tun` descriptor to it as a queue; the device lives as long
/// as its descriptors. `flags`: `IFF_TUN` and friends. The name must be shorter than IFNAMSIZ (16) bytes.
///
/// `TUNSETIFF` of Documentation/networking/tuntap.rst (`tun_set_iff` in drivers/net/tun.c); needs CAP_NET_ADMIN in the
/// user namespace that owns the network namespace. Errors: EBUSY (exists, with `IFF_TUN_EXCL`; or has as many queues as
/// it may), EPERM, EINVAL (the name is taken by something that is no TUN device, or is too long).
pub(crate) fn tun_attach(fd: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = super::interface_request(name)?;
    // The kernel reads the flags as an unsigned short (`ifr_flags`).
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, during the call only.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says which unfinished packets the kernel may hand to the reader of a device with `IFF_VNET_HDR`: `TUN_F_*` bits. It
/// holds for all queues.
///
/// `TUNSETOFFLOAD` (`set_offload` in drivers/net/tun.c); needs no capability. Errors: EINVAL for bits that this kernel
/// does not know, or that do not go without others; nothing has changed then.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, features: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets how many bytes stand before each packet of a device with `IFF_VNET_HDR`. It holds for all queues.
///
/// `TUNSETVNETHDRSZ`; needs no capability. Errors: EINVAL for less than a `virtio_net_hdr` (10).
pub(crate) fn tun_set_header_size(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which `bytes` is, during the call only.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
