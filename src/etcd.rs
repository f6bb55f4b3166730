//! etcd's own bytes: the database, the write-ahead log, the snap file, a member's data directory.
//!
//! Nothing here knows of backups, policies or the program around it. Files are foreign: every offset, length and count in them is a claim that
//! is bounded before it is used, reading is by position (no memory map: a file that shrinks under one kills the process), and no bytes make
//! it panic. The formats are those of etcd 3.4, 3.5 and 3.6 with bbolt file format 2; each parser names its source.

pub mod bbolt;
pub mod data_dir;
pub mod membership;
pub mod mvcc;
pub mod raft;
pub mod snap;
pub mod survey;
pub mod wal;

use std::{fmt, fs::File, io, str::FromStr};

use serde::{Deserialize, Serialize};

/// Bytes that can be read anywhere: a file, or an encrypted copy of one.
pub trait ReadAt: Send + Sync {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the source ends before; else what the system says.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Bytes in the source.
    ///
    /// # Errors
    /// What the system says.
    fn size(&self) -> io::Result<u64>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }
}

/// A minor release of etcd whose files can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Series {
    /// 3.4
    #[serde(rename = "3.4")]
    V3_4,
    /// 3.5
    #[serde(rename = "3.5")]
    V3_5,
    /// 3.6
    #[serde(rename = "3.6")]
    V3_6,
}

impl Series {
    /// Major and minor.
    #[must_use]
    pub fn numbers(self) -> (u32, u32) {
        match self {
            Self::V3_4 => (3, 4),
            Self::V3_5 => (3, 5),
            Self::V3_6 => (3, 6),
        }
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V3_4 => "3.4",
            Self::V3_5 => "3.5",
            Self::V3_6 => "3.6",
        })
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::V3_4, Self::V3_5, Self::V3_6];
        let found = known.into_iter().find(|series| series.to_string() == text);
        found.ok_or_else(|| format!("`{}` is none of 3.4, 3.5, 3.6", text.escape_debug()))
    }
}
