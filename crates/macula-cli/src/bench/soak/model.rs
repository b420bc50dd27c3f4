//! What must hold, and what was seen: the reference that a soak run is checked against.
//!
//! A message says where it belongs: realm, topic, publisher and a number that grows per publisher
//! and topic. So each handle can tell at once what crossed realms, came twice or out of order. What
//! must *arrive* is this, and no more (docs/protocol §5.4, decisions 8 and 9): when a publisher has
//! heard that its QoS 1 messages are delivered, every handle has them which
//!
//! - was open before they were published and still is, and does not play deaf,
//! - is on a node that was never without a connection for longer than [`GAP_MAX`],
//!
//! unless the gateway started more than once meanwhile: its second crash may meet messages that
//! only the first successor had. What is still on its way may take [`ARRIVAL_MAX`].
//!
//! Calls end once, as their procedure does or with an error that says why. That nobody serves is
//! wrong while a node does that has been connected for [`RETURN_MAX`]; and what is not idempotent
//! runs at most once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use macula::{EndpointId, Message};

/// Tenants that must not see each other.
pub(super) const REALMS: [&str; 3] = ["soak.one", "soak.two", "soak.three"];
/// Names that are published on; those of the last two are retained, and read by the deaf.
pub(super) const TOPICS: [&str; 7] = ["a.b", "a.c", "a.b.c", "d", "e", "kept.1", "deaf.1"];
/// What is subscribed to.
pub(super) const PATTERNS: [&str; 8] = ["**", "a.*", "a.**", "a.b", "*.b", "d", "kept.*", "*.*.c"];

/// A node that was without a connection for longer may have lost its session (`RESUME_WINDOW`,
/// 10 s, counted by the gateway).
const GAP_MAX: Duration = Duration::from_secs(8);
/// What was delivered is in the application's hands within this: the grace of a restarted gateway
/// (12 s), in which it gives returning subscribers what they lack, and some.
const ARRIVAL_MAX: Duration = Duration::from_secs(20);
/// Handles remember what they got for at least so long: longer than a publisher waits for
/// `delivered`, and then `ARRIVAL_MAX`.
const MEMORY: Duration = Duration::from_secs(120);
/// A node that is connected again offers its procedures again within this.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// Violations that are told in full.
const TOLD_MAX: usize = 20;

/// The reference, and all counts of a run.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) operations: AtomicU64,
    pub(super) published: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) calls_good: AtomicU64,
    pub(super) calls_failed: AtomicU64,
    /// Why they did.
    failures: Mutex<BTreeMap<&'static str, u64>>,
    /// Pairs of a QoS 1 message and a handle that must have it, and has.
    pub(super) checked: AtomicU64,
    pub(super) violations: AtomicU64,
    told: Mutex<Vec<String>>,
    /// Publishers by their number in payloads.
    publishers: Mutex<Vec<EndpointId>>,
    handles: Mutex<Vec<Arc<Handle>>>,
    proofs: Mutex<Vec<Proof>>,
    offers: Mutex<Vec<Arc<Offer>>>,
    missed: Mutex<Vec<Missed>>,
    gateway_starts: Mutex<Vec<Instant>>,
    /// How often the calls ran that must run once.
    runs: Mutex<HashMap<u64, u32>>,
}

/// An offer that a caller was told is not there.
#[derive(Debug)]
struct Missed {
    offer: Arc<Offer>,
    /// If the node has been connected since then, it should have been found.
    since: Instant,
    heard: Instant,
}

/// QoS 1 messages that their publisher knows to be delivered.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    pub(super) realm: usize,
    pub(super) topic: usize,
    pub(super) publisher: u32,
    pub(super) numbers: Vec<u64>,
    pub(super) began: Instant,
    pub(super) proved: Instant,
}

impl Model {
    pub(super) fn violated(&self, what: impl Into<String>) {
        self.violations.fetch_add(1, Ordering::Relaxed);
        let mut told = lock(&self.told);
        if told.len() < TOLD_MAX {
            let what = what.into();
            crate::out::note(format_args!("violation: {what}"));
            told.push(what);
        }
    }

    pub(super) fn told(&self) -> Vec<String> {
        lock(&self.told).clone()
    }

