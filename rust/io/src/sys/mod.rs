//! System calls, one small safe function each, and what else takes unsafe code: nothing else in this crate has any.
//!
//! Every function returns the call's errno untouched as [`std::io::Error`] unless its documentation says otherwise;
//! explaining it to a person is the caller's part.

#[cfg(feature = "afxdp")]
mod affinity;
#[cfg(feature = "afxdp")]
mod busy_poll;
mod checksum;
mod epoll;
#[cfg(feature = "afxdp")]
mod ethtool;
mod event;
mod interface;
#[cfg(test)]
mod netns;
mod process;
mod socket;
mod time;
mod tun;
#[cfg(feature = "afxdp")]
mod xsk;

pub(crate) use checksum::use_wide_checksums;
pub(crate) use epoll::{epoll_arm, epoll_set, epoll_take};
#[cfg(feature = "afxdp")]
pub(crate) use ethtool::{
    Channels, FeatureChange, driver_name, ethtool_channels, ethtool_feature_names, ethtool_features,
    ethtool_set_features,
};
pub(crate) use event::{Interest, event_fd, poll};
use interface::interface_request;
#[cfg(all(test, feature = "afxdp"))]
pub(crate) use netns::mount_sysfs;
#[cfg(test)]
pub(crate) use netns::{enter_network_namespace, unshare_network_namespace};
pub(crate) use process::set_parent_death_signal;
pub(crate) use socket::{
    ErrorOrigin, ErrorSlot, Outgoing, ReceiveBatch, Received, SendHeaders, SocketError, receive_error, recvmmsg,
    sendmmsg, set_option,
};
pub(crate) use time::clock_boottime;
pub(crate) use tun::{tun_attach, tun_set_header_size, tun_set_offload};

#[cfg(feature = "afxdp")]
pub(crate) use affinity::{current_affinity, pin_to};
#[cfg(feature = "afxdp")]
pub(crate) use busy_poll::set_busy_poll;
#[cfg(feature = "afxdp")]
pub(crate) use xsk::{Frame, Kick, Umem, XDP_HEADROOM, Xsk, XskConfig, XskDrops};
