//! Starting and ending an endpoint: what nodes and routers have in common.

use std::sync::Arc;
use std::time::Duration;

use macula_proto::RealmId;
use macula_proto::limits::REALM_NAME_BYTES_MAX;
use macula_proto::node::{Config, Node};
use macula_transport::{Endpoint, SecretKey};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::driver::{Driver, Inbox, NewLink};
use crate::error::{Closed, JoinError, StartError};
use crate::event::EVENTS_MAX;
use crate::membership::Membership;
use crate::shared::{COMMANDS_MAX, CloseCommand, Command, Owner, Shared};

/// Events of all links that may wait for the driver; beyond that their readers wait.
const LINK_EVENTS_MAX: usize = 1024;
/// Links that may wait for the driver.
const NEW_LINKS_MAX: usize = 64;
/// What [`Owner::close`] waits for tasks that are on their way out.
const TASKS_TIMEOUT: Duration = Duration::from_secs(2);

/// An endpoint whose driver runs, not yet connected to anything.
pub(crate) struct Started {
    pub(crate) owner: Arc<Owner>,
    pub(crate) endpoint: Arc<Endpoint>,
    /// Where links come in.
    pub(crate) links: mpsc::Sender<NewLink>,
}

/// Runs a driver on `endpoint`.
pub(crate) fn start(
    key: &SecretKey,
    config: Config,
    endpoint: Endpoint,
) -> Result<Started, StartError> {
    let mut seed = [0u8; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| StartError::Config(format!("no randomness: {error}")))?;
    let (commands, command_inbox) = mpsc::channel(COMMANDS_MAX);
    let (link_events, link_event_inbox) = mpsc::channel(LINK_EVENTS_MAX);
    let (links, link_inbox) = mpsc::channel(NEW_LINKS_MAX);
    let (events, _) = broadcast::channel(EVENTS_MAX);
    let shared = Arc::new(Shared::new(key.id(), config.role, commands, events));
    let node = Node::new(key.id(), config, seed);
    let endpoint = Arc::new(endpoint);
    let driver = Driver::new(shared.clone(), node, link_events, endpoint.clone(), links.clone());
    let inbox =
        Inbox { commands: command_inbox, link_events: link_event_inbox, new_links: link_inbox };
    let tasks = TaskTracker::new();
    let (done, ended) = oneshot::channel();
    endpoint.spawn(tasks.track_future(async move {
        driver.run(inbox).await;
        // Fails when nobody waits any more.
        done.send(()).ok();
    }));
    let socket = endpoint.clone();
    tasks.spawn(async move {
        // However the driver ended, also by a panic, which it has told by itself.
        let ended = ended.await;
        let (code, reason) = if ended.is_ok() { (0, "") } else { (1, "internal error") };
        socket.close(code, reason).await;
    });
    Ok(Started { owner: Arc::new(Owner { shared, tasks }), endpoint, links })
}

impl Owner {
    /// Ends the endpoint in order and waits until nothing of it runs any more.
    pub(crate) async fn close(&self, command: CloseCommand) {
        let timeout = command.timeout + TASKS_TIMEOUT;
        let closing = async {
            // An error means that it has ended already.
            if self.shared.command(Command::Close(command)).await.is_ok() {
                self.shared.closed.cancelled().await;
            }
            self.tasks.close();
            self.tasks.wait().await;
        };
        if tokio::time::timeout(timeout, closing).await.is_err() {
            tracing::debug!("some tasks outlived the close");
            self.shared.abort.cancel();
        }
    }

    /// Joins a realm; resolves when it is hosted here, or when the gateway has answered.
    pub(crate) async fn join(&self, membership: Membership) -> Result<RealmId, JoinError> {
        let realm = membership.realm;
        let answer = self.shared.ask(|answer| Command::Join { membership, answer }).await;
        match answer {
            Ok(answer) => answer.map(|()| realm),
            Err(Closed) => Err(JoinError::Closed),
        }
    }
}

/// A realm's name is what a DNS name could be, reversed or not.
pub(crate) fn check_realm_name(name: &str) -> Result<(), JoinError> {
    let is_good = !name.is_empty()
        && name.len() <= REALM_NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if is_good { Ok(()) } else { Err(JoinError::BadName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn realm_names_are_dns_like() {
        for name in ["com.example.energy", "lab", "a_b-c.1"] {
            check_realm_name(name).unwrap();
        }
        for name in ["", "a b", "a/b", "grün", &"x".repeat(REALM_NAME_BYTES_MAX + 1)] {
            assert!(check_realm_name(name).is_err(), "{name:?}");
        }
    }
}
