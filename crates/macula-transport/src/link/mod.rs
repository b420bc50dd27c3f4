//! A link: the handle, and the task that owns it.

mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{EndpointId, LinkId, StreamId};
use macula_proto::limits;
use macula_proto::wire::frame::{Channel, Class, Frame};
use macula_proto::wire::relay::Datagram;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::crew::Crew;
use crate::event::{DownReason, LinkEvent, LinkEventKind};
use crate::gate::Gate;
use crate::loading::Loading;
use crate::queue::{End, Pushed, Queue};
use crate::quic::{Connection, Lost, PathInfo, PathKind, Peers, Selected};
use crate::stream::{Lookup, Stream, Streams};
use crate::sync::lock;
use writer::LaneStreams;

/// What may wait to be sent on one channel, bytes; a link over it is closed. Four times what the
/// core hands out, so that only a broken core ever sees it. On [`Channel::Bulk`] eight of the
/// largest frames.
pub const SEND_QUEUE_BYTES_MAX: usize = 4 * limits::TRANSPORT_WINDOW_BYTES;
const BULK_QUEUE_BYTES_MAX: usize = limits::BULK_PER_LINK_MAX * limits::STREAM_FRAME_BYTES_MAX;

/// What the peer gets to take the last control frames before the link is closed.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);
/// A peer that finished its control stream must close the link within this.
const PEER_GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// What the consumer gets to take frames that had arrived when the link was lost.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
/// The round-trip time is looked at so often, on a link in use.
const RTT_INTERVAL: Duration = Duration::from_secs(1);

/// Whether other links make use of a link is told so often.
const CARRYING_INTERVAL: Duration = Duration::from_secs(60);

/// Datagrams taken in one read.
const DATAGRAMS_MAX: usize = 16;

/// First byte of the control stream.
const TYPE_CONTROL: u8 = 0x01;
/// First byte of the stream of a streaming call.
const TYPE_STREAM: u8 = 0x02;
/// First byte of a lane, plus its number.
const TYPE_LANE: u8 = 0x10;
/// First byte of a stream with one bulk frame.
const TYPE_BULK: u8 = 0x20;

/// Close codes of this crate's own; they agree with the protocol's list.
mod close_code {
    pub(super) const DONE: u16 = 0;
    pub(super) const PROTOCOL: u16 = 1;
    pub(super) const LIMIT: u16 = 6;
    pub(super) const INTERNAL: u16 = 0xffff;
}

/// A peer whose handshake is complete and whose key was checked.
///
/// Dropping it closes the connection with code 0.
#[derive(Debug)]
pub struct Connected {
    connection: Connection,
    dialled: bool,
    remote: SocketAddr,
    crew: Crew,
    loading: Arc<Loading>,
    peers: Option<Arc<Peers>>,
}

impl Connected {
    pub(crate) fn new(
        connection: Connection,
        dialled: bool,
        crew: Crew,
        loading: Arc<Loading>,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let remote = connection.remote().unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0)));
        Self { connection, dialled, remote, crew, loading, peers }
    }

    /// Who it is.
    pub fn peer(&self) -> EndpointId {
        self.connection.peer()
    }

    /// Where its packets come from; IPv4 is never shown as a mapped IPv6 address.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether this side dialled.
    pub fn dialled(&self) -> bool {
        self.dialled
    }

    /// Whether it runs in a tunnel, over TLS and TCP; [`Self::remote`] is the other end of that.
    pub fn is_tunnelled(&self) -> bool {
        self.connection.is_tunnelled()
    }

    /// Whether this is a link between peers, over the relay of their gateway or directly.
    pub fn is_peer_link(&self) -> bool {
        self.connection.is_peer_link()
    }

    /// Closes the connection at once.
    pub fn refuse(self, code: u16, reason: &str) {
        self.connection.close(code, reason);
    }

    /// Makes it a link: control is read from now on, the rest after [`Link::open_lanes`].
    ///
    /// Events carry `link` and come over `events`. When that is full, the link waits with reading
    /// and with reporting; when its receiver is gone, the link closes.
    pub fn start(self, link: LinkId, events: mpsc::Sender<LinkEvent>) -> Link {
        let shared = Arc::new(Shared {
            connection: self.connection,
            link,
            dialled: self.dialled,
            remote: self.remote,
            crew: self.crew,
            loading: self.loading,
            peers: self.peers,
            next_packet: AtomicU16::new(0),
            events,
            incoming: Gates::default(),
            outgoing: Queues::default(),
            streams: Mutex::default(),
            lanes_seen: AtomicU8::new(0),
            lane_streams: LaneStreams::default(),
            bulk_readers: Semaphore::new(limits::BULK_PER_LINK_MAX),
            bulk_writers: Mutex::new(0),
            lanes_open: CancellationToken::new(),
            close_wanted: CancellationToken::new(),
            goodbye_said: CancellationToken::new(),
            lost: CancellationToken::new(),
            dead: CancellationToken::new(),
            reason: Mutex::new(None),
            in_use: AtomicBool::new(true),
            used: Notify::new(),
            tasks: TaskTracker::new(),
        });
        shared.outgoing.control.claim_writer();
        shared.crew.spawn(supervise(Arc::clone(&shared)));
        Link { handle: Arc::new(LinkHandle { shared }) }
    }
}

