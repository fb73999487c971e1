//! How `suture demo` ends when it cannot go on, and what else works without a configuration, as a process of its own.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;

fn demo(arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_suture"));
    command.arg("demo").args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().expect("suture starts").wait_with_output().expect("its end")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_reader_that_has_gone_ends_it_quietly() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = demo(&[], writer);
    assert_eq!(ended.status.signal(), Some(Signal::SIGPIPE as i32), "{}", ended.status);
    assert_eq!(stderr(&ended), "");
}

#[test]
fn a_full_disk_is_told() {
    let ended = demo(&[], File::options().write(true).open("/dev/full").expect("/dev/full"));
    assert_eq!(ended.status.code(), Some(1), "{}", ended.status);
    let said = stderr(&ended);
    assert!(said.contains("standard output cannot be written") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_folder_of_another_demo_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let other = File::create(folder.path().join("lock")).expect("a file");
    other.lock().expect("its lock");
    let ended = demo(&["--data", folder.path().to_str().expect("a path in UTF-8")], Stdio::null());
    assert_eq!(ended.status.code(), Some(1), "{}", ended.status);
    assert!(stderr(&ended).contains("another demo runs in this folder"), "{}", stderr(&ended));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1, "nothing is made in it");
}

#[test]
fn an_event_is_explained_without_a_configuration() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/synthea-surgery-transactions.ndjson");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_suture"));
    command.args(["ingest", "explain", samples, "--line", "1", "--json"]).env_remove("SUTURE_CONFIG");
    let ended = command.current_dir(elsewhere.path()).stdin(Stdio::null()).output().expect("suture starts");
    assert!(ended.status.success(), "{}", stderr(&ended));
    assert!(stderr(&ended).contains("these are the demo's rules"), "{}", stderr(&ended));
}
