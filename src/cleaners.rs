//! What else on this host deletes files by age and names a store's path: cron, systemd and tmpfiles.d.
//!
//! An old `find /backup/etcd -mtime +5 -delete` would eat backups that retention keeps. Lines are named by file and number and never
//! quoted, since people write passwords into crontabs. The scan is text only: a path that is put together from variables of other files is
//! not seen, and a script is read one level deep, where a line calls it by its absolute path.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Files above this size are no crontabs, units or scripts.
const MAX_BYTES: u64 = 1 << 20;

/// A line that names a store's path, or a directory above it from which it deletes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cleaner {
    /// The crontab, unit, tmpfiles.d file or script.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// The path that it names: the store or a directory above it.
    pub names: PathBuf,
    /// How sure it is that something is deleted.
    pub risk: Risk,
    /// The file and line that call the script, where the line is in one.
    pub called_from: Option<(PathBuf, usize)>,
}

/// How sure it is that something is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// It names the path.
    Names,
    /// It names the path, and deletes.
    Deletes,
    /// systemd-tmpfiles empties it by age or at boot.
    Ages,
}

impl fmt::Display for Cleaner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.display();
        write!(f, "{}, line {}", self.file.display(), self.line)?;
        if let Some((file, line)) = &self.called_from {
            write!(f, " (called from {}, line {line})", file.display())?;
        }
        match self.risk {
            Risk::Names => {
                write!(
                    f,
                    ", names {names}: if it cleans up there, as `find -mtime -delete` does, it would eat the backups"
                )
            }
            Risk::Deletes => write!(f, ", names {names} and deletes files: it would eat the backups; remove that line"),
            Risk::Ages => {
                write!(f, ", has systemd-tmpfiles empty {names}: it would eat the backups; exclude the store there")
            }
        }
    }
}

/// What a scan found, and where it could not look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scan {
    /// In the order of files and lines.
    pub cleaners: Vec<Cleaner>,
    /// Files and directories that could not be read: what they hold is not known.
    pub unread: Vec<PathBuf>,
}

/// Places under the system's root, and how the files there are to be read.
const PLACES: [(&str, Kind); 17] = [
    ("etc/crontab", Kind::Crontab),
    ("etc/anacrontab", Kind::Crontab),
    ("etc/cron.d", Kind::Crontab),
    ("var/spool/cron", Kind::Crontab),
    ("var/spool/cron/crontabs", Kind::Crontab),
    ("etc/cron.hourly", Kind::Script),
    ("etc/cron.daily", Kind::Script),
    ("etc/cron.weekly", Kind::Script),
    ("etc/cron.monthly", Kind::Script),
    ("etc/cron.yearly", Kind::Script),
    ("etc/systemd/system", Kind::Unit),
    ("run/systemd/system", Kind::Unit),
    ("usr/lib/systemd/system", Kind::Unit),
    ("usr/local/lib/systemd/system", Kind::Unit),
    ("etc/tmpfiles.d", Kind::Tmpfiles),
    ("run/tmpfiles.d", Kind::Tmpfiles),
    ("usr/lib/tmpfiles.d", Kind::Tmpfiles),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crontab,
    Script,
    Unit,
    Tmpfiles,
}

/// Reads cron's, systemd's and tmpfiles.d's files under `system_root` (`/` but in tests) and names every line that speaks of `store`.
#[must_use]
pub fn scan(system_root: &Path, store: &Path) -> Scan {
    let store = std::path::absolute(store).unwrap_or_else(|_empty| store.to_owned());
    let mut scan = Scanner { root: system_root, store: &store, seen: BTreeSet::new(), found: Scan::default() };
    for (place, kind) in PLACES {
        scan.place(&system_root.join(place), kind);
    }
    scan.found.cleaners.sort();
    scan.found.unread.sort();
    scan.found
}

struct Scanner<'a> {
    root: &'a Path,
    store: &'a Path,
    /// A script is read once, whoever calls it.
    seen: BTreeSet<PathBuf>,
    found: Scan,
}

