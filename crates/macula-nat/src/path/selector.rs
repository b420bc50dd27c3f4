//! Which path a link uses, which is dead, and when checks begin again.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::{EndpointId, Time};

use super::is_private;

/// A path with data under way and no sign of life is dead after this at the earliest.
const DEAD_AFTER_MIN: Duration = Duration::from_millis(250);
/// ... and after so many probe timeouts of it.
const DEAD_AFTER_PTOS: u32 = 3;
/// A busy path is looked at so often.
const LOOK_BUSY: Duration = Duration::from_millis(25);
/// One that was used lately.
const LOOK_RECENT: Duration = Duration::from_millis(100);
/// What counts as lately.
const RECENT: Duration = Duration::from_secs(2);
/// One that is idle.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// Of several direct paths all but the best are closed after this: by then all checks of a round
/// that can succeed at once have.
const PRUNE_AFTER: Duration = Duration::from_secs(1);
/// At least so much time lies between two rounds of checks.
const ROUND_SPACING: Duration = Duration::from_millis(250);
/// The next round after one that brought nothing; doubles each time. A round takes 4 s.
const RETRY_FIRST: Duration = Duration::from_secs(4);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// After a path that worked was lost it comes back soon or not at all: so often at this interval.
const LOST_RETRY: Duration = Duration::from_secs(1);
const LOST_RETRIES: u32 = 10;
/// A direct path must be so much faster, in percent, to replace one of the same sort.
const FASTER_PERCENT: u32 = 70;

/// QUIC's number of a path.
pub type PathKey = u32;

/// Who dialled the link. Only the client begins rounds and closes what is superfluous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// This side dialled.
    Client,
    /// The peer did.
    Server,
}

/// Which paths a link may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Only the relay. Hides the addresses of this endpoint from its peers.
    AlwaysRelay,
    /// The relay at once, a direct path as soon as there is one.
    #[default]
    Opportunistic,
    /// Only a direct path, which is arranged over the relay. Without one there is no link.
    DirectOnly,
}

/// What sort of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Through the gateway.
    Relay,
    /// Through this other member of a realm, which carries packets for both.
    Member(EndpointId),
    /// Through a TURN server, ours or the peer's. The address is the peer's, as that server knows it
    /// or as it gave it.
    Turn(SocketAddr),
    /// To this address of the peer.
    Direct(SocketAddr),
}

impl Class {
    /// Higher is better: host and reflexive before TURN before other members before the gateway.
    const fn rank(self) -> u8 {
        match self {
            Self::Relay => 0,
            Self::Member(_) => 1,
            Self::Turn(_) => 2,
            Self::Direct(_) => 3,
        }
    }
}

/// What is known of the path in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// UDP datagrams received on it.
    pub received: u64,
    /// Frames sent on it that the peer must acknowledge.
    pub eliciting: u64,
    /// Smoothed round-trip time.
    pub rtt: Duration,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A path was validated.
    Opened {
        /// Which.
        path: PathKey,
        /// What sort.
        class: Class,
        /// Its round-trip time so far.
        rtt: Duration,
    },
    /// A path is gone.
    Closed {
        /// Which.
        path: PathKey,
    },
    /// How the path in use does, as asked for by [`Selector::poll_timeout`].
    Looked(Sample),
    /// Candidates changed: there are so many of ours and of the peer's now.
    Candidates {
        /// Ours.
        local: usize,
        /// The peer's; only known to the client.
        remote: usize,
    },
    /// An address of ours went away, and with it perhaps the path in use.
    AddressLost,
    /// Whether packets can be relayed now.
    Relay {
        /// They can.
        up: bool,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Use a path (`true`) or keep it in reserve.
    Use {
        /// Which.
        path: PathKey,
        /// Whether it carries data.
        on: bool,
    },
    /// Make the peer answer on a path.
    Ping {
        /// Which.
        path: PathKey,
    },
    /// Close a path; what is under way on it is sent again elsewhere.
    Close {
        /// Which.
        path: PathKey,
    },
    /// Begin a round of checks.
    Check,
    /// Open the path through the gateway again.
    OpenRelay,
    /// The link is of no use any more, by its strategy.
    GiveUp,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    class: Class,
    rtt: Duration,
    on: Option<bool>,
}

