use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// From include/uapi/linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of include/uapi/linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus: [u8; 32],
    expansion_rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

const _: () = assert!(mem::size_of::<DriverInfo>() == 196);

/// The name of the driver behind an interface of the network namespace in which `socket`, of any kind, was made.
///
/// `SIOCETHTOOL` with ETHTOOL_GDRVINFO (`ethtool_get_drvinfo` in net/ethtool/ioctl.c); needs no capability. Errors:
/// ENODEV, EOPNOTSUPP (the driver does not say), EINVAL (no interface name).
pub(crate) fn driver_name(socket: BorrowedFd<'_>, interface: &str) -> io::Result<String> {
    let mut name = [0 as libc::c_char; libc::IFNAMSIZ];
    if interface.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware_version: [0; 32],
        bus: [0; 32],
        expansion_rom_version: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut info).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: data };
    // SAFETY: SIOCETHTOOL reads one `ifreq`, and with ETHTOOL_GDRVINFO reads and writes one `ethtool_drvinfo` where
    // that points: both live on this stack during the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let length = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..length]).into_owned())
}
