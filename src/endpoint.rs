//! One member's client: status, member list, snapshot stream, HashKV.
//!
//! A client of its own for each member, since etcd-client balances over the endpoints that it is given, and a balanced Status says nothing
//! about a balanced Snapshot. Every call and every message has its own timeout: a deadline on the call bounds the response's head alone.

use std::{error::Error as _, fs, future::Future, path::Path, sync::Arc, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, SnapshotStreaming, TlsOptions};
use tonic::Code;

use crate::{
    at::{At as _, PathError},
    policy::{Backup, Cluster, Endpoint},
    record::{EtcdId, Sha256Hex},
};

/// Why a member did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that the client needs could not be read.
    #[error(transparent)]
    Io(#[from] PathError),
    /// No connection: address, TLS or name.
    #[error("{endpoint}: {call}: no connection: {cause}")]
    Connect {
        /// The client URL.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// What the layers below said, innermost last.
        cause: String,
    },
    /// The connection ended before the answer. With TLS 1.3 a server that refuses the client's certificate says so only after the handshake,
    /// and its reason may be overtaken by the connection's end.
    #[error(
        "{endpoint}: {call}: the server closed the connection, as one does that refuses the client: it was shown {shown}: {cause}"
    )]
    Closed {
        /// The client URL.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// The certificate that the client showed.
        shown: String,
        /// What the layers below said, innermost last.
        cause: String,
    },
    /// Nothing came within the time that the policy allows.
    #[error("{endpoint}: {call}: nothing came for {}s", waited.as_secs_f32())]
    Timeout {
        /// The client URL.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The server answered with an error.
    #[error("{endpoint}: {call}: {} ({code:?})", sentence(message))]
    Status {
        /// The client URL.
        endpoint: String,
        /// The call.
        call: &'static str,
        /// gRPC's code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// Another member answers on this channel than before the stream.
    #[error("{endpoint}: {before} answered before the stream and {after} after it: this address is not one member")]
    Changed {
        /// The client URL.
        endpoint: String,
        /// Who answered before.
        before: EtcdId,
        /// Who answers now.
        after: EtcdId,
    },
    /// The stream ended before the snapshot was whole.
    #[error("{endpoint}: the stream ended after {received} bytes: {problem}")]
    Short {
        /// The client URL.
        endpoint: String,
        /// Bytes that came.
        received: u64,
        /// What is missing.
        problem: String,
    },
}

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Once more, the same call.
    Retry,
    /// This member gives nothing; the run goes on with the others.
    Missing,
    /// Every member would say the same; the run ends.
    Fatal,
}

impl Error {
    /// What follows, by gRPC's code and the call.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Io(_) => Verdict::Fatal,
            // A snapshot that broke off is asked for once more; a member that did not even say its Status is not.
            Self::Connect { call, .. } | Self::Closed { call, .. } | Self::Timeout { call, .. }
                if *call == SNAPSHOT =>
            {
                Verdict::Retry
            }
            Self::Connect { .. } | Self::Closed { .. } | Self::Timeout { .. } | Self::Changed { .. } => {
                Verdict::Missing
            }
            Self::Short { .. } => Verdict::Retry,
            // The account, not the member, is the cause: etcd answers a wrong password with InvalidArgument.
            Self::Status { code: Code::InvalidArgument | Code::FailedPrecondition, call, .. }
                if *call == AUTHENTICATE =>
            {
                Verdict::Fatal
            }
            Self::Status { code, call, .. } => match code {
                // The account, not the member, is the cause.
                Code::Unauthenticated | Code::PermissionDenied => Verdict::Fatal,
                // Refused for good: asking again changes nothing.
                Code::Unimplemented
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange => Verdict::Missing,
                Code::Ok
                | Code::Cancelled
                | Code::Unknown
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::Internal
                | Code::Unavailable
                | Code::DataLoss => {
                    if *call == SNAPSHOT {
                        Verdict::Retry
                    } else {
                        Verdict::Missing
                    }
                }
            },
        }
    }
}

