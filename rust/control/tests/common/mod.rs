//! Reads the known-answer vectors.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// One case of a vector file: its name, its `op`, and its fields as they are.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) op: String,
    #[serde(default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) ok: Option<bool>,
    #[serde(default)]
    pub(crate) quirk: bool,
    #[serde(flatten)]
    pub(crate) fields: serde_json::Map<String, Value>,
}

impl Case {
    /// The field `key`; panics with the case's name where it is missing or of another type.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> T {
        self.find(key).unwrap_or_else(|| panic!("{self}: no field {key}"))
    }

    pub(crate) fn find<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        let value = self.fields.get(key)?;
        Some(serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{self}: field {key}: {e}")))
    }

    pub(crate) fn bytes(&self, key: &str) -> Vec<u8> {
        self.find_bytes(key).unwrap_or_else(|| panic!("{self}: no field {key}"))
    }

    pub(crate) fn find_bytes(&self, key: &str) -> Option<Vec<u8>> {
        let text: String = self.find(key)?;
        Some(hex::decode(&text).unwrap_or_else(|e| panic!("{self}: field {key}: {e}")))
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.ok.unwrap_or_else(|| panic!("{self}: no field ok"))
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} \"{}\"", self.op, self.kind, self.name)
    }
}

#[derive(Deserialize)]
struct File {
    cases: Vec<Case>,
}

/// The cases of a file in the repository's vectors or, when set, in `ICX_VECTORS_DIR`, whose folder may lack some: then a
/// note is printed and there are none.
pub(crate) fn cases(file: &str) -> Vec<Case> {
    let elsewhere = std::env::var_os("ICX_VECTORS_DIR");
    let folder = match &elsewhere {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors"),
    };
    let path = folder.join(file);
    match std::fs::read(&path) {
        Ok(content) => {
            let file: File = serde_json::from_slice(&content).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert!(!file.cases.is_empty(), "{} holds no case", path.display());
            file.cases
        }
        Err(e) if elsewhere.is_some() && e.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {} does not exist", path.display());
            Vec::new()
        }
        Err(e) => panic!("{}: {e}", path.display()),
    }
}
