//! Finds other members that carry packets of links which have no direct path.

use std::sync::{Arc, Weak};
use std::time::Duration;

use macula_proto::EndpointId;
use macula_transport::{CarrierWanted, Endpoint, Link, PathKind};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::call::CallBuilder;
use crate::error::CallError;
use crate::peer::PeerLink;
use crate::shared::{Command, Owner, Shared};

/// Built-in procedure of gateways (docs/protocol §6.6).
const PROCEDURE: &str = "macula.carriers";
/// Carriers that are tried for one link, one after the other.
const TRIED_MAX: usize = 4;
/// Links for which carriers are looked for at once; others wait.
const SEARCHES_MAX: usize = 8;
/// What a link to a carrier may take to be direct.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Finds carriers for links that want one, until the endpoint closes.
pub(crate) async fn find(owner: Weak<Owner>, endpoint: Arc<Endpoint>) {
    let Some(stopping) = owner.upgrade().map(|owner| owner.shared.stopping.clone()) else { return };
    let searches = Arc::new(Semaphore::new(SEARCHES_MAX));
    let finding = async {
        loop {
            let Ok(permit) = Arc::clone(&searches).acquire_owned().await else { return };
            let wanted = endpoint.carrier_wanted().await;
            let Some(owner) = owner.upgrade() else { return };
            let (search, stopping) = (search(Arc::downgrade(&owner), wanted), stopping.clone());
            owner.tasks.spawn(async move {
                stopping.run_until_cancelled(search).await;
                drop(permit);
            });
        }
    };
    stopping.run_until_cancelled(finding).await;
}

async fn search(owner: Weak<Owner>, wanted: CarrierWanted) {
    let CarrierWanted { peer, proposed } = wanted;
    let named = match (proposed, owner.upgrade()) {
        (Some(proposed), _) => Ok(vec![proposed]),
        (None, Some(owner)) => ask(&owner, peer).await,
        (None, None) => return,
    };
    let named = named.unwrap_or_else(|error| {
        tracing::debug!(%error, "no carrier is known");
        Vec::new()
    });
    for carrier in named.into_iter().take(TRIED_MAX) {
        let Some(shared) = owner.upgrade().map(|owner| owner.shared.clone()) else { return };
        if carrier == peer || carrier == shared.id {
            continue;
        }
        let is_direct = timeout(DIRECT_TIMEOUT, is_direct(&shared, carrier)).await;
        if !is_direct.unwrap_or(false) {
            tracing::debug!(%carrier, "a carrier is not reached directly");
            continue;
        }
        let found = shared.ask(|answer| Command::Carry { peer, carrier, answer }).await;
        if found.unwrap_or(false) {
            return;
        }
        tracing::debug!(%carrier, "a member carries nothing");
    }
}

/// Asks the gateway who would carry.
async fn ask(owner: &Arc<Owner>, peer: EndpointId) -> Result<Vec<EndpointId>, CallError> {
    let call = CallBuilder::new(owner.clone(), None, PROCEDURE);
    let answer = call.arg(peer.to_string()).idempotent(true).send().await?;
    Ok(read(&answer))
}

/// Reads an answer; what is not understood is left out.
fn read(answer: &[u8]) -> Vec<EndpointId> {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    let named = answer["carriers"].as_array().into_iter().flatten();
    named.filter_map(|id| id.as_str()?.parse().ok()).take(TRIED_MAX).collect()
}

/// Links a carrier, and waits until the path to it is direct; `false`: it ended before.
async fn is_direct(shared: &Shared, carrier: EndpointId) -> bool {
    let linked = shared.ask(|answer| Command::Peer { peer: carrier, answer }).await;
    let Ok(Ok(link)) = linked else { return false };
    let link: PeerLink = link;
    let watch = link.borrow().as_ref().and_then(Link::watch_path);
    let Some(mut watch) = watch else { return false };
    while watch.now().0 != PathKind::Direct {
        if watch.changed().await.is_none() {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_far_as_they_make_sense() {
        let [one, two] = [1, 2].map(|byte| EndpointId::from_bytes([byte; 32]));
        let answer = format!(r#"{{"carriers":["{one}",7,"nonsense","{two}"],"new":1}}"#);
        assert_eq!(read(answer.as_bytes()), [one, two]);
        let many = vec![format!("\"{one}\""); 100].join(",");
        assert_eq!(read(format!(r#"{{"carriers":[{many}]}}"#).as_bytes()).len(), TRIED_MAX);
        for answer in ["", "[]", "{}", r#"{"carriers":7}"#, "\u{0}"] {
            assert_eq!(read(answer.as_bytes()), [], "{answer}");
        }
    }
}