    /// A call ended without an answer, as it may.
    pub(super) fn failed(&self, why: &'static str) {
        self.calls_failed.fetch_add(1, Ordering::Relaxed);
        *lock(&self.failures).entry(why).or_default() += 1;
    }

    /// A caller that asked at `asked` heard that nobody serves a procedure. Nobody does?
    pub(super) fn nobody_serves(&self, realm: usize, procedure: usize, asked: Instant) {
        self.failed("no provider");
        let since = asked.checked_sub(RETURN_MAX).unwrap_or(asked);
        if lock(&self.gateway_starts).iter().any(|at| *at >= since) {
            return;
        }
        let mut offers = lock(&self.offers);
        offers.retain(|offer| !offer.is_closed.load(Ordering::Acquire));
        let serves = |offer: &&Arc<Offer>| {
            (offer.realm, offer.procedure) == (realm, procedure)
                && offer.opened < asked
                && offer.node.had_no_gap_since(since)
        };
        // The gateway may have given its link up, and the node not have heard of that yet.
        if let Some(offer) = offers.iter().find(serves).cloned() {
            drop(offers);
            lock(&self.missed).push(Missed { offer, since, heard: Instant::now() });
        }
    }

    /// Checks whether offers that were not found were there all along; returns how many are open.
    fn judge_missed(&self) -> usize {
        let mut missed = lock(&self.missed);
        missed.retain(|missed| missed.offer.node.had_no_gap_since(missed.since));
        let (old, open) = std::mem::take(&mut *missed)
            .into_iter()
            .partition::<Vec<_>, _>(|missed| missed.heard.elapsed() >= ARRIVAL_MAX);
        *missed = open;
        let count = missed.len();
        drop(missed);
        for Missed { offer, .. } in old {
            let (realm, procedure, number) =
                (REALMS[offer.realm], offer.procedure, offer.node.number);
            self.violated(format!(
                "nobody serves procedure {procedure} in {realm}, but {number} does"
            ));
        }
        count
    }

    pub(super) fn offered(&self, offer: Arc<Offer>) {
        lock(&self.offers).push(offer);
    }

    pub(super) fn failures(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.failures).clone()
    }

    /// A number for a publisher that is new.
    pub(super) fn introduce(&self, id: EndpointId) -> u32 {
        let mut publishers = lock(&self.publishers);
        publishers.push(id);
        (publishers.len() - 1) as u32
    }

    pub(super) fn gateway_started(&self) {
        lock(&self.gateway_starts).push(Instant::now());
    }

    pub(super) fn opened(&self, handle: Arc<Handle>) {
        lock(&self.handles).push(handle);
    }

    pub(super) fn proved(&self, proof: Proof) {
        lock(&self.proofs).push(proof);
    }

    /// A call that must run at most once has begun to.
    pub(super) fn runs(&self, call: u64) {
        let mut runs = lock(&self.runs);
        let times = runs.entry(call).or_default();
        *times += 1;
        if *times == 2 {
            drop(runs);
            self.violated(format!("call {call} ran twice, though it is not idempotent"));
        }
    }

    /// Checks what must hold by now; returns how much is still open.
    pub(super) fn judge(&self) -> usize {
        self.judge_missed() + self.judge_proofs()
    }

    fn judge_proofs(&self) -> usize {
        let handles = {
            let mut handles = lock(&self.handles);
            handles.retain(|handle| !handle.is_closed.load(Ordering::Acquire));
            handles.clone()
        };
        let starts = lock(&self.gateway_starts).clone();
        let mut proofs = std::mem::take(&mut *lock(&self.proofs));
        proofs.retain(|proof| {
            let since = proof.began.checked_sub(ARRIVAL_MAX).unwrap_or(proof.began);
            if starts.iter().filter(|at| **at >= since).count() > 1 {
                return false;
            }
            let owed = handles.iter().filter(|handle| handle.must_have(proof));
            let (mut checked, mut missing) = (0, None);
            for handle in owed {
                match handle.lacks(proof) {
                    0 => checked += proof.numbers.len() as u64,
                    lacks => missing = Some((handle, lacks)),
                }
            }
            let Some((handle, lacks)) = missing else {
                self.checked.fetch_add(checked, Ordering::Relaxed);
                return false;
            };
            if proof.proved.elapsed() < ARRIVAL_MAX {
                return true;
            }
            self.violated(format!(
                "{} lacks {lacks} of {} delivered messages from {:?} of publisher {} on {} in {}",
                handle.name(),
                proof.numbers.len(),
                proof.numbers.first(),
                proof.publisher,
                TOPICS[proof.topic],
                REALMS[proof.realm],
            ));
            false
        });
        let mut waiting = lock(&self.proofs);
        waiting.append(&mut proofs);
        waiting.len()
    }

    /// Checks a message by itself and against what the handle had before.
    fn check(&self, handle: &Handle, message: &Message) {
        self.received.fetch_add(1, Ordering::Relaxed);
        let Some(head) = Head::read(&message.payload) else {
            return self.violated(format!("{} got a payload that nobody sent", handle.name()));
        };
        let topic = TOPICS.get(usize::from(head.topic)).copied().unwrap_or_default();
        let publisher = lock(&self.publishers).get(head.publisher as usize).copied();
        let wrong = if usize::from(head.realm) != handle.realm {
            "it crossed realms"
        } else if topic != message.topic() {
            "it changed its topic"
        } else if !matches(handle.pattern, topic) {
            "nobody asked for it"
        } else if publisher != Some(message.publisher) {
            "somebody else published it"
        } else if message.retained || handle.note(&head, message.qos) {
            return;
        } else {
            "it came twice or out of order"
        };
        let retained = message.retained;
        self.violated(format!(
            "{} got {head:?} on {topic} (retained: {retained}): {wrong}",
            handle.name()
        ));
    }
}

