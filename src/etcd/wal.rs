//! The write-ahead log: the one that a restored member starts with, and what the tail of a stopped member's says.
//!
//! A segment is a sequence of frames, little-endian, with zeros behind the last one:
//!
//! ```text
//! u64 length | record | padding to 8 bytes      the length's low 56 bits are the record's; its top byte is 0x80 | bytes of padding, or 0
//! record = { 1 type, 2 crc, 3 data }            protobuf; crc is a CRC-32C over the data of all records so far
//! ```
//!
//! Format: etcd 3.6 `server/storage/wal/encoder.go`, `decoder.go`, `walpb/record.proto`; confirmed on logs of etcd 3.4, 3.5 and 3.6.
#![deny(clippy::arithmetic_side_effects)]

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use super::{
    membership::Member,
    mvcc::{Malformed, proto::Fields},
    raft::{self, ConfState, HardState},
};

/// Name of the only segment of a restored member.
pub const FIRST_SEGMENT: &str = "0000000000000000-0000000000000000.wal";
/// Bytes that etcd preallocates for a segment.
pub const SEGMENT_BYTES: u64 = 64_000_000;

const METADATA: u64 = 1;
const ENTRY: u64 = 2;
const STATE: u64 = 3;
const CRC: u64 = 4;
const SNAPSHOT: u64 = 5;

/// A file is torn in whole sectors.
const SECTOR: usize = 512;
/// Largest record that is read; etcd itself takes no request that comes near.
const MOST_RECORD: u64 = 256 << 20;

/// The log of a restored member: metadata, an entry that adds each member, the state that has them agreed, and the snapshot that holds them.
///
/// `members` are all of them in the order of their ids, `id` is the one whose log it is. With `conf_state` the last record names the voters,
/// as etcd's tools do from 3.5 on; 3.4's do not, and its server does not mind. Zeros to [`SEGMENT_BYTES`] follow on the disk.
#[must_use]
pub fn of_restored_member(id: u64, cluster_id: u64, members: &[Member], conf_state: bool) -> Vec<u8> {
    let mut log = Encoder::default();
    let mut data = Vec::new();
    raft::put(&mut data, 1, id);
    raft::put(&mut data, 2, cluster_id);
    log.push(CRC, None);
    log.push(METADATA, Some(&data));
    log.push(SNAPSHOT, Some(&snapshot(0, 0, None)));
    let mut last = 0;
    for (member, index) in members.iter().zip(1..) {
        log.push(ENTRY, Some(&raft::entry_that_adds(member, index)));
        last = index;
    }
    let vote = members.first().map_or(0, |member| member.id);
    log.push(STATE, Some(&HardState { term: 1, vote, commit: last }.to_bytes()));
    let voters = conf_state.then(|| ConfState::of(members));
    log.push(SNAPSHOT, Some(&snapshot(last, 1, voters.as_ref())));
    log.bytes
}

fn snapshot(index: u64, term: u64, conf_state: Option<&ConfState>) -> Vec<u8> {
    let mut data = Vec::new();
    raft::put(&mut data, 1, index);
    raft::put(&mut data, 2, term);
    if let Some(conf_state) = conf_state {
        raft::put_message(&mut data, 3, &conf_state.to_bytes());
    }
    data
}

#[derive(Default)]
struct Encoder {
    bytes: Vec<u8>,
    crc: u32,
}

impl Encoder {
    fn push(&mut self, kind: u64, data: Option<&[u8]>) {
        let mut record = Vec::new();
        self.crc = crc32c::crc32c_append(self.crc, data.unwrap_or_default());
        raft::put(&mut record, 1, kind);
        raft::put(&mut record, 2, u64::from(self.crc));
        if let Some(data) = data {
            raft::put_message(&mut record, 3, data);
        }
        let length = record.len() as u64;
        let padding = padding(length);
        let field = if padding == 0 { length } else { length | ((0x80 | padding) << 56) };
        self.bytes.extend_from_slice(&field.to_le_bytes());
        self.bytes.extend_from_slice(&record);
        self.bytes.extend(std::iter::repeat_n(0, usize::try_from(padding).unwrap_or(0)));
    }
}

