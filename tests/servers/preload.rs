//! The shim that kills a process at a chosen durable step: `tests/faults/killstep.c`, compiled once per test process.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tempfile::NamedTempFile;

/// Builds the shim, if that was not done yet, and returns the path for `LD_PRELOAD`.
pub fn build() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/killstep.c");
        let Some(target) = option_env!("CARGO_TARGET_TMPDIR").map(Path::new) else {
            panic!("cargo names a temporary directory to tests, not to examples");
        };
        // Under its name it is always whole, whoever else builds it at the same time.
        let building = NamedTempFile::new_in(target).expect("a temporary file").into_temp_path();
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&building)
            .arg(&source)
            .arg("-ldl")
            .status()
            .unwrap_or_else(|e| panic!("no C compiler (cc), run scripts/servers: {e}"));
        assert!(status.success(), "{} does not compile", source.display());
        // Processes of other users load it too.
        std::fs::set_permissions(&building, Permissions::from_mode(0o755)).expect("our file");
        let shim = target.join("killstep.so");
        building.persist(&shim).expect("the shim under its name");
        shim
    })
}

/// What a process under the shim is to suffer.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Kill at this step, counted from 1.
    pub kill_at: Option<usize>,
    /// Kill after the step was done instead of before.
    pub after: bool,
    /// Turn a bit in the middle of files whose path contains this, after their fsync.
    pub flip: Option<String>,
    /// How many files; once if not given.
    pub flip_count: Option<usize>,
}

impl Steps {
    /// Puts the shim into the environment of `command`; every step is logged to `log`, and so is every flip.
    pub fn apply(&self, command: &mut Command, log: &Path) {
        command.env("LD_PRELOAD", build()).env("KILLSTEP_LOG", log);
        if let Some(n) = self.kill_at {
            command.env("KILLSTEP_AT", n.to_string());
            command.env("KILLSTEP_WHEN", if self.after { "after" } else { "before" });
        }
        if let Some(part) = &self.flip {
            command.env("KILLSTEP_FLIP", part);
        }
        if let Some(n) = self.flip_count {
            command.env("KILLSTEP_FLIP_COUNT", n.to_string());
        }
    }
}

/// The steps in a log, one line each: `n name path`.
pub fn steps(log: &Path) -> Vec<String> {
    lines(log, |line| line.starts_with(|c: char| c.is_ascii_digit()))
}

/// The paths of the files in which a bit was turned.
pub fn flips(log: &Path) -> Vec<String> {
    lines(log, |line| line.starts_with("flip "))
        .iter()
        .filter_map(|line| line.strip_prefix("flip "))
        .map(str::to_owned)
        .collect()
}

fn lines(log: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    match std::fs::read_to_string(log) {
        Ok(text) => text.lines().filter(|line| wanted(line)).map(str::to_owned).collect(),
        // No step, no file.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => panic!("{}: {e}", log.display()),
    }
}
