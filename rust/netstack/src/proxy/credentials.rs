//! Who may use a proxy.

use std::collections::HashMap;
use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Context, Digest, SHA256};

/// Users and their passwords. Neither is kept, only a digest of both.
#[derive(Clone)]
pub struct Credentials(Vec<Digest>);

/// Why a text is no list of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    #[error("there is no user: give lines of the form user:password")]
    Empty,
    #[error("line {line} has no colon: a line is user:password")]
    NoColon { line: usize },
    #[error("the user of line {line} has {given} bytes: 1 to 255 can be used")]
    User { line: usize, given: usize },
    #[error("the password of line {line} has {given} bytes: 1 to 255 can be used")]
    Password { line: usize, given: usize },
    #[error("line {line} has the user of line {first}: give each user once")]
    Repeated { line: usize, first: usize },
    #[error("there are more than {most} users", most = Credentials::MAX_USERS)]
    TooMany,
}

impl Credentials {
    pub const MAX_USERS: usize = 1024;

    /// Reads lines of the form `user:password`; a password may have colons. Empty lines and those that begin with `#` are skipped.
    /// Users and passwords have 1 to 255 bytes (RFC 1929 section 2).
    pub fn parse(text: &str) -> Result<Self, CredentialsError> {
        let mut lines_of_users = HashMap::new();
        let mut digests = Vec::new();
        for (line, content) in (1..).zip(text.lines()) {
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let (user, password) = content.split_once(':').ok_or(CredentialsError::NoColon { line })?;
            if !(1..=255).contains(&user.len()) {
                return Err(CredentialsError::User { line, given: user.len() });
            }
            if !(1..=255).contains(&password.len()) {
                return Err(CredentialsError::Password { line, given: password.len() });
            }
            if let Some(first) = lines_of_users.insert(user, line) {
                return Err(CredentialsError::Repeated { line, first });
            }
            if digests.len() == Self::MAX_USERS {
                return Err(CredentialsError::TooMany);
            }
            digests.push(digest(user.as_bytes(), password.as_bytes()));
        }
        if digests.is_empty() { Err(CredentialsError::Empty) } else { Ok(Credentials(digests)) }
    }

    /// Whether there is such a user with this password. How long it takes tells nothing about either.
    pub(super) fn admit(&self, user: &[u8], password: &[u8]) -> bool {
        let given = digest(user, password);
        let equal = |known: &Digest| verify_slices_are_equal(known.as_ref(), given.as_ref()).is_ok();
        self.0.iter().fold(false, |admitted, known| admitted | equal(known))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({} users)", self.0.len())
    }
}

fn digest(user: &[u8], password: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(&user.len().to_be_bytes());
    context.update(user);
    context.update(password);
    context.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_admitted_with_their_passwords() {
        let credentials = Credentials::parse("# who may\nann:se:cret\r\n\nbob: b \n").unwrap();
        for (user, password, admitted) in [
            ("ann", "se:cret", true),
            ("bob", " b ", true),
            ("ann", "se:cre", false),
            ("ann", "se:cret\r", false),
            ("anns", "e:cret", false),
            ("bob", "se:cret", false),
            ("# who may", "", false),
            ("", "", false),
        ] {
            assert_eq!(credentials.admit(user.as_bytes(), password.as_bytes()), admitted, "{user} {password}");
        }
    }

    #[test]
    fn what_is_no_list_of_users_is_refused_by_its_line() {
        let long = "x".repeat(256);
        for (text, error) in [
            ("", CredentialsError::Empty),
            ("# a:b\n", CredentialsError::Empty),
            ("a:b\nsecret", CredentialsError::NoColon { line: 2 }),
            (":b", CredentialsError::User { line: 1, given: 0 }),
            (&format!("{long}:b"), CredentialsError::User { line: 1, given: 256 }),
            ("a:", CredentialsError::Password { line: 1, given: 0 }),
            (&format!("a:{long}"), CredentialsError::Password { line: 1, given: 256 }),
            ("a:b\n\na:c", CredentialsError::Repeated { line: 3, first: 1 }),
        ] {
            assert_eq!(Credentials::parse(text).unwrap_err(), error, "{text:?}");
        }
        let many: String = (0..=Credentials::MAX_USERS).map(|number| format!("{number}:x\n")).collect();
        assert_eq!(Credentials::parse(&many).unwrap_err(), CredentialsError::TooMany);
    }

    #[test]
    fn nothing_of_them_is_shown() {
        let credentials = Credentials::parse("ann:secret").unwrap();
        assert_eq!(format!("{credentials:?}"), "Credentials(1 users)");
        let error = Credentials::parse("ann;secret").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