fn padding(length: u64) -> u64 {
    length.wrapping_neg() & 7
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system does not give the bytes.
    #[error("{}: {source}", path.display())]
    Io {
        /// The segment, or the directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// There is no log.
    #[error("{}: there is no segment of a write-ahead log", .0.display())]
    None(PathBuf),
    /// A record is not what was written.
    #[error("{}: the record at offset {offset}: {problem}", path.display())]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where its frame begins.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// What the tail of a member's log says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    /// The member's id.
    pub member: u64,
    /// Its cluster's id.
    pub cluster: u64,
    /// Its promises, and the last entry that is agreed.
    pub state: HardState,
    /// The last entry that is there, or that the newest snapshot covers.
    pub last_index: u64,
    /// The newest snapshot that the log knows of: index.
    pub snapshot_index: u64,
    /// Offset, in the last segment, of a record that was being written when the machine stopped: the log ends before it.
    pub torn: Option<u64>,
}

impl Tail {
    /// Entries that are agreed and that a database with this consistent index does not have.
    #[must_use]
    pub fn ahead_of(&self, consistent_index: u64) -> u64 {
        self.state.commit.saturating_sub(consistent_index)
    }
}

/// Reads all segments of a log in their order.
///
/// A record that was being written when the machine stopped ends the log, as it does for etcd; it can only be the last segment's. A segment that
/// is missing between two others is seen by the CRC that the later one begins with.
///
/// # Errors
/// [`Error`].
pub fn read(dir: &Path) -> Result<Tail, Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        if is_segment(&path) {
            segments.push(path);
        }
    }
    segments.sort();
    let Some((newest, older)) = segments.split_last() else { return Err(Error::None(dir.to_owned())) };
    let mut reading = Reading::default();
    for path in older.iter().chain([newest]) {
        let file = File::open(path).map_err(at(path))?;
        let size = file.metadata().map_err(at(path))?.len();
        let reader = BufReader::new(file);
        let mut segment = Segment { path, size, offset: 0, last: path == newest, torn: None, reader };
        while let Some(record) = segment.next(&mut reading.crc)? {
            let damaged = |problem| Error::Damaged { path: path.clone(), offset: record.offset, problem };
            reading.take(&record).map_err(damaged)?;
        }
        reading.tail.torn = segment.torn;
    }
    // Without it nothing else was said either, and nothing is not a lag of 0.
    if !reading.named {
        let problem = "no record before it says which member's log this is".to_owned();
        return Err(Error::Damaged { path: newest.clone(), offset: reading.tail.torn.unwrap_or(0), problem });
    }
    let Tail { last_index, snapshot_index, .. } = reading.tail;
    Ok(Tail { last_index: last_index.max(snapshot_index), ..reading.tail })
}

/// `<16 hex digits>-<16 hex digits>.wal`; etcd keeps others beside them while it prepares the next.
fn is_segment(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let hex = |part: &str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.strip_suffix(".wal").and_then(|name| name.split_once('-')).is_some_and(|(a, b)| hex(a) && hex(b))
}

/// A log that is being read.
#[derive(Default)]
struct Reading {
    tail: Tail,
    crc: u32,
    /// Whether the metadata came: each segment repeats it.
    named: bool,
}

impl Reading {
    fn take(&mut self, record: &Record) -> Result<(), String> {
        let malformed = |error: Malformed| error.to_string();
        let number = |wanted: u32| -> Result<u64, String> {
            let mut value = 0;
            for field in Fields::new(&record.data) {
                let field = field.map_err(malformed)?;
                if field.number == wanted {
                    value = field.varint().map_err(malformed)?;
                }
            }
            Ok(value)
        };
        let tail = &mut self.tail;
        match record.kind {
            METADATA => {
                let (member, cluster) = (number(1)?, number(2)?);
                if self.named && (member, cluster) != (tail.member, tail.cluster) {
                    return Err(format!("it names member {member:x} of cluster {cluster:x}; the log is another's"));
                }
                (tail.member, tail.cluster, self.named) = (member, cluster, true);
            }
            // An entry follows the one before, or takes the place of what was not agreed, or follows a snapshot that the leader sent.
            ENTRY => {
                let (index, last) = (number(3)?, tail.last_index.max(tail.snapshot_index));
                if tail.last_index != 0 && index > last.saturating_add(1) {
                    return Err(format!("it is entry {index}, and the one before is {last}"));
                }
                tail.last_index = index;
            }
            STATE => tail.state = HardState::parse(&record.data).map_err(malformed)?,
            SNAPSHOT => tail.snapshot_index = tail.snapshot_index.max(number(1)?),
            CRC => {}
            kind => return Err(format!("its type is {kind}; etcd has {METADATA} to {SNAPSHOT}")),
        }
        Ok(())
    }
}

