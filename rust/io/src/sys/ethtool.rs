use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The commands here and their structures are those of include/uapi/linux/ethtool.h; net/ethtool/ioctl.c answers them.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// The string set with the names of features, in the order of their bits.
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// How many words of 32 features there is room for; kernels have two.
const MOST_WORDS: usize = 8;
const MOST_FEATURES: usize = MOST_WORDS * 32;

/// A structure that SIOCETHTOOL takes.
///
/// # Safety
/// It is `repr(C)`, starts with the number of the command, and the kernel reads and writes nothing beyond its size for
/// that command and the values that are put in it here. Any bytes are a valid value of it.
unsafe trait Command {}

/// `struct ethtool_drvinfo`, what follows the driver's name in one field.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(mem::size_of::<DriverInfo>() == 196);

// SAFETY: `ethtool_get_drvinfo` copies one `struct ethtool_drvinfo`, which has this size.
unsafe impl Command for DriverInfo {}

/// `struct ethtool_channels`: how many receive, transmit, other and combined channels a device may have and has.
#[repr(C)]
struct ChannelCounts {
    command: u32,
    most: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

// SAFETY: `ethtool_get_channels` copies one `struct ethtool_channels`, which has this size.
unsafe impl Command for ChannelCounts {}

/// `struct ethtool_sset_info` with room for one set.
#[repr(C)]
struct StringSetInfo {
    command: u32,
    reserved: u32,
    sets: u64,
    length: u32,
}

// SAFETY: `ethtool_get_sset_info` writes one length for each bit of `sets`, of which the constructor sets one.
unsafe impl Command for StringSetInfo {}

/// `struct ethtool_gstrings` with room for the names of features.
#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    length: u32,
    names: [[u8; ETH_GSTRING_LEN]; MOST_FEATURES],
}

// SAFETY: `ethtool_get_strings` writes as many names as the set has. For the features of a device that is a constant of
// the kernel (`NETDEV_FEATURE_COUNT`), and the constructor is only reached where it was found to be at most
// MOST_FEATURES.
unsafe impl Command for Strings {}

/// `struct ethtool_gfeatures`.
#[repr(C)]
struct FeatureState {
    command: u32,
    words: u32,
    features: [FeatureWord; MOST_WORDS],
}

// SAFETY: `ethtool_get_features` writes at most as many words as `words` says, which the constructor sets to their
// number.
unsafe impl Command for FeatureState {}

/// `struct ethtool_sfeatures`.
#[repr(C)]
struct FeatureChanges {
    command: u32,
    words: u32,
    features: [FeatureChange; MOST_WORDS],
}

// SAFETY: `ethtool_set_features` reads as many words as `words` says, at most those that there are: the constructor
// checks.
unsafe impl Command for FeatureChanges {}

/// Thirty-two features of a device, a bit each (`struct ethtool_get_features_block`).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FeatureWord {
    /// Those that the device lets be changed.
    pub(crate) available: u32,
    pub(crate) requested: u32,
    /// Those that are on.
    pub(crate) active: u32,
    /// Those that cannot be changed on any device.
    pub(crate) never_changed: u32,
}

/// A change of thirty-two features (`struct ethtool_set_features_block`).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct FeatureChange {
    /// Those to be changed.
    pub(crate) valid: u32,
    /// What they shall be.
    pub(crate) requested: u32,
}

/// How many channels of a kind a device has now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Channels {
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    pub(crate) combined: u32,
}

/// The name of the driver of an interface in the network namespace of `socket`, which may be of any family.
///
/// ETHTOOL_GDRVINFO; needs no capability. Errors, as of all calls here: ENODEV (no such interface), EOPNOTSUPP (its
/// driver does not tell), EINVAL (the name has 16 bytes or more).
pub(crate) fn driver_name(socket: BorrowedFd<'_>, interface: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    call(socket, interface, &mut info)?;
    Ok(text(&info.driver))
}

/// How many channels an interface has.
///
/// ETHTOOL_GCHANNELS; needs no capability.
pub(crate) fn ethtool_channels(socket: BorrowedFd<'_>, interface: &str) -> io::Result<Channels> {
    let mut counts = ChannelCounts { command: ETHTOOL_GCHANNELS, most: [0; 4], rx: 0, tx: 0, other: 0, combined: 0 };
    call(socket, interface, &mut counts)?;
    Ok(Channels { rx: counts.rx, tx: counts.tx, combined: counts.combined })
}

/// The names of the features that the kernel knows, in the order of their bits; an unused bit has an empty one.
///
/// ETHTOOL_GSSET_INFO and ETHTOOL_GSTRINGS; needs no capability. Errors: E2BIG for a kernel with more than 256
/// features.
pub(crate) fn ethtool_feature_names(socket: BorrowedFd<'_>, interface: &str) -> io::Result<Vec<String>> {
    let mut info = StringSetInfo { command: ETHTOOL_GSSET_INFO, reserved: 0, sets: 1 << ETH_SS_FEATURES, length: 0 };
    call(socket, interface, &mut info)?;
    let length = info.length as usize;
    if length > MOST_FEATURES {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let names = [[0; ETH_GSTRING_LEN]; MOST_FEATURES];
    let mut strings = Strings { command: ETHTOOL_GSTRINGS, set: ETH_SS_FEATURES, length: info.length, names };
    call(socket, interface, &mut strings)?;
    Ok(strings.names[..length].iter().map(|name| text(name)).collect())
}

/// The features of an interface, in words of 32 bits, as many as the kernel has.
///
/// ETHTOOL_GFEATURES; needs no capability.
pub(crate) fn ethtool_features(socket: BorrowedFd<'_>, interface: &str) -> io::Result<Vec<FeatureWord>> {
    let features = [FeatureWord::default(); MOST_WORDS];
    let mut state = FeatureState { command: ETHTOOL_GFEATURES, words: MOST_WORDS as u32, features };
    call(socket, interface, &mut state)?;
    Ok(state.features[..MOST_WORDS.min(state.words as usize)].to_vec())
}

/// Changes features of an interface. `changes` must be as many words as the kernel has. A change that the driver cannot
/// do, or that others rule out, is no error: what came of it can be read back.
///
/// ETHTOOL_SFEATURES; needs CAP_NET_ADMIN. Errors: EPERM, EINVAL (another number of words, or bits that can never
/// change).
pub(crate) fn ethtool_set_features(
    socket: BorrowedFd<'_>,
    interface: &str,
    changes: &[FeatureChange],
) -> io::Result<()> {
    let mut features = [FeatureChange::default(); MOST_WORDS];
    let Some(words) = features.get_mut(..changes.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    words.copy_from_slice(changes);
    let mut request = FeatureChanges { command: ETHTOOL_SFEATURES, words: changes.len() as u32, features };
    call(socket, interface, &mut request)
}

fn call<T: Command>(socket: BorrowedFd<'_>, interface: &str, command: &mut T) -> io::Result<()> {
    let mut request = super::interface_request(interface)?;
    request.ifr_ifru.ifru_data = (&raw mut *command).cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, which `request` is, and by its pointer `command`, exclusively borrowed,
    // within its size, as `Command` promises; both during the call only.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What stands before the first NUL.
fn text(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}
