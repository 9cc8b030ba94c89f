//! The inputs that are checked in.

use fuzzing::{TARGETS, corpus};
use std::collections::BTreeSet;
use std::fs;

/// Largest file of the corpus, in bytes.
const FILE_BYTES_MAX: usize = 2 << 10;

fn names(folder: &str) -> BTreeSet<String> {
    let dir = corpus::root().join(folder);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_file_of_the_corpus_is_still_good() {
    for target in TARGETS {
        let inputs = corpus::inputs(target.name);
        assert!(!inputs.is_empty(), "{} has no corpus: run `just fuzz-corpus`", target.name);
        for (name, input) in inputs {
            assert!((target.run)(&input), "corpus/{}/{name} is refused: run `just fuzz-corpus`", target.name);
            assert!(input.len() <= FILE_BYTES_MAX, "corpus/{}/{name} has {} bytes", target.name, input.len());
        }
    }
}

#[test]
fn every_folder_of_inputs_and_every_program_of_libfuzzer_belongs_to_a_target() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    assert!(names("regressions").is_subset(&targets));
    let programs: BTreeSet<String> = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names("../../fuzz/fuzz_targets"), programs);
    let manifest = fs::read_to_string(corpus::root().join("../../fuzz/Cargo.toml")).unwrap();
    for target in TARGETS {
        let program = fs::read_to_string(corpus::root().join(format!("../../fuzz/fuzz_targets/{}.rs", target.name)));
        assert!(program.unwrap().contains(&format!("::{}(", target.name)), "{} runs another target", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} is no program", target.name);
    }
}
