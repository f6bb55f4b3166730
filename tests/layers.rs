//! The rooms of the crate documentation hold: no arrow goes up, operations share nothing sideways, and what one room alone may do is done there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    missing_docs,
    reason = "a failed test is a panic"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Rooms whose files must not know each other.
const SIDE_BY_SIDE: [&str; 1] = ["ops"];

/// What only some rooms may do, by the text that does it.
const ALONE: [(&str, &[&str], &[&str]); 5] = [
    ("reads the environment", &["env::var"], &["policy"]),
    ("prints", &["print!(", "println!(", "dbg!(", "io::stdout(", "io::stderr("], &["cli"]),
    ("exits", &["process::exit", "process::abort"], &["main"]),
    ("reads the clock", &["Timestamp::now(", "Zoned::now(", "SystemTime::now("], &["main"]),
    ("renames", &["fs::rename", "renameat"], &["durable"]),
];

/// One file under `src`.
struct Source {
    /// Relative to `src`.
    path: String,
    /// Its code; comments are blanked, so that lines and columns stay.
    code: String,
}

impl Source {
    /// The first component: the room that the file belongs to.
    fn room(&self) -> &str {
        let first = self.path.split('/').next().unwrap();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// The second component, in rooms that have more than one file.
    fn part(&self) -> Option<&str> {
        let second = self.path.split('/').nth(1)?;
        Some(second.strip_suffix(".rs").unwrap_or(second))
    }

    /// Modules from the crate's root down to the file's own.
    fn depth(&self) -> usize {
        self.path.split('/').count()
    }

    fn place(&self, offset: usize) -> String {
        format!("src/{}:{}", self.path, self.code[..offset].matches('\n').count() + 1)
    }
}

/// A path that code names, without the `crate::` before it.
struct Arrow {
    offset: usize,
    segments: Vec<String>,
}

fn src() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))
}

fn sources() -> Vec<Source> {
    let mut sources: Vec<Source> = walkdir::WalkDir::new(src())
        .into_iter()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"))
        .map(|entry| Source {
            path: entry.path().strip_prefix(src()).unwrap().to_str().unwrap().to_owned(),
            code: without_comments(&fs::read_to_string(entry.path()).unwrap()),
        })
        .collect();
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// Line comments become spaces. What stands behind `//` in a string is lost too, which hides nothing that is looked for here.
fn without_comments(text: &str) -> String {
    let blank = |line: &str| match line.find("//") {
        Some(at) => format!("{}{}", &line[..at], " ".repeat(line.len() - at)),
        None => line.to_owned(),
    };
    text.lines().map(blank).collect::<Vec<_>>().join("\n")
}

/// The list in the crate documentation, top first.
fn rooms() -> Vec<String> {
    let text = fs::read_to_string(src().join("lib.rs")).unwrap();
    let lines = text.lines().map(|line| line.trim_start_matches("//!").trim());
    let list = lines.skip_while(|line| *line != "```rooms").skip(1).take_while(|line| *line != "```");
    list.map(|line| line.split_whitespace().next().expect("each line names a room").to_owned()).collect()
}

/// Every path behind `start` in `code`, groups in braces spread out.
fn arrows(code: &str, start: &str) -> Vec<Arrow> {
    let mut found = Vec::new();
    for (offset, _) in code.match_indices(start) {
        if code[..offset].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
            continue;
        }
        let mut rest = &code[offset + start.len()..];
        for (behind, segments) in tree(&mut rest) {
            found.push(Arrow { offset: code.len() - behind, segments });
        }
    }
    found
}

