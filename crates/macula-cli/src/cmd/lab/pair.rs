//! `macula lab responder` and `initiator`: two ends of a measured link between peers, run by laboratories behind NATs.
//!
//! The initiator sends numbered beats on a streaming call over the link; the responder sends each
//! back. What happens to the link and to the beats is told one line per event.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use macula::{
    EndpointId, ItemReceiver, ItemSender, Node, PathInfo, PathKind, Peer, Refusal, Request,
    SearchStats, Strategy,
};
use macula_gateway::signal::StopSignal;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::args::{LabArgs, StrategyArg};
use crate::cmd::ping::parse_peer;
use crate::connect;
use crate::failure::Failure;
use crate::out;

/// Answers with the id of the responder.
const WHO: &str = "lab.who";
/// Sends beats back.
const ECHO: &str = "lab.echo";
/// How long an initiator looks for its responder.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(200);
/// Beats wait while so many bytes are out: both ends must be able to hold them.
const OUT_BYTES_MAX: usize = 512 * 1024;
/// What a beat costs beside its bytes.
const BEAT_OVERHEAD_BYTES: usize = 64;
/// How long answers that are still out may be silent at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Events that may wait to be printed.
const EVENTS_MAX: usize = 1024;

static START: OnceLock<Instant> = OnceLock::new();

/// Events are told in milliseconds since this.
pub(crate) fn start_clock() {
    START.get_or_init(Instant::now);
}

fn ms() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// Runs one end.
pub(super) async fn run(args: LabArgs, is_initiator: bool) -> Result<(), Failure> {
    let mut stop = StopSignal::listen()?;
    let peer = args.peer.as_deref().map(parse_peer).transpose()?;
    let strategy = match args.strategy {
        StrategyArg::AlwaysRelay => Strategy::AlwaysRelay,
        StrategyArg::Opportunistic => Strategy::Opportunistic,
        StrategyArg::DirectOnly => Strategy::DirectOnly,
    };
    let (gateway, membership) = (&args.gateway, args.realm.membership());
    let (node, watch) =
        connect::node_with(&gateway.gateway, &gateway.connect, membership, strategy).await?;
    let out = Out { json: args.json };
    out.tell("ready", json!({"id": node.id().to_string(), "ms": ms()}))?;
    let ended = if is_initiator {
        initiate(&args, &node, peer, out, &mut stop).await
    } else {
        respond(&args, &node, peer, out, &mut stop).await
    };
    connect::close(node, watch).await;
    ended
}

/// Tells events.
#[derive(Clone, Copy, Debug)]
struct Out {
    json: bool,
}

impl Out {
    fn tell(self, event: &str, fields: Value) -> Result<(), Failure> {
        let Value::Object(fields) = fields else { return Ok(()) };
        if self.json {
            let mut line = serde_json::Map::from_iter([("event".to_owned(), json!(event))]);
            line.extend(fields);
            return out::json(&line);
        }
        let words: Vec<String> = fields
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) => format!("{name} {text}"),
                value => format!("{name} {value}"),
            })
            .collect();
        out::line(format_args!("{event}: {}", words.join(", ")))
    }

    fn path(self, path: &PathInfo) -> Result<(), Failure> {
        let remote = path.remote.map(|remote| remote.to_string());
        let mut fields = json!({"path": path.kind.as_str(), "remote": remote, "ms": ms()});
        if let Some(server) = path.server {
            fields["server"] = server.to_string().into();
        }
        self.tell("path", fields)
    }
}

/// What both ends count.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    received: u64,
    duplicated: u64,
    reordered: u64,
    highest: Option<u64>,
    /// Those without an answer, and when they were sent.
    out: BTreeMap<u64, Instant>,
    lost: usize,
    last: Option<Instant>,
    longest_silence: Duration,
}

impl Tally {
    fn send(&mut self) -> u64 {
        let number = self.sent;
        self.sent += 1;
        self.out.insert(number, Instant::now());
        number
    }

    /// Returns how long the answer took.
    fn receive(&mut self, number: u64) -> Option<Duration> {
        self.sound();
        let Some(sent) = self.out.remove(&number) else {
            self.duplicated += 1;
            return None;
        };
        self.received += 1;
        if self.highest.is_some_and(|highest| number < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
        Some(sent.elapsed())
    }

    /// The call has ended: what is out does not come any more.
    fn give_up(&mut self) {
        self.lost += std::mem::take(&mut self.out).len();
    }

    /// At a responder, which cannot know what was sent and sends back what it hears.
    fn hear(&mut self, number: u64) {
        self.sound();
        self.sent += 1;
        self.received += 1;
        match self.highest.map(|highest| number.cmp(&highest)) {
            Some(Ordering::Equal) => self.duplicated += 1,
            Some(Ordering::Less) => self.reordered += 1,
            Some(Ordering::Greater) | None => self.highest = Some(number),
        }
    }

    /// Something was heard of the peer.
    fn sound(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_silence = self.longest_silence.max(now - last);
        }
    }

