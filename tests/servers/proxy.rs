//! A gRPC proxy that terminates TLS with the test authority, passes every call to a real member byte for byte, and misbehaves
//! where it is told to.
//!
//! It knows nothing of etcd's messages: a codec over raw bytes carries them, so what a client sees is what the member said,
//! the faults apart. Each fault counts when it *happens*, not when it is set up: a test asserts that its fault fired.

use super::etcd::{Cluster, Options};
use super::ports::Port;
use super::{background, pki::Pair, wait};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::server::{Connected, TlsConnectInfo};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};

pub const SNAPSHOT: &str = "/etcdserverpb.Maintenance/Snapshot";
pub const STATUS: &str = "/etcdserverpb.Maintenance/Status";
pub const HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
pub const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
pub const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
pub const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";
pub const RANGE: &str = "/etcdserverpb.KV/Range";
/// Every method.
pub const ANY: &str = "*";

/// What goes wrong with a call. Messages of a stream are counted from 1.
#[derive(Clone, Debug)]
pub enum Fault {
    /// After this many messages nothing comes any more; the connection stays open.
    Stall { after: usize },
    /// After this many messages the stream ends with `Unavailable`.
    Cut { after: usize },
    /// After at most this many messages the TCP connection is closed under the stream.
    HangUp { after: usize },
    /// After this many messages the stream ends as if all were well.
    End { after: usize },
    /// One bit of the byte in the middle of this message is turned. For a snapshot that byte is in the blob, which is nearly
    /// the whole message.
    Flip { message: usize },
    /// The last message is left out: for a snapshot, the trailer with the SHA-256.
    DropLast,
    /// A pause before each message.
    Slow(Duration),
    /// The call is accepted and never answered.
    Never,
    /// The call is refused with this code, and does not reach the member.
    Refuse(Code),
    /// This call and all later ones go to another member: a virtual address that moved.
    MoveTo(String),
}

/// A fault, the method it is for, and which calls of that method it takes.
#[derive(Clone, Debug)]
pub struct Rule {
    path: String,
    fault: Fault,
    skip: usize,
    times: usize,
}

impl Rule {
    /// Every call of `path` (or of [`ANY`]).
    pub fn new(path: &str, fault: Fault) -> Self {
        Self { path: path.to_owned(), fault, skip: 0, times: usize::MAX }
    }

    /// Lets the first `calls` calls through.
    pub fn skip(mut self, calls: usize) -> Self {
        self.skip = calls;
        self
    }

    /// Takes only so many calls, then no more.
    pub fn times(mut self, calls: usize) -> Self {
        self.times = calls;
        self
    }
}

/// How often a fault has happened.
#[derive(Clone, Debug, Default)]
pub struct Fired(Arc<AtomicUsize>);

impl Fired {
    /// So often, until now.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn fire(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Armed {
    rule: Rule,
    seen: usize,
    fired: Fired,
}

#[derive(Default)]
struct Counted {
    /// Place of each call among all calls of all proxies of this process.
    order: Vec<u64>,
    messages: usize,
}

struct Shared {
    tls: ClientTlsConfig,
    upstream: Mutex<Channel>,
    rules: Mutex<Vec<Armed>>,
    counted: Mutex<HashMap<String, Counted>>,
    connections: AtomicUsize,
}

/// Serves until it is dropped; then its connections are closed.
pub struct Proxy {
    port: Port,
    shared: Arc<Shared>,
    open: CancellationToken,
}

impl Proxy {
    /// In front of `upstream` (a URL of a member of `cluster`), with the server certificate that the members have.
    pub fn start(cluster: &Cluster, port: Port, upstream: &str) -> Self {
        let dir = cluster.pki().dir();
        let pair = Pair { cert: dir.join("server.crt"), key: dir.join("server.key") };
        Self::start_as(cluster, port, upstream, &pair)
    }

    /// [`Self::start`] with another server certificate, such as one for the wrong name.
    pub fn start_as(cluster: &Cluster, port: Port, upstream: &str, pair: &Pair) -> Self {
        Self::listen(cluster.pki().server_tls(pair), port, upstream, cluster.pki().client_tls(cluster.client_pair()))
    }

    /// At an address of `cluster`, in front of a member of another one, whose authority is another as well.
    pub fn astray(cluster: &Cluster, port: Port, other: &Cluster, i: usize) -> Self {
        let dir = cluster.pki().dir();
        let pair = Pair { cert: dir.join("server.crt"), key: dir.join("server.key") };
        let tls = other.pki().client_tls(other.client_pair());
        Self::listen(cluster.pki().server_tls(&pair), port, &other.endpoint(i), tls)
    }

