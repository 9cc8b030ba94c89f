//! The sources as the other rules read them: without comments, string literals and tests.

use kit::bins::workspace;
use kit::fault::files_below;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Folders with sources of this repository.
const FOLDERS: [&str; 9] = ["wire", "metad", "blockd", "client", "mount", "embed", "surf", "bench", "tests"];

/// A Rust source file.
pub struct Source {
    /// Path below the workspace's folder.
    pub path: PathBuf,
    /// The unchanged text.
    pub text: String,
    /// The text, with spaces in place of comments, string literals, and items marked `#[cfg(test)]`.
    pub code: String,
    /// Number of lines of items marked `#[cfg(test)]`.
    pub test_lines: usize,
}

impl Source {
    /// Returns whether it holds tests.
    pub fn is_test(&self) -> bool {
        // The first part may be the folder of the crates that only tests use.
        let is_below = self.path.components().skip(1).any(|part| part.as_os_str() == "tests");
        is_below || self.path.to_string_lossy().ends_with("tests.rs")
    }

    /// Returns whether it is part of a shipped program.
    pub fn is_shipped(&self) -> bool {
        !self.is_test() && !self.path.starts_with("tests")
    }

    /// Returns the path with `/`, for messages and lists.
    pub fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }
}

/// Fails if something that breaks a rule is not on the list of exceptions, or if an exception is not needed any more:
/// the lists only get shorter.
pub fn only(found: &BTreeSet<String>, exceptions: &[&str], rule: &str) {
    let exceptions: BTreeSet<String> = exceptions.iter().map(|name| (*name).to_owned()).collect();
    let broken: Vec<_> = found.difference(&exceptions).collect();
    assert!(broken.is_empty(), "{rule}: {broken:#?}");
    let mended: Vec<_> = exceptions.difference(found).collect();
    assert!(mended.is_empty(), "these exceptions are not needed any more, take them off their list: {mended:#?}");
}

/// Reads every source file, in the order of paths.
pub fn sources() -> Vec<Source> {
    let root = workspace();
    let mut paths: Vec<PathBuf> = FOLDERS.iter().flat_map(|folder| files_below(&root.join(folder))).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "rs"));
    paths.sort();
    paths.iter().map(|path| read(&root, path)).collect()
}

fn read(root: &Path, path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("a source can be read");
    let (code, test_lines) = without_tests(&without_comments(&text));
    Source { path: path.strip_prefix(root).expect("it lies below").to_owned(), text, code, test_lines }
}

/// Replaces comments and literals in quotes by spaces; lines stay where they are.
fn without_comments(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = end_of_opaque(bytes, at);
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("only ASCII is put in, and only for whole characters")
}

/// Returns the end of the comment, string or character that begins at `at`, or `at` itself if none does.
fn end_of_opaque(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if rest.starts_with(b"//") {
        return at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    }
    if rest.starts_with(b"/*") {
        return at + end_of_block(rest);
    }
    if rest[0] == b'r' && (at == 0 || !is_word(&bytes[at - 1]) || bytes[at - 1] == b'b') {
        let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
        if rest.get(1 + hashes) == Some(&b'"') {
            let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
            let from = at + hashes + 2;
            return find(bytes, from, &close).map_or(bytes.len(), |found| found + close.len());
        }
    }
    match rest {
        [b'"', ..] => at + end_of_quoted(rest, b'"'),
        // A lifetime has no second quote within a character.
        [b'\'', b'\\', ..] => at + end_of_quoted(rest, b'\''),
        [b'\'', _, b'\'', ..] => at + 3,
        [b'\'', first, ..] if !first.is_ascii() => at + end_of_quoted(rest, b'\''),
        _ => at,
    }
}

fn end_of_block(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    bytes[from..].windows(what.len()).position(|part| part == what).map(|found| from + found)
}

/// Replaces each item behind `#[cfg(test)]` by spaces, and counts its lines. The code must not have comments any more.
fn without_tests(code: &str) -> (String, usize) {
    const MARK: &str = "#[cfg(test)]";
    let mut bytes = code.as_bytes().to_vec();
    let (mut from, mut lines) = (0, 0);
    while let Some(found) = code[from..].find(MARK) {
        let start = from + found;
        let end = end_of_item(code.as_bytes(), start + MARK.len());
        lines += code[start..end].lines().count();
        bytes[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        from = end;
    }
    (String::from_utf8(bytes).expect("items are whole"), lines)
}

/// Returns the end of an item: a semicolon, or the brace that closes its first brace.
fn end_of_item(code: &[u8], from: usize) -> usize {
    let mut depth = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b';' | b',' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[test]
fn comments_literals_and_tests_are_not_code() {
    let text = "a // b\n\"c \\\" d\" e /* f /* g */ h */ 'i' &'j r#\"k \" l\"# m b'n' '\\'' o 'ü'\n#[cfg(test)]\nmod p { q{} }\nr";
    let (code, test_lines) = without_tests(&without_comments(text));
    assert_eq!(test_lines, 2);
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "e", "&'j", "m", "b", "o", "r"]);
    assert_eq!(code.lines().count(), text.lines().count());
}
