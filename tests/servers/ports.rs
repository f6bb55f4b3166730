//! Ports on 127.0.0.1 that nobody else will take.

use std::fs::File;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range from which the kernel takes ports for outgoing connections (32768 and up), so that no client of another
/// test can sit on a port between its choice and the server's bind.
const FIRST: u16 = 11_000;
const COUNT: u16 = 20_000;

/// A port of our own until it is dropped: a lock on a file keeps other test processes away from it, even while its server is
/// stopped on purpose.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Takes a free port.
    pub fn take() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = std::env::temp_dir().join(format!("etcd-dr-test-ports-{}", rustix::process::getuid().as_raw()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        // Processes begin at different places; the locks decide where they meet.
        let begin = u16::try_from(std::process::id() * 131 % u32::from(COUNT)).expect("below COUNT");
        for _ in 0..COUNT {
            let offset = (u32::from(begin) + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
            let number = FIRST + u16::try_from(offset).expect("below COUNT");
            let path = dir.join(number.to_string());
            let lock = File::create(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("no free port from {FIRST} to {}", FIRST + COUNT);
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.number)
    }
}