struct Record {
    offset: u64,
    kind: u64,
    data: Vec<u8>,
}

struct Segment<'a> {
    path: &'a Path,
    size: u64,
    offset: u64,
    last: bool,
    /// Where a record begins that was not written to its end.
    torn: Option<u64>,
    reader: BufReader<File>,
}

impl Segment<'_> {
    /// The next record, its data checked against the chain of CRCs; nothing at the end, or where the last segment is torn.
    fn next(&mut self, crc: &mut u32) -> Result<Option<Record>, Error> {
        let offset = self.offset;
        let left = self.size.saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        if left < 8 {
            return self.broken(offset, &[], "the file ends in its length");
        }
        let mut field = [0; 8];
        self.fill(&mut field)?;
        let field = u64::from_le_bytes(field);
        if field == 0 {
            return self.ended(offset);
        }
        let length = field & ((1 << 56) - 1);
        let [.., top] = field.to_le_bytes();
        let padding = if top & 0x80 == 0 { 0 } else { u64::from(top & 7) };
        let framed = length.saturating_add(padding);
        if framed > left.saturating_sub(8) {
            return self.broken(offset, &[], "it is longer than what is left of the file");
        }
        if framed > MOST_RECORD {
            let problem = format!("it has {framed} bytes; {MOST_RECORD} are the most that are read");
            return Err(Error::Damaged { path: self.path.to_owned(), offset, problem });
        }
        let mut frame = vec![0; usize::try_from(framed).unwrap_or(usize::MAX)];
        self.fill(&mut frame)?;
        let record = frame.get(..usize::try_from(length).unwrap_or(usize::MAX)).unwrap_or_default();
        let (mut kind, mut written, mut data) = (0, 0, Vec::new());
        for part in Fields::new(record) {
            let part = match part.and_then(|part| {
                match part.number {
                    1 => kind = part.varint()?,
                    2 => written = part.varint()?,
                    3 => data = part.bytes()?.to_vec(),
                    _ => {}
                }
                Ok(())
            }) {
                Ok(()) => continue,
                Err(error) => error.to_string(),
            };
            return self.broken(offset, &frame, &part);
        }
        let Ok(written) = u32::try_from(written) else {
            return self.broken(offset, &frame, "its CRC has more than 32 bits");
        };
        if kind == CRC {
            // A segment begins with what the one before ended on; the first that is left of a log may begin anywhere.
            if *crc != 0 && *crc != written {
                return self.broken(offset, &frame, "it does not continue the segment before");
            }
            *crc = written;
        } else {
            let found = crc32c::crc32c_append(*crc, &data);
            if found != written {
                return self.broken(offset, &frame, &format!("its CRC is {found:08x}, {written:08x} was written"));
            }
            *crc = found;
        }
        Ok(Some(Record { offset, kind, data }))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(buffer).map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
        self.offset = self.offset.saturating_add(buffer.len() as u64);
        Ok(())
    }

    /// Zeros follow to the end of the file. Where they do not, a later sector came to the disk and this one did not.
    fn ended(&mut self, offset: u64) -> Result<Option<Record>, Error> {
        if !self.last {
            return Ok(None);
        }
        loop {
            let bytes = self.reader.fill_buf().map_err(|source| Error::Io { path: self.path.to_owned(), source })?;
            if bytes.is_empty() {
                return Ok(None);
            }
            if bytes.iter().any(|byte| *byte != 0) {
                self.torn = Some(offset);
                return Ok(None);
            }
            let read = bytes.len();
            self.reader.consume(read);
        }
    }

    /// What could not be read is the end where the machine stopped in the middle of it: the last segment, and a sector that is still zero.
    fn broken(&mut self, offset: u64, frame: &[u8], problem: &str) -> Result<Option<Record>, Error> {
        let begin = usize::try_from(offset.saturating_add(8)).ok().and_then(|at| at.checked_rem(SECTOR)).unwrap_or(0);
        let (head, rest) = frame.split_at_checked(SECTOR.saturating_sub(begin)).unwrap_or((frame, &[]));
        let zero = |sector: &[u8]| !sector.is_empty() && sector.iter().all(|byte| *byte == 0);
        let torn = zero(head) || rest.chunks(SECTOR).any(zero);
        if self.last && (torn || frame.is_empty()) {
            self.torn = Some(offset);
            return Ok(None);
        }
        Err(Error::Damaged { path: self.path.to_owned(), offset, problem: problem.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::etcd::membership::{cluster_id, tests::three};

    fn hex(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    fn of_m1(conf_state: bool) -> Vec<u8> {
        let members = three();
        let m1 = members.iter().find(|member| member.name == "m1").unwrap().id;
        of_restored_member(m1, cluster_id(members.iter().map(|member| member.id)), &members, conf_state)
    }

    fn read_bytes(bytes: &[u8]) -> Result<Tail, Error> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FIRST_SEGMENT), bytes).unwrap();
        read(dir.path())
    }

    /// What the official tools wrote for the same members; zeros follow in the file, so the last one that is written cannot be told from them.
    #[test]
    fn a_restored_members_log_is_the_official_tools() {
        for (conf_state, length, sha) in [
            (true, 528, "c335ee9e4ac5164486f03e6ecf86640be0b5e07bee0b1003968b0b9a9e26e8bd"),
            (false, 496, "cd3cf3e498abc74e56b695be7e8b3e1bc9a4ee9f8029e46880d3529d023ae370"),
        ] {
            let mut log = of_m1(conf_state);
            log.truncate((log.iter().rposition(|byte| *byte != 0).unwrap() + 1).next_multiple_of(8));
            assert_eq!((log.len(), hex(&log).as_str()), (length, sha));
        }
    }

    #[test]
    fn it_reads_back() {
        let mut bytes = of_m1(true);
        bytes.resize(4096, 0);
        let tail = read_bytes(&bytes).unwrap();
        let state = HardState { term: 1, vote: 0x117b_9266_988c_4966, commit: 3 };
        let expected = Tail {
            member: 0x95dc_b2c5_cb14_27d6,
            cluster: 0xec9d_d700_b095_9a79,
            state,
            last_index: 3,
            snapshot_index: 3,
            torn: None,
        };
        assert_eq!(tail, expected);
        assert_eq!((tail.ahead_of(1), tail.ahead_of(3), tail.ahead_of(4)), (2, 0, 0));
        assert!(matches!(read(tempfile::tempdir().unwrap().path()), Err(Error::None(_))));
    }

    #[test]
    fn a_changed_byte_is_damage_and_a_torn_end_is_an_end() {
        let good = of_m1(true);
        let mut padded = good.clone();
        padded.resize(4096, 0);
        // In a member's JSON: the frame holds, the CRC does not.
        let mut bad = padded.clone();
        bad[160] ^= 1;
        let error = read_bytes(&bad).unwrap_err().to_string();
        assert!(error.contains("its CRC is"), "{error}");
        // The file ends inside a record.
        let short = read_bytes(&good[..good.len() - 20]).unwrap();
        assert_eq!((short.snapshot_index, short.torn), (0, Some(472)));
        // What was not yet written of a record is zero from a sector's edge on: here the record that crosses it.
        let mut torn = padded;
        torn[512..].fill(0);
        let tail = read_bytes(&torn).unwrap();
        assert_eq!((tail.snapshot_index, tail.torn), (0, Some(472)));
    }

    /// A log that grows, after a segment that ended on `crc`.
    fn segment(crc: u32, records: &[(u64, Vec<u8>)]) -> (Vec<u8>, u32) {
        let mut log = Encoder { crc, ..Encoder::default() };
        log.push(CRC, None);
        for (kind, data) in records {
            log.push(*kind, Some(data));
        }
        (log.bytes, log.crc)
    }

    fn whose(member: u64) -> (u64, Vec<u8>) {
        let mut data = Vec::new();
        raft::put(&mut data, 1, member);
        raft::put(&mut data, 2, 5);
        (METADATA, data)
    }

    fn entry(index: u64) -> (u64, Vec<u8>) {
        let mut data = Vec::new();
        raft::put(&mut data, 1, 0);
        raft::put(&mut data, 2, 2);
        raft::put(&mut data, 3, index);
        raft::put_message(&mut data, 4, &[7; 700]);
        (ENTRY, data)
    }

    fn state(commit: u64) -> (u64, Vec<u8>) {
        (STATE, HardState { term: 2, vote: 3, commit }.to_bytes())
    }

    fn read_all(segments: &[&[u8]]) -> Result<Tail, Error> {
        let dir = tempfile::tempdir().unwrap();
        for (sequence, bytes) in segments.iter().enumerate() {
            fs::write(dir.path().join(format!("{sequence:016x}-{sequence:016x}.wal")), bytes).unwrap();
        }
        fs::write(dir.path().join("0.tmp"), [1; 64]).unwrap();
        read(dir.path())
    }

    /// Entry 3 is replaced, segment 2 goes on, and what it ends on is not agreed yet.
    fn two() -> (Vec<u8>, Vec<u8>) {
        let first = [whose(3), entry(1), entry(2), entry(3), entry(3), state(3)];
        let (first, crc) = segment(0, &first);
        let (second, _) = segment(crc, &[whose(3), state(3), entry(4), entry(5), state(4)]);
        (first, second)
    }

    #[test]
    fn segments_are_one_log() {
        let (mut first, mut second) = two();
        let expected = Tail {
            member: 3,
            cluster: 5,
            state: HardState { term: 2, vote: 3, commit: 4 },
            last_index: 5,
            snapshot_index: 0,
            torn: None,
        };
        assert_eq!(read_all(&[&first, &second]).unwrap(), expected);
        // The oldest are removed in time.
        assert_eq!(read_all(&[&second]).unwrap(), expected);
        first.resize(8192, 0);
        second.resize(8192, 0);
        assert_eq!(read_all(&[&first, &second]).unwrap(), expected);
        // Each cut of the last one is an end, and none of the others is.
        let (first, second) = two();
        for cut in (1..second.len()).step_by(7) {
            let tail = read_all(&[&first, &second[..cut]]).unwrap();
            assert!(tail.state.commit == 3 && tail.torn.is_none_or(|torn| torn < cut as u64), "{cut}: {tail:?}");
        }
        for cut in (1..first.len()).step_by(7) {
            assert!(read_all(&[&first[..cut], &second]).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_lost_length_is_no_quiet_end() {
        let (first, mut second) = two();
        second.resize(4096, 0);
        // Entry 4 is the first long one.
        let long = |bytes: &[u8]| bytes[1] == 2 && bytes[2..7] == [0; 5];
        let at = (0..second.len()).step_by(8).find(|at| long(&second[*at..at + 8])).unwrap();
        second[at..at + 8].fill(0);
        assert_eq!(read_all(&[&first, &second]).unwrap().torn, Some(at as u64));
    }

    #[test]
    fn a_log_that_says_nothing_is_not_one_without_lag() {
        for bytes in [&[0; 4096][..], &[1][..], &segment(0, &[state(9)]).0] {
            let error = read_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains("which member's log"), "{error}");
        }
    }

    #[test]
    fn entries_are_without_a_gap_but_for_a_snapshot_of_the_leaders() {
        let (gap, _) = segment(0, &[whose(3), entry(1), entry(3)]);
        let error = read_bytes(&gap).unwrap_err().to_string();
        assert!(error.ends_with("it is entry 3, and the one before is 1"), "{error}");
        let (sent, _) = segment(0, &[whose(3), entry(1), (SNAPSHOT, snapshot(9, 2, None)), entry(10)]);
        assert_eq!(read_bytes(&sent).unwrap().last_index, 10);
        let (covered, _) = segment(0, &[whose(3), entry(1), (SNAPSHOT, snapshot(9, 2, None))]);
        assert_eq!(read_bytes(&covered).unwrap().last_index, 9);
    }

    #[test]
    fn what_no_etcd_writes_is_damage() {
        let (other, _) = segment(0, &[whose(3), whose(4)]);
        let error = read_bytes(&other).unwrap_err().to_string();
        assert!(error.ends_with("it names member 4 of cluster 5; the log is another's"), "{error}");
        let (kind, _) = segment(0, &[whose(3), (9, vec![1])]);
        let error = read_bytes(&kind).unwrap_err().to_string();
        assert!(error.ends_with("its type is 9; etcd has 1 to 5"), "{error}");
        // A file of holes is as long as it likes.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FIRST_SEGMENT);
        fs::write(&path, (1_u64 << 38).to_le_bytes()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(1 << 39).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("it has 274877906944 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(places in prop::collection::vec((0_usize..600, any::<u8>()), 1..20), cut in 0_usize..600) {
            let mut bytes = of_m1(true);
            for (place, value) in places {
                if let Some(byte) = bytes.get_mut(place) {
                    *byte = value;
                }
            }
            bytes.truncate(cut.max(8));
            drop(read_bytes(&bytes));
        }
    }
}
