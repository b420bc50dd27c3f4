//! What wakes the driver, taken in batches.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use macula_transport::LinkEvent;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};

use super::NewLink;
use crate::shared::Command;

/// Commands taken in one turn.
const COMMANDS_PER_TURN: usize = 256;
/// Link events taken in one turn; each holds many frames.
const LINK_EVENTS_PER_TURN: usize = 128;

/// Tasks that keep the driver waiting for longer than this are not worth it.
const GATHERING_MAX: Duration = Duration::from_millis(1);
/// Turns that do not wait then.
const SLOW_TURNS: u32 = 64;
/// Turns that do not wait after one with a single call or answer, unless one has more.
const LONE_TURNS: u32 = 16;

/// The channels that the driver reads.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) link_events: mpsc::Receiver<LinkEvent>,
    pub(crate) new_links: mpsc::Receiver<NewLink>,
}

/// What came in since the last turn.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) commands: Vec<Command>,
    pub(super) link_events: Vec<LinkEvent>,
    pub(super) new_links: Vec<NewLink>,
}

impl Inbox {
    /// Waits until anything has come.
    ///
    /// Cancel safe: what came is in `round` or still in its channel. Never ends when the senders
    /// are gone; the driver holds what it takes to know that it shall stop.
    pub(super) async fn receive(&mut self, round: &mut Round) {
        tokio::select! {
            biased;
            Some(event) = self.link_events.recv() => round.link_events.push(event),
            Some(command) = self.commands.recv() => round.commands.push(command),
            Some(link) = self.new_links.recv() => round.new_links.push(link),
            else => std::future::pending().await,
        }
    }

    /// Takes what else is there, without waiting and within bounds.
    pub(super) fn fill(&mut self, round: &mut Round) {
        fill(&mut self.link_events, &mut round.link_events, LINK_EVENTS_PER_TURN);
        fill(&mut self.commands, &mut round.commands, COMMANDS_PER_TURN);
        fill(&mut self.new_links, &mut round.new_links, COMMANDS_PER_TURN);
    }
}

fn fill<T>(from: &mut mpsc::Receiver<T>, to: &mut Vec<T>, max: usize) {
    while to.len() < max
        && let Ok(value) = from.try_recv()
    {
        to.push(value);
    }
}

/// Lets all others of the crew run that are ready: after a turn these are above all writers, which
/// a driver that always finds more to do would otherwise keep waiting.
pub(super) async fn step_aside() {
    let mut has_stepped = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_stepped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// One timer, set anew only when it must ring earlier: ringing early is harmless, setting costs.
#[derive(Debug, Default)]
pub(super) struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
    rings_at: Option<Instant>,
}

impl Alarm {
    /// Makes it ring at `at` or earlier.
    pub(super) fn set(&mut self, at: Option<Instant>) {
        let Some(at) = at else { return };
        if self.rings_at.is_some_and(|rings_at| rings_at <= at) {
            return;
        }
        self.rings_at = Some(at);
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            none => *none = Some(Box::pin(sleep_until(at))),
        }
    }

    /// Waits for the moment set; forever without one. Cancel safe.
    pub(super) async fn rings(&mut self) {
        match (&mut self.sleep, self.rings_at) {
            (Some(sleep), Some(_)) => {
                sleep.as_mut().await;
                self.rings_at = None;
            }
            _ => std::future::pending().await,
        }
    }
}

/// Where one task calls or answers, others may be about to: lets them, so that all share one turn.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    /// Turns that do not wait, as there was nobody to wait for.
    lone_turns: u32,
    /// Turns that do not wait, as tasks took long.
    slow_turns: u32,
}

impl Gathering {
    /// Waits until every task has run that is ready to, unless that was no use lately.
    pub(super) async fn wait(&mut self) {
        if self.slow_turns > 0 || self.lone_turns > 0 {
            self.slow_turns = self.slow_turns.saturating_sub(1);
            self.lone_turns = self.lone_turns.saturating_sub(1);
            return;
        }
        let start = Instant::now();
        yield_now().await;
        if start.elapsed() > GATHERING_MAX {
            self.slow_turns = SLOW_TURNS;
        }
        self.lone_turns = LONE_TURNS;
    }

    /// So many calls and answers share the turn.
    pub(super) fn came(&mut self, count: usize) {
        if count > 1 {
            self.lone_turns = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gathering_goes_on_only_while_it_brings_something() {
        let mut gathering = Gathering::default();
        let (ran, mut runs) = tokio::sync::watch::channel(0);
        let mut waits = async |gathering: &mut Gathering| {
            let ran = ran.clone();
            let task = tokio::spawn(async move { ran.send_modify(|count| *count += 1) });
            runs.mark_unchanged();
            gathering.wait().await;
            let has_waited = runs.has_changed().unwrap();
            task.await.unwrap();
            has_waited
        };
        assert!(waits(&mut gathering).await);
        gathering.came(5);
        assert!(waits(&mut gathering).await);
        gathering.came(1);
        for _ in 0..LONE_TURNS {
            assert!(!waits(&mut gathering).await);
        }
        assert!(waits(&mut gathering).await);
        assert!(!waits(&mut gathering).await);
        gathering.came(2);
        assert!(waits(&mut gathering).await);
        gathering.came(2);
        gathering.slow_turns = 2;
        for waited in [false, false, true] {
            assert_eq!(waits(&mut gathering).await, waited);
            gathering.came(2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_alarm_keeps_the_earliest_moment_and_rings_once() {
        let mut alarm = Alarm::default();
        let start = Instant::now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        alarm.set(after(5));
        alarm.set(after(2));
        alarm.set(after(9));
        alarm.set(None);
        alarm.rings().await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        alarm.set(after(9));
        alarm.rings().await;
        assert_eq!(start.elapsed(), Duration::from_secs(9));
        let again = tokio::time::timeout(Duration::from_secs(60), alarm.rings()).await;
        assert!(again.is_err());
    }
}