/// A subscription as its application sees it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) realm: usize,
    pub(super) pattern: &'static str,
    pub(super) node: Arc<Presence>,
    pub(super) is_deaf: bool,
    pub(super) opened: Instant,
    pub(super) is_closed: AtomicBool,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    /// The last number, by publisher and topic.
    last: HashMap<(u32, u8), u64>,
    /// QoS 1 messages: publisher, topic, number. Two sets, so that old ones can be forgotten.
    got: [HashSet<(u32, u8, u64)>; 2],
    turned: Instant,
}

impl Handle {
    pub(super) fn new(
        realm: usize,
        pattern: &'static str,
        node: Arc<Presence>,
        is_deaf: bool,
    ) -> Arc<Self> {
        let log = Log {
            last: HashMap::new(),
            got: [HashSet::new(), HashSet::new()],
            turned: Instant::now(),
        };
        let opened = Instant::now();
        let is_closed = AtomicBool::new(false);
        Arc::new(Self { realm, pattern, node, is_deaf, opened, is_closed, log: Mutex::new(log) })
    }

    pub(super) fn got(&self, model: &Model, message: &Message) {
        model.check(self, message);
    }

    pub(super) fn name(&self) -> String {
        let (number, realm) = (self.node.number, REALMS[self.realm]);
        format!("the handle {} of node {number} in {realm}", self.pattern)
    }

    /// Whether the message is newer than all before of its publisher on its topic.
    fn note(&self, head: &Head, qos: macula::Qos) -> bool {
        let mut log = lock(&self.log);
        if log.turned.elapsed() > MEMORY {
            log.turned = Instant::now();
            log.got.swap(0, 1);
            log.got[0].clear();
        }
        if qos == macula::Qos::AtLeastOnce {
            log.got[0].insert((head.publisher, head.topic, head.number));
        }
        let last = log.last.entry((head.publisher, head.topic)).or_default();
        let is_new = *last < head.number;
        *last = head.number.max(*last);
        is_new
    }

    fn must_have(&self, proof: &Proof) -> bool {
        self.realm == proof.realm
            && !self.is_deaf
            && self.opened < proof.began
            && matches(self.pattern, TOPICS[proof.topic])
            && self.node.was_present_since(proof.began)
            && !self.is_closed.load(Ordering::Acquire)
    }

    fn lacks(&self, proof: &Proof) -> usize {
        let log = lock(&self.log);
        let topic = proof.topic as u8;
        let lacks = |number: &&u64| {
            let key = (proof.publisher, topic, **number);
            !log.got.iter().any(|got| got.contains(&key))
        };
        proof.numbers.iter().filter(lacks).count()
    }
}

