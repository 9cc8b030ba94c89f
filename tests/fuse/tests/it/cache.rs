//! The cache of blocks on the local disk: after a remount it serves blocks that no daemon can, and never wrong ones.

use fuse::{LIMIT, random};
use kit::bins::bin;
use kit::fault::files_below;
use kit::{Setup, Surf, run, sh, until};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CACHE_ARGS: &[&str] = &["--cache-size", "64M"];
const BLOCKDS: [&str; 3] = ["blockd-1", "blockd-2", "blockd-3"];
/// Number of files of one block each: they are too large to share a block.
const SMALL_FILES: usize = 100;
const SMALL_BYTES: usize = 160 << 10;

/// Writes a large and many small files. They fit into the queue of blocks that wait to be cached, so none is left out.
fn write_files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let lens = std::iter::once(12 << 20).chain(std::iter::repeat_n(SMALL_BYTES, SMALL_FILES));
    let files: Vec<(PathBuf, Vec<u8>)> = lens
        .enumerate()
        .map(|(number, len)| (dir.join(format!("file-{number}")), random(number as u64, len)))
        .collect();
    for (path, content) in &files {
        fs::write(path, content).unwrap();
    }
    files
}

fn read_all(files: &[(PathBuf, Vec<u8>)]) {
    for (path, content) in files {
        assert!(fs::read(path).unwrap() == *content, "{}", path.display());
    }
}

/// Returns the blocks in the cache.
fn blocks(surf: &Surf) -> Vec<PathBuf> {
    let dir = surf.cache_dir();
    if !dir.exists() {
        return Vec::new();
    }
    files_below(&dir).into_iter().filter(|path| path.components().any(|part| part.as_os_str() == "blocks")).collect()
}

/// Returns once the cache has as many bytes as the files: the least block is longer than what is stored beside all of them.
/// How many blocks that are depends on the machine: a file that is written slowly is cut where it was stored meanwhile.
fn until_cached(surf: &Surf, files: &[(PathBuf, Vec<u8>)]) {
    let content: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    until("all content is in the cache", LIMIT, || {
        let lens = blocks(surf).into_iter().filter_map(|path| Some(fs::metadata(path).ok()?.len()));
        (lens.sum::<u64>() >= content).then_some(())
    });
}

fn remount(surf: &mut Surf) {
    surf.unmount();
    surf.mount(CACHE_ARGS);
}

/// Writes files, and reads them through a mount that caches; returns when the cache has them all.
fn fill(surf: &mut Surf) -> Vec<(PathBuf, Vec<u8>)> {
    let files = write_files(&surf.path());
    assert!(blocks(surf).is_empty(), "nothing is cached unless it is asked for");
    remount(surf);
    read_all(&files);
    until_cached(surf, &files);
    files
}

/// Guards I9.
#[test]
fn a_remount_reads_from_the_cache_while_every_block_daemon_is_away_and_flipped_bits_are_never_served() {
    let mut surf = Surf::start(Setup::Cluster);
    let files = fill(&mut surf);
    surf.unmount();
    for name in BLOCKDS {
        surf.dev(&["stop", name]);
    }
    surf.mount(CACHE_ARGS);
    read_all(&files);
    // Small scattered reads take parts of a block from the cache, too.
    surf.unmount();
    surf.mount(CACHE_ARGS);
    let script = "import os\nf = os.open('file-0', os.O_RDONLY)\nos.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM)\n\
                  print(*[os.pread(f, 16, at).hex() for at in range(11 << 20, 0, -999983)])";
    fs::write(surf.scratch().join("parts.py"), script).unwrap();
    let read = sh(&surf.path(), LIMIT, &format!("python3 {}", surf.scratch().join("parts.py").display()));
    let large = &files[0].1;
    let hex = |at: usize| large[at..at + 16].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let expected: Vec<String> = (1..=11 << 20).rev().step_by(999_983).map(hex).collect();
    assert_eq!(read.split_whitespace().collect::<Vec<_>>(), expected);

    surf.unmount();
    for (number, path) in blocks(&surf).iter().enumerate() {
        let block = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        block.read_exact_at(&mut byte, 5000).unwrap();
        block.write_all_at(&[byte[0] ^ 1 << (number % 8)], 5000).unwrap();
        if number % 10 == 0 {
            block.set_len(9000).unwrap();
        }
    }
    surf.mount(&["--cache-size", "64M", "-o", "soft=2"]);
    // Nobody has a good copy now.
    for (path, _) in files.iter().step_by(50) {
        assert_eq!(fs::read(path).unwrap_err().raw_os_error(), Some(libc::EIO), "{}", path.display());
    }
    for name in BLOCKDS {
        surf.dev(&["start", name]);
    }
    remount(&mut surf);
    read_all(&files);
    until_cached(&surf, &files);
    remount(&mut surf);
    read_all(&files);
}

#[test]
fn a_cache_directory_serves_one_mount_of_one_identity_and_mistakes_are_reported_in_one_line() {
    let mut surf = Surf::start(Setup::Embedded);
    surf.unmount();
    let cache = surf.cache_dir().display().to_string();
    let cached = [CACHE_ARGS, &["--cache-dir", &cache]].concat();
    surf.mount(&cached);
    fs::write(surf.path().join("file"), random(1, 100_000)).unwrap();
    surf.unmount();
    let made: Vec<PathBuf> = fs::read_dir(surf.cache_dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [own] = made.as_slice() else { panic!("{made:?}") };
    let refused = |arguments: &[&str], said: &str| {
        let mut command = Command::new(bin("surfmount"));
        command.arg("--data-dir").arg(surf.data_dir()).args(arguments).arg(surf.path());
        let output = run(&mut command, LIMIT);
        assert!(!output.status.success() && output.text.trim_end().lines().count() == 1, "{}", output.text);
        assert!(output.text.contains(said), "{}", output.text);
    };
    let lock = fs::File::open(own.join("lock")).unwrap();
    lock.lock().unwrap();
    refused(&["--cache-dir", &cache, "--cache-size", "64M"], "another mount uses this cache directory");
    drop(lock);
    // Nobody takes over a directory in which its owner has left something.
    fs::create_dir_all(own.join("blocks")).unwrap();
    fs::write(own.join("blocks/of-the-owner"), "").unwrap();
    let owner = fs::read_to_string(own.join("owner")).unwrap();
    fs::write(own.join("owner"), owner.replace("client \"", "client \"not ")).unwrap();
    refused(&["--cache-dir", &cache, "--cache-size", "64M"], "belongs to");
    fs::write(own.join("owner"), owner).unwrap();
    refused(&["--cache-dir", "/dev/null", "--cache-size", "64M"], "/dev/null");
    refused(&["--cache-size", "1M"], "at least 16M");
    surf.mount(&cached);
    assert_eq!(fs::read(surf.path().join("file")).unwrap().len(), 100_000);
}