/// How the path in use did when last looked at.
#[derive(Clone, Copy, Debug)]
struct Watch {
    path: PathKey,
    last: Option<Sample>,
    /// Since when something is under way without a sign of life.
    since: Time,
    /// When something was sent last.
    used: Time,
    pinged: bool,
    due: Time,
}

/// Decides about the paths of one link.
#[derive(Debug)]
pub struct Selector {
    side: Side,
    strategy: Strategy,
    paths: BTreeMap<PathKey, Entry>,
    watch: Option<Watch>,
    local: usize,
    remote: usize,
    relay_up: bool,
    /// When the last round began.
    round: Option<Time>,
    next_round: Option<Time>,
    retries: u32,
    was_direct: bool,
    /// Rounds left that come fast, as a path that worked was lost.
    fast_left: u32,
    prune_at: Option<Time>,
    actions: VecDeque<Action>,
}

impl Selector {
    /// A link whose only path goes through the gateway.
    pub fn new(side: Side, strategy: Strategy, relay: PathKey) -> Self {
        let entry = Entry { class: Class::Relay, rtt: Duration::ZERO, on: Some(true) };
        Self {
            side,
            strategy,
            paths: [(relay, entry)].into(),
            watch: None,
            local: 0,
            remote: 0,
            relay_up: true,
            round: None,
            next_round: None,
            retries: 0,
            was_direct: false,
            fast_left: 0,
            prune_at: None,
            actions: VecDeque::new(),
        }
    }

    /// The path that carries data; `None`: there is no path at all.
    pub fn selected(&self) -> Option<(PathKey, Class)> {
        let best = self.best().map(|(path, entry)| (path, entry.class));
        best.or_else(|| self.relay().map(|path| (path, Class::Relay)))
    }

    /// Takes one input.
    pub fn handle_input(&mut self, now: Time, input: Input) {
        match input {
            Input::Opened { path, class, rtt } => self.on_opened(now, path, class, rtt),
            Input::Closed { path } => self.on_closed(now, path),
            Input::Looked(sample) => self.on_looked(now, sample),
            Input::Candidates { local, remote } => {
                (self.local, self.remote) = (local, remote);
                self.retries = 0;
                self.plan_round(now);
            }
            Input::AddressLost => {
                let direct: Vec<PathKey> = self.direct_paths().map(|(path, _)| path).collect();
                direct.into_iter().for_each(|path| self.drop_path(now, path));
            }
            Input::Relay { up } => {
                self.relay_up = up;
                let is_missing = self.relay().is_none() && self.side == Side::Client;
                if up && is_missing {
                    self.actions.push_back(Action::OpenRelay);
                }
            }
        }
    }