/// A procedure that is served; its gateway knows.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) realm: usize,
    pub(super) procedure: usize,
    pub(super) node: Arc<Presence>,
    pub(super) opened: Instant,
    pub(super) is_closed: AtomicBool,
}

/// When a node was without a connection.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) number: u32,
    gaps: Mutex<Vec<(Instant, Option<Instant>)>>,
}

impl Presence {
    pub(super) fn new(number: u32) -> Arc<Self> {
        Arc::new(Self { number, gaps: Mutex::default() })
    }

    pub(super) fn lost(&self) {
        let mut gaps = lock(&self.gaps);
        if gaps.last().is_none_or(|(_, end)| end.is_some()) {
            gaps.push((Instant::now(), None));
        }
    }

    pub(super) fn back(&self) {
        if let Some((_, end)) = lock(&self.gaps).last_mut() {
            end.get_or_insert_with(Instant::now);
        }
    }

    fn had_no_gap_since(&self, since: Instant) -> bool {
        lock(&self.gaps).last().is_none_or(|(_, end)| end.is_some_and(|end| end < since))
    }

    fn was_present_since(&self, since: Instant) -> bool {
        lock(&self.gaps)
            .iter()
            .filter(|(_, end)| end.is_none_or(|end| end >= since))
            .all(|(start, end)| end.unwrap_or_else(Instant::now) - *start <= GAP_MAX)
    }
}

/// What stands in front of every payload and argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) realm: u8,
    /// Topic, or procedure.
    pub(super) topic: u8,
    /// Of a call: it may run twice.
    pub(super) idempotent: bool,
    pub(super) publisher: u32,
    pub(super) number: u64,
}

const MAGIC: &[u8; 4] = b"soak";
/// Bytes of a head.
const HEAD_BYTES: usize = 4 + 3 + 4 + 8;

impl Head {
    /// The head and so many bytes behind it.
    pub(super) fn payload(self, padding: usize) -> Bytes {
        let mut payload = BytesMut::with_capacity(HEAD_BYTES + padding);
        payload.extend_from_slice(MAGIC);
        payload.extend_from_slice(&[self.realm, self.topic, u8::from(self.idempotent)]);
        payload.extend_from_slice(&self.publisher.to_be_bytes());
        payload.extend_from_slice(&self.number.to_be_bytes());
        payload.resize(HEAD_BYTES + padding, self.number as u8);
        payload.freeze()
    }

    /// `None` when the payload is not as [`Head::payload`] makes it.
    pub(super) fn read(payload: &[u8]) -> Option<Self> {
        let (magic, rest) = payload.split_first_chunk::<4>()?;
        let ([realm, topic, idempotent], rest) = rest.split_first_chunk::<3>()?;
        let (publisher, rest) = rest.split_first_chunk::<4>()?;
        let (number, padding) = rest.split_first_chunk::<8>()?;
        let head = Self {
            realm: *realm,
            topic: *topic,
            idempotent: *idempotent == 1,
            publisher: u32::from_be_bytes(*publisher),
            number: u64::from_be_bytes(*number),
        };
        let is_whole = magic == MAGIC && padding.iter().all(|byte| *byte == head.number as u8);
        is_whole.then_some(head)
    }
}