impl Scanner<'_> {
    fn place(&mut self, path: &Path, kind: Kind) {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => self.directory(path, kind),
            Ok(_) => self.file(path, kind, None),
            Err(error) => self.missed(path, &error),
        }
    }

    fn directory(&mut self, path: &Path, kind: Kind) {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) => return self.missed(path, &error),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
        paths.sort();
        for path in paths {
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            match (kind, path.is_dir()) {
                // Drop-ins, `x.service.d/*.conf`; `*.wants` holds links to units that are read anyway.
                (Kind::Unit, true) if extension == "d" => self.directory(&path, kind),
                (Kind::Unit, false) if !["service", "timer", "conf"].contains(&extension) => {}
                (Kind::Tmpfiles, false) if extension != "conf" => {}
                (_, true) => {}
                (_, false) => self.file(&path, kind, None),
            }
        }
    }

    fn missed(&mut self, path: &Path, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            tracing::debug!(path = %path.display(), %error, "not read while looking for cleaners");
            self.found.unread.push(path.to_owned());
        }
    }

    fn file(&mut self, path: &Path, kind: Kind, caller: Option<&(PathBuf, usize)>) {
        if !self.seen.insert(path.to_owned()) {
            return;
        }
        let text = match read_text(path) {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err(error) => return self.missed(path, &error),
        };
        let lines = logical_lines(&text);
        // In a script, the path and the deletion need not share a line.
        let deletes_somewhere = lines.iter().any(|(_, line)| deletes(line));
        for (number, line) in &lines {
            let line = line.as_str();
            // What else a unit says of a path, as `ReadWritePaths=` does, deletes nothing.
            if kind == Kind::Unit && !line.trim_start().starts_with("Exec") {
                continue;
            }
            let found = match kind {
                Kind::Tmpfiles => self.tmpfiles_line(line),
                Kind::Script => self.command_line(line, deletes_somewhere),
                Kind::Crontab | Kind::Unit => self.command_line(line, false),
            };
            if let Some((names, risk)) = found {
                let called_from = caller.cloned();
                self.found.cleaners.push(Cleaner { file: path.to_owned(), line: *number, names, risk, called_from });
            }
            if caller.is_none() && kind != Kind::Tmpfiles {
                self.called(path, *number, line);
            }
        }
    }

    /// Scripts that a line calls by their absolute path.
    fn called(&mut self, path: &Path, number: usize, line: &str) {
        for word in words(line) {
            let Some(inside) = word.strip_prefix('/') else { continue };
            // What the kernel shows there names every mount and runs nothing.
            if inside.starts_with("proc/") || inside.starts_with("sys/") {
                continue;
            }
            let script = self.root.join(inside);
            if fs::metadata(&script).is_ok_and(|meta| meta.is_file()) {
                self.file(&script, Kind::Script, Some(&(path.to_owned(), number)));
            }
        }
    }

    /// A line of a shell. The store counts by name alone, a directory above it where the line deletes there, or where a script that deletes
    /// goes there first.
    fn command_line(&self, line: &str, script_deletes: bool) -> Option<(PathBuf, Risk)> {
        let words: Vec<&str> = words(line).collect();
        let deletes_here = deletes(line);
        let mut named: Vec<&Path> = words.iter().filter_map(|word| meets(word, self.store)).collect();
        named.sort();
        let dir = *named.last()?;
        let risk = if dir == self.store {
            // Our own lines name the store without harm.
            let is_ours = words.iter().any(|word| *word == "etcd-dr" || word.ends_with("/etcd-dr"));
            match (deletes_here || script_deletes, is_ours) {
                (true, _) => Risk::Deletes,
                (false, true) => return None,
                (false, false) => Risk::Names,
            }
        } else if deletes_here {
            Risk::Deletes
        } else if script_deletes && goes_to(line, dir) {
            Risk::Names
        } else {
            return None;
        };
        Some((dir.to_owned(), risk))
    }

    /// A line of tmpfiles.d(5): type, path, mode, user, group, age.
    fn tmpfiles_line(&self, line: &str) -> Option<(PathBuf, Risk)> {
        let mut fields = line.split_whitespace();
        let kind = fields.next()?;
        let dir = meets(fields.next()?.trim_matches(['"', '\'']), self.store)?;
        let age = fields.nth(3).is_some_and(|age| age != "-");
        let ages = age && kind.starts_with(['d', 'D', 'e', 'v', 'q', 'Q', 'C']);
        // `r` removes no directory that has something in it.
        let empties = kind.starts_with(['D', 'R']) || (kind.starts_with('r') && dir == self.store);
        match (ages || empties, dir == self.store) {
            (true, _) => Some((dir.to_owned(), Risk::Ages)),
            // `x` and `X` exclude; the rest makes or changes something.
            (false, true) if !kind.starts_with(['x', 'X']) => Some((dir.to_owned(), Risk::Names)),
            (false, _) => None,
        }
    }
}

/// The text of a regular file that is not a binary.
fn read_text(path: &Path) -> io::Result<Option<String>> {
    let meta = fs::metadata(path)?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        return Ok(None);
    }
    let bytes = fs::read(path)?;
    Ok((!bytes.contains(&0)).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Lines without comments, those that end in a backslash joined to the next; each has the number of its first.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut joined = false;
    for (index, line) in text.lines().enumerate() {
        let (line, goes_on) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        match lines.last_mut() {
            Some((_, earlier)) if joined => {
                earlier.push(' ');
                earlier.push_str(line);
            }
            _ => lines.push((index.saturating_add(1), line.to_owned())),
        }
        joined = goes_on;
    }
    lines.retain(|(_, line)| !line.trim_start().starts_with(['#', ';']));
    lines
}