    fn done(&self, path: PathKind, searches: Option<SearchStats>) -> Value {
        let searches = searches.unwrap_or_default();
        json!({
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost + self.out.len(),
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "longest_silence_ms": self.longest_silence.as_millis() as u64,
            "path": path.as_str(),
            "searches": searches.begun,
            "searches_found": searches.found,
            "search_tuples": searches.tuples,
            "ms": ms(),
        })
    }
}

/// The path that answers take now; without a link they come through the gateway, as calls do.
fn path_of(peer: &Peer) -> PathKind {
    peer.path().map_or(PathKind::Relayed, |path| path.kind)
}

fn number_of(beat: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*beat.first_chunk()?))
}

async fn initiate(
    args: &LabArgs,
    node: &Node,
    responder: Option<EndpointId>,
    out: Out,
    stop: &mut StopSignal,
) -> Result<(), Failure> {
    let mut peer = tokio::select! {
        peer = find(node, responder) => peer?,
        _ = stop.received() => return Ok(()),
    };
    out.tell("connected", json!({"path": path_of(&peer).as_str(), "ms": ms()}))?;
    if let Some(path) = peer.path().filter(|path| path.kind == PathKind::Direct) {
        out.path(&path)?;
    }
    let end = args.lasts.map(|lasts| tokio::time::Instant::now() + lasts);
    let mut tally = Tally::default();
    let mut ticks = tokio::time::interval(args.interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_over = false;
    while !is_over {
        let stream = peer.call(ECHO).deadline(Duration::from_secs(3600)).open().await?;
        let (sender, mut answers, _result) = stream.split();
        let Some(sender) = sender else { break };
        let mut drained_at = None;
        loop {
            let is_all = args.count.is_some_and(|count| tally.sent >= count);
            if (is_over || is_all) && drained_at.is_none() {
                is_over = true;
                drained_at = Some(drain_end());
            }
            if is_over && tally.out.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                answer = answers.next() => {
                    let Some(answer) = answer else { break };
                    if let Some(number) = number_of(&answer) {
                        let took = tally.receive(number);
                        drained_at = drained_at.map(|_| drain_end());
                        if !args.quiet {
                            let path = path_of(&peer).as_str();
                            let rtt = took.map(|took| took.as_millis() as u64);
                            let beat = json!({"n": number, "ms": ms(), "path": path, "rtt_ms": rtt});
                            out.tell("beat", beat)?;
                        }
                    }
                }
                path = peer.changed() => match path {
                    Some(path) => out.path(&path)?,
                    None => break,
                },
                _ = ticks.tick(), if !is_over => {
                    if !send_beats(args, &mut tally, &sender).await {
                        break;
                    }
                }
                _ = stop.received() => is_over = true,
                () = at(end), if !is_over => is_over = true,
                () = at(drained_at) => break,
            }
        }
        if !is_over {
            tally.give_up();
            out.tell("broken", json!({"lost": tally.lost, "ms": ms()}))?;
            peer = tokio::select! {
                peer = find(node, Some(peer.id())) => peer?,
                _ = stop.received() => break,
                () = at(end) => break,
            };
            out.tell("path", json!({"path": path_of(&peer).as_str(), "remote": null, "ms": ms()}))?;
        }
    }
    tally.last.is_some().then(|| tally.sound());
    out.tell("done", tally.done(path_of(&peer), searches(node).await))
}

fn drain_end() -> tokio::time::Instant {
    tokio::time::Instant::now() + DRAIN_TIMEOUT
}

/// Sends the beats of one tick; false when the stream has ended.
async fn send_beats(args: &LabArgs, tally: &mut Tally, sender: &ItemSender) -> bool {
    let each = args.bytes as usize + BEAT_OVERHEAD_BYTES;
    for _ in 0..args.batch {
        let is_all = args.count.is_some_and(|count| tally.sent >= count);
        if is_all || tally.out.len() * each >= OUT_BYTES_MAX {
            break;
        }
        let mut beat = tally.send().to_be_bytes().to_vec();
        beat.resize(args.bytes as usize, 0);
        if sender.send(beat).await.is_err() {
            return false;
        }
    }
    true
}

