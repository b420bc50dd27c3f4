//! Calling procedures.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::CallId;
use macula_proto::limits::MESSAGE_BYTES_MAX;
use macula_proto::node::StreamEnd;
use macula_proto::pubsub::ProcedureName;
use macula_proto::wire::message::{CallFailure, ProviderPolicy};
use macula_proto::{EndpointId, RealmId};
use tokio::sync::oneshot;

use crate::doorbell::Dropped;
use crate::error::CallError;
use crate::shared::{CallCommand, Command, Owner};
use crate::streaming::{CallStream, ITEM_BYTES_MAX, Pipe};

/// A call that is not told otherwise gives up after this.
pub const DEFAULT_CALL_DEADLINE: Duration = Duration::from_secs(5);
/// A streaming call that is not told otherwise gives up after this.
pub const DEFAULT_STREAM_DEADLINE: Duration = Duration::from_secs(3600);
/// Bytes of a W3C trace context; longer ones are left out.
const TRACEPARENT_BYTES_MAX: usize = 64;

/// A call in the making; from [`crate::Node::call_with`].
#[derive(Clone, Debug)]
#[must_use = "nothing is called before `send` or `open`"]
pub struct CallBuilder {
    owner: Arc<Owner>,
    realm: Option<RealmId>,
    procedure: String,
    arg: Bytes,
    deadline: Option<Duration>,
    policy: ProviderPolicy,
    idempotent: bool,
    target: Option<EndpointId>,
    traceparent: Bytes,
}

impl CallBuilder {
    pub(crate) fn new(owner: Arc<Owner>, realm: Option<RealmId>, procedure: &str) -> Self {
        Self {
            owner,
            realm,
            procedure: procedure.to_owned(),
            arg: Bytes::new(),
            deadline: None,
            policy: ProviderPolicy::default(),
            idempotent: false,
            target: None,
            traceparent: Bytes::new(),
        }
    }

    /// The argument. Default: empty. At most 8 MiB, 64 KiB for a streaming call.
    pub fn arg(mut self, arg: impl Into<Bytes>) -> Self {
        self.arg = arg.into();
        self
    }

    /// When to give up, from now. Default: 5 s; 1 h for a streaming call, which is also the
    /// longest.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Which of several providers to choose. Default: [`ProviderPolicy::Nearest`].
    pub fn policy(mut self, policy: ProviderPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Declares that running the call twice does no harm, so that it may be repeated elsewhere
    /// whenever its provider is lost. Default: no.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.idempotent = idempotent;
        self
    }

    /// Calls this endpoint and no other.
    pub fn to(mut self, provider: EndpointId) -> Self {
        self.target = Some(provider);
        self
    }

    /// A W3C trace context for the handler, at most 64 bytes; a longer one is left out.
    pub fn traceparent(mut self, traceparent: impl Into<Bytes>) -> Self {
        self.traceparent = traceparent.into();
        self.traceparent.truncate(if self.traceparent.len() > TRACEPARENT_BYTES_MAX {
            0
        } else {
            TRACEPARENT_BYTES_MAX
        });
        self
    }

    /// Calls and waits for the result.
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call; the handler hears of it.
    pub async fn send(self) -> Result<Bytes, CallError> {
        let deadline = self.deadline.unwrap_or(DEFAULT_CALL_DEADLINE);
        let (pending, _) = self.start(deadline, MESSAGE_BYTES_MAX, None).await?;
        pending.answer().await
    }

    /// Opens a streaming call: items in both directions, then a result.
    ///
    /// Resolves as soon as the call is on its way; what becomes of it, the stream tells.
    ///
    /// # Errors
    /// [`CallError::BadName`], [`CallError::TooLarge`] and [`CallError::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn open(self) -> Result<CallStream, CallError> {
        let deadline = self.deadline.unwrap_or(DEFAULT_STREAM_DEADLINE);
        let shared = self.owner.shared.clone();
        let call = shared.next_call();
        let pipe = Pipe::new(StreamEnd::Caller(call), shared);
        let (pending, pipe) = self.start(deadline, ITEM_BYTES_MAX, Some((call, pipe))).await?;
        match pipe {
            Some(pipe) => Ok(CallStream::new(&pipe, pending)),
            None => Err(CallError::Closed),
        }
    }

    async fn start(
        self,
        deadline: Duration,
        arg_bytes_max: usize,
        stream: Option<(CallId, Arc<Pipe>)>,
    ) -> Result<(PendingCall, Option<Arc<Pipe>>), CallError> {
        let procedure = ProcedureName::parse(&self.procedure)?;
        if self.arg.len() > arg_bytes_max {
            return Err(CallError::TooLarge { bytes: self.arg.len(), max: arg_bytes_max });
        }
        let shared = &self.owner.shared;
        let (call, pipe) = match stream {
            Some((call, pipe)) => (call, Some(pipe)),
            None => (shared.next_call(), None),
        };
        let (answer, answered) = oneshot::channel();
        // Made before anything is sent, so that dropping this future cancels too.
        let pending = PendingCall { owner: self.owner.clone(), call, answered: Some(answered) };
        let command = CallCommand {
            call,
            realm: self.realm,
            procedure,
            deadline,
            policy: self.policy,
            idempotent: self.idempotent,
            target: self.target,
            traceparent: self.traceparent,
            body: self.arg,
            pipe: pipe.clone(),
            answer,
        };
        shared.command(Command::Call(command)).await?;
        Ok((pending, pipe))
    }
}

/// A call on its way; dropping it cancels the call.
#[derive(Debug)]
pub(crate) struct PendingCall {
    /// Keeps the endpoint alive as long as somebody waits.
    owner: Arc<Owner>,
    call: CallId,
    /// `None` once answered.
    answered: Option<oneshot::Receiver<Result<Bytes, CallFailure>>>,
}

impl PendingCall {
    pub(crate) async fn answer(mut self) -> Result<Bytes, CallError> {
        let Some(answered) = self.answered.as_mut() else { return Err(CallError::Closed) };
        let answer = answered.await;
        self.answered = None;
        match answer {
            Ok(result) => Ok(result?),
            Err(_) => Err(CallError::Closed),
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if let Some(mut answered) = self.answered.take() {
            // Closed first: a driver that has not seen the command yet will not start the call.
            answered.close();
            if answered.try_recv().is_err() {
                self.owner.shared.doorbell.leave_dropped(Dropped::Call(self.call));
            }
        }
    }
}
