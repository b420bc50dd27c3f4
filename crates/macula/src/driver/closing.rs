//! Closing in order: finish, flush, say goodbye, leave; all of it within a deadline.

use std::time::Duration;

use macula_proto::Time;
use macula_proto::node;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use crate::shared::CloseCommand;

/// What the goodbyes get beyond the deadline.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

/// A close under way.
#[derive(Debug)]
pub(super) struct Closing {
    command: CloseCommand,
    stage: Stage,
    /// When the stage is given up.
    deadline: Instant,
}

#[derive(Debug)]
enum Stage {
    /// Handlers end, and what was published is handed over and accepted.
    Finishing,
    /// What was handed over reaches the router.
    Flushing(oneshot::Receiver<()>),
    /// Peers are told, links end.
    Leaving,
    Done,
}

impl Closing {
    pub(super) fn wake_at(&self) -> Instant {
        self.deadline
    }
}

impl Driver {
    pub(super) fn start_closing(&mut self, now: Time, command: CloseCommand) {
        if self.closing.is_some() {
            return;
        }
        // No new links, no new messages, no new requests; what has begun goes on.
        self.shared.stopping.cancel();
        self.shared.topics.refuse_appends();
        for registration in std::mem::take(&mut self.registrations).into_keys() {
            self.command(now, node::Command::Unregister { registration });
        }
        let deadline = Instant::now() + command.timeout;
        self.closing = Some(Closing { command, stage: Stage::Finishing, deadline });
    }

    /// Goes on to the next stage as long as one is over.
    pub(super) fn advance_closing(&mut self, now: Time) {
        while let Some(mut closing) = self.closing.take() {
            let has_advanced = self.advance_stage(now, &mut closing);
            self.closing = Some(closing);
            if !has_advanced {
                break;
            }
        }
    }

    fn advance_stage(&mut self, now: Time, closing: &mut Closing) -> bool {
        let is_late = Instant::now() >= closing.deadline;
        let is_flushed = match &mut closing.stage {
            Stage::Flushing(flushed) => flushed.try_recv().is_ok(),
            Stage::Finishing | Stage::Leaving | Stage::Done => false,
        };
        match &closing.stage {
            Stage::Finishing if is_late => self.leave(now, closing),
            Stage::Finishing if self.requests.is_empty() && self.shared.topics.are_settled() => {
                let (answer, flushed) = oneshot::channel();
                self.flush(now, answer);
                self.settle(now);
                closing.stage = Stage::Flushing(flushed);
            }
            Stage::Flushing(_) if is_late || is_flushed => self.leave(now, closing),
            Stage::Leaving if is_late || self.links.is_empty() => closing.stage = Stage::Done,
            Stage::Finishing | Stage::Flushing(_) | Stage::Leaving | Stage::Done => return false,
        }
        true
    }

    /// Answers once everything handed over has reached the router, or cannot any more.
    pub(super) fn flush(&mut self, now: Time, answer: oneshot::Sender<()>) {
        let id = self.next_flush;
        self.next_flush += 1;
        self.flushes.insert(id, answer);
        self.command(now, node::Command::Flush { id });
    }

    pub(super) fn on_flushed(&mut self, id: u64) {
        if let Some(answer) = self.flushes.remove(&id) {
            // Fails when whoever flushed has given up.
            answer.send(()).ok();
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.closing.as_ref().is_some_and(|closing| matches!(closing.stage, Stage::Done))
    }

    fn leave(&mut self, now: Time, closing: &mut Closing) {
        let CloseCommand { code, reason, reconnect_window, .. } = &closing.command;
        let shutdown = node::Command::Shutdown {
            code: *code,
            reason: reason.clone(),
            reconnect_window: *reconnect_window,
        };
        self.command(now, shutdown);
        self.settle(now);
        closing.stage = Stage::Leaving;
        closing.deadline = Instant::now() + LEAVE_TIMEOUT;
    }
}
