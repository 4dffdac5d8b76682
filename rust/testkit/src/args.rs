//! `--name value` arguments.

use std::collections::BTreeMap;
use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    #[error("{0:?} is no option of this program: its options are {1}")]
    Unknown(String, String),
    #[error("--{0} needs a value")]
    NoValue(String),
    #[error("--{0} is needed")]
    Missing(&'static str),
    #[error("--{name} cannot be {value:?}: {reason}")]
    Invalid { name: &'static str, value: String, reason: String },
}

/// The arguments of a program, by name.
#[derive(Debug, Default)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Takes `--name value` pairs whose names are among `known`; of a name given twice the last value counts.
    pub fn parse(args: impl IntoIterator<Item = String>, known: &[&'static str]) -> Result<Self, ArgsError> {
        let mut values = BTreeMap::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").filter(|name| known.contains(name)).ok_or_else(|| {
                let all: Vec<String> = known.iter().map(|name| format!("--{name}")).collect();
                ArgsError::Unknown(arg.clone(), all.join(", "))
            })?;
            let value = args.next().ok_or_else(|| ArgsError::NoValue(name.to_owned()))?;
            values.insert(name.to_owned(), value);
        }
        Ok(Args(values))
    }

    pub fn text(&self, name: &'static str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub fn optional<T: FromStr<Err: ToString>>(&self, name: &'static str) -> Result<Option<T>, ArgsError> {
        let Some(value) = self.text(name) else { return Ok(None) };
        let parsed = value.parse().map_err(|error: T::Err| ArgsError::Invalid {
            name,
            value: value.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Some(parsed))
    }

    pub fn required<T: FromStr<Err: ToString>>(&self, name: &'static str) -> Result<T, ArgsError> {
        self.optional(name)?.ok_or(ArgsError::Missing(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, ArgsError> {
        Args::parse(args.iter().map(|arg| (*arg).to_owned()), &["seed", "to"])
    }

    #[test]
    fn pairs_become_values_and_anything_else_is_refused() {
        let args = parse(&["--seed", "7", "--seed", "8"]).unwrap();
        assert_eq!(args.required("seed"), Ok(8));
        assert_eq!(args.optional::<u64>("to"), Ok(None));
        assert_eq!(args.required::<u64>("to"), Err(ArgsError::Missing("to")));
        assert!(matches!(parse(&["--to"]), Err(ArgsError::NoValue(_))));
        assert!(matches!(parse(&["seed", "7"]), Err(ArgsError::Unknown(..))));
        assert!(matches!(parse(&["--sed", "7"]), Err(ArgsError::Unknown(..))));
        let args = parse(&["--seed", "x"]).unwrap();
        assert!(matches!(args.required::<u64>("seed"), Err(ArgsError::Invalid { name: "seed", .. })));
    }
}
