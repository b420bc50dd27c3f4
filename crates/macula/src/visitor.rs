//! A connection to a gateway without a realm.

use std::sync::Arc;
use std::time::Duration;

use macula_proto::EndpointId;
use macula_proto::wire::message::CloseCode;

use crate::call::CallBuilder;
use crate::error::{CallError, Closed};
use crate::event::Events;
use crate::shared::{CloseCommand, Command, Owner};
use crate::status::Status;
use crate::turn::NatServices;

/// What [`Visitor::close`] gives to what has begun.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a gateway without taking part in a realm: enough to ask endpoints what they tell
/// everybody. Made by [`crate::NodeBuilder::visit`].
#[derive(Clone, Debug)]
pub struct Visitor {
    owner: Arc<Owner>,
    gateway: EndpointId,
}

impl Visitor {
    pub(crate) fn new(owner: Arc<Owner>, gateway: EndpointId) -> Self {
        Self { owner, gateway }
    }

    /// This endpoint's id: its public key.
    pub fn id(&self) -> EndpointId {
        self.owner.shared.id
    }

    /// The id of the gateway that was connected first.
    pub fn gateway_id(&self) -> EndpointId {
        self.gateway
    }

    /// Starts a call to a built-in procedure: `macula.ping`, `macula.info` or `macula.stats`, of
    /// the gateway unless [`CallBuilder::to`] names another endpoint.
    pub fn builtin(&self, procedure: &str) -> CallBuilder {
        CallBuilder::new(self.owner.clone(), None, procedure).idempotent(true)
    }

    /// What the gateway offers everybody against NATs: STUN.
    ///
    /// # Errors
    /// As for any call; [`CallError::NoProvider`] if the gateway offers nothing.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn nat_services(&self) -> Result<NatServices, CallError> {
        NatServices::ask(&self.owner).await
    }

    /// What the endpoint is connected to and has done.
    ///
    /// # Errors
    /// When the endpoint is closed.
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

    /// Says goodbye and ends, within a second.
    ///
    /// # Cancel safety
    /// Once begun, closing goes on when the future is dropped, as long as a handle is left.
    pub async fn close(&self) {
        let command = CloseCommand {
            code: CloseCode::Done,
            reason: String::new(),
            reconnect_window: Duration::ZERO,
            timeout: CLOSE_TIMEOUT,
        };
        self.owner.close(command).await;
    }
}
