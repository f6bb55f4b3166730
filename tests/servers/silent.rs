//! An endpoint that is half open: the connection is accepted and nothing is ever said on it, not even TLS.

use super::background;
use super::ports::Port;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Accepts for as long as it lives.
pub struct Silent {
    port: Port,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Silent {
    /// On a port of its own.
    pub fn start() -> Self {
        Self::on(Port::take())
    }

    /// On a port that was taken before, since a member advertises it.
    pub fn on(port: Port) -> Self {
        let accepted = Arc::new(AtomicUsize::new(0));
        let address = ("127.0.0.1", port.number());
        let listener =
            super::wait(async move { TcpListener::bind(address).await }).expect("the port was taken for this");
        let counter = Arc::clone(&accepted);
        let task = background(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                held.push(stream);
            }
        });
        Self { port, accepted, task }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.port.url()
    }

    /// How many connections it accepted: a test asserts that it was asked at all.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
