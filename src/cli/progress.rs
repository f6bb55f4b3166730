//! Progress bars on a terminal, and log lines that do not tear them.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::record::{Event, Progress};

/// The terminal, or nothing where stderr is none.
#[derive(Clone)]
pub struct Screen {
    bars: MultiProgress,
    by_member: Arc<Mutex<BTreeMap<String, ProgressBar>>>,
}

impl Screen {
    /// Draws on stderr unless `quiet` or piped.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self { bars: MultiProgress::with_draw_target(target), by_member: Arc::default() }
    }

    fn bar(&self, member: &str) -> Option<ProgressBar> {
        self.by_member.lock().unwrap_or_else(PoisonError::into_inner).get(member).cloned()
    }
}

impl Progress for Screen {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::StreamStarted { member, bytes } => {
                let bar = self.bars.add(ProgressBar::new(bytes));
                let style = "{prefix:>16} {bar:30} {binary_bytes:>11} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
                bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                bar.set_prefix(member.to_owned());
                self.by_member.lock().unwrap_or_else(PoisonError::into_inner).insert(member.to_owned(), bar);
            }
            Event::StreamBytes { member, bytes } => {
                if let Some(bar) = self.bar(member) {
                    bar.inc(bytes);
                }
            }
            Event::StreamFinished { member } => {
                if let Some(bar) = self.bar(member) {
                    bar.finish_and_clear();
                }
            }
            Event::Proving { file } => {
                let spinner = self.bars.add(ProgressBar::new_spinner());
                spinner.set_message(format!("re-opening {file}"));
                spinner.enable_steady_tick(Duration::from_millis(200));
                if let Some(before) =
                    self.by_member.lock().unwrap_or_else(PoisonError::into_inner).insert("\0proof".to_owned(), spinner)
                {
                    before.finish_and_clear();
                }
            }
            Event::Comparing { revision } => {
                let spinner = self.bars.add(ProgressBar::new_spinner());
                spinner.set_message(format!("asking the members for their HashKV at revision {revision}"));
                spinner.enable_steady_tick(Duration::from_millis(200));
                if let Some(before) =
                    self.by_member.lock().unwrap_or_else(PoisonError::into_inner).insert("\0proof".to_owned(), spinner)
                {
                    before.finish_and_clear();
                }
            }
            Event::Warning(text) => tracing::warn!("{text}"),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if Arc::strong_count(&self.by_member) == 1 && self.bars.clear().is_err() {
            tracing::debug!("the terminal went away");
        }
    }
}

/// Plain lines on stderr: level, words, fields. The time is cron's, systemd's or the terminal's to add.
pub fn init_logs(screen: &Screen, quiet: bool, verbose: u8) {
    let (ours, others) = match (quiet, verbose) {
        (true, _) => (tracing::Level::WARN, tracing::Level::ERROR),
        (false, 0) => (tracing::Level::INFO, tracing::Level::ERROR),
        (false, 1) => (tracing::Level::DEBUG, tracing::Level::WARN),
        (false, _) => (tracing::Level::TRACE, tracing::Level::INFO),
    };
    let filter = Targets::new().with_target("etcd_dr", ours).with_default(others);
    let bars = screen.bars.clone();
    let lines = fmt::layer()
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .with_writer(move || Line(bars.clone()))
        .with_filter(filter);
    // Set twice only where a test calls in twice; the first stays.
    if tracing_subscriber::registry().with(lines).try_init().is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// Writes between the bars.
struct Line(MultiProgress);

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