    fn listen(server: ServerTlsConfig, port: Port, upstream: &str, tls: ClientTlsConfig) -> Self {
        let server = Server::builder().tls_config(server).expect("TLS of the proxy");
        let address = ("127.0.0.1", port.number());
        let listener = wait(async move { TcpListener::bind(address).await }).expect("the port was taken for this");
        let channel = dial(upstream.to_owned(), tls.clone());
        let shared = Arc::new(Shared {
            tls,
            upstream: Mutex::new(channel),
            rules: Mutex::default(),
            counted: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let open = CancellationToken::new();
        let (lines, calls) = (open.clone(), Arc::clone(&shared));
        let counter = Arc::clone(&shared);
        let incoming = TcpListenerStream::new(listener).map(move |stream| {
            counter.connections.fetch_add(1, Ordering::SeqCst);
            stream.map(|stream| Line::new(stream, lines.child_token()))
        });
        let service = tower::service_fn(move |request: http::Request<Body>| serve(Arc::clone(&calls), request));
        let closed = open.clone().cancelled_owned();
        background(async move { server.serve_with_incoming_shutdown(service, incoming, closed).await });
        Self { port, shared, open }
    }

    /// A cluster of `n` members, each of which advertises a proxy of its own: what a client learns from the member list leads
    /// through the proxies.
    pub fn before_each(n: usize, mut options: Options) -> (Cluster, Vec<Self>) {
        let ports: Vec<Port> = (0..n).map(|_| Port::take()).collect();
        options.advertise = ports.iter().map(|port| Some(port.url())).collect();
        let cluster = Cluster::start(n, options);
        let proxies =
            ports.into_iter().enumerate().map(|(i, port)| Self::start(&cluster, port, &cluster.endpoint(i))).collect();
        (cluster, proxies)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        self.port.url()
    }

    /// Sets up a fault; several may hit the same call, in the order in which they were set up.
    pub fn add(&self, rule: Rule) -> Fired {
        let fired = Fired::default();
        locked(&self.shared.rules).push(Armed { rule, seen: 0, fired: fired.clone() });
        fired
    }

    /// Behaves well from now on; streams that are under way keep their fault.
    pub fn heal(&self) {
        locked(&self.shared.rules).clear();
    }

    /// Passes all later calls to another address.
    pub fn move_to(&self, upstream: &str) {
        *locked(&self.shared.upstream) = dial(upstream.to_owned(), self.shared.tls.clone());
    }

    /// How many calls of this method came in, refused ones included; [`ANY`] is the sum.
    pub fn calls(&self, path: &str) -> usize {
        locked(&self.shared.counted).iter().filter(|(p, _)| path == ANY || *p == path).map(|(_, c)| c.order.len()).sum()
    }

    /// The place of each call of this method among the calls of all proxies: who was asked before whom.
    pub fn order(&self, path: &str) -> Vec<u64> {
        locked(&self.shared.counted).get(path).map(|c| c.order.clone()).unwrap_or_default()
    }

    /// How many messages of this method were sent on to clients.
    pub fn messages(&self, path: &str) -> usize {
        locked(&self.shared.counted).get(path).map_or(0, |c| c.messages)
    }

    /// How many TCP connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.open.cancel();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no panic while the lock is held")
}

fn dial(url: String, tls: ClientTlsConfig) -> Channel {
    wait(async move { lazily(url, tls) })
}

fn lazily(url: String, tls: ClientTlsConfig) -> Channel {
    Endpoint::from_shared(url)
        .and_then(|endpoint| endpoint.tls_config(tls))
        .expect("an upstream URL")
        .connect_timeout(Duration::from_secs(5))
        .initial_stream_window_size(Some(2 << 20))
        .initial_connection_window_size(Some(4 << 20))
        .connect_lazy()
}

type Answer = Response<ReceiverStream<Result<Bytes, Status>>>;

async fn serve(shared: Arc<Shared>, request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let line = request.extensions().get::<TlsConnectInfo<LineInfo>>().map(|tls| tls.get_ref().0.clone());
    let service = tower::service_fn(move |call| forward(Arc::clone(&shared), path.clone(), line.clone(), call));
    let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(usize::MAX);
    Ok(grpc.streaming(service, request).await)
}

async fn forward(
    shared: Arc<Shared>,
    path: http::uri::PathAndQuery,
    line: Option<CancellationToken>,
    request: Request<Streaming<Bytes>>,
) -> Result<Answer, Status> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let name = path.path().to_owned();
    let place = CALLS.fetch_add(1, Ordering::SeqCst);
    locked(&shared.counted).entry(name.clone()).or_default().order.push(place);

    let mut on_stream = Vec::new();
    for (fault, fired) in shared.faults_of(&name) {
        match fault {
            Fault::Refuse(code) => {
                fired.fire();
                return Err(Status::new(code, "refused by the test's proxy"));
            }
            Fault::Never => {
                fired.fire();
                std::future::pending::<()>().await;
            }
            Fault::MoveTo(url) => {
                fired.fire();
                *locked(&shared.upstream) = lazily(url, shared.tls.clone());
            }
            other => on_stream.push((other, fired)),
        }
    }

    let channel = locked(&shared.upstream).clone();
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client.ready().await.map_err(|e| Status::unavailable(format!("the member cannot be reached: {e}")))?;
    let (metadata, extensions, messages) = request.into_parts();
    drop(extensions);
    let onward = Request::from_parts(metadata, tonic::Extensions::default(), messages.map_while(Result::ok));
    let upstream = client.streaming(onward, path, Raw).await.map_err(|status| clean(&status))?.into_inner();

    let (tx, rx) = mpsc::channel(4);
    tokio::spawn(relay(shared, name, upstream, on_stream, tx, line));
    Ok(Response::new(ReceiverStream::new(rx)))
}

impl Shared {
    /// The faults of this call, which is counted by every rule that is for it.
    fn faults_of(&self, path: &str) -> Vec<(Fault, Fired)> {
        let mut faults = Vec::new();
        for armed in locked(&self.rules).iter_mut().filter(|armed| armed.rule.path == ANY || armed.rule.path == path) {
            let call = armed.seen;
            armed.seen += 1;
            if call >= armed.rule.skip && call - armed.rule.skip < armed.rule.times {
                faults.push((armed.rule.fault.clone(), armed.fired.clone()));
            }
        }
        faults
    }
}

/// What the member said, without its HTTP headers, which are the hop's own.
fn clean(status: &Status) -> Status {
    Status::with_details(status.code(), status.message(), Bytes::copy_from_slice(status.details()))
}

/// Passes the member's messages on, one behind, so that the last one is known as such.
async fn relay(
    shared: Arc<Shared>,
    name: String,
    mut upstream: Streaming<Bytes>,
    faults: Vec<(Fault, Fired)>,
    tx: mpsc::Sender<Result<Bytes, Status>>,
    line: Option<CancellationToken>,
) {
    let one_behind = faults.iter().any(|(fault, _)| matches!(fault, Fault::DropLast));
    let mut held: Option<Bytes> = None;
    let mut sent = 0;
    loop {
        for (fault, fired) in &faults {
            match fault {
                Fault::Stall { after } if sent == *after => {
                    fired.fire();
                    // Until the client gives up.
                    tx.closed().await;
                    return;
                }
                Fault::Cut { after } if sent == *after => {
                    fired.fire();
                    drop(tx.send(Err(Status::unavailable("cut by the test's proxy"))).await);
                    return;
                }
                Fault::HangUp { after } if sent == *after => {
                    // Lets the messages before it leave.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    if let Some(line) = &line {
                        fired.fire();
                        line.cancel();
                    }
                    tx.closed().await;
                    return;
                }
                Fault::End { after } if sent == *after => {
                    fired.fire();
                    return;
                }
                _ => {}
            }
        }
        let next = tokio::select! {
            next = upstream.message() => next,
            () = tx.closed() => return,
        };
        let message = match next {
            Ok(Some(message)) => message,
            Ok(None) => {
                if held.is_some() {
                    faults
                        .iter()
                        .filter(|(fault, _)| matches!(fault, Fault::DropLast))
                        .for_each(|(_, fired)| fired.fire());
                }
                return;
            }
            Err(status) => {
                drop(tx.send(Err(clean(&status))).await);
                return;
            }
        };
        let message = if one_behind { held.replace(message) } else { Some(message) };
        let Some(mut message) = message else { continue };
        sent += 1;
        for (fault, fired) in &faults {
            match fault {
                Fault::Flip { message: n } if *n == sent && !message.is_empty() => {
                    let mut changed = BytesMut::from(message);
                    let middle = changed.len() / 2;
                    changed[middle] ^= 0x10;
                    message = changed.freeze();
                    fired.fire();
                }
                Fault::Slow(pause) => {
                    fired.fire();
                    tokio::time::sleep(*pause).await;
                }
                _ => {}
            }
        }
        if tx.send(Ok(message)).await.is_err() {
            return;
        }
        locked(&shared.counted).entry(name.clone()).or_default().messages += 1;
    }
}

/// Messages as the bytes they are.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

/// A TCP connection that can be closed from outside.
struct Line {
    stream: TcpStream,
    token: CancellationToken,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// How a call finds the connection that it came on.
#[derive(Clone)]
struct LineInfo(CancellationToken);

impl Line {
    fn new(stream: TcpStream, token: CancellationToken) -> Self {
        drop(stream.set_nodelay(true));
        let closed = Box::pin(token.clone().cancelled_owned());
        Self { stream, token, closed }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.closed.as_mut().poll(cx).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed by the test"));
        }
        Ok(())
    }
}

impl Connected for Line {
    type ConnectInfo = LineInfo;

    fn connect_info(&self) -> LineInfo {
        LineInfo(self.token.clone())
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