    /// Does what is due; safe to call early or late.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.next_round.is_some_and(|at| at <= now) {
            self.next_round = None;
            self.check(now);
        }
        if self.prune_at.is_some_and(|at| at <= now) {
            self.prune_at = None;
            self.prune(now);
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Selector::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        [self.next_round, self.prune_at].into_iter().flatten().min()
    }

    /// When the path in use is to be looked at, and which that is.
    pub fn poll_look(&self) -> Option<(Time, PathKey)> {
        self.watch.map(|watch| (watch.due, watch.path))
    }

    fn relay(&self) -> Option<PathKey> {
        self.paths.iter().find(|(_, entry)| entry.class == Class::Relay).map(|(path, _)| *path)
    }

    fn direct_paths(&self) -> impl Iterator<Item = (PathKey, Entry)> + '_ {
        let is_direct = |entry: &Entry| matches!(entry.class, Class::Direct(_));
        self.paths.iter().filter(move |(_, it)| is_direct(it)).map(|(path, it)| (*path, *it))
    }

    /// The direct path to use: the newest, which both sides see alike.
    fn direct(&self) -> Option<(PathKey, Entry)> {
        self.direct_paths().last()
    }

    /// The path to use unless only the gateway's is left: the newest of the best sort.
    fn best(&self) -> Option<(PathKey, Entry)> {
        let others = self.paths.iter().filter(|(_, entry)| entry.class != Class::Relay);
        let best = others.max_by_key(|(path, entry)| (entry.class.rank(), **path));
        best.map(|(path, entry)| (*path, *entry))
    }

    /// Those of which one is enough, direct or by TURN. Another member's is kept like the gateway's, for
    /// when that is gone.
    fn contenders(&self) -> impl Iterator<Item = (PathKey, Entry)> + '_ {
        let is_one = |entry: &Entry| matches!(entry.class, Class::Turn(_) | Class::Direct(_));
        self.paths.iter().filter(move |(_, it)| is_one(it)).map(|(path, it)| (*path, *it))
    }

    /// Whether with a path of this class, which is gone, the last of its use went.
    fn was_last(&self, class: Class) -> bool {
        match class {
            Class::Direct(_) => self.direct().is_none(),
            Class::Turn(_) | Class::Member(_) => self.best().is_none(),
            Class::Relay => false,
        }
    }

    fn on_opened(&mut self, now: Time, path: PathKey, class: Class, rtt: Duration) {
        let is_allowed = match self.strategy {
            Strategy::AlwaysRelay => class == Class::Relay,
            Strategy::Opportunistic => true,
            Strategy::DirectOnly => !matches!(class, Class::Turn(_) | Class::Member(_)),
        };
        if !is_allowed {
            self.paths.remove(&path);
            self.apply(now);
            return self.actions.push_back(Action::Close { path });
        }
        self.paths.insert(path, Entry { class, rtt, on: None });
        if matches!(class, Class::Direct(_)) {
            self.was_direct = true;
            (self.retries, self.fast_left) = (0, 0);
            self.next_round = None;
        }
        let is_contender = matches!(class, Class::Turn(_) | Class::Direct(_));
        if is_contender && self.contenders().count() > 1 && self.side == Side::Client {
            self.prune_at = Some(now + PRUNE_AFTER);
        }
        self.apply(now);
    }

    fn on_closed(&mut self, now: Time, path: PathKey) {
        let Some(entry) = self.paths.remove(&path) else { return };
        self.apply(now);
        if self.was_last(entry.class) {
            self.on_lost(now);
        }
        if entry.class == Class::Relay && self.relay_up && self.side == Side::Client {
            self.actions.push_back(Action::OpenRelay);
        }
    }

    /// The last direct path is gone, or the last of another sort when there was none.
    fn on_lost(&mut self, now: Time) {
        if self.strategy == Strategy::DirectOnly {
            return self.actions.push_back(Action::GiveUp);
        }
        (self.retries, self.fast_left) = (0, LOST_RETRIES);
        self.plan_round(now);
    }

    /// Closes a path of ours that is dead or superfluous.
    fn drop_path(&mut self, now: Time, path: PathKey) {
        let Some(entry) = self.paths.remove(&path) else { return };
        // first the others, so that what is under way has somewhere to go
        self.apply(now);
        self.actions.push_back(Action::Close { path });
        if self.was_last(entry.class) {
            self.on_lost(now);
        }
    }

    /// Says which path is used.
    fn apply(&mut self, now: Time) {
        let selected = self.selected().map(|(path, _)| path);
        for (path, entry) in &mut self.paths {
            let on = Some(*path) == selected;
            // before others are switched off
            if on && entry.on != Some(true) {
                entry.on = Some(true);
                self.actions.push_back(Action::Use { path: *path, on });
            }
        }
        for (path, entry) in &mut self.paths {
            if Some(*path) != selected && entry.on != Some(false) {
                entry.on = Some(false);
                self.actions.push_back(Action::Use { path: *path, on: false });
            }
        }
        let watched = self.best().map(|(path, _)| path);
        if watched != self.watch.map(|watch| watch.path) {
            self.watch = watched.map(|path| Watch {
                path,
                last: None,
                since: now,
                used: now,
                pinged: false,
                due: now + LOOK_BUSY,
            });
        }
    }

    fn on_looked(&mut self, now: Time, sample: Sample) {
        let Some(watch) = &mut self.watch else { return };
        let Some(last) = watch.last else {
            (watch.last, watch.since, watch.due) = (Some(sample), now, now + LOOK_BUSY);
            return;
        };
        if sample.eliciting != last.eliciting && !watch.pinged {
            watch.used = now;
        }
        let is_alive = sample.received != last.received;
        // what was sent before the last sign of life counts as answered by it
        let is_waiting = sample.eliciting != last.eliciting;
        if is_alive || !is_waiting {
            (watch.last, watch.since, watch.pinged) = (Some(sample), now, false);
            let is_recent = now - watch.used < RECENT;
            watch.due = now + if is_recent { LOOK_RECENT } else { LOOK_IDLE };
            if is_alive && is_waiting {
                watch.due = now + LOOK_BUSY;
            }
            let path = watch.path;
            if let Some(entry) = self.paths.get_mut(&path) {
                entry.rtt = sample.rtt;
            }
            return;
        }
        let dead_after = dead_after(sample.rtt);
        let silent = now - watch.since;
        let path = watch.path;
        watch.due = now + LOOK_BUSY;
        if silent >= dead_after {
            return self.drop_path(now, path);
        }
        // what is under way may be a probe of a size that does not pass: that is no bad sign
        if silent * 2 >= dead_after && !watch.pinged {
            watch.pinged = true;
            self.actions.push_back(Action::Ping { path });
        }
    }

    /// Plans a round, if there is something to check that may help.
    fn plan_round(&mut self, now: Time) {
        let may_check = self.side == Side::Client
            && self.strategy != Strategy::AlwaysRelay
            && self.local > 0
            && self.remote > 0;
        if !may_check {
            self.next_round = None;
            return;
        }
        let earliest = self.round.map_or(now, |round| round + ROUND_SPACING).max(now);
        self.next_round = Some(earliest);
        if earliest <= now {
            self.next_round = None;
            self.check(now);
        }
    }

    fn check(&mut self, now: Time) {
        self.round = Some(now);
        self.actions.push_back(Action::Check);
        if self.direct().is_some() {
            // a better path may turn up; none is missed
            return;
        }
        let wait = if self.fast_left > 0 {
            self.fast_left -= 1;
            LOST_RETRY
        } else {
            let wait = RETRY_FIRST.saturating_mul(1 << self.retries.min(8)).min(RETRY_MAX);
            self.retries = self.retries.saturating_add(1);
            wait
        };
        self.next_round = Some(now + wait);
    }

    /// Closes all paths but the best and the gateway's.
    fn prune(&mut self, now: Time) {
        let mut best: Option<(PathKey, Entry)> = None;
        for (path, entry) in self.contenders() {
            if best.is_none_or(|(_, best)| is_better(entry, best)) {
                best = Some((path, entry));
            }
        }
        let Some((best, _)) = best else { return };
        let others: Vec<PathKey> =
            self.contenders().map(|(path, _)| path).filter(|path| *path != best).collect();
        others.into_iter().for_each(|path| self.drop_path(now, path));
    }
}

