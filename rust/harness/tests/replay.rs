//! Every committed input, once more.

mod corpus;

use std::collections::BTreeSet;
use std::fs;

use icx_harness::TARGETS;

#[test]
fn every_input_of_every_corpus_passes() {
    for (target, check) in TARGETS {
        for (name, input) in corpus::of(target) {
            let _blame = corpus::Blame { target, what: &name, input: &input };
            check(&input);
        }
    }
}

/// A target that is only in one of the three places would never run, or never be replayed.
#[test]
fn every_target_has_a_corpus_and_a_program() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len());
    let entries = |folder: std::path::PathBuf| -> BTreeSet<String> {
        let name =
            |entry: Result<fs::DirEntry, _>| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        fs::read_dir(folder).unwrap().map(name).collect()
    };
    assert_eq!(entries(corpus::root()), names);
    assert_eq!(entries(corpus::root().join("../fuzz_targets")), names);
    let manifest = fs::read_to_string(corpus::root().join("../Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
        let program = fs::read_to_string(corpus::root().join(format!("../fuzz_targets/{name}.rs"))).unwrap();
        assert_eq!(program.matches("icx_harness::").count(), 1, "{name}");
    }
}
