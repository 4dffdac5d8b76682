//! What inner devices are given, and how: MTU, addresses, and nothing that makes them speak on their own.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::link;
use crate::netlink::{Netlink, NetlinkError};

/// The range that the tun and veth drivers take (`tun_net_initialize` in drivers/net/tun.c, `veth_setup` in
/// drivers/net/veth.c: ETH_MIN_MTU, ETH_MAX_MTU).
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// RFC 8200 section 5: every link that carries IPv6 has an MTU of at least this.
const IPV6_LEAST_MTU: u32 = 1280;

/// Why an inner device cannot be as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    #[error("MTU {given} is out of range: {least} to 65535 bytes{}", if *.least == IPV6_LEAST_MTU { " with an IPv6 address" } else { "" })]
    BadMtu { given: u32, least: u32 },
    #[error("{address}/{prefix} is no address of an interface: the prefix length is 0 to {most}, the address unicast")]
    BadAddress { address: IpAddr, prefix: u8, most: u8 },
    #[error("no permission to {action}: run as root or with CAP_NET_ADMIN in this network namespace")]
    NoPermission { action: String, errno: i32 },
    #[error("cannot {action} of device {name}: {source}")]
    Configure { name: String, action: String, source: NetlinkError },
    #[error(
        "cannot give device {name} the address {address}: IPv6 is switched off here (sysctl net.ipv6.conf.default.disable_ipv6)"
    )]
    Ipv6Disabled { name: String, address: IpAddr },
}

impl DeviceError {
    /// What became of a request about the device `name`.
    pub(crate) fn configure(name: &str, action: &str, source: NetlinkError) -> Self {
        match source.errno() {
            Some(errno @ libc::EPERM) => {
                DeviceError::NoPermission { action: format!("{action} of device {name}"), errno }
            }
            _ => DeviceError::Configure { name: name.to_owned(), action: action.to_owned(), source },
        }
    }

    /// The error number, where the operating system gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            DeviceError::NoPermission { errno, .. } => Some(*errno),
            DeviceError::Configure { source, .. } => source.errno(),
            _ => None,
        }
    }
}

/// Whether a device may have these addresses, with the prefix lengths of their networks, and this MTU.
pub fn check_device(addresses: &[(IpAddr, u8)], mtu: u32) -> Result<(), DeviceError> {
    check_addresses(addresses)?;
    check_mtu(mtu, least_mtu(addresses))
}

pub(crate) fn check_addresses(addresses: &[(IpAddr, u8)]) -> Result<(), DeviceError> {
    for &(address, prefix) in addresses {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if prefix > most || address.is_unspecified() || address.is_multicast() {
            return Err(DeviceError::BadAddress { address, prefix, most });
        }
    }
    Ok(())
}

/// What the MTU of a device with these addresses must be at least: the kernel takes IPv6 addresses away below.
pub(crate) fn least_mtu(addresses: &[(IpAddr, u8)]) -> u32 {
    let with_ipv6 = addresses.iter().any(|(address, _)| address.is_ipv6());
    if with_ipv6 { IPV6_LEAST_MTU } else { *MTU_RANGE.start() }
}

pub(crate) fn check_mtu(mtu: u32, least: u32) -> Result<(), DeviceError> {
    if mtu < least || !MTU_RANGE.contains(&mtu) {
        return Err(DeviceError::BadMtu { given: mtu, least });
    }
    Ok(())
}

/// Sets the MTU of the device `name`, and with it `others`.
pub(crate) fn set_mtu(
    netlink: &mut Netlink,
    name: &str,
    index: u32,
    mtu: u32,
    others: impl IntoIterator<Item = LinkAttribute>,
) -> Result<(), DeviceError> {
    let attributes = [LinkAttribute::Mtu(mtu)].into_iter().chain(others);
    link::set(netlink, index, attributes.collect())
        .map_err(|source| DeviceError::configure(name, &format!("set the MTU ({mtu})"), source))
}

/// Keeps the kernel from giving the device an IPv6 link-local address, and so from soliciting routers, when it is set
/// up.
pub(crate) fn switch_off_link_local(netlink: &mut Netlink, name: &str, index: u32) -> Result<(), DeviceError> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    match link::set(netlink, index, vec![LinkAttribute::AfSpecUnspec(vec![mode])]) {
        // Without IPv6 in the kernel, or on this device, there is nothing to switch off.
        Err(NetlinkError::Refused(_)) | Ok(()) => Ok(()),
        Err(source) => Err(DeviceError::configure(name, "switch off the link-local address", source)),
    }
}

/// Adds addresses with the prefix lengths of their networks; duplicate address detection is off.
pub(crate) fn add_addresses(
    netlink: &mut Netlink,
    name: &str,
    index: u32,
    addresses: &[(IpAddr, u8)],
) -> Result<(), DeviceError> {
    for &(address, prefix) in addresses {
        match netlink.request(address_request(index, address, prefix), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => {}
            Err(source)
                if address.is_ipv6()
                    && matches!(source.errno(), Some(libc::EACCES | libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
            {
                return Err(DeviceError::Ipv6Disabled { name: name.to_owned(), address });
            }
            Err(source) => {
                return Err(DeviceError::configure(name, &format!("add the address {address}/{prefix}"), source));
            }
        }
    }
    Ok(())
}

/// Sets the device up, and makes sure that it is, with this MTU.
pub(crate) fn set_up(netlink: &mut Netlink, name: &str, index: u32, mtu: u32) -> Result<(), DeviceError> {
    let failed = |action: &str, source| DeviceError::configure(name, action, source);
    link::set_up(netlink, index).map_err(|source| failed("switch on the link", source))?;
    link::by_index(netlink, index)
        .map_err(|source| failed("look up the state", source))?
        .filter(|link| link.up && link.mtu == mtu)
        .ok_or_else(|| failed("check the state", NetlinkError::Malformed("not as it was set".to_owned())))?;
    Ok(())
}

pub(crate) fn address_request(index: u32, address: IpAddr, prefix: u8) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.attributes.extend([AddressAttribute::Address(address), AddressAttribute::Local(address)]);
    message.header.family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            AddressFamily::Inet6
        }
    };
    RouteNetlinkMessage::NewAddress(message)
}
