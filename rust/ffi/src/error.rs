//! A failure on its way to the caller: a code, a sentence, perhaps an errno.

use std::error::Error;
use std::fmt::Display;
use std::io;

use crate::code::Code;

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    /// Of the operating-system call that failed.
    pub(crate) errno: Option<i32>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), errno: None }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure::new(Code::Invalid, message)
    }

    /// `what` was tried, and `cause` came of it: `Cannot <what>: <cause>`, or the cause alone where it says so itself.
    pub(crate) fn of(code: Code, what: impl Display, cause: &(dyn Error + 'static)) -> Self {
        Failure::with(code, what, cause, errno(cause))
    }

    /// As [`Failure::of`], for a cause that knows its errno, which also gives the code; [`Code::Invalid`] without one.
    pub(crate) fn system(what: impl Display, cause: &(dyn Error + 'static), errno: Option<i32>) -> Self {
        let code = errno.map_or(Code::Invalid, |errno| code_of_io(&io::Error::from_raw_os_error(errno)));
        Failure::with(code, what, cause, errno)
    }

    fn with(code: Code, what: impl Display, cause: &(dyn Error + 'static), errno: Option<i32>) -> Self {
        let cause_text = chain(cause);
        let mut message = match cause_text.strip_prefix("cannot ") {
            Some(rest) => format!("Cannot {rest}"),
            None => format!("Cannot {what}: {cause_text}"),
        };
        if let Some(advice) = errno.and_then(advice) {
            message.push_str(": ");
            message.push_str(advice);
        }
        Failure { code, message, errno }
    }
}

/// The text of an error and of its sources, each once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let inner = source.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        next = source.source();
    }
    text
}

/// The errno of the first I/O error in the chain.
fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    io_error(error).and_then(io::Error::raw_os_error)
}

/// What to do where whatever was tried met a limit that has nothing to do with it.
fn advice(errno: i32) -> Option<&'static str> {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match errno {
        EMFILE => Some("raise the limit on open files of this process (`ulimit -n`); 128 are enough for a tunnel"),
        ENFILE => Some("end some programs, or raise the limit on open files of the system (`sysctl fs.file-max`)"),
        _ => None,
    }
}

/// The code that says best what the operating system said; `otherwise` where nothing of it is in the chain.
pub(crate) fn code_of(error: &(dyn Error + 'static), otherwise: Code) -> Code {
    io_error(error).map_or(otherwise, code_of_io)
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

fn code_of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Code::Permission,
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::AlreadyExists => Code::Exists,
        io::ErrorKind::AddrInUse | io::ErrorKind::ResourceBusy => Code::Busy,
        io::ErrorKind::TimedOut => Code::TimedOut,
        _ => Code::System,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read the file: {source}")]
    struct Outer {
        source: io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("no key in it")]
    struct Plain(#[source] Outer);

    #[test]
    fn the_innermost_errno_and_every_cause_reach_the_caller() {
        let denied = || Outer { source: io::Error::from_raw_os_error(13) };
        let failure = Failure::of(code_of(&denied(), Code::Key), "load the key", &denied());
        assert_eq!((failure.code, failure.errno), (Code::Permission, Some(13)));
        assert_eq!(failure.message, "Cannot read the file: Permission denied (os error 13)");

        let failure = Failure::of(Code::Key, "load the key", &Plain(denied()));
        assert_eq!(failure.errno, Some(13));
        assert_eq!(
            failure.message,
            "Cannot load the key: no key in it: cannot read the file: Permission denied (os error 13)"
        );
    }

    #[test]
    fn a_limit_that_is_reached_is_named_with_what_raises_it() {
        for (errno, named) in [(24, "`ulimit -n`"), (23, "`sysctl fs.file-max`")] {
            let full = Outer { source: io::Error::from_raw_os_error(errno) };
            let failure = Failure::system("open it", &full, Some(errno));
            assert!(failure.message.starts_with("Cannot read the file: Too many open files"), "{}", failure.message);
            assert!(failure.message.contains(named), "{}", failure.message);
        }
    }

    #[test]
    fn a_known_errno_decides_the_code() {
        let cause = Plain(Outer { source: io::Error::other("x") });
        for (errno, code) in
            [(Some(98), Code::Busy), (Some(17), Code::Exists), (Some(22), Code::System), (None, Code::Invalid)]
        {
            let failure = Failure::system("do it", &cause, errno);
            assert_eq!((failure.code, failure.errno), (code, errno));
        }
    }
}