/// gRPC's messages are unbounded, and may hold line breaks.
fn sentence(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// The login, which etcd calls so.
pub const AUTHENTICATE: &str = "Authenticate";
const STATUS: &str = "Status";
const MEMBER_LIST: &str = "MemberList";
const SNAPSHOT: &str = "Snapshot";
const HASH_KV: &str = "HashKV";

/// Pause before a member that lags is asked for its HashKV again.
const BETWEEN_HASHES: Duration = Duration::from_millis(200);

/// What every connection needs: TLS, login, timeouts.
#[derive(Clone)]
pub struct Dialer {
    options: ConnectOptions,
    login: Option<(String, String)>,
    shown: Arc<str>,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

impl Dialer {
    /// Reads the certificates that the policy names.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read.
    pub fn new(cluster: &Cluster, backup: &Backup) -> Result<Self, Error> {
        let mut tls = TlsOptions::new();
        if let Some(path) = &cluster.ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(read(path)?));
        }
        if let Some(client) = &cluster.client {
            tls = tls.identity(Identity::from_pem(read(&client.cert_file)?, read(&client.key_file)?));
        }
        let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(backup.connect_timeout);
        let mut login = None;
        if let Some(user) = &cluster.user {
            let password =
                String::from_utf8_lossy(&read(&user.password_file)?).trim_end_matches(['\r', '\n']).to_owned();
            login = Some((user.user.clone(), password));
        }
        let shown = match &cluster.client {
            Some(client) => format!("certificate {}", client.cert_file.display()),
            None => "no certificate".to_owned(),
        };
        Ok(Self {
            options,
            login,
            shown: shown.into(),
            connect_timeout: backup.connect_timeout,
            stall_timeout: backup.stall_timeout,
        })
    }

    /// A client for one endpoint. The connection is made by the first call.
    ///
    /// # Errors
    /// [`Error::Connect`] and, where the policy has a login, what that said.
    pub async fn dial(&self, endpoint: &Endpoint) -> Result<MemberClient, Error> {
        let address = Address { url: endpoint.to_string(), shown: Arc::clone(&self.shown) };
        let client = match &self.login {
            None => self.connect(&address, self.options.clone()).await?,
            Some((user, password)) => {
                let options = self.options.clone().with_user(user, password);
                match self.connect(&address, options).await {
                    // As etcd's own client does: a cluster without authentication needs no login.
                    Err(Error::Status { code: Code::FailedPrecondition, message, .. })
                        if message.contains("authentication is not enabled") =>
                    {
                        self.connect(&address, self.options.clone()).await?
                    }
                    other => other?,
                }
            }
        };
        Ok(MemberClient { client, address, connect_timeout: self.connect_timeout, stall_timeout: self.stall_timeout })
    }

    async fn connect(&self, address: &Address, options: ConnectOptions) -> Result<Client, Error> {
        // The client's future is large, and `dial` would hold three of it.
        let connecting = Box::pin(Client::connect([address.url.as_str()], Some(options)));
        within(address, AUTHENTICATE, self.connect_timeout, connecting).await
    }
}

/// Who is asked, and what is shown there.
#[derive(Clone)]
struct Address {
    url: String,
    shown: Arc<str>,
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    Ok(fs::read(path).at(path)?)
}

/// A member as the member list names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedMember {
    /// Its id.
    pub id: EtcdId,
    /// Its name; empty until it has started.
    pub name: String,
    /// URLs for the other members.
    pub peer_urls: Vec<String>,
    /// URLs for clients; empty until it has started.
    pub client_urls: Vec<String>,
    /// A learner does not vote.
    pub learner: bool,
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Who answered.
    pub member: EtcdId,
    /// Its cluster.
    pub cluster: EtcdId,
    /// etcd's version.
    pub version: String,
    /// Bytes of its database file.
    pub db_size: u64,
    /// Its revision.
    pub revision: i64,
    /// The leader that it knows of; 0 where there is none.
    pub leader: u64,
    /// Whether it says that it is a learner.
    pub learner: bool,
    /// Alarms and complaints, in its words. They come from here since the Alarm call needs a quorum.
    pub errors: Vec<String>,
}