/// What a shell would see as words, assignments and options cut at `=`, quotes left away; the default in `${DIR:-/backup}` is a word too.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let separates = |c: char| c.is_whitespace() || "\"'`=;|&()<>,:".contains(c);
    line.split(separates).map(default_of_variable).filter(|word| !word.is_empty())
}

fn default_of_variable(word: &str) -> &str {
    match word.strip_prefix('-') {
        Some(rest) if rest.starts_with('/') => rest.trim_end_matches('}'),
        _ => word,
    }
}

/// Whether a line of a script makes `dir` the place where later lines work: `cd dir`, or `NAME=dir`.
fn goes_to(line: &str, dir: &Path) -> bool {
    let words: Vec<&str> = words(line).collect();
    let is_dir = |word: &str| Path::new(word) == dir;
    let changes = words.windows(2).any(|pair| matches!(pair, [cd, to] if ["cd", "pushd"].contains(cd) && is_dir(to)));
    let value = line.split_once('=').filter(|(name, _)| {
        let name = name.split_whitespace().last().unwrap_or_default();
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    });
    changes || value.is_some_and(|(_, value)| is_dir(value.trim().trim_matches(['"', '\''])))
}

/// Whether a line holds a command that deletes.
fn deletes(line: &str) -> bool {
    const COMMANDS: [&str; 7] = ["rm", "unlink", "shred", "tmpreaper", "tmpwatch", "rmdir", "truncate"];
    words(line).any(|word| {
        let command = word.rsplit('/').next().unwrap_or(word).trim_start_matches(['-', '@', '+', '!']);
        word == "-delete" || word == "--delete" || (COMMANDS.contains(&command) && !word.starts_with("--"))
    })
}

/// The store, where a word is its path, a pattern for it, or something in it; the directory above it that a word is, or is a pattern for.
fn meets<'a>(word: &str, store: &'a Path) -> Option<&'a Path> {
    let parts: Vec<&str> = word.strip_prefix('/')?.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let wanted: Vec<_> = store.components().skip(1).map(|part| part.as_os_str().to_string_lossy()).collect();
    let fits = parts.iter().zip(&wanted).all(|(part, name)| part_matches(part.as_bytes(), name.as_bytes()));
    // The root is above everything and says nothing; `/*` is more often the rest of `"$DIR"/*`.
    let is_rooted = parts.first().is_some_and(|part| !part.contains(['*', '?']));
    let above = wanted.len().saturating_sub(parts.len());
    if fits && is_rooted { store.ancestors().nth(above) } else { None }
}