/// A link to a peer: a cheap handle, all of whose methods return at once.
///
/// When the last clone is dropped the link closes with code 0. Methods on a link that is down do
/// nothing.
#[derive(Clone, Debug)]
pub struct Link {
    handle: Arc<LinkHandle>,
}

#[derive(Debug)]
struct LinkHandle {
    shared: Arc<Shared>,
}

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.shared.want_close(close_code::DONE, "");
    }
}

impl Link {
    /// Who is at the other end.
    pub fn peer(&self) -> EndpointId {
        self.shared().connection.peer()
    }

    /// Where the peer's packets come from now, or came from last.
    pub fn remote(&self) -> SocketAddr {
        self.shared().connection.remote().unwrap_or(self.shared().remote)
    }

    /// The smoothed round-trip time; `None` once the link is down.
    pub fn rtt(&self) -> Option<Duration> {
        self.shared().connection.rtt()
    }

    /// Whether this side dialled.
    pub fn dialled(&self) -> bool {
        self.shared().dialled
    }

    /// Whether it runs in a tunnel, over TLS and TCP; [`Self::remote`] is the other end of that.
    pub fn is_tunnelled(&self) -> bool {
        self.shared().connection.is_tunnelled()
    }

    /// Which path a link between peers takes and what its paths have carried; `None`: it is a link
    /// to or of a gateway.
    pub fn path(&self) -> Option<PathInfo> {
        self.shared().connection.path_info()
    }

    /// Tells when the path changes, and ends with the link; does not keep the link. `None`: as
    /// [`Self::path`].
    pub fn watch_path(&self) -> Option<PathWatch> {
        self.shared().connection.watch_path().map(|changes| PathWatch { changes })
    }

    /// Queues a relayed packet, in the order of calls. Returns how many packets were dropped for
    /// want of room: the oldest that wait, or this one if it is too large.
    pub fn send_datagram(&self, datagram: Datagram) -> u64 {
        let shared = self.shared();
        let number = shared.next_packet.fetch_add(1, Ordering::Relaxed);
        shared.connection.send_datagram(datagram, number)
    }

    /// Has `other`, a link to another member, carry packets of this link too, once the peer has a direct link
    /// to that member as well.
    pub fn offer_carrier(&self, other: &Self) {
        self.shared().connection.offer_carrier(&other.shared().connection);
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.shared().connection
    }

    /// Queues a frame. A [`Channel::Stream`] with an even id that was never used is opened by it;
    /// on one that is over, and on lanes that do not exist, the frame is dropped.
    ///
    /// The caller keeps count of what [`LinkEventKind::Sent`] has not reported yet; a channel with
    /// more than [`SEND_QUEUE_BYTES_MAX`] waiting closes the link. A stream beyond
    /// [`limits::STREAMS_PER_LINK_MAX`] is refused by [`LinkEventKind::StreamClosed`].
    pub fn send(&self, channel: Channel, frame: Frame) {
        let shared = self.shared();
        shared.note_use();
        let pushed = match channel {
            Channel::Control => shared.outgoing.control.push(frame, SEND_QUEUE_BYTES_MAX),
            Channel::Lane(lane) => {
                let Some(queue) = shared.outgoing.lane(lane) else { return };
                let pushed = queue.push(frame, SEND_QUEUE_BYTES_MAX);
                if pushed == Pushed::StartWriter {
                    shared.spawn(writer::run_lane(Arc::clone(shared), lane));
                }
                pushed
            }
            Channel::Bulk => {
                let pushed = shared.outgoing.bulk.push(frame, BULK_QUEUE_BYTES_MAX);
                writer::start_bulk(shared);
                pushed
            }
            Channel::Stream(id) => shared.send_on_stream(id, frame),
        };
        if pushed == Pushed::Overfull {
            shared.want_close(close_code::LIMIT, "the send queue of a channel is over its limit");
        }
    }