/// A member's own hash of its key space at the revision that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    /// Who answered.
    pub member: EtcdId,
    /// The hash: CRC-32C over revisions and records.
    pub hash: u32,
    /// The member's compact revision when it hashed; hashes compare only where this is equal.
    pub compact_revision: i64,
}

/// One endpoint's client; a clone shares its connection.
#[derive(Clone)]
pub struct MemberClient {
    client: Client,
    address: Address,
    connect_timeout: Duration,
    stall_timeout: Duration,
}

impl MemberClient {
    /// The client URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.address.url
    }

    /// Asks who answers here, and how it is.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn status(&mut self) -> Result<Status, Error> {
        let answer = within(&self.address, STATUS, self.connect_timeout, self.client.status()).await?;
        let header = answer.header();
        Ok(Status {
            member: EtcdId(header.map_or(0, etcd_client::ResponseHeader::member_id)),
            cluster: EtcdId(header.map_or(0, etcd_client::ResponseHeader::cluster_id)),
            version: answer.version().to_owned(),
            db_size: u64::try_from(answer.db_size()).unwrap_or(0),
            revision: header.map_or(0, etcd_client::ResponseHeader::revision),
            leader: answer.leader(),
            learner: answer.is_learner(),
            errors: answer.errors().iter().map(|error| sentence(error)).collect(),
        })
    }

    /// The member list as this member knows it (serializable, so that it answers without a quorum), and its cluster's id.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn member_list(&mut self) -> Result<(EtcdId, Vec<ListedMember>), Error> {
        let answer = within(&self.address, MEMBER_LIST, self.connect_timeout, self.client.member_list()).await?;
        let cluster = EtcdId(answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id));
        let members = answer.members().iter().map(|member| ListedMember {
            id: EtcdId(member.id()),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            client_urls: member.client_urls().to_vec(),
            learner: member.is_learner(),
        });
        Ok((cluster, members.collect()))
    }

    /// Asks for the HashKV at `revision`, as this member alone computes it.
    ///
    /// A member that has not applied that revision yet is asked again until `patience` is over: it answers "future revision".
    ///
    /// # Errors
    /// [`Error`]; [`Error::Status`] with `OutOfRange` where the member compacted beyond the revision, or never came so far.
    pub async fn hash_kv(&mut self, revision: i64, patience: Duration) -> Result<HashKv, Error> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            // Hashing reads the whole key space: the time for it is that of a stream's silence, not of a connection.
            let answer = within(&self.address, HASH_KV, self.stall_timeout, self.client.hash_kv(revision)).await;
            match answer {
                Err(Error::Status { code: Code::OutOfRange, message, .. })
                    if message.contains("future revision") && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(BETWEEN_HASHES).await;
                }
                Err(error) => return Err(error),
                Ok(answer) => {
                    return Ok(HashKv {
                        member: EtcdId(answer.header().map_or(0, etcd_client::ResponseHeader::member_id)),
                        hash: answer.hash(),
                        compact_revision: answer.compact_version(),
                    });
                }
            }
        }
    }

    /// Begins a snapshot.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn snapshot(&mut self) -> Result<SnapshotStream, Error> {
        let stream = within(&self.address, SNAPSHOT, self.stall_timeout, self.client.snapshot()).await?;
        Ok(SnapshotStream {
            stream,
            address: self.address.clone(),
            stall_timeout: self.stall_timeout,
            received: 0,
            remaining: None,
            trailer: None,
        })
    }
}

/// A snapshot as it arrives: data in chunks of some 32 KiB, then the trailer in a message of its own.
///
/// etcd counts `remaining_bytes` down to 0 with the last data, and sends the SHA-256 of all data behind it (etcd-format.md, 5). A stream that
/// ends otherwise was cut off, whatever its closing status says.
pub struct SnapshotStream {
    stream: SnapshotStreaming,
    address: Address,
    stall_timeout: Duration,
    received: u64,
    remaining: Option<u64>,
    trailer: Option<Sha256Hex>,
}

