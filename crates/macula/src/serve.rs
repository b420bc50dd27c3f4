//! Serving procedures.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::id::RegistrationId;
use macula_proto::limits::MESSAGE_BYTES_MAX;
use macula_proto::pubsub::ProcedureName;
use macula_proto::wire::message::{CallFailure, ErrorClass};
use macula_proto::{EndpointId, RealmId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doorbell::Dropped;
use crate::error::ServeError;
use crate::shared::{Command, Owner};
use crate::streaming::{ITEM_BYTES_MAX, ItemReceiver, ItemSender, Pipe};

/// Requests that a service works on at once unless told otherwise.
const DEFAULT_CONCURRENCY: u32 = 256;
/// A handler whose caller is gone may clean up for so long, then it is dropped.
const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// A call that a handler shall answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Request {
    procedure: ProcedureName,
    /// The argument.
    pub payload: Bytes,
    /// The endpoint that calls.
    pub caller: EndpointId,
    /// When the caller gives up.
    pub deadline: std::time::Instant,
    /// The caller's W3C trace context; empty when it sent none.
    pub traceparent: Bytes,
    cancelled: CancellationToken,
}

impl Request {
    pub(crate) fn new(
        procedure: ProcedureName,
        payload: Bytes,
        caller: EndpointId,
        deadline: Instant,
        traceparent: Bytes,
    ) -> Self {
        let cancelled = CancellationToken::new();
        Self { procedure, payload, caller, deadline: deadline.into_std(), traceparent, cancelled }
    }

    /// The procedure that was called.
    pub fn procedure(&self) -> &str {
        self.procedure.as_str()
    }

    /// Completes when the caller has given up, its deadline has passed, or it is gone. A handler
    /// that has not ended a second later is dropped where it stands.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Whether the caller has given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    pub(crate) fn cancel_token(&self) -> CancellationToken {
        self.cancelled.clone()
    }
}

/// A handler's no; the caller gets code and message as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("refused with code {code}: {message}")]
pub struct Refusal {
    /// For programs; the meaning is the application's own.
    pub code: u16,
    /// For people; at most 1 KiB reaches the caller.
    pub message: String,
}

impl Refusal {
    /// A refusal with `code` and `message`.
    pub fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

type HandlerFuture = Pin<Box<dyn Future<Output = Result<Bytes, Refusal>> + Send>>;
type HandlerFn = dyn Fn(Request, Option<Arc<Pipe>>) -> HandlerFuture + Send + Sync;

/// Settings of a [`Service`]; made by [`crate::Node::service`].
#[derive(Clone, Debug)]
#[must_use = "nothing is served before `serve` or `serve_streaming`"]
pub struct ServiceBuilder {
    owner: Arc<Owner>,
    realm: RealmId,
    procedure: String,
    concurrency: u32,
}

impl ServiceBuilder {
    pub(crate) fn new(owner: Arc<Owner>, realm: RealmId, procedure: &str) -> Self {
        let procedure = procedure.to_owned();
        Self { owner, realm, procedure, concurrency: DEFAULT_CONCURRENCY }
    }

    /// Requests that are worked on at once. As many again may wait; beyond that callers hear
    /// `Busy`. Default: 256, at least 1.
    pub fn concurrency(mut self, requests_max: u32) -> Self {
        self.concurrency = requests_max.max(1);
        self
    }

    /// Serves the procedure with `handler`; resolves once the gateway knows.
    ///
    /// A handler runs in a task of its own. If it panics, its caller hears `Internal`; if the
    /// caller gives up, [`Request::cancelled`] completes and the handler is dropped a second
    /// later. A result over 8 MiB becomes `Internal` too.
    ///
    /// # Errors
    /// See [`ServeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the service.
    pub async fn serve<H, F, R>(self, handler: H) -> Result<Service, ServeError>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, Refusal>> + Send + 'static,
        R: Into<Bytes>,
    {
        self.start(Box::new(move |request, _| {
            let answer = handler(request);
            Box::pin(async move { answer.await.map(Into::into) })
        }))
        .await
    }

    /// Serves the procedure with a `handler` that receives and sends items before its result.
    ///
    /// Otherwise as [`ServiceBuilder::serve`]. Arguments, items and results have at most 64 KiB.
    /// Called without streaming, the receiver is at its end and the sender sends nothing.
    ///
    /// # Errors
    /// See [`ServeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the service.
    pub async fn serve_streaming<H, F, R>(self, handler: H) -> Result<Service, ServeError>
    where
        H: Fn(Request, ItemReceiver, ItemSender) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, Refusal>> + Send + 'static,
        R: Into<Bytes>,
    {
        let shared = self.owner.shared.clone();
        self.start(Box::new(move |request, pipe| {
            let pipe = pipe.unwrap_or_else(|| Pipe::ended(shared.clone()));
            let (sender, receiver) = pipe.ends();
            let answer = handler(request, receiver, sender);
            Box::pin(async move { answer.await.map(Into::into) })
        }))
        .await
    }

    async fn start(self, handler: Box<HandlerFn>) -> Result<Service, ServeError> {
        let procedure = ProcedureName::parse(&self.procedure)?;
        let shared = self.owner.shared.clone();
        let service = Arc::new(ServiceShared {
            procedure: procedure.clone(),
            handler,
            tasks: TaskTracker::new(),
            is_dropped: AtomicBool::new(false),
        });
        // Made before anything is sent, so that dropping this future unregisters too.
        let handle = Service {
            registration: RegistrationId(shared.next_handle()),
            owner: self.owner,
            service: service.clone(),
        };
        let (registration, realm, concurrency) =
            (handle.registration, self.realm, self.concurrency);
        shared
            .ask(|answer| Command::Register {
                registration,
                realm,
                procedure,
                concurrency,
                service,
                answer,
            })
            .await??;
        Ok(handle)
    }
}

/// A procedure that is being served; dropping it ends that, while requests already begun go on.
#[derive(Debug)]
pub struct Service {
    owner: Arc<Owner>,
    registration: RegistrationId,
    service: Arc<ServiceShared>,
}

impl Service {
    /// The procedure.
    pub fn procedure(&self) -> &str {
        self.service.procedure.as_str()
    }

