//! Result codes of the C functions. The table is append-only: a code never changes its number or its meaning.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $symbol:literal, $text:literal;)+) => {
        /// What a C function answers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])* $name = $value,)+
        }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The name in C, such as `ICX_EINVAL`.
            pub const fn symbol(self) -> &'static str {
                match self { $(Code::$name => $symbol,)+ }
            }

            /// What the code means, for people.
            pub const fn text(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }

            pub fn from_value(value: i32) -> Option<Code> {
                match value { $($value => Some(Code::$name),)+ _ => None }
            }
        }
    };
}

codes! {
    Ok = 0, "ICX_OK", "success";
    /// An argument, or a field of a JSON text, is not acceptable.
    Invalid = -1, "ICX_EINVAL", "an argument is not acceptable";
    /// The handle was never given out, is closed, or is of another kind.
    BadHandle = -2, "ICX_EBADHANDLE", "the handle is not open, or is of another kind";
    Buffer = -3, "ICX_EBUFFER", "the output does not fit the buffer";
    /// A bug of the library. The handles in use answer with this from then on.
    Panic = -4, "ICX_EPANIC", "internal error: this is a bug, please report it";
    Closed = -5, "ICX_ECLOSED", "the object has been shut down";
    Exists = -6, "ICX_EEXIST", "it exists already";
    NotFound = -7, "ICX_ENOENT", "there is no such thing";
    Permission = -8, "ICX_EPERM", "not permitted";
    Busy = -9, "ICX_EBUSY", "in use by another";
    /// An operating-system call failed; the reason carries its errno.
    System = -10, "ICX_ESYS", "an operating-system call failed";
    Key = -11, "ICX_EKEY", "the identity or peer key is not acceptable";
    Reused = -12, "ICX_EREUSED", "the transmit key was used before: its nonces would repeat";
    TimedOut = -13, "ICX_ETIMEDOUT", "it took too long";
    State = -14, "ICX_ESTATE", "not possible in the present state";
    Peer = -15, "ICX_EPEER", "the peer refused or broke the protocol";
    Unsupported = -16, "ICX_EUNSUPPORTED", "not supported here";
    /// Not a failure: an event says when to call again.
    WouldBlock = -17, "ICX_EAGAIN", "not now: an event says when";
    Refused = -18, "ICX_ECONNREFUSED", "the peer refused the connection";
    Reset = -19, "ICX_ECONNRESET", "the peer reset the connection";
    SendClosed = -20, "ICX_EPIPE", "the sending side is closed";
    NotConnected = -21, "ICX_ENOTCONN", "the connection was ended on this side";
    AddressInUse = -22, "ICX_EADDRINUSE", "the port is in use";
    AddressNotAvailable = -23, "ICX_EADDRNOTAVAIL", "the address cannot be used, or no port is free";
    Unreachable = -24, "ICX_ENETUNREACH", "there is no way to the address";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_count_down_from_zero_without_gaps() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as i32, -i32::try_from(index).unwrap(), "{}", code.symbol());
            assert_eq!(Code::from_value(*code as i32), Some(*code));
        }
        assert_eq!(Code::from_value(1), None);
    }
}
