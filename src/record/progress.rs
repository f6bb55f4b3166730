//! What an operation says while it works. Operations know no terminal; the drivers render these.

/// One step of a long operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A member's stream begins; `bytes` is what its Status said of the database's size.
    StreamStarted {
        /// The member's name.
        member: &'a str,
        /// Expected bytes of plaintext.
        bytes: u64,
    },
    /// So many bytes of plaintext arrived since the last event.
    StreamBytes {
        /// The member's name.
        member: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// The stream ended, well or not.
    StreamFinished {
        /// The member's name.
        member: &'a str,
    },
    /// A stored file is being re-opened.
    Proving {
        /// The file's name.
        file: &'a str,
    },
    /// The members are asked for their HashKV.
    Comparing {
        /// The revision that they are asked at.
        revision: i64,
    },
    /// The operation goes on, and this should be known.
    Warning(&'a str),
}

/// Receives what an operation says while it works.
pub trait Progress: Send + Sync {
    /// Takes one event; must not block for long.
    fn event(&self, event: Event<'_>);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