    /// Requests being worked on.
    pub fn running(&self) -> usize {
        self.service.tasks.len()
    }

    /// Takes no more requests and waits for those begun; their deadlines bound the wait.
    ///
    /// # Cancel safety
    /// Dropping the future ends the service as dropping it does.
    pub async fn close(self) {
        let registration = self.registration;
        let unregistered =
            self.owner.shared.ask(|answer| Command::Unregister { registration, answer }).await;
        if unregistered.is_ok() {
            self.service.tasks.close();
            self.service.tasks.wait().await;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.service.is_dropped.store(true, Ordering::Release);
        self.owner.shared.doorbell.leave_dropped(Dropped::Registration(self.registration));
    }
}

/// What driver and tasks need of a service.
pub(crate) struct ServiceShared {
    pub(crate) procedure: ProcedureName,
    handler: Box<HandlerFn>,
    pub(crate) tasks: TaskTracker,
    is_dropped: AtomicBool,
}

impl ServiceShared {
    /// Whether the application has let go.
    pub(crate) fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Acquire)
    }

    /// Runs the handler to its end: an answer, a panic, or the end of the grace after a
    /// cancellation.
    pub(crate) async fn answer(
        &self,
        request: Request,
        pipe: Option<Arc<Pipe>>,
    ) -> Result<Bytes, CallFailure> {
        let cancelled = request.cancel_token();
        let result_bytes_max = if pipe.is_some() { ITEM_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        let work = async {
            let mut future = guarded(|| (self.handler)(request, pipe))?;
            std::future::poll_fn(|context| match guarded(|| future.as_mut().poll(context)) {
                Ok(Poll::Ready(answer)) => Poll::Ready(Ok(answer)),
                Ok(Poll::Pending) => Poll::Pending,
                Err(failure) => Poll::Ready(Err(failure)),
            })
            .await
        };
        let given_up = async {
            cancelled.cancelled().await;
            tokio::time::sleep(CANCEL_GRACE).await;
        };
        tokio::select! {
            biased;
            answer = work => match answer? {
                Ok(result) if result.len() > result_bytes_max => {
                    Err(failure(ErrorClass::Internal, "the result is too large"))
                }
                Ok(result) => Ok(result),
                Err(refusal) => Err(CallFailure {
                    code: refusal.code,
                    ..failure(ErrorClass::Refused, &refusal.message)
                }),
            },
            () = given_up => Err(failure(ErrorClass::Cancelled, "the caller has given up")),
        }
    }
}

impl fmt::Debug for ServiceShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceShared").field("procedure", &self.procedure).finish_non_exhaustive()
    }
}

/// A failure that says no more than `class` and `message`.
pub(crate) fn failure(class: ErrorClass, message: &str) -> CallFailure {
    CallFailure {
        class,
        code: 0,
        message: message.to_owned(),
        retry_after: Duration::ZERO,
        retry_safe: false,
    }
}

/// Runs a piece of a handler; a panic becomes a failure. Nothing of the handler is used after it.
fn guarded<T>(piece: impl FnOnce() -> T) -> Result<T, CallFailure> {
    catch_unwind(AssertUnwindSafe(piece)).map_err(|panic: Box<dyn Any + Send>| {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        tracing::error!(panic = text, "a request handler panicked");
        failure(ErrorClass::Internal, "the handler panicked")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(handler: Box<HandlerFn>) -> ServiceShared {
        ServiceShared {
            procedure: ProcedureName::parse("p").unwrap(),
            handler,
            tasks: TaskTracker::new(),
            is_dropped: AtomicBool::new(false),
        }
    }

    fn request() -> Request {
        let procedure = ProcedureName::parse("p").unwrap();
        let caller = EndpointId::from_bytes([1; 32]);
        Request::new(procedure, Bytes::new(), caller, Instant::now(), Bytes::new())
    }

    #[tokio::test]
    async fn panics_become_internal_failures() {
        for service in [
            service(Box::new(|_, _| panic!("in the call"))),
            service(Box::new(|_, _| Box::pin(async { panic!("in the future") }))),
        ] {
            let answer = service.answer(request(), None).await;
            assert_eq!(answer.unwrap_err().class, ErrorClass::Internal);
        }
    }

    #[tokio::test]
    async fn refusals_keep_code_and_message() {
        let service =
            service(Box::new(|_, _| Box::pin(async { Err(Refusal::new(7, "not today")) })));
        let failure = service.answer(request(), None).await.unwrap_err();
        assert_eq!((failure.class, failure.code), (ErrorClass::Refused, 7));
        assert_eq!(failure.message, "not today");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_handler_may_clean_up_and_is_then_dropped() {
        let request = request();
        request.cancel_token().cancel();
        let service = service(Box::new(|_, _| Box::pin(std::future::pending())));
        let before = Instant::now();
        let failure = service.answer(request, None).await.unwrap_err();
        assert_eq!(failure.class, ErrorClass::Cancelled);
        assert_eq!(before.elapsed().as_secs(), CANCEL_GRACE.as_secs());
    }
}
