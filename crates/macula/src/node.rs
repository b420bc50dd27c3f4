//! The handle that applications use.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_grant::Grant;
use macula_proto::wire::message::CloseCode;
use macula_proto::{EndpointId, RealmId};
use tokio::time::Instant;

use crate::builder::NodeBuilder;
use crate::call::CallBuilder;
use crate::error::{CallError, Closed, JoinError, PublishError, ServeError, SubscribeError};
use crate::event::Events;
use crate::membership::Membership;
use crate::peer::{Peer, PeerError};
use crate::publish::{
    Kind, PublishOptions, Published, Publisher, PublisherBuilder, PublisherCache,
};
use crate::serve::{Refusal, Request, Service, ServiceBuilder};
use crate::shared::{CloseCommand, Command, Owner};
use crate::status::Status;
use crate::streaming::{CallStream, ItemReceiver, ItemSender};
use crate::subscription::{Subscription, SubscriptionBuilder};
use crate::turn::{NatServices, TurnCredentials};

/// What [`Node::close`] gives to what has begun.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The built-in procedure behind [`Node::ping`].
const PING: &str = "macula.ping";

/// A program's membership in one realm.
///
/// Cheap to clone; all clones, and the nodes of other realms made with [`Node::realm`], share one
/// endpoint: one key, one socket, one link to the gateway. When the link breaks, the node dials
/// again by itself and resumes its subscriptions and services.
///
/// When the last handle of an endpoint (nodes, publishers, subscriptions, services, calls) is
/// dropped, it stops at once; [`Node::close`] ends it in order.
#[derive(Clone, Debug)]
pub struct Node {
    owner: Arc<Owner>,
    scope: Arc<Scope>,
}

/// What the clones of a node share.
#[derive(Debug)]
struct Scope {
    realm: RealmId,
    name: String,
    publishers: PublisherCache,
}