/// Sleeps until then; for ever without a moment.
async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Links to the responder; waits for one that is not there yet.
async fn find(node: &Node, responder: Option<EndpointId>) -> Result<Peer, Failure> {
    let started = Instant::now();
    loop {
        let tried = match responder {
            Some(id) => link(node, id).await,
            None => match node.call(WHO, "").await {
                Ok(answer) => link(node, parse_peer(&String::from_utf8_lossy(&answer))?).await,
                Err(error) => Err(Failure::from(error).context("no responder in this realm")),
            },
        };
        match tried {
            Ok(peer) => return Ok(peer),
            Err(failure) if started.elapsed() >= CONNECT_TIMEOUT => return Err(failure),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn link(node: &Node, id: EndpointId) -> Result<Peer, Failure> {
    let linked = node.peer(id).await;
    linked.map_err(|error| Failure::from(error).context(format_args!("peer {}", id.short())))
}

/// What a responder's handler tells.
enum Seen {
    Beat(u64),
    Caller(EndpointId),
}

async fn respond(
    args: &LabArgs,
    node: &Node,
    only: Option<EndpointId>,
    out: Out,
    stop: &mut StopSignal,
) -> Result<(), Failure> {
    let (sender, mut seen) = mpsc::channel(EVENTS_MAX);
    let id = node.id().to_string();
    let who = node
        .serve(WHO, move |_: Request| {
            let id = id.clone();
            async move { Ok::<_, Refusal>(id) }
        })
        .await?;
    let echo = node
        .serve_streaming(ECHO, move |request: Request, items, answers| {
            let (sender, caller) = (sender.clone(), request.caller);
            async move {
                if only.is_some_and(|only| only != caller) {
                    return Err(Refusal::new(1, "this responder answers somebody else"));
                }
                Ok(give_back(caller, items, answers, sender).await)
            }
        })
        .await?;
    let end = args.lasts.map(|lasts| tokio::time::Instant::now() + lasts);
    let mut tally = Tally::default();
    let mut peer: Option<Peer> = None;
    loop {
        let is_all = args.count.is_some_and(|count| tally.received >= count);
        if is_all {
            break;
        }
        let changed = async {
            match &mut peer {
                Some(peer) => peer.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            path = changed => match path {
                Some(path) => out.path(&path)?,
                None => peer = None,
            },
            event = seen.recv() => match event {
                Some(Seen::Caller(caller)) => {
                    // The call came over the link, unless it was just lost.
                    peer = node.peer(caller).await.ok();
                    let path = peer.as_ref().map_or(PathKind::Relayed, path_of);
                    out.tell("connected", json!({"path": path.as_str(), "ms": ms()}))?;
                }
                Some(Seen::Beat(number)) => {
                    tally.hear(number);
                    if !args.quiet {
                        let path = peer.as_ref().map_or(PathKind::Relayed, path_of).as_str();
                        out.tell("beat", json!({"n": number, "ms": ms(), "path": path}))?;
                    }
                }
                None => break,
            },
            _ = stop.received() => break,
            () = at(end) => break,
        }
    }
    drop((who, echo));
    let path = peer.as_ref().map_or(PathKind::Relayed, path_of);
    out.tell("done", tally.done(path, searches(node).await))
}

async fn searches(node: &Node) -> Option<SearchStats> {
    node.status().await.ok().map(|status| status.searches)
}

async fn give_back(
    caller: EndpointId,
    mut items: ItemReceiver,
    answers: ItemSender,
    seen: mpsc::Sender<Seen>,
) -> &'static str {
    // Events beyond those that wait are not told; beats are answered all the same.
    seen.try_send(Seen::Caller(caller)).ok();
    while let Some(item) = items.next().await {
        if let Some(number) = number_of(&item) {
            seen.try_send(Seen::Beat(number)).ok();
        }
        if answers.send(item).await.is_err() {
            break;
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_of_a_call_that_ended_are_lost_and_make_room() {
        let mut tally = Tally::default();
        for _ in 0..3 {
            tally.send();
        }
        tally.receive(0);
        tally.give_up();
        assert!(tally.out.is_empty());
        assert_eq!(
            (tally.send(), tally.done(PathKind::Direct, None)["lost"].as_u64()),
            (3, Some(3))
        );
    }

    #[test]
    fn the_tally_tells_lost_doubled_and_reordered_beats_apart() {
        let mut tally = Tally::default();
        for _ in 0..5 {
            tally.send();
        }
        for number in [0, 2, 1, 2, 4] {
            tally.receive(number);
        }
        let done = tally.done(PathKind::Direct, None);
        for (name, value) in
            [("sent", 5), ("received", 4), ("lost", 1), ("duplicated", 1), ("reordered", 1)]
        {
            assert_eq!(done[name], value, "{name}");
        }
        assert_eq!(done["path"], "direct");
    }
}