    /// Reads no more from a channel until [`Self::resume`]; what was read already still comes.
    pub fn pause(&self, channel: Channel) {
        if let Some(gate) = self.shared().gate(channel) {
            gate.pause();
        }
    }

    /// Reads on.
    pub fn resume(&self, channel: Channel) {
        if let Some(gate) = self.shared().gate(channel) {
            gate.resume();
        }
    }

    /// Starts to read lanes, bulk and streams.
    pub fn open_lanes(&self) {
        self.shared().lanes_open.cancel();
    }

    /// Sends what is queued on a stream, then ends it in both directions: what the peer still
    /// sends on it is dropped.
    pub fn finish_stream(&self, id: StreamId) {
        if let Some(stream) = self.shared().stream(id) {
            stream.finish();
        }
    }

    /// Ends a stream at once, in both directions.
    pub fn reset_stream(&self, id: StreamId) {
        if let Some(stream) = self.shared().stream(id) {
            stream.reset();
        }
    }

    /// Closes the link: what is queued on control goes out first (500 ms at most), then the peer
    /// is told `code` and the first 1 KiB of `reason`. The first call counts. Frames go on coming
    /// until [`LinkEventKind::Down`].
    pub fn close(&self, code: u16, reason: &str) {
        self.shared().want_close(code, reason);
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

/// Tells of changes of a link's path.
#[derive(Clone, Debug)]
pub struct PathWatch {
    changes: watch::Receiver<(u32, Selected)>,
}

impl PathWatch {
    /// The path now: its kind, and the peer's address when it is direct.
    pub fn now(&self) -> Selected {
        self.changes.borrow().1
    }

    /// Waits for the next change; `None`: the link is gone.
    ///
    /// # Cancel safety
    /// Safe: no change is lost.
    pub async fn changed(&mut self) -> Option<Selected> {
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow_and_update().1)
    }
}

/// The readers' gates of all channels that always exist.
#[derive(Debug, Default)]
struct Gates {
    control: Arc<Gate>,
    lanes: [Arc<Gate>; limits::LANE_COUNT as usize],
    bulk: Arc<Gate>,
}

/// The writers' queues of all channels that always exist.
#[derive(Debug, Default)]
struct Queues {
    control: Queue,
    lanes: [Queue; limits::LANE_COUNT as usize],
    bulk: Queue,
}

impl Queues {
    fn lane(&self, lane: u8) -> Option<&Queue> {
        self.lanes.get(usize::from(lane))
    }
}

/// What handle and tasks of a link share.
#[derive(Debug)]
struct Shared {
    connection: Connection,
    link: LinkId,
    dialled: bool,
    remote: SocketAddr,
    crew: Crew,
    events: mpsc::Sender<LinkEvent>,
    incoming: Gates,
    outgoing: Queues,
    streams: Mutex<Streams>,
    /// One bit per lane that the peer has opened.
    lanes_seen: AtomicU8,
    lane_streams: LaneStreams,
    bulk_readers: Semaphore,
    /// What large frames of all links hold before they are complete.
    loading: Arc<Loading>,
    /// Set where datagrams are for this endpoint itself.
    peers: Option<Arc<Peers>>,
    /// Number of the next packet that is sent in two datagrams.
    next_packet: AtomicU16,
    /// Tasks that write bulk frames.
    bulk_writers: Mutex<usize>,
    /// The core wants the lanes read.
    lanes_open: CancellationToken,
    /// Somebody here wants the link closed; `reason` says why.
    close_wanted: CancellationToken,
    /// The peer has all of our control stream, or will not have it.
    goodbye_said: CancellationToken,
    /// The connection is gone: nothing more can be sent.
    lost: CancellationToken,
    /// The consumer had its chance: every task ends.
    dead: CancellationToken,
    /// Why this side ends the link, once it does.
    reason: Mutex<Option<DownReason>>,
    /// Cleared now and then; see [`Shared::note_use`].
    in_use: AtomicBool,
    used: Notify,
    tasks: TaskTracker,
}

impl Shared {
    /// Runs a task of this link. It ends with the link at the latest; if it panics, the link goes
    /// down and nothing else.
    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        let guarded = async move {
            let guard = PanicGuard { shared };
            guard.shared.dead.run_until_cancelled(task).await;
        };
        self.crew.spawn(self.tasks.track_future(guarded));
    }

    /// Reports an event; waits while the channel is full.
    async fn emit(&self, kind: LinkEventKind) {
        if self.events.send(LinkEvent { link: self.link, kind }).await.is_err() {
            self.want_close(close_code::DONE, "nobody listens");
        }
    }

