//! Finds out from their text which files of a crate use which.
//!
//! A file uses another when it names one of its items by a path (`use` and expressions alike; names are followed
//! through re-exports to the file that defines them, and a re-export itself is no use), or calls a method that only
//! that file defines. Methods are known by name alone, so a name counts when the crate defines it once and no common
//! type of the standard library or tokio has it.

use crate::sources::Source;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Names of methods that types of other crates have, too.
const COMMON_METHODS: &str = "abort accept acquire add all and_then any append apply as_bytes as_mut as_path as_ref as_slice as_str attr bind \
    bytes call cancel chain chunks clear clone close cloned cmp collect complete contains contains_key copied count create data \
    default deref drain drop elapsed encode end entry eq exists extend failed fetch filter find finish first flush fmt fold \
    freeze get get_mut get_or handle hash id index init insert into_iter is_closed is_done is_empty is_open is_some iter iter_mut join keys kind last len \
    local_addr lock map max merge message metadata min name new next notify open parent path parse peek peer poll pop position \
    publish push put range read receive record recv release remove replace request reserve reset resize resolve retain \
    run seek send serve set sign snapshot spawn split start statfs status stdin stop store swap sync sync_all take tell tick truncate try_lock \
    try_read try_write try_send update values verify wait wake with write";

/// A module's path within its crate; empty for the root.
type Module = Vec<String>;

/// One file of a crate.
pub struct File {
    pub name: String,
    module: Module,
    tokens: Vec<String>,
    children: BTreeSet<String>,
    /// The paths that `use` imports, by the name that it gives them.
    names: HashMap<String, Vec<String>>,
}

/// The files of one crate. For each file: the files that it uses, and the words that show this.
pub struct Graph {
    pub files: Vec<File>,
    pub uses: Vec<BTreeMap<usize, String>>,
}

impl Graph {
    /// Reads the crate whose sources are in `folder`.
    pub fn of(sources: &[Source], folder: &str) -> Self {
        let prefix = format!("{folder}/src/");
        let inside: Vec<&Source> =
            sources.iter().filter(|source| source.name().starts_with(&prefix) && !source.is_test()).collect();
        let is_library = inside.iter().any(|source| source.name() == format!("{prefix}lib.rs"));
        let mut files: Vec<File> = inside
            .iter()
            // The program of a library's crate uses the library as any other crate would.
            .filter(|source| !(is_library && source.name() == format!("{prefix}main.rs")))
            .map(|source| File::of(source, &prefix))
            .collect();
        let modules: BTreeSet<Module> = files.iter().map(|file| file.module.clone()).collect();
        for file in &mut files {
            let inner = modules.iter().filter(|module| module.split_last().is_some_and(|(_, up)| up == file.module));
            file.children = inner.filter_map(|module| module.last().cloned()).collect();
        }
        for file in &mut files {
            file.names = imports(file);
        }
        let uses = Uses::new(&files).all();
        Self { files, uses }
    }
}

impl File {
    fn of(source: &Source, prefix: &str) -> Self {
        let name = source.name();
        let inner = name.strip_prefix(prefix).and_then(|path| path.strip_suffix(".rs")).expect("it is a source");
        let mut module: Module = inner.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("lib" | "main" | "mod")) {
            module.pop();
        }
        Self { name, module, tokens: tokens(&source.code), children: BTreeSet::new(), names: HashMap::new() }
    }
}

/// Splits code into words, `::`, and every other character that is no space.
pub fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let len = match first {
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            c => c.len_utf8(),
        };
        tokens.push(rest[..len].to_owned());
        rest = rest[len..].trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// A path in a file, and its place.
struct Path {
    /// The module in which it stands; inline modules count.
    module: Module,
    segments: Vec<String>,
    /// The name that a `use` gives the path.
    alias: Option<String>,
    /// Whether it stands in a re-export.
    is_export: bool,
}