/// Reads one path or group of a `use`, and leaves what stands behind it. With each path comes the length of the text from its last name on.
fn tree(rest: &mut &str) -> Vec<(usize, Vec<String>)> {
    *rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        *rest = group;
        let mut all = Vec::new();
        loop {
            *rest = rest.trim_start();
            if let Some(behind) = rest.strip_prefix('}') {
                *rest = behind;
                return all;
            }
            all.extend(tree(rest));
            // A rename may stand before the comma.
            let end = rest.find([',', '}']).expect("a group of a use ends");
            *rest = rest[end..].trim_start_matches(',');
        }
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(rest.len());
    let name = rest[..end].to_owned();
    let length = rest.len();
    *rest = &rest[end..];
    let Some(below) = rest.strip_prefix("::") else { return vec![(length, vec![name])] };
    *rest = below;
    tree(rest).into_iter().map(|(length, path)| (length, [vec![name.clone()], path].concat())).collect()
}

#[test]
fn the_list_names_every_room_and_no_other() {
    let listed = rooms();
    let set: BTreeSet<&str> = listed.iter().map(String::as_str).collect();
    assert_eq!(set.len(), listed.len(), "a room is listed twice: {listed:?}");
    let sources = sources();
    let there: BTreeSet<&str> = sources.iter().map(Source::room).filter(|room| *room != "lib").collect();
    assert_eq!(set, there, "left: the list in src/lib.rs; right: what is under src");
}

#[test]
fn no_arrow_goes_up() {
    let order = rooms();
    let height = |room: &str| order.iter().position(|listed| listed == room);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for source in sources().iter().filter(|source| source.room() != "lib") {
        let mut found = arrows(&source.code, "crate::");
        // As many steps up as the file is deep, or one from a room's first file, lead to the same place; fewer stay in the room.
        found.extend(arrows(&source.code, "super::").into_iter().filter(|arrow| {
            let first = &arrow.segments[0];
            let own = src().join(source.room()).join(format!("{first}.rs"));
            let steps = 1 + arrow.segments.iter().take_while(|segment| *segment == "super").count();
            (steps > 1 && steps >= source.depth())
                || (source.part().is_none() && order.contains(first) && !own.exists())
        }));
        for arrow in found {
            seen += 1;
            let target = arrow.segments.iter().find(|segment| *segment != "super").unwrap();
            let place = source.place(arrow.offset);
            match (height(source.room()), height(target)) {
                (Some(from), Some(to)) if to >= from => {}
                (Some(_), Some(_)) => wrong.push(format!("{place}: {} may not know {target}", source.room())),
                (_, None) => wrong.push(format!("{place}: {target} is no room")),
                (None, _) => wrong.push(format!("{place}: {} is no room", source.room())),
            }
        }
    }
    assert!(wrong.is_empty(), "the order is in src/lib.rs:\n{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} arrows were read");
}

#[test]
fn operations_do_not_know_each_other() {
    let mut wrong = Vec::new();
    let mut parts = 0;
    for source in sources().iter().filter(|source| SIDE_BY_SIDE.contains(&source.room())) {
        let Some(part) = source.part() else { continue };
        parts += 1;
        let sibling = |name: &str| name != part && src().join(source.room()).join(format!("{name}.rs")).exists();
        for arrow in arrows(&source.code, "crate::") {
            if let [room, name, ..] = arrow.segments.as_slice()
                && room == source.room()
                && sibling(name)
            {
                wrong.push(format!("{}: {part} uses {name}", source.place(arrow.offset)));
            }
        }
        for arrow in arrows(&source.code, "super::") {
            if let Some(name) = arrow.segments.iter().find(|segment| *segment != "super")
                && sibling(name)
                && !src().join(source.room()).join(part).join(format!("{name}.rs")).exists()
            {
                wrong.push(format!("{}: {part} uses {name}", source.place(arrow.offset)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(parts > 2, "only {parts} operations were read");
}

#[test]
fn what_one_room_alone_does_is_done_there() {
    let sources = sources();
    let mut wrong = Vec::new();
    for (what, texts, rooms) in ALONE {
        for source in sources.iter().filter(|source| !rooms.contains(&source.room())) {
            for text in texts {
                for (offset, _) in source.code.match_indices(text) {
                    wrong.push(format!(
                        "{}: {} {what} ({text}), only {rooms:?} does",
                        source.place(offset),
                        source.room()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
