use super::*;

const ROOT: u64 = INodeNo::ROOT.0;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn new(kind: FileType) -> New<'static> {
    New { kind, perm: 0o644, owner: (1, 2), rdev: 0, target: OsStr::new("") }
}

fn make(tree: &mut Tree, parent: u64, text: &str, kind: FileType) -> u64 {
    tree.make(parent, name(text), &new(kind)).unwrap().ino.0
}

fn names(tree: &mut Tree, ino: u64, after: u64) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let add = |listed: Listed<'_>| {
        found.push((listed.cookie, listed.name.to_string_lossy().into_owned()));
        false
    };
    tree.list(ino, after, false, add).unwrap();
    found
}

#[test]
fn an_unlinked_file_lives_until_the_kernel_forgets_it() {
    let mut tree = Tree::new((0, 0));
    let file = make(&mut tree, ROOT, "f", FileType::RegularFile);
    tree.lookup(ROOT, name("f")).unwrap();
    tree.unlink(ROOT, name("f")).unwrap();
    assert_eq!(tree.lookup(ROOT, name("f")).unwrap_err(), Errno::ENOENT);
    tree.written(file, 3).unwrap().write().write(0, b"abc");
    tree.forget(file, 1);
    assert_eq!((tree.attr(file).unwrap().nlink, tree.file(file).unwrap().1), (0, 3));
    tree.forget(file, 1);
    assert!(tree.attr(file).is_err());
}

#[test]
fn links_share_an_inode_and_go_one_by_one() {
    let mut tree = Tree::new((0, 0));
    let file = make(&mut tree, ROOT, "a", FileType::RegularFile);
    assert_eq!(tree.link(file, ROOT, name("b")).unwrap().nlink, 2);
    assert_eq!(tree.link(file, ROOT, name("a")).unwrap_err(), Errno::EEXIST);
    tree.unlink(ROOT, name("a")).unwrap();
    assert_eq!(tree.lookup(ROOT, name("b")).unwrap().nlink, 1);
}

#[test]
fn directories_count_those_in_them_and_go_only_when_empty() {
    let mut tree = Tree::new((0, 0));
    let dir = make(&mut tree, ROOT, "d", FileType::Directory);
    make(&mut tree, dir, "e", FileType::Directory);
    assert_eq!((tree.attr(ROOT).unwrap().nlink, tree.attr(dir).unwrap().nlink), (3, 3));
    assert_eq!(tree.rmdir(ROOT, name("d")).unwrap_err(), Errno::ENOTEMPTY);
    assert_eq!(tree.unlink(dir, name("e")).unwrap_err(), Errno::EISDIR);
    tree.rmdir(dir, name("e")).unwrap();
    tree.rmdir(ROOT, name("d")).unwrap();
    assert_eq!(tree.attr(ROOT).unwrap().nlink, 2);
}

#[test]
fn a_rename_replaces_what_it_may_replace() {
    let mut tree = Tree::new((0, 0));
    let (file, dir) =
        (make(&mut tree, ROOT, "f", FileType::RegularFile), make(&mut tree, ROOT, "d", FileType::Directory));
    make(&mut tree, ROOT, "g", FileType::RegularFile);
    let mut rename = |from: &str, to: &str, how| tree.rename((ROOT, name(from)), (ROOT, name(to)), how);
    assert_eq!(rename("f", "d", Renaming::Replace).unwrap_err(), Errno::EISDIR);
    assert_eq!(rename("d", "f", Renaming::Replace).unwrap_err(), Errno::ENOTDIR);
    assert_eq!(rename("f", "g", Renaming::NoReplace).unwrap_err(), Errno::EEXIST);
    assert_eq!(rename("f", "h", Renaming::Exchange).unwrap_err(), Errno::ENOENT);
    rename("f", "g", Renaming::Replace).unwrap();
    assert_eq!(tree.lookup(ROOT, name("g")).unwrap().ino.0, file);
    assert_eq!(tree.lookup(ROOT, name("f")).unwrap_err(), Errno::ENOENT);
    tree.rename((ROOT, name("g")), (dir, name("in")), Renaming::Replace).unwrap();
    assert_eq!(tree.lookup(dir, name("in")).unwrap().ino.0, file);
}

