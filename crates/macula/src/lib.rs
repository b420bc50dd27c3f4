//! Publish, subscribe and call across a QUIC mesh.
//!
//! A [`Node`] is a program's membership in one *realm* (a tenant): it dials a gateway, stays
//! connected, and offers publishing, subscribing, calling and serving. A [`Router`] is a gateway.
//! Both are cheap handles; one task behind them owns the protocol.
//!
//! # Tutorial
//!
//! **Connect.** A node needs a realm and a gateway. The gateway is mostly another process
//! (`macula gateway`); here it is a [`Router`] in the same one, so that the program runs by itself.
//! A gateway without `ENDPOINTID@` in front of its address has its key pinned at first use, see
//! [`NodeBuilder::gateway`].
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use macula::{Node, Qos, Request, Router};
//!
//! let router = Router::builder()
//!     .listen("127.0.0.1:0".parse()?)
//!     .realm("com.example.energy")
//!     .start()
//!     .await?;
//! let gateway = format!("{}@{}", router.id(), router.local_addr());
//! let node = Node::builder().realm("com.example.energy").gateway(gateway).start().await?;
//! # let _ = &node;
//!
//! // Subscribe and publish. `*` stands for one segment, a trailing `**` for zero or more.
//! let mut readings = node.subscribe("sensor.*").await?;
//! node.publish("sensor.1", "21.5").await?;
//! let message = readings.next().await.ok_or("the subscription has ended")?;
//! assert_eq!((message.topic(), &message.payload[..]), ("sensor.1", &b"21.5"[..]));
//!
//! // Publish with acknowledgement: `flush` ends when every live subscriber has everything.
//! let log = node.publisher("log.door").qos(Qos::AtLeastOnce).open()?;
//! log.publish("opened").await?;
//! let report = log.flush().await?;
//! assert_eq!(report.delivered, 1);
//!
//! // Serve and call. Dropping `service` ends it; dropping the call's future cancels the call.
//! let service = node
//!     .serve("upper", |request: Request| async move {
//!         Ok(request.payload.to_ascii_uppercase())
//!     })
//!     .await?;
//! let answer = node.call("upper", "hello").await?;
//! assert_eq!(answer, "HELLO");
//!
//! drop(service);
//! node.close().await; // passes on what was published, says goodbye
//! # router.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! From here on:
//!
//! | to | see |
//! |---|---|
//! | publish much, or see how far it came | [`Node::publisher`], [`Publisher::report`] |
//! | choose what happens when you are slow | [`SubscriptionBuilder::policy`], [`SlowPolicy`] |
//! | know whether a failed call may be repeated | [`CallError::retry_safe`] |
//! | call with a deadline, at a chosen provider | [`Node::call_with`], [`CallBuilder`] |
//! | send more than 8 MiB, or items as they come | [`Node::open`], [`Node::serve_streaming`] |
//! | talk to another node directly, past the gateway | [`Node::peer`] |
//! | be in several realms with one link | [`Node::realm`] |
//! | take part in a guarded realm | [`NodeBuilder::grant_file`], [`Node::renew`] |
//! | keep an identity, and pins of gateways | [`NodeBuilder::key_file`], [`NodeBuilder::known_gateways`] |
//! | be relayed by the gateway's TURN server | [`Node::turn_credentials`] |
//! | hear of lost connections and messages | [`Node::events`] |
//!
//! # Rules
//!
//! Everything here must run within a tokio runtime with I/O and time. Handles keep their endpoint
//! alive; when the last one is dropped it stops at once, [`Node::close`] ends it in order.
//!
//! Messages with QoS 1 outlive broken links and a gateway that restarts, as long as their
//! publisher's node lives; nothing is written to a disk. Two programs with one key push each other
//! off the gateway: give each its own.
//!
//! What this crate does *not* do: decide anything about the protocol (crate `macula-proto`), know
//! QUIC (crate `macula-transport`), speak HTTP or read configuration files (crate
//! `macula-gateway`).

mod builder;
mod call;
mod carriers;
mod clock;
mod doorbell;
mod driver;
mod endpoint;
mod error;
mod event;
mod gateway;
mod key;
mod membership;
mod node;
mod peer;
mod publish;
mod records;
mod router;
mod serve;
mod shared;
mod status;
mod streaming;
mod subscription;
#[cfg(test)]
mod test_dir;
mod turn;
mod visitor;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bytes::Bytes;
pub use macula_grant::{Grant, Realm as GuardedRealm};
pub use macula_proto::id::ParseIdError;
pub use macula_proto::limits::MESSAGE_BYTES_MAX;
pub use macula_proto::node::Config as CoreConfig;
pub use macula_proto::node::{DeliveryMode, LinkStatus, Qos, RealmSummary, Role, Stats};
pub use macula_proto::pubsub::NameError;
pub use macula_proto::wire::message::{ProviderPolicy, RefusalCode, SlowPolicy};
pub use macula_proto::{EndpointId, RealmId};
pub use macula_transport::PeerError as DialPeerError;
pub use macula_transport::{
    HandshakeLimits, HandshakeStats, PathInfo, PathKind, SearchStats, SecretKey, Strategy, StunUri,
    Traffic, TurnServer, TurnStatus, TurnUri, TurnUse, UriError,
};
pub use macula_transport::{TunnelConfig, TunnelError, TunnelStats};

pub use crate::builder::NodeBuilder;
pub use crate::call::{CallBuilder, DEFAULT_CALL_DEADLINE, DEFAULT_STREAM_DEADLINE};
pub use crate::error::{
    CallError, Closed, JoinError, KeyFileError, PublishError, ServeError, StartError, StreamError,
    SubscribeError, TryPublishError, WrongKey,
};
pub use crate::event::{Event, Events};
pub use crate::gateway::Via;
pub use crate::key::{create_key, load_or_create_key};
pub use crate::node::Node;
pub use crate::peer::{Peer, PeerError};
pub use crate::publish::{DeliveryReport, PublishOptions, Published, Publisher, PublisherBuilder};
pub use crate::router::{Router, RouterBuilder};
pub use crate::serve::{Refusal, Request, Service, ServiceBuilder};
pub use crate::status::{RealmStatus, Status};
pub use crate::streaming::{CallResult, CallStream, ITEM_BYTES_MAX, ItemReceiver, ItemSender};
pub use crate::subscription::{Batch, Message, Subscription, SubscriptionBuilder};
pub use crate::turn::{NatServices, TurnCredentials};
pub use crate::visitor::Visitor;

/// The README's program, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Locks. A panic of another holder is no reason to panic here: every critical section in this
/// crate leaves its data whole at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