    /// The peer broke the protocol: closes at once.
    fn fail(&self, reason: String) {
        tracing::debug!(link = self.link.0, peer = ?self.connection.peer(), reason, "protocol error");
        self.connection.close(close_code::PROTOCOL, &reason);
        lock(&self.reason).get_or_insert(DownReason::Protocol { reason });
    }

    fn want_close(&self, code: u16, reason: &str) {
        let reason = reason.to_owned();
        lock(&self.reason).get_or_insert(DownReason::Local { code, reason });
        self.close_wanted.cancel();
    }

    /// Wakes the task that looks at the round-trip time, at most once per look.
    fn note_use(&self) {
        if !self.in_use.load(Ordering::Relaxed) && !self.in_use.swap(true, Ordering::Relaxed) {
            self.used.notify_one();
        }
    }

    fn stream(&self, id: StreamId) -> Option<Arc<Stream>> {
        lock(&self.streams).find(id)
    }

    fn gate(&self, channel: Channel) -> Option<Arc<Gate>> {
        match channel {
            Channel::Control => Some(Arc::clone(&self.incoming.control)),
            Channel::Lane(lane) => self.incoming.lanes.get(usize::from(lane)).cloned(),
            Channel::Bulk => Some(Arc::clone(&self.incoming.bulk)),
            Channel::Stream(id) => self.stream(id).map(|stream| Arc::clone(&stream.gate)),
        }
    }

    fn send_on_stream(self: &Arc<Self>, id: StreamId, frame: Frame) -> Pushed {
        let found = lock(&self.streams).for_sending(id);
        match found {
            Lookup::Live(stream) => stream.queue.push(frame, SEND_QUEUE_BYTES_MAX),
            Lookup::New(stream) => {
                let pushed = stream.queue.push(frame, SEND_QUEUE_BYTES_MAX);
                self.spawn(writer::run_opened_stream(Arc::clone(self), stream));
                pushed
            }
            Lookup::Dead => Pushed::Ended,
            Lookup::Full => {
                let shared = Arc::clone(self);
                self.spawn(async move {
                    shared.emit(LinkEventKind::StreamClosed { stream: id }).await;
                });
                Pushed::Ended
            }
        }
    }

    /// A direction of a stream is over; reports it when it was the last.
    async fn end_half(&self, stream: &Stream) {
        if stream.end_half() {
            lock(&self.streams).remove(stream.id);
            self.emit(LinkEventKind::StreamClosed { stream: stream.id }).await;
        }
    }

    /// The connection is gone: lets readers hand out what came, ends everything else.
    fn lose(&self) {
        self.lost.cancel();
        let incoming = &self.incoming;
        let gates = incoming.lanes.iter().chain([&incoming.control, &incoming.bulk]);
        gates.for_each(|gate| gate.last_call());
        let outgoing = &self.outgoing;
        let queues = outgoing.lanes.iter().chain([&outgoing.control, &outgoing.bulk]);
        queues.for_each(|queue| queue.end(End::Reset));
        for stream in lock(&self.streams).close() {
            stream.queue.end(End::Reset);
            stream.gate.last_call();
        }
        self.tasks.close();
    }
}

/// Brings a link down when the task that holds this panics.
struct PanicGuard {
    shared: Arc<Shared>,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "a task of the link failed".to_owned();
            self.shared.connection.close(close_code::INTERNAL, &reason);
            lock(&self.shared.reason).get_or_insert(DownReason::Transport { reason });
        }
    }
}

/// Reports the end of a link even when the task that owns the link panics.
struct DownGuard {
    shared: Arc<Shared>,
    is_reported: bool,
}

impl Drop for DownGuard {
    fn drop(&mut self) {
        if !self.is_reported {
            self.shared.connection.close(close_code::INTERNAL, "");
            self.shared.lose();
            self.shared.dead.cancel();
            let reason = DownReason::Transport { reason: "the link's task ended".to_owned() };
            let kind = LinkEventKind::Down { reason };
            // Full or closed: there is no more that a destructor can do.
            let _lost = self.shared.events.try_send(LinkEvent { link: self.shared.link, kind });
        }
    }
}

/// Owns a link from start to end.
async fn supervise(shared: Arc<Shared>) {
    let mut guard = DownGuard { shared: Arc::clone(&shared), is_reported: false };
    let told = tokio::select! {
        biased;
        told = shared.connection.closed() => told,
        told = async {
            shared.close_wanted.cancelled().await;
            say_goodbye(&shared).await;
            shared.connection.closed().await
        } => told,
        told = serve(&shared) => told,
    };
    shared.lose();
    if timeout(DRAIN_TIMEOUT, shared.tasks.wait()).await.is_err() {
        tracing::debug!(link = shared.link.0, "frames of a lost link were not taken in time");
    }
    shared.dead.cancel();
    shared.tasks.wait().await;
    let own = lock(&shared.reason).clone();
    let reason = told.or(own).unwrap_or(DownReason::Local { code: 0, reason: String::new() });
    guard.is_reported = true;
    shared.emit(LinkEventKind::Down { reason }).await;
}