/// `*` and `?` within one component. Patterns are a person's, short; the loop is quadratic at worst.
fn part_matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut reachable = vec![true];
    reachable.extend(name.iter().map(|_| false));
    for &symbol in pattern {
        let mut next = vec![symbol == b'*' && reachable.first() == Some(&true)];
        for (&byte, pair) in name.iter().zip(reachable.windows(2)) {
            let (before, here) = (pair.first() == Some(&true), pair.last() == Some(&true));
            let after = next.last() == Some(&true);
            next.push(match symbol {
                b'*' => here || after,
                b'?' => before,
                _ => before && symbol == byte,
            });
        }
        reachable = next;
    }
    reachable.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(file: &str, text: &str, store: &str) -> Vec<(usize, String, Risk)> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        let scan = scan(root.path(), Path::new(store));
        assert!(scan.unread.is_empty());
        scan.cleaners.into_iter().map(|c| (c.line, c.names.to_str().unwrap().to_owned(), c.risk)).collect()
    }

    fn one(file: &str, text: &str) -> Option<(usize, String, Risk)> {
        let mut all = scanned(file, text, "/backup/etcd");
        assert!(all.len() < 2, "{all:?}");
        all.pop()
    }

    #[test]
    fn the_stores_path_is_found_as_a_shell_would_see_it() {
        let store = "/backup/etcd".to_owned();
        for (command, risk) in [
            ("find /backup/etcd -mtime +5 -delete", Risk::Deletes),
            ("find /backup/etcd/ -mtime +5 -exec rm {} \\;", Risk::Deletes),
            ("rm -f /backup/etcd/*.db", Risk::Deletes),
            ("cd \"/backup/etcd\" && ls | xargs /bin/rm", Risk::Deletes),
            ("rsync -a --delete /empty/ /backup/etcd", Risk::Deletes),
            ("rm -rf /backup/etc?", Risk::Deletes),
            ("rm -rf /backup/*", Risk::Deletes),
            ("etcdctl snapshot save /backup/etcd/x.db", Risk::Names),
            ("echo ${DIR:-/backup/etcd}", Risk::Names),
            ("DIR=/backup/etcd /usr/local/bin/clean", Risk::Names),
        ] {
            let line = format!("# comment about /backup/etcd rm\n0 2 * * * root {command}\n");
            assert_eq!(one("etc/cron.d/x", &line), Some((2, store.clone(), risk)), "{command}");
        }
    }

    #[test]
    fn other_paths_and_our_own_lines_are_not() {
        for command in [
            "find /backup/etcd-old -mtime +5 -delete",
            "find /mnt/backup/etcd -mtime +5 -delete",
            "find /backup/postgres -mtime +5 -delete",
            "find / -xdev -name core -delete",
            "rm -rf /backup/p*",
            "ls /backup",
            "etcd-dr backup --store /backup/etcd",
            "/usr/bin/etcd-dr verify --store=/backup/etcd",
        ] {
            assert_eq!(one("etc/crontab", &format!("0 2 * * * root {command}\n")), None, "{command}");
        }
    }

    #[test]
    fn a_directory_above_counts_where_it_is_deleted_from() {
        let above = Some((1, "/backup".to_owned(), Risk::Deletes));
        for command in ["find /backup -mtime +5 -delete", "rm -rf /backup", "tmpreaper 5d /backup/"] {
            assert_eq!(one("var/spool/cron/crontabs/root", &format!("0 2 * * * {command}\n")), above, "{command}");
        }
    }

    #[test]
    fn units_count_by_what_they_execute() {
        let unit = "[Service]\nReadWritePaths=/backup/etcd\nExecStart=/bin/sh -c \\\n  'find /backup/etcd -delete'\n";
        assert_eq!(one("etc/systemd/system/old.service", unit), Some((3, "/backup/etcd".to_owned(), Risk::Deletes)));
        let drop_in = "[Service]\nExecStartPost=rm -rf /backup/etcd/old\n";
        let found = one("etc/systemd/system/old.service.d/more.conf", drop_in);
        assert_eq!(found, Some((2, "/backup/etcd".to_owned(), Risk::Deletes)));
        assert_eq!(one("etc/systemd/system/old.socket", unit), None);
    }

    #[test]
    fn tmpfiles_age_and_empty_directories() {
        let store = "/backup/etcd".to_owned();
        for (line, found) in [
            ("d /backup/etcd 0700 root root 5d", Some((1, store.clone(), Risk::Ages))),
            ("D /backup/etcd 0700 root root -", Some((1, store.clone(), Risk::Ages))),
            ("R! /backup/etcd", Some((1, store.clone(), Risk::Ages))),
            ("e /backup - - - 10d", Some((1, "/backup".to_owned(), Risk::Ages))),
            ("r /backup/*", Some((1, store.clone(), Risk::Ages))),
            ("r /backup", None),
            ("r! /backup/p*/old", None),
            ("d /backup/etcd 0755 root root -", Some((1, store, Risk::Names))),
            ("x /backup/etcd", None),
            ("d /backup 0755 root root -", None),
            ("d /backup/postgres 0755 root root 5d", None),
        ] {
            assert_eq!(one("usr/lib/tmpfiles.d/x.conf", line), found, "{line}");
        }
    }

    #[test]
    fn a_script_that_deletes_counts_where_it_goes_above_the_store() {
        let script = |line: &str| one("etc/cron.daily/x", &format!("#!/bin/sh\n{line}\nfind . -mtime +5 -delete\n"));
        let above = Some((2, "/backup".to_owned(), Risk::Names));
        for line in ["cd /backup", "if cd /backup/; then", "DIR=\"/backup\"", "export DIR=/backup"] {
            assert_eq!(script(line), above, "{line}");
        }
        for line in ["DIR=\"${CACHE}/backup/\"", "=item /backup", "if ($dir =~ m!^(/backup)/x!)", "cd /srv"] {
            assert_eq!(script(line), None, "{line}");
        }
    }

    #[test]
    fn a_script_is_read_one_level_deep_and_never_quoted() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let cron = write("etc/cron.d/etcd", "SHELL=/bin/sh\n0 2 * * * root TOKEN=hunter2 /opt/backup.sh\n");
        let script =
            write("opt/backup.sh", "#!/bin/sh\nDIR=/backup/etcd\n/opt/deeper.sh\nfind $DIR -mtime +5 -delete\n");
        write("opt/deeper.sh", "rm -rf /backup/etcd\n");
        write("bin/sh", "\0ELF /backup/etcd");
        let scan = scan(root.path(), Path::new("/backup/etcd/"));
        let [found] = scan.cleaners.as_slice() else { panic!("{scan:?}") };
        assert_eq!((found.file.clone(), found.line, found.risk), (script, 2, Risk::Deletes));
        assert_eq!(found.called_from, Some((cron, 2)));
        assert!(!found.to_string().contains("hunter2"));
    }
}