impl SnapshotStream {
    /// The next bytes of the file, trailer included; null at the end of a whole one.
    ///
    /// # Errors
    /// [`Error::Timeout`] when no message came in time, [`Error::Status`], [`Error::Short`].
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        loop {
            let message = within(&self.address, SNAPSHOT, self.stall_timeout, self.stream.message()).await?;
            let Some(message) = message else { return self.end().map(|()| None) };
            let message = message.0;
            if message.blob.is_empty() {
                continue;
            }
            if self.trailer.is_some() {
                return Err(self.short("bytes follow the trailer"));
            }
            let bytes = message.blob.len() as u64;
            if self.remaining == Some(0) {
                let trailer = <[u8; 32]>::try_from(message.blob.as_slice())
                    .map_err(|_cause| self.short("the trailer is not 32 bytes long"))?;
                self.trailer = Some(Sha256Hex(trailer));
            } else {
                let before = self.remaining.unwrap_or_else(|| message.remaining_bytes.saturating_add(bytes));
                if message.remaining_bytes.checked_add(bytes) != Some(before) {
                    return Err(self.short("remaining_bytes does not fit what came"));
                }
                self.remaining = Some(message.remaining_bytes);
            }
            self.received = self.received.saturating_add(bytes);
            return Ok(Some(message.blob));
        }
    }

    /// The SHA-256 that etcd sent, once the stream is at its end.
    #[must_use]
    pub fn trailer(&self) -> Option<Sha256Hex> {
        self.trailer
    }

    fn end(&self) -> Result<(), Error> {
        match (self.remaining, self.trailer) {
            (Some(0), Some(_)) => Ok(()),
            (Some(0), None) => Err(self.short("the trailer is missing")),
            (Some(left), _) => Err(self.short(&format!("{left} bytes are missing"))),
            (None, _) => Err(self.short("it held nothing")),
        }
    }

    fn short(&self, problem: &str) -> Error {
        Error::Short { endpoint: self.address.url.clone(), received: self.received, problem: problem.to_owned() }
    }
}

/// Runs one call under its timeout and gives its error the endpoint's name.
async fn within<T>(
    address: &Address,
    call: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Err(_elapsed) => Err(Error::Timeout { endpoint: address.url.clone(), call, waited: limit }),
        Ok(result) => result.map_err(|error| from_client(address, call, &error)),
    }
}

fn from_client(address: &Address, call: &'static str, error: &etcd_client::Error) -> Error {
    let endpoint = address.url.clone();
    let cause = match error {
        // A status that the client made itself, because there was no connection, carries the cause; one from the server has none.
        etcd_client::Error::GRpcStatus(status) if status.source().is_none() => {
            return Error::Status { endpoint, call, code: status.code(), message: status.message().to_owned() };
        }
        etcd_client::Error::GRpcStatus(status) => causes(status),
        etcd_client::Error::TransportError(error) => causes(error),
        other => sentence(&other.to_string()),
    };
    // What rustls, hyper and the system call the end of a connection from the other side.
    let closed = ["received fatal alert", "operation was canceled", "connection reset", "broken pipe"];
    let words = cause.to_lowercase();
    if closed.iter().any(|word| words.contains(word)) {
        return Error::Closed { endpoint, call, shown: address.shown.to_string(), cause };
    }
    Error::Connect { endpoint, call, cause }
}

/// The innermost two of an error's causes, outer first: the outer ones are "transport error" and the like.
fn causes(error: &dyn std::error::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = sentence(&cause.to_string());
        if !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        next = cause.source();
    }
    let useful: Vec<_> = words.iter().filter(|word| word.as_str() != "transport error").cloned().collect();
    if useful.is_empty() { sentence(&error.to_string()) } else { useful.join(": ") }
}
