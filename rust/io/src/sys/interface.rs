use std::io;

/// A request about the interface `name`, everything else zero. EINVAL for a name of IFNAMSIZ (16) bytes or more.
pub(super) fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is bytes, integers and pointers: all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}