#[test]
fn an_exchange_swaps_a_file_and_a_directory() {
    let mut tree = Tree::new((0, 0));
    let dir = make(&mut tree, ROOT, "d", FileType::Directory);
    let (inner, file) =
        (make(&mut tree, dir, "inner", FileType::Directory), make(&mut tree, ROOT, "f", FileType::RegularFile));
    tree.rename((dir, name("inner")), (ROOT, name("f")), Renaming::Exchange).unwrap();
    assert_eq!(tree.lookup(ROOT, name("f")).unwrap().ino.0, inner);
    assert_eq!(tree.lookup(dir, name("inner")).unwrap().ino.0, file);
    assert_eq!((tree.attr(ROOT).unwrap().nlink, tree.attr(dir).unwrap().nlink), (4, 2));
    let mut parent = 0;
    tree.list(inner, 0, false, |listed| {
        parent = if listed.name == ".." { listed.attr.ino.0 } else { parent };
        false
    })
    .unwrap();
    assert_eq!(parent, ROOT);
}

#[test]
fn a_listing_goes_on_where_it_was_whatever_is_removed_meanwhile() {
    let mut tree = Tree::new((0, 0));
    for text in ["a", "b", "c", "d"] {
        make(&mut tree, ROOT, text, FileType::RegularFile);
    }
    let all = names(&mut tree, ROOT, 0);
    assert_eq!(all.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), [".", "..", "a", "b", "c", "d"]);
    let behind_b = all[3].0;
    for text in ["a", "b", "c"] {
        tree.unlink(ROOT, name(text)).unwrap();
    }
    assert_eq!(names(&mut tree, ROOT, behind_b), [(all[5].0, "d".to_owned())]);
}

#[test]
fn only_listed_entries_that_fit_count_as_looked_up() {
    let mut tree = Tree::new((0, 0));
    let (a, b) = (make(&mut tree, ROOT, "a", FileType::RegularFile), make(&mut tree, ROOT, "b", FileType::RegularFile));
    tree.list(ROOT, 0, true, |listed| listed.name == "b").unwrap();
    assert_eq!((tree.nodes[&a].lookups, tree.nodes[&b].lookups, tree.nodes[&ROOT].lookups), (2, 1, 1));
}

#[test]
fn a_file_that_is_cut_and_grows_again_is_zeros_behind_the_cut() {
    let mut tree = Tree::new((0, 0));
    let file = make(&mut tree, ROOT, "f", FileType::RegularFile);
    tree.written(file, 6).unwrap().write().write(0, b"abcdef");
    for size in [2, 4] {
        tree.change(file, &Change { size: Some(size), ..Change::default() }).unwrap();
    }
    let (content, size) = tree.file(file).unwrap();
    assert_eq!(content.read().read(0, size as usize, <[u8]>::to_vec), b"ab\0\0");
}

#[test]
fn attributes_are_what_was_set() {
    let mut tree = Tree::new((0, 0));
    let file = make(&mut tree, ROOT, "f", FileType::RegularFile);
    let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9);
    let change = Change { perm: Some(0o600), uid: Some(7), mtime: Some(time), ..Change::default() };
    let attr = tree.change(file, &change).unwrap();
    assert_eq!((attr.perm, attr.uid, attr.gid, attr.mtime), (0o600, 7, 2, time));
}

#[test]
fn a_remount_keeps_what_has_a_name_and_nothing_else() {
    let mut tree = Tree::new((0, 0));
    let (kept, gone) =
        (make(&mut tree, ROOT, "kept", FileType::RegularFile), make(&mut tree, ROOT, "gone", FileType::RegularFile));
    tree.unlink(ROOT, name("gone")).unwrap();
    assert!(tree.attr(gone).is_ok());
    tree.forget_all();
    assert!(tree.attr(gone).is_err());
    assert_eq!(tree.lookup(ROOT, name("kept")).unwrap().ino.0, kept);
}