/// Matching as the specification words it (docs/protocol §5.1), not as the product does it.
fn matches(pattern: &str, topic: &str) -> bool {
    let mut topic = topic.split('.');
    for wanted in pattern.split('.') {
        match (wanted, topic.next()) {
            ("**", _) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Head = Head { realm: 1, topic: 3, idempotent: false, publisher: 7, number: 300 };

    fn handle(node: &Arc<Presence>) -> Arc<Handle> {
        Handle::new(1, "**", node.clone(), false)
    }

    #[test]
    fn payloads_say_where_they_belong_and_show_damage() {
        let payload = HEAD.payload(10);
        assert_eq!(Head::read(&payload), Some(HEAD));
        let mut damaged = payload.to_vec();
        damaged[HEAD_BYTES + 3] ^= 1;
        assert_eq!(Head::read(&damaged), None);
        assert_eq!(Head::read(b"soak"), None);
    }

    #[test]
    fn a_handle_notices_duplicates_and_disorder() {
        let handle = handle(&Presence::new(0));
        let at = |number| Head { number, ..HEAD };
        assert!(handle.note(&at(5), macula::Qos::AtMostOnce));
        assert!(!handle.note(&at(5), macula::Qos::AtMostOnce));
        assert!(!handle.note(&at(4), macula::Qos::AtMostOnce));
        assert!(handle.note(&at(9), macula::Qos::AtMostOnce));
        assert!(handle.note(&Head { topic: 2, ..at(1) }, macula::Qos::AtMostOnce));
    }

    fn proof(began: Instant, numbers: Vec<u64>) -> Proof {
        let proved = Instant::now();
        let (realm, topic) = (usize::from(HEAD.realm), usize::from(HEAD.topic));
        Proof { realm, topic, publisher: HEAD.publisher, numbers, began, proved }
    }

    #[test]
    fn what_was_delivered_must_be_there_and_late_is_a_violation() {
        let (model, node) = (Model::default(), Presence::new(0));
        let handle = handle(&node);
        model.opened(handle.clone());
        let mut owed = proof(Instant::now(), vec![300]);
        model.proved(owed.clone());
        assert_eq!(model.judge(), 1, "it may still come");
        assert!(handle.note(&HEAD, macula::Qos::AtLeastOnce));
        assert_eq!((model.judge(), model.checked.load(Ordering::Relaxed)), (0, 1));
        owed.numbers.push(301);
        owed.proved = Instant::now().checked_sub(ARRIVAL_MAX * 2).unwrap();
        model.proved(owed.clone());
        assert_eq!((model.judge(), model.violations.load(Ordering::Relaxed)), (0, 1));
        // not when the gateway started twice, or the handle is closed
        model.gateway_started();
        model.gateway_started();
        model.proved(owed);
        assert_eq!((model.judge(), model.violations.load(Ordering::Relaxed)), (0, 1));
    }

    #[test]
    fn long_gaps_excuse_a_node() {
        let node = Presence::new(0);
        let began = Instant::now();
        node.lost();
        assert!(node.was_present_since(began), "a short one does not");
        lock(&node.gaps)[0].0 = began.checked_sub(GAP_MAX * 2).unwrap();
        assert!(!node.was_present_since(began));
        node.back();
        assert!(!node.was_present_since(began));
        assert!(node.was_present_since(Instant::now()), "later messages are owed again");
    }

    #[test]
    fn that_nobody_serves_is_wrong_while_somebody_does() {
        let (model, node) = (Model::default(), Presence::new(0));
        let violations = || model.violations.load(Ordering::Relaxed);
        let (opened, is_closed) = (Instant::now(), AtomicBool::new(false));
        let offer =
            Arc::new(Offer { realm: 1, procedure: 2, node: node.clone(), opened, is_closed });
        model.offered(offer.clone());
        model.nobody_serves(1, 1, Instant::now());
        model.nobody_serves(0, 2, Instant::now());
        assert_eq!((model.judge(), violations()), (0, 0), "others do");
        let age = || {
            for missed in lock(&model.missed).iter_mut() {
                missed.heard = missed.heard.checked_sub(ARRIVAL_MAX * 2).unwrap();
            }
        };
        model.nobody_serves(1, 2, Instant::now());
        assert_eq!((model.judge(), violations()), (1, 0), "its node may have lost its link");
        age();
        assert_eq!((model.judge(), violations()), (0, 1));
        model.nobody_serves(1, 2, Instant::now());
        node.lost();
        age();
        assert_eq!((model.judge(), violations()), (0, 1), "it had");
        model.nobody_serves(1, 2, Instant::now());
        offer.is_closed.store(true, Ordering::Release);
        model.nobody_serves(1, 2, Instant::now());
        assert_eq!((model.judge(), violations()), (0, 1));
    }

    #[test]
    fn patterns_match_as_specified() {
        for (pattern, topic, wanted) in
            [("a.**", "a", true), ("a.*", "a.b.c", false), ("**", "d", true), ("*.b", "a.b", true)]
        {
            assert_eq!(matches(pattern, topic), wanted, "{pattern} {topic}");
        }
    }
}
