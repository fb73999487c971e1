//! `docs/failures.md` names tests that exist.

use std::fs;
use std::path::Path;

/// Words in backticks there that are no tests.
const OTHERS: [&str; 3] = ["failpoints", "suture", "aborted"];

#[test]
fn what_the_catalogue_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut there = Vec::new();
    for folder in ["topics", "coordinator", "participants", "compose"] {
        collect(&root.join(folder), &mut there);
    }
    let document = fs::read_to_string(root.join("docs/failures.md")).unwrap();
    let is_name = |word: &&str| word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let named = document.split('`').skip(1).step_by(2).filter(is_name).filter(|word| !OTHERS.contains(word));
    let missing: Vec<&str> = named.filter(|name| !there.iter().any(|known| known == name)).collect();
    assert!(missing.is_empty(), "neither a test nor a story: {missing:?}");
}

/// The functions of all Rust files, and the names of all stories.
fn collect(folder: &Path, there: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, there);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            there.push(path.file_stem().expect("a name").to_string_lossy().into_owned());
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let functions = text.split("fn ").skip(1);
            there.extend(functions.filter_map(|rest| rest.split(['(', '<']).next()).map(str::to_string));
        }
    }
}
