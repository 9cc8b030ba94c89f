//! The inputs with which every run begins: a few good ones per target, made by code and checked in, and those that have
//! found a fault.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Good inputs by name, as code makes them.
pub type Samples = Vec<(&'static str, Vec<u8>)>;

/// An input, and the name of its file.
pub type Input = (String, Vec<u8>);

/// Returns this crate's folder.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns where the inputs are that have found a fault.
#[must_use]
pub fn regressions_dir() -> PathBuf {
    root().join("regressions")
}

/// Returns the corpus of a target.
///
/// # Panics
/// When a file cannot be read.
#[must_use]
pub fn inputs(target: &str) -> Vec<Input> {
    read(&root().join("corpus").join(target))
}

/// Returns the inputs that have found a fault of a target.
///
/// # Panics
/// When a file cannot be read.
#[must_use]
pub fn regressions(target: &str) -> Vec<Input> {
    read(&regressions_dir().join(target))
}

fn read(dir: &Path) -> Vec<Input> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        entries => entries.unwrap_or_else(|error| panic!("{}: {error}", dir.display())),
    };
    let mut inputs: Vec<Input> = entries
        .map(|entry| {
            let path = entry.expect("a directory can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Writes the corpus of a target anew. Returns the number of files.
///
/// # Errors
/// When the disk fails.
pub fn write(target: &str, samples: Samples) -> io::Result<usize> {
    let dir = root().join("corpus").join(target);
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(&dir)?,
    }
    let count = samples.len();
    for (name, input) in samples {
        fs::write(dir.join(name), input)?;
    }
    Ok(count)
}
