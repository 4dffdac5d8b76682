use std::io;
use std::os::fd::BorrowedFd;

use super::set_option;

/// Lets the system calls on `socket` drive the queue of the interface that it receives from, instead of interrupts:
/// each of them for up to `microseconds` (0: not at all) and up to `budget` packets (at most 65535).
///
/// SO_PREFER_BUSY_POLL, SO_BUSY_POLL and SO_BUSY_POLL_BUDGET of socket(7), Linux 5.11, in `sk_setsockopt` of
/// net/core/sock.c; takes CAP_NET_ADMIN for the first, and for more than there was before with the others. Errors:
/// EPERM, EINVAL for a value beyond the range, and ENOPROTOOPT from a kernel without; options of these that come before
/// the one at fault stay set.
pub(crate) fn set_busy_poll(socket: BorrowedFd<'_>, microseconds: u32, budget: u32) -> io::Result<()> {
    let int = |value: u32| libc::c_int::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    let (microseconds, budget) = (int(microseconds)?, int(budget)?);
    set_option(socket, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, 1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, microseconds)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, budget)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

    use super::set_busy_poll;

    fn option(socket: BorrowedFd<'_>, name: libc::c_int) -> libc::c_int {
        let mut value: libc::c_int = -1;
        let mut length = size_of_val(&value) as libc::socklen_t;
        let fd = socket.as_raw_fd();
        // SAFETY: the kernel writes one int and its length at most, which `value` and `length` are, during the call
        // only.
        let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
        assert_eq!((result, length as usize), (0, size_of_val(&value)));
        value
    }

    /// Whether it is preferred, and the microseconds. The budget cannot be read (`sk_getsockopt` in net/core/sock.c).
    fn options(socket: BorrowedFd<'_>) -> [libc::c_int; 2] {
        [libc::SO_PREFER_BUSY_POLL, libc::SO_BUSY_POLL].map(|name| option(socket, name))
    }

    #[test]
    fn options_are_set_and_values_out_of_range_refused() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = socket.as_fd();
        if let Err(error) = set_busy_poll(socket, 37, 129) {
            let granted = std::env::var("ICX_TEST_PRIVILEGED").is_ok_and(|value| value == "1");
            assert!(!granted && error.raw_os_error() == Some(libc::EPERM), "{error}");
            eprintln!("skipped: busy polling takes CAP_NET_ADMIN");
            return;
        }
        assert_eq!(options(socket), [1, 37]);
        for (microseconds, budget) in [(u32::MAX, 8), (8, u32::MAX)] {
            let error = set_busy_poll(socket, microseconds, budget).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            assert_eq!(options(socket), [1, 37], "nothing is set that is out of the range of all options");
        }
        let error = set_busy_poll(socket, 11, 65_536).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(options(socket), [1, 11]);
        set_busy_poll(socket, 0, 65_535).unwrap();
        assert_eq!(options(socket), [1, 0]);
    }
}