/// The better sort, a local network before the internet, then what is clearly faster.
fn is_better(new: Entry, old: Entry) -> bool {
    if new.class.rank() != old.class.rank() {
        return new.class.rank() > old.class.rank();
    }
    let is_near = |entry: Entry| match entry.class {
        Class::Direct(addr) => is_private(addr),
        Class::Turn(_) | Class::Member(_) | Class::Relay => false,
    };
    match (is_near(new), is_near(old)) {
        (true, false) => true,
        (false, true) => false,
        _ => new.rtt < old.rtt * FASTER_PERCENT / 100,
    }
}

/// How long a path may be silent while something is under way on it.
fn dead_after(rtt: Duration) -> Duration {
    // RFC 9002 §6.2.1, with the variation as half of the round trip
    let pto = rtt * 3 + Duration::from_millis(25);
    DEAD_AFTER_MIN.max(pto * DEAD_AFTER_PTOS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY: PathKey = 0;

    fn at(ms: u64) -> Time {
        Time::from_micros(1_000_000 + ms * 1_000)
    }

    fn actions(selector: &mut Selector) -> Vec<Action> {
        std::iter::from_fn(|| selector.poll_action()).collect()
    }

    fn client() -> Selector {
        Selector::new(Side::Client, Strategy::Opportunistic, RELAY)
    }

    fn direct(text: &str) -> Class {
        Class::Direct(text.parse().unwrap())
    }

    fn open(selector: &mut Selector, ms: u64, path: PathKey, addr: &str) {
        let (class, rtt) = (direct(addr), Duration::from_millis(10));
        selector.handle_input(at(ms), Input::Opened { path, class, rtt });
    }

    fn sample(received: u64, eliciting: u64) -> Input {
        Input::Looked(Sample { received, eliciting, rtt: Duration::from_millis(10) })
    }

    #[test]
    fn a_direct_path_is_used_and_the_relay_kept() {
        let mut selector = client();
        open(&mut selector, 0, 1, "192.0.2.1:1");
        let expected = [Action::Use { path: 1, on: true }, Action::Use { path: RELAY, on: false }];
        assert_eq!(actions(&mut selector), expected);
        assert_eq!(selector.selected(), Some((1, direct("192.0.2.1:1"))));
    }

    #[test]
    fn silence_with_something_under_way_closes_the_path_after_the_relay_is_on() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open(&mut selector, 0, 1, "192.0.2.1:1");
        actions(&mut selector);
        selector.handle_input(at(25), sample(5, 5));
        selector.handle_input(at(50), sample(6, 9));
        assert_eq!(actions(&mut selector), []);
        let mut did = Vec::new();
        for ms in (75..=300).step_by(25) {
            selector.handle_input(at(ms), sample(6, 10));
            did.extend(actions(&mut selector).into_iter().map(|action| (ms, action)));
        }
        let expected = [
            (175, Action::Ping { path: 1 }),
            (300, Action::Use { path: RELAY, on: true }),
            (300, Action::Close { path: 1 }),
            (300, Action::Check),
        ];
        assert_eq!(did, expected);
        assert_eq!(selector.selected(), Some((RELAY, Class::Relay)));
    }

    #[test]
    fn an_idle_path_is_left_alone_and_looked_at_rarely() {
        let mut selector = client();
        open(&mut selector, 0, 1, "192.0.2.1:1");
        actions(&mut selector);
        let mut now = 25;
        for _ in 0..60 {
            selector.handle_input(at(now), sample(5, 5));
            let (due, path) = selector.poll_look().unwrap();
            assert_eq!(path, 1);
            now = (due - at(0)).as_millis() as u64;
        }
        assert_eq!(actions(&mut selector), []);
        assert!(now > 30_000, "looked at 60 times in {now} ms");
    }

    #[test]
    fn a_long_way_gets_more_patience() {
        assert_eq!(dead_after(Duration::from_millis(1)), DEAD_AFTER_MIN);
        assert_eq!(dead_after(Duration::from_millis(200)), Duration::from_millis(1_875));
    }

    #[test]
    fn rounds_begin_on_change_and_then_come_ever_more_rarely() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 2, remote: 0 });
        assert_eq!((actions(&mut selector), selector.poll_timeout()), (vec![], None));
        selector.handle_input(at(10), Input::Candidates { local: 2, remote: 1 });
        assert_eq!(actions(&mut selector), [Action::Check]);
        // a second candidate right behind the first waits a little
        selector.handle_input(at(20), Input::Candidates { local: 2, remote: 2 });
        assert_eq!(actions(&mut selector), []);
        assert_eq!(selector.poll_timeout(), Some(at(260)));
        let mut rounds = Vec::new();
        while let Some(due) = selector.poll_timeout().filter(|due| *due < at(200_000)) {
            selector.handle_timeout(due);
            let did = actions(&mut selector);
            rounds.extend(did.iter().map(|_| (due - at(0)).as_secs()));
        }
        assert_eq!(rounds, [0, 4, 12, 28, 60, 120, 180]);
    }

    #[test]
    fn after_a_loss_rounds_come_fast_for_a_while() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open(&mut selector, 100, 1, "192.0.2.1:1");
        selector.handle_input(at(1_000), Input::Closed { path: 1 });
        let mut rounds = 0;
        while let Some(due) = selector.poll_timeout().filter(|due| *due <= at(10_500)) {
            selector.handle_timeout(due);
            rounds += 1;
        }
        assert_eq!(rounds, 9);
    }

    #[test]
    fn the_server_never_begins_a_round() {
        let mut selector = Selector::new(Side::Server, Strategy::Opportunistic, RELAY);
        selector.handle_input(at(0), Input::Candidates { local: 3, remote: 3 });
        open(&mut selector, 0, 1, "192.0.2.1:1");
        actions(&mut selector);
        selector.handle_input(at(10), Input::AddressLost);
        let expected = [Action::Use { path: RELAY, on: true }, Action::Close { path: 1 }];
        assert_eq!(actions(&mut selector), expected);
        assert_eq!(selector.poll_timeout(), None);
    }

    #[test]
    fn of_several_direct_paths_the_near_one_stays() {
        let mut selector = client();
        open(&mut selector, 0, 1, "192.168.1.7:1");
        open(&mut selector, 5, 2, "192.0.2.1:1");
        actions(&mut selector);
        assert_eq!(selector.selected().map(|(path, _)| path), Some(2));
        selector.handle_timeout(at(1_005));
        let expected = [Action::Use { path: 1, on: true }, Action::Close { path: 2 }];
        assert_eq!(actions(&mut selector), expected);
    }

    fn open_turn(selector: &mut Selector, ms: u64, path: PathKey) {
        let class = Class::Turn("192.0.2.9:9".parse().unwrap());
        selector.handle_input(at(ms), Input::Opened { path, class, rtt: Duration::from_millis(1) });
    }

    #[test]
    fn turn_is_between_the_gateway_and_direct_paths_whichever_is_newer() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open_turn(&mut selector, 10, 1);
        assert_eq!(selector.selected().map(|(path, _)| path), Some(1));
        assert!(selector.poll_timeout().is_some(), "a direct path is looked for all the same");
        open(&mut selector, 20, 2, "192.0.2.1:1");
        assert_eq!(selector.selected().map(|(path, _)| path), Some(2));
        open_turn(&mut selector, 30, 3);
        assert_eq!(
            selector.selected().map(|(path, _)| path),
            Some(2),
            "newer, but of a worse sort"
        );
        actions(&mut selector);
        selector.handle_timeout(at(1_030));
        let expected = [Action::Close { path: 1 }, Action::Close { path: 3 }];
        assert_eq!(actions(&mut selector), expected, "a faster one is no reason to keep it");
    }

    #[test]
    fn a_turn_path_that_dies_gives_way_to_the_gateway_and_rounds_begin() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open_turn(&mut selector, 100, 1);
        actions(&mut selector);
        assert_eq!(selector.poll_look().map(|(_, path)| path), Some(1), "it is watched");
        selector.handle_input(at(5_000), Input::Closed { path: 1 });
        let expected = [Action::Use { path: RELAY, on: true }, Action::Check];
        assert_eq!(actions(&mut selector), expected);
    }

    #[test]
    fn a_path_that_turns_out_to_be_relayed_is_ranked_again() {
        let mut selector = client();
        open(&mut selector, 0, 1, "192.0.2.1:1");
        open(&mut selector, 5, 2, "192.0.2.9:9");
        assert_eq!(selector.selected().map(|(path, _)| path), Some(2));
        open_turn(&mut selector, 10, 2);
        assert_eq!(selector.selected().map(|(path, _)| path), Some(1));
    }

    fn open_member(selector: &mut Selector, ms: u64, path: PathKey) {
        let class = Class::Member(EndpointId::from_bytes([7; 32]));
        selector.handle_input(at(ms), Input::Opened { path, class, rtt: Duration::from_millis(1) });
    }

    #[test]
    fn a_members_path_is_before_the_gateways_and_kept_behind_better_ones() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open_member(&mut selector, 10, 1);
        assert_eq!(selector.selected().map(|(path, _)| path), Some(1));
        open_turn(&mut selector, 20, 2);
        assert_eq!(selector.selected().map(|(path, _)| path), Some(2));
        open(&mut selector, 30, 3, "192.0.2.1:1");
        assert_eq!(selector.selected().map(|(path, _)| path), Some(3));
        actions(&mut selector);
        selector.handle_timeout(at(1_030));
        assert_eq!(actions(&mut selector), [Action::Close { path: 2 }], "by TURN, and no other");
    }

    #[test]
    fn a_lost_direct_path_is_looked_for_at_once_also_when_a_member_relays() {
        let mut selector = client();
        selector.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open_member(&mut selector, 10, 1);
        open(&mut selector, 500, 2, "192.0.2.1:1");
        actions(&mut selector);
        selector.handle_input(at(5_000), Input::Closed { path: 2 });
        assert_eq!(actions(&mut selector), [Action::Use { path: 1, on: true }, Action::Check]);
        selector.handle_input(at(6_000), Input::Relay { up: false });
        selector.handle_input(at(6_001), Input::Closed { path: RELAY });
        assert_eq!(selector.selected().map(|(path, _)| path), Some(1));
        selector.handle_input(at(7_000), Input::Closed { path: 1 });
        assert_eq!(selector.selected(), None);
    }

    #[test]
    fn strategies_hold() {
        let mut relay = Selector::new(Side::Client, Strategy::AlwaysRelay, RELAY);
        relay.handle_input(at(0), Input::Candidates { local: 1, remote: 1 });
        open(&mut relay, 0, 1, "192.0.2.1:1");
        assert_eq!(actions(&mut relay), [Action::Close { path: 1 }]);
        assert_eq!(relay.selected(), Some((RELAY, Class::Relay)));
        let mut direct = Selector::new(Side::Client, Strategy::DirectOnly, RELAY);
        open(&mut direct, 0, 1, "192.0.2.1:1");
        direct.handle_input(at(5), Input::Closed { path: 1 });
        assert_eq!(actions(&mut direct).last(), Some(&Action::GiveUp));
        let mut no_turn = Selector::new(Side::Client, Strategy::DirectOnly, RELAY);
        open_turn(&mut no_turn, 0, 1);
        assert_eq!(actions(&mut no_turn), [Action::Close { path: 1 }]);
        open_member(&mut no_turn, 0, 2);
        assert_eq!(actions(&mut no_turn), [Action::Close { path: 2 }]);
    }

    #[test]
    fn a_lost_relay_is_opened_again_when_the_gateway_is_back() {
        let mut selector = client();
        open(&mut selector, 0, 1, "192.0.2.1:1");
        selector.handle_input(at(1), Input::Relay { up: false });
        selector.handle_input(at(2), Input::Closed { path: RELAY });
        actions(&mut selector);
        selector.handle_input(at(3), Input::Relay { up: true });
        assert_eq!(actions(&mut selector), [Action::OpenRelay]);
        let class = Class::Relay;
        let rtt = Duration::from_millis(50);
        selector.handle_input(at(4), Input::Opened { path: 2, class, rtt });
        assert_eq!(actions(&mut selector), [Action::Use { path: 2, on: false }]);
    }
}
