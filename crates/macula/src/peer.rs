//! Links to other nodes of the same gateway.

use std::net::SocketAddr;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_transport::{Link, PathInfo, PathKind};
use tokio::sync::watch;

use crate::call::CallBuilder;
use crate::error::CallError;
use crate::node::Node;

/// The link to a peer that is used, now and later.
pub(crate) type PeerLink = watch::Receiver<Option<Link>>;

/// Kind of a path, and the peer's address when it is direct.
type Selected = (PathKind, Option<SocketAddr>);

/// A peer could not be linked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The id is this endpoint's own.
    #[error("this is the endpoint itself")]
    Itself,
    /// There are more links to peers than may be.
    #[error("this endpoint has as many peers as it may; close some")]
    TooMany,
    /// The link did not come about, or did not last.
    #[error("the link to the peer was lost: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The dial failed.
    #[error(transparent)]
    Dial(macula_transport::PeerError),
    /// The node is closed.
    #[error("the node is closed")]
    Closed,
}

impl From<macula_transport::PeerError> for PeerError {
    fn from(error: macula_transport::PeerError) -> Self {
        match error {
            macula_transport::PeerError::Closed => Self::Closed,
            error => Self::Dial(error),
        }
    }
}

/// Another node, with a link of its own; made by [`Node::peer`]. Dropping it leaves the link.
#[derive(Clone, Debug)]
pub struct Peer {
    node: Node,
    id: EndpointId,
    link: PeerLink,
    /// What [`Self::changed`] returned last.
    seen: Option<Selected>,
}

impl Peer {
    pub(crate) fn new(node: Node, id: EndpointId, link: PeerLink) -> Self {
        let watch = link.borrow().as_ref().and_then(Link::watch_path);
        let seen = watch.map(|watch| watch.now());
        Self { node, id, link, seen }
    }

    /// Who it is.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Which path the link takes, and what its paths have carried; `None`: the link is lost, and
    /// [`Node::peer`] makes another one.
    pub fn path(&self) -> Option<PathInfo> {
        self.link.borrow().as_ref().and_then(Link::path)
    }

    /// Waits until the path is another one than this returned last, or at first than when this
    /// handle was made, and returns it; `None`: the link is lost.
    ///
    /// # Cancel safety
    /// Safe: no change is lost.
    pub async fn changed(&mut self) -> Option<PathInfo> {
        let path = self.changed_from(self.seen).await;
        self.seen = path.map(|path| (path.kind, path.remote));
        path
    }

    async fn changed_from(&self, known: Option<Selected>) -> Option<PathInfo> {
        let mut link = self.link.clone();
        loop {
            let watch = link.borrow_and_update().as_ref().and_then(Link::watch_path);
            let mut watch = watch?;
            if Some(watch.now()) != known {
                return self.path();
            }
            tokio::select! {
                replaced = link.changed() => replaced.ok()?,
                changed = watch.changed() => {
                    if changed.is_none() {
                        // The link has ended; whether another one follows is told next.
                        link.changed().await.ok()?;
                    }
                }
            }
        }
    }

    /// Waits until the path is direct. Ends with `None` when the link is lost before.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn direct(&self) -> Option<PathInfo> {
        loop {
            let path = self.path()?;
            if path.kind == PathKind::Direct {
                return Some(path);
            }
            self.changed_from(Some((path.kind, path.remote))).await?;
        }
    }

    /// Measures the round trip to the peer's program. Takes the gateway's way while the link is
    /// lost.
    ///
    /// # Errors
    /// As for any call; [`CallError::Deadline`] after 5 s.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn ping(&self) -> Result<Duration, CallError> {
        self.node.ping(Some(self.id)).await
    }

    /// Starts the making of a call to a procedure that the peer serves in the node's realm, unary or
    /// streaming.
    pub fn call(&self, procedure: &str) -> CallBuilder {
        self.node.call_with(procedure).to(self.id)
    }
}
