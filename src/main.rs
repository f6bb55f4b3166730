//! The `etcd-dr` binary: the umask, the TLS provider, the clock, the exit. All else is in the library.

use std::process::ExitCode;

use jiff::Timestamp;

fn main() -> ExitCode {
    // Before the first file is opened: nothing that this program writes is for others to read.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    ExitCode::from(etcd_dr::cli::main(std::env::args_os().collect(), etcd_dr::policy::environment(), now))
}