/// Returns all paths of a file. The trees of `use` are expanded.
fn paths(file: &File) -> Vec<Path> {
    let tokens = &file.tokens;
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let (mut module, mut depth, mut inline) = (file.module.clone(), 0, Vec::new());
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        match token(at) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
            }
            "mod" if token(at + 2) == "{" => {
                inline.push(depth);
                module.push(token(at + 1).to_owned());
            }
            "use" => {
                let is_export = at > 0 && matches!(token(at - 1), "pub" | ")");
                let mut tree = Vec::new();
                at = spread(tokens, at + 1, &mut Vec::new(), &mut tree);
                let path = |(segments, alias)| Path { module: module.clone(), segments, alias: Some(alias), is_export };
                found.extend(tree.into_iter().map(path));
            }
            word if is_word(word) && !(at > 0 && matches!(token(at - 1), "::" | ".")) => {
                let mut segments = vec![word.to_owned()];
                while token(at + 1) == "::" && is_word(token(at + 2)) {
                    segments.push(token(at + 2).to_owned());
                    at += 2;
                }
                found.push(Path { module: module.clone(), segments, alias: None, is_export: false });
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Expands a tree of `use` into paths with the names that it gives them. Returns the end of the tree.
fn spread(tokens: &[String], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) -> usize {
    let len = prefix.len();
    while at < tokens.len() {
        match tokens[at].as_str() {
            "::" => {}
            "{" => {
                at = spread(tokens, at + 1, prefix, found);
                prefix.truncate(len);
                // The tokens behind the brace belong to the level above.
                if tokens.get(at + 1).is_none_or(|next| next != ",") {
                    return at + 1;
                }
            }
            "," | "}" | ";" => {
                if prefix.len() > len {
                    let alias = prefix.last().expect("it is not empty").clone();
                    name(prefix.clone(), alias, found);
                }
                prefix.truncate(len);
                if tokens[at] != "," {
                    return at;
                }
            }
            "as" => {
                name(prefix.clone(), tokens[at + 1].clone(), found);
                prefix.truncate(len);
                at += 1;
            }
            segment => prefix.push(segment.to_owned()),
        }
        at += 1;
    }
    at
}

/// `a::{self}` names `a`.
fn name(mut path: Vec<String>, mut alias: String, found: &mut Vec<(Vec<String>, String)>) {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
        if alias == "self" {
            alias = path.last().expect("it is not empty").clone();
        }
    }
    found.push((path, alias));
}

fn imports(file: &File) -> HashMap<String, Vec<String>> {
    let at_top = paths(file).into_iter().filter(|path| path.module == file.module);
    at_top.filter_map(|path| Some((path.alias?, path.segments))).collect()
}

/// The items that a crate defines, to find their uses.
struct Uses<'a> {
    files: &'a [File],
    by_module: HashMap<&'a [String], usize>,
    /// The file that defines a method or function of a type, if only one file does.
    methods: HashMap<String, usize>,
}

impl<'a> Uses<'a> {
    fn new(files: &'a [File]) -> Self {
        let by_module = files.iter().enumerate().map(|(at, file)| (file.module.as_slice(), at)).collect();
        Self { files, by_module, methods: methods(files) }
    }

    fn all(&self) -> Vec<BTreeMap<usize, String>> {
        (0..self.files.len()).map(|at| self.of(at)).collect()
    }

    fn of(&self, at: usize) -> BTreeMap<usize, String> {
        let file = &self.files[at];
        let mut uses = BTreeMap::new();
        for path in paths(file).iter().filter(|path| !path.is_export) {
            let defined = self.resolve(&path.module, &path.segments, 0);
            // The functions of a type may be in another file than the type.
            let function = match path.segments.as_slice() {
                [.., of, name] if (defined.is_some() || of == "Self") && of.starts_with(char::is_uppercase) => {
                    self.methods.get(name).copied()
                }
                _ => None,
            };
            for target in [defined, function].into_iter().flatten().filter(|target| *target != at) {
                uses.entry(target).or_insert_with(|| path.segments.join("::"));
            }
        }
        for call in file.tokens.windows(3).filter(|call| call[0] == "." && matches!(call[2].as_str(), "(" | "::")) {
            if let Some(target) = self.methods.get(&call[1]).filter(|target| **target != at) {
                uses.entry(*target).or_insert_with(|| format!("{}()", call[1]));
            }
        }
        // All files of a folder may use the folder's own file.
        uses.retain(|target, _| !self.is_around(*target, at));
        uses
    }