impl Node {
    /// Starts the making of a node.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::new()
    }

    pub(crate) fn new(owner: Arc<Owner>, realm: RealmId, name: &str) -> Self {
        let scope = Scope { realm, name: name.to_owned(), publishers: PublisherCache::default() };
        Self { owner, scope: Arc::new(scope) }
    }

    /// The endpoint's id: its public key.
    pub fn id(&self) -> EndpointId {
        self.owner.shared.id
    }

    /// The realm's name.
    pub fn realm_name(&self) -> &str {
        &self.scope.name
    }

    /// Joins another open realm on the same endpoint; resolves once the gateway has admitted this
    /// node. While there is no connection it waits for the next one.
    ///
    /// # Errors
    /// See [`JoinError`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave the endpoint a member of the realm, which does no harm.
    pub async fn realm(&self, name: &str) -> Result<Self, JoinError> {
        let realm = self.owner.join(Membership::open(name)?).await?;
        Ok(Self::new(self.owner.clone(), realm, name))
    }

    /// Joins another guarded realm on the same endpoint, for which the grant must be made; or shows
    /// a new grant for one that was joined, as [`Node::renew`] does.
    ///
    /// # Errors
    /// See [`JoinError`].
    ///
    /// # Cancel safety
    /// As [`Node::realm`].
    pub async fn guarded_realm(&self, grant: &Grant) -> Result<Self, JoinError> {
        let membership = Membership::granted(grant, self.id())?;
        let name = membership.name.clone();
        let realm = self.owner.join(membership).await?;
        Ok(Self::new(self.owner.clone(), realm, &name))
    }

    /// Shows the gateway a new grant for this node's guarded realm, on the standing link. Nothing
    /// is interrupted; what the new grant does not cover ends. Do it before the old grant expires:
    /// with that, subscriptions and services of the realm end.
    ///
    /// # Errors
    /// [`JoinError::Denied`]; the grant shown before still holds then.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the grant back.
    pub async fn renew(&self, grant: &Grant) -> Result<(), JoinError> {
        if grant.realm().id() != self.scope.realm {
            return Err(JoinError::Denied {
                realm: self.scope.name.clone(),
                reason: format!("the grant is for another realm, {}", grant.realm()),
            });
        }
        self.owner.join(Membership::granted(grant, self.id())?).await.map(|_| ())
    }

    /// Publishes a message with QoS 0, waiting while there is no room.
    ///
    /// `Ok` says that the message is on its way, in order; nothing acknowledges it. For many
    /// messages on one topic a [`Node::publisher`] is faster.
    ///
    /// # Errors
    /// [`PublishError::BadTopic`], [`PublishError::TooLarge`] above 8 MiB and
    /// [`PublishError::Closed`]; nothing was published.
    ///
    /// # Cancel safety
    /// A future that is dropped before it is ready has published nothing.
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<(), PublishError> {
        self.cached_publisher(topic, Kind::default())?.publish(payload).await
    }

    /// Publishes a message; with QoS 1, resolves once the router holds it in the realm's ring.
    ///
    /// # Errors
    /// As [`Node::publish`], and [`PublishError::Refused`] when the router does not take it.
    ///
    /// # Cancel safety
    /// A future that is dropped may have published its message.
    pub async fn publish_with(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        options: PublishOptions,
    ) -> Result<Published, PublishError> {
        self.cached_publisher(topic, options.into())?.publish_acknowledged(payload).await
    }

    /// Starts the making of a publisher for one topic: the fast way for many messages.
    pub fn publisher(&self, topic: &str) -> PublisherBuilder {
        PublisherBuilder::new(self.owner.clone(), self.scope.realm, topic)
    }

    /// Subscribes to a pattern with the default settings; resolves once the gateway knows.
    ///
    /// `*` stands for one segment, `**` at the end for zero or more.
    ///
    /// # Errors
    /// See [`SubscribeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the subscription.
    pub async fn subscribe(&self, pattern: &str) -> Result<Subscription, SubscribeError> {
        self.subscription(pattern).open().await
    }

    /// Starts the making of a subscription.
    pub fn subscription(&self, pattern: &str) -> SubscriptionBuilder {
        SubscriptionBuilder::new(self.owner.clone(), self.scope.realm, pattern)
    }

    /// Serves a procedure with the default settings; see [`ServiceBuilder::serve`].
    ///
    /// # Errors
    /// See [`ServeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the service.
    pub async fn serve<H, F, R>(&self, procedure: &str, handler: H) -> Result<Service, ServeError>
    where
        H: Fn(Request) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, Refusal>> + Send + 'static,
        R: Into<Bytes>,
    {
        self.service(procedure).serve(handler).await
    }

    /// Serves a streaming procedure with the default settings; see
    /// [`ServiceBuilder::serve_streaming`].
    ///
    /// # Errors
    /// See [`ServeError`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the service.
    pub async fn serve_streaming<H, F, R>(
        &self,
        procedure: &str,
        handler: H,
    ) -> Result<Service, ServeError>
    where
        H: Fn(Request, ItemReceiver, ItemSender) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R, Refusal>> + Send + 'static,
        R: Into<Bytes>,
    {
        self.service(procedure).serve_streaming(handler).await
    }

    /// Starts the making of a service.
    pub fn service(&self, procedure: &str) -> ServiceBuilder {
        ServiceBuilder::new(self.owner.clone(), self.scope.realm, procedure)
    }

    /// Calls a procedure, giving up after 5 s; see [`CallBuilder::send`].
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call; the handler hears of it.
    pub async fn call(&self, procedure: &str, arg: impl Into<Bytes>) -> Result<Bytes, CallError> {
        self.call_with(procedure).arg(arg).send().await
    }

    /// Starts the making of a call.
    pub fn call_with(&self, procedure: &str) -> CallBuilder {
        CallBuilder::new(self.owner.clone(), Some(self.scope.realm), procedure)
    }

    /// Opens a streaming call, giving up after 1 h; see [`CallBuilder::open`].
    ///
    /// # Errors
    /// [`CallError::BadName`], [`CallError::TooLarge`] above 64 KiB and [`CallError::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn open(
        &self,
        procedure: &str,
        arg: impl Into<Bytes>,
    ) -> Result<CallStream, CallError> {
        self.call_with(procedure).arg(arg).open().await
    }

    /// Measures the round trip to a peer, or to the router: of the programs, not only of the
    /// network between them.
    ///
    /// # Errors
    /// As for any call; [`CallError::Deadline`] after 5 s.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ping(&self, peer: Option<EndpointId>) -> Result<Duration, CallError> {
        let mut call = CallBuilder::new(self.owner.clone(), None, PING).idempotent(true);
        if let Some(peer) = peer {
            call = call.to(peer);
        }
        let start = Instant::now();
        call.send().await?;
        Ok(start.elapsed())
    }

    /// Credentials of the gateway's TURN server, for this and any other TURN client (WebRTC's, for
    /// example); `None` if it has no such server, or not for this member (docs/protocol §6.7).
    ///
    /// # Errors
    /// As for any call; [`CallError::Deadline`] after 5 s.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn turn_credentials(&self) -> Result<Option<TurnCredentials>, CallError> {
        match self.nat_services().await {
            Ok(services) => Ok(services.turn),
            Err(CallError::NoProvider) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the gateway offers against NATs: STUN and TURN.
    ///
    /// # Errors
    /// As for any call; [`CallError::NoProvider`] if the gateway offers nothing.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn nat_services(&self) -> Result<NatServices, CallError> {
        NatServices::ask(&self.owner).await
    }

    /// Links to a peer that is attached to the same gateway and in a realm of this endpoint, or finds
    /// the link that is there. It is encrypted from end to end. It works at once, through the
    /// gateway, and moves to a direct path as soon as there is one, without anything being lost,
    /// doubled or reordered; [`NodeBuilder::strategy`] can forbid either.
    ///
    /// While the link is up, calls that name the peer ([`CallBuilder::to`], [`Node::ping`]) take it,
    /// in both directions, and go on when the gateway is gone. It ends with either endpoint, or
    /// when no path is left.
    ///
    /// # Errors
    /// See [`PeerError`].
    ///
    /// # Cancel safety
    /// Dropping the future may leave the link, which does no harm.
    pub async fn peer(&self, id: EndpointId) -> Result<Peer, PeerError> {
        let asked = self.owner.shared.ask(|answer| Command::Peer { peer: id, answer }).await;
        let link = asked.map_err(|Closed| PeerError::Closed)??;
        Ok(Peer::new(self.clone(), id, link))
    }

    /// What the endpoint is connected to, serves and has done.
    ///
    /// # Errors
    /// When the node is closed.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn status(&self) -> Result<Status, Closed> {
        self.owner.shared.ask(|answer| Command::Status { answer }).await
    }

    /// What happens to the endpoint from now on.
    pub fn events(&self) -> Events {
        self.owner.shared.listen()
    }

    /// Closes the endpoint in order, for all its handles: ends services, lets handlers finish,
    /// passes on what was published and waits until QoS 1 is accepted, says goodbye. What is not
    /// done within 5 s is given up.
    ///
    /// # Cancel safety
    /// Once begun, closing goes on when the future is dropped, as long as a handle is left.
    pub async fn close(&self) {
        self.close_within(CLOSE_TIMEOUT).await;
    }

    /// Closes as [`Node::close`] does, giving up after `timeout`.
    ///
    /// # Cancel safety
    /// As [`Node::close`].
    pub async fn close_within(&self, timeout: Duration) {
        let command = CloseCommand {
            code: CloseCode::Done,
            reason: String::new(),
            reconnect_window: Duration::ZERO,
            timeout,
        };
        self.owner.close(command).await;
    }

    fn cached_publisher(&self, topic: &str, kind: Kind) -> Result<Publisher, PublishError> {
        let Scope { realm, publishers, .. } = &*self.scope;
        let buffer = publishers.open(&self.owner.shared.topics, *realm, topic)?;
        Ok(Publisher::new(self.owner.clone(), buffer, kind))
    }
}