/// Lets queued control frames reach the peer, then closes.
async fn say_goodbye(shared: &Shared) {
    shared.outgoing.control.end(End::Finish);
    let told = async {
        tokio::select! {
            () = shared.goodbye_said.cancelled() => {}
            _down = shared.connection.closed() => {}
        }
    };
    if timeout(GOODBYE_TIMEOUT, told).await.is_err() {
        tracing::debug!(link = shared.link.0, "the peer did not take the last frames in time");
    }
    if let Some(DownReason::Local { code, reason }) = &*lock(&shared.reason) {
        shared.connection.close(*code, reason);
    }
}

/// Sets up control, then accepts streams. Ends only when the connection does.
async fn serve(shared: &Arc<Shared>) -> Option<DownReason> {
    if open_control(shared).await.is_ok() {
        tokio::join!(report_rtt(shared), report_path(shared), report_carrying(shared), async {
            shared.lanes_open.cancelled().await;
            shared.connection.admit();
            tokio::join!(accept_unis(shared), accept_bis(shared), read_datagrams(shared))
        });
    }
    shared.connection.closed().await
}

async fn open_control(shared: &Arc<Shared>) -> Result<(), Lost> {
    let (send, recv) = if shared.dialled {
        shared.connection.open_bi(Class::Control).await?
    } else {
        let (send, mut recv) = shared.connection.accept_bi().await?;
        if recv.read_type().await != Some(TYPE_CONTROL) {
            shared.fail("the first stream is not control".to_owned());
            return Err(Lost);
        }
        send.set_class(Class::Control);
        (send, recv)
    };
    shared.spawn(writer::run_control(Arc::clone(shared), send));
    shared.spawn(reader::run_control(Arc::clone(shared), recv));
    Ok(())
}

async fn accept_unis(shared: &Arc<Shared>) {
    while let Ok(recv) = shared.connection.accept_uni().await {
        shared.spawn(reader::run_uni(Arc::clone(shared), recv));
    }
}

async fn accept_bis(shared: &Arc<Shared>) {
    while let Ok((send, recv)) = shared.connection.accept_bi().await {
        shared.spawn(reader::run_bi(Arc::clone(shared), send, recv));
    }
}

/// Takes relayed packets: on the link to the gateway they are for this endpoint, at the gateway they
/// are for whoever runs it. Between peers go the sorts of candidates, what searches for ports have to say, and
/// packets that one carries for others.
async fn read_datagrams(shared: &Arc<Shared>) {
    if shared.connection.is_peer_link() {
        while let Ok(datagram) = shared.connection.read_signals().await {
            shared.emit(LinkEventKind::Datagrams(vec![datagram])).await;
        }
        return;
    }
    let mut datagrams = vec![Bytes::new(); DATAGRAMS_MAX];
    while let Ok(count) = shared.connection.read_datagrams(&mut datagrams).await {
        let came = datagrams.iter_mut().take(count).map(std::mem::take);
        match &shared.peers {
            Some(peers) => came.for_each(|it| shared.connection.take_relayed(peers, &it)),
            None => shared.emit(LinkEventKind::Datagrams(came.collect())).await,
        }
    }
}

async fn report_path(shared: &Shared) {
    let Some(mut watch) = shared.connection.watch_path() else { return };
    let mut told = PathKind::Relayed;
    loop {
        let (_, (kind, _)) = *watch.borrow_and_update();
        if kind != told {
            told = kind;
            shared.emit(LinkEventKind::Path(kind)).await;
        }
        if watch.changed().await.is_err() {
            return;
        }
    }
}

async fn report_carrying(shared: &Shared) {
    while shared.connection.is_peer_link() {
        sleep(CARRYING_INTERVAL).await;
        if shared.connection.is_carrying() {
            shared.emit(LinkEventKind::Carrying).await;
        }
    }
}

async fn report_rtt(shared: &Shared) {
    let mut told = Duration::ZERO;
    loop {
        if let Some(rtt) = shared.connection.rtt()
            && rtt.abs_diff(told) * 5 > told
        {
            told = rtt;
            shared.emit(LinkEventKind::Rtt(rtt)).await;
        }
        sleep(RTT_INTERVAL).await;
        shared.in_use.store(false, Ordering::Relaxed);
        shared.used.notified().await;
    }
}
