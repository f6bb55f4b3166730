//! README says what is: its exit codes, its paths, and the commands that it tells people to paste.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// Lines of the shell blocks, without their comments.
fn commands(readme: &str) -> Vec<&str> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside {
            lines.push(line.split(" # ").next().unwrap().trim());
        }
    }
    lines
}

#[test]
fn every_exit_code_is_listed_and_no_other() {
    let source = fs::read_to_string(root().join("src/cli/error.rs")).unwrap();
    let constant =
        |line: &str| line.strip_prefix("pub const ")?.split_once(": u8 = ")?.1.strip_suffix(';')?.parse().ok();
    let mut built: BTreeSet<u8> = source.lines().filter_map(constant).collect();
    assert!(built.len() > 10, "{built:?}");
    built.insert(0);

    let readme = readme();
    let table = readme.split("## Exit codes").nth(1).unwrap().split("\n## ").next().unwrap();
    let code = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse().ok();
    let listed: BTreeSet<u8> = table.lines().filter_map(code).collect();
    assert_eq!(listed, built, "left: README.md; right: src/cli/error.rs");
}

#[test]
fn every_path_of_the_project_that_it_names_is_there() {
    let readme = readme();
    let words = readme.split(|c: char| c.is_whitespace() || "`()[],;:".contains(c));
    let ours = ["scripts/", "policies/", "packaging/", "LICENSE-"];
    let named: BTreeSet<&str> = words.filter(|word| ours.iter().any(|start| word.starts_with(start))).collect();
    assert!(named.len() > 6, "{named:?}");
    for path in named {
        assert!(root().join(path.trim_end_matches('.')).exists(), "README.md names {path}");
    }
}

#[test]
fn every_command_it_gives_is_understood() {
    let readme = readme();
    let mut seen = 0;
    for line in commands(&readme).into_iter().filter(|line| line.starts_with("etcd-dr ")) {
        seen += 1;
        let words = line.split(" >").next().unwrap().split_whitespace().skip(1);
        // The help is printed only if all before it was understood, and nothing is done.
        let output = Command::new(env!("CARGO_BIN_EXE_etcd-dr")).args(words).arg("--help").output().unwrap();
        assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(seen > 5, "only {seen} commands were seen");
}
