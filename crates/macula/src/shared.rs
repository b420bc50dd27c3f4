//! What all handles of one endpoint share with its driver.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::{CallId, RegistrationId, SubscriptionId};
use macula_proto::node::{Role, SubscribeOptions};
use macula_proto::pubsub::{Pattern, ProcedureName};
use macula_proto::wire::message::{CallFailure, CloseCode, ProviderPolicy};
use macula_proto::{EndpointId, RealmId};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::error::{Closed, JoinError, ServeError, SubscribeError};
use crate::event::{Event, Events};
use crate::membership::Membership;
use crate::peer::{PeerError, PeerLink};
use crate::publish::Topics;
use crate::records::Kept;
use crate::serve::ServiceShared;
use crate::status::Status;
use crate::streaming::Pipe;
use crate::subscription::Queue;

/// Commands that may wait for the driver; beyond that their futures wait.
pub(crate) const COMMANDS_MAX: usize = 1024;

/// What handles and driver share. Holding it does not keep the endpoint alive.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: EndpointId,
    pub(crate) role: Role,
    pub(crate) clock: Clock,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) doorbell: Doorbell,
    pub(crate) topics: Topics,
    pub(crate) events: broadcast::Sender<Event>,
    /// Asks the driver to end at once.
    pub(crate) abort: CancellationToken,
    /// The endpoint closes: no new links.
    pub(crate) stopping: CancellationToken,
    /// The driver has ended: nothing will be answered any more.
    pub(crate) closed: CancellationToken,
    /// Where a router's records of revocations go.
    pub(crate) records: OnceLock<mpsc::Sender<Kept>>,
    next_handle: AtomicU64,
    next_call: AtomicU64,
}

impl Shared {
    pub(crate) fn new(
        id: EndpointId,
        role: Role,
        commands: mpsc::Sender<Command>,
        events: broadcast::Sender<Event>,
    ) -> Self {
        Self {
            id,
            role,
            clock: Clock::start(),
            commands,
            doorbell: Doorbell::default(),
            topics: Topics::default(),
            events,
            abort: CancellationToken::new(),
            stopping: CancellationToken::new(),
            closed: CancellationToken::new(),
            records: OnceLock::new(),
            next_handle: AtomicU64::new(1),
            next_call: AtomicU64::new(1),
        }
    }

    /// A number that no other subscription or registration of this endpoint has. Calls are
    /// numbered apart, as there are many more of them than the 2^32 that these may have.
    pub(crate) fn next_handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    /// A number that no other call of this endpoint has.
    pub(crate) fn next_call(&self) -> CallId {
        CallId(self.next_call.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands a command to the driver; waits while its inbox is full.
    pub(crate) async fn command(&self, command: Command) -> Result<(), Closed> {
        self.commands.send(command).await.map_err(|_| Closed)
    }

    /// Hands over the command made by `make` and waits for its answer.
    pub(crate) async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Closed> {
        let (answer, answered) = oneshot::channel();
        self.command(make(answer)).await?;
        answered.await.map_err(|_| Closed)
    }

    /// What happens from now on.
    pub(crate) fn listen(&self) -> Events {
        Events::new(self.events.subscribe(), self.closed.clone())
    }

    /// Tells whoever listens.
    pub(crate) fn emit(&self, event: Event) {
        // An error means that nobody listens, which is fine.
        self.events.send(event).ok();
    }
}

/// Keeps the endpoint alive: when the last handle is dropped, everything stops at once.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) tasks: TaskTracker,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.abort.cancel();
    }
}

/// What handles ask the driver for, where order or an answer matters.
#[derive(Debug)]
pub(crate) enum Command {
    Join {
        membership: Membership,
        answer: oneshot::Sender<Result<(), JoinError>>,
    },
    /// Takes a record of revocations that was kept.
    Revoke {
        record: Bytes,
    },
    Subscribe {
        subscription: SubscriptionId,
        realm: RealmId,
        pattern: Pattern,
        options: SubscribeOptions,
        queue: Arc<Queue>,
        answer: oneshot::Sender<Result<(), SubscribeError>>,
    },
    Register {
        registration: RegistrationId,
        realm: RealmId,
        procedure: ProcedureName,
        concurrency: u32,
        service: Arc<ServiceShared>,
        answer: oneshot::Sender<Result<(), ServeError>>,
    },
    Unregister {
        registration: RegistrationId,
        answer: oneshot::Sender<()>,
    },
    Call(CallCommand),
    /// Has a direct link to `carrier` carry packets of the links to `peer`; answers whether it does.
    Carry {
        peer: EndpointId,
        carrier: EndpointId,
        answer: oneshot::Sender<bool>,
    },
    Flush {
        answer: oneshot::Sender<()>,
    },
    Status {
        answer: oneshot::Sender<Status>,
    },
    /// Links to another leaf, or finds the link that is there.
    Peer {
        peer: EndpointId,
        answer: oneshot::Sender<Result<PeerLink, PeerError>>,
    },
    /// Such a link did not come about.
    PeerFailed {
        peer: EndpointId,
        error: PeerError,
    },
    Close(CloseCommand),
}

/// A call to make.
#[derive(Debug)]
pub(crate) struct CallCommand {
    pub(crate) call: CallId,
    pub(crate) realm: Option<RealmId>,
    pub(crate) procedure: ProcedureName,
    pub(crate) deadline: Duration,
    pub(crate) policy: ProviderPolicy,
    pub(crate) idempotent: bool,
    pub(crate) target: Option<EndpointId>,
    pub(crate) traceparent: Bytes,
    pub(crate) body: Bytes,
    /// The items, if it is a streaming call.
    pub(crate) pipe: Option<Arc<Pipe>>,
    pub(crate) answer: oneshot::Sender<Result<Bytes, CallFailure>>,
}

/// How to end.
#[derive(Debug)]
pub(crate) struct CloseCommand {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
    /// Peers come back somewhere within this window.
    pub(crate) reconnect_window: Duration,
    /// What is not done by then is given up.
    pub(crate) timeout: Duration,
}
