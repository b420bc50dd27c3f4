//! What a router remembers of a peer beyond one link.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::{EndpointId, LinkId, RealmTag};
use crate::pubsub::Pattern;
use crate::wire::message::SlowPolicy;

/// One peer's session at a router; numbered in order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(pub(super) u64);

/// A peer with its subscriptions. It outlives a broken link for
/// [`RESUME_WINDOW`](crate::limits::RESUME_WINDOW), so that nothing acknowledged is lost.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) peer: EndpointId,
    /// The peer's instance; another one means that it restarted and knows nothing.
    pub(super) instance: u64,
    pub(super) link: Option<LinkId>,
    pub(super) subscriptions: BTreeMap<(RealmTag, u32), (Pattern, SlowPolicy)>,
    /// Those of them that existed before this router did: publishers may wait for their return.
    pub(super) resumed: BTreeSet<(RealmTag, u32)>,
    /// Ring entries that the peer has not acknowledged; filled while it has no link.
    pub(super) undelivered: BTreeSet<(RealmTag, u64)>,
}

impl Session {
    /// Patterns of the subscriptions in a realm that existed before this router did.
    pub(super) fn resumed_patterns(&self, realm: RealmTag) -> Vec<Pattern> {
        self.resumed
            .range((realm, 0)..=(realm, u32::MAX))
            .filter_map(|key| self.subscriptions.get(key))
            .map(|(pattern, _)| pattern.clone())
            .collect()
    }
}