    /// Returns whether one file is the own file of a folder that holds the other. The crate's root is no folder in this
    /// sense.
    fn is_around(&self, outer: usize, inner: usize) -> bool {
        let outer = &self.files[outer].module;
        !outer.is_empty() && self.files[inner].module.starts_with(outer)
    }

    /// Returns the file that defines what a path names; none for modules and for items of other crates.
    fn resolve(&self, module: &[String], path: &[String], depth: u32) -> Option<usize> {
        let (first, rest) = path.split_first()?;
        let (mut at, mut rest) = match first.as_str() {
            "crate" => (Vec::new(), rest),
            "self" => (module.to_vec(), rest),
            "super" => (module.split_last()?.1.to_vec(), rest),
            _ => (module.to_vec(), path),
        };
        while let Some(("super", below)) = rest.split_first().map(|(first, below)| (first.as_str(), below)) {
            at.pop()?;
            rest = below;
        }
        let is_bare = rest.len() == path.len();
        while let Some((segment, below)) = rest.split_first() {
            let Some(file) = self.by_module.get(at.as_slice()).map(|file| &self.files[*file]) else { break };
            if file.children.contains(segment) {
                at.push(segment.clone());
                rest = below;
                continue;
            }
            if let Some(real) = file.names.get(segment).filter(|real| depth < 8 && real.as_slice() != path) {
                return self.resolve(&at, &[real.as_slice(), below].concat(), depth + 1);
            }
            break;
        }
        // A single word that is neither imported nor a module may be anything.
        if rest.is_empty() || (is_bare && rest.len() == path.len()) {
            return None;
        }
        // An inline module stands in the file of the module around it.
        (0..=at.len()).rev().find_map(|len| self.by_module.get(&at[..len]).copied())
    }
}

/// Functions of types and traits that are defined in only one file, with that file.
fn methods(files: &[File]) -> HashMap<String, usize> {
    let mut places: HashMap<String, BTreeSet<usize>> = HashMap::new();
    for (at, file) in files.iter().enumerate() {
        for name in defined(&file.tokens) {
            places.entry(name).or_default().insert(at);
        }
    }
    let common: BTreeSet<&str> = COMMON_METHODS.split_whitespace().collect();
    let single = places.into_iter().filter(|(name, at)| at.len() == 1 && !common.contains(name.as_str()));
    single.filter_map(|(name, at)| Some((name, at.into_iter().next()?))).collect()
}

/// Names of functions in `impl Type` and `trait` blocks. Functions in `impl Trait for Type` count for the trait.
fn defined(tokens: &[String]) -> Vec<String> {
    let (mut names, mut depth, mut blocks) = (Vec::new(), 0, Vec::new());
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                blocks.pop_if(|(_, begun)| *begun == depth);
            }
            "impl" | "trait"
                if at == 0 || matches!(tokens[at - 1].as_str(), "}" | ";" | "]" | "pub" | ")" | "unsafe") =>
            {
                let header = tokens[at..].iter().take_while(|token| *token != "{");
                let is_for_trait = token == "impl" && header.clone().any(|token| token == "for");
                blocks.push((!is_for_trait, depth));
            }
            "fn" if blocks.last().is_some_and(|(counts, begun)| *counts && begun + 1 == depth) => {
                names.push(tokens[at + 1].clone());
            }
            _ => {}
        }
    }
    names
}

/// Returns the groups of files that use each other in a circle.
pub fn circles(uses: &[BTreeMap<usize, String>]) -> Vec<Vec<usize>> {
    let reach: Vec<BTreeSet<usize>> = (0..uses.len()).map(|from| reachable(uses, from)).collect();
    let mut circles: Vec<Vec<usize>> = Vec::new();
    for at in (0..uses.len()).filter(|at| reach[*at].contains(at)) {
        match circles.iter_mut().find(|circle| reach[at].contains(&circle[0]) && reach[circle[0]].contains(&at)) {
            Some(circle) => circle.push(at),
            None => circles.push(vec![at]),
        }
    }
    circles
}

fn reachable(uses: &[BTreeMap<usize, String>], from: usize) -> BTreeSet<usize> {
    let (mut seen, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(at) = left.pop() {
        left.extend(uses[at].keys().filter(|next| seen.insert(**next)));
    }
    seen
}
