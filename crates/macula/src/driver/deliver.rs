//! What the core tells: to handles, to whoever dialled, to those who listen for events.

use std::sync::Arc;

use bytes::Bytes;
use macula_proto::id::{LinkId, RegistrationId, RequestId, SubscriptionId};
use macula_proto::node::{self, Delivery, Input, LossReason, StreamEnd};
use macula_proto::wire::message::{ErrorClass, RefusalCode};
use macula_proto::{EndpointId, RealmId, Time};

use super::{Driver, Origin, RequestEntry};
use crate::error::{JoinError, ServeError, SubscribeError};
use crate::event::Event;
use crate::records::Kept;
use crate::serve::{Request, failure};
use crate::streaming::Pipe;

/// A call that came in.
struct NewRequest {
    request: RequestId,
    registration: RegistrationId,
    caller: EndpointId,
    deadline: Time,
    streaming: bool,
    traceparent: Bytes,
    body: Bytes,
}

impl Driver {
    /// Passes on one event of the core.
    pub(super) fn deliver(&mut self, event: node::Event) {
        match event {
            node::Event::Deliver(delivery) => self.on_delivery(delivery),
            node::Event::Subscribed { subscription } => {
                if let Some(entry) = self.subscriptions.get_mut(&subscription)
                    && let Some(waiter) = entry.waiter.take()
                {
                    // Fails when the subscription was dropped meanwhile; its note is coming.
                    waiter.send(Ok(())).ok();
                }
            }
            node::Event::SubscribeRefused { subscription, code, reason } => {
                self.on_subscribe_refused(subscription, code, reason);
            }
            node::Event::Lost { subscription, messages, reason, .. } => {
                self.on_lost(subscription, messages, reason);
            }
            node::Event::Progress { realm, topic, accepted, delivered, receivers, .. } => {
                if let Some(buffer) = self.shared.topics.find(realm, &topic) {
                    buffer.on_progress(accepted, delivered, receivers);
                }
            }
            node::Event::PublishRefused { realm, topic, first, count, code, reason } => {
                if let Some(buffer) = self.shared.topics.find(realm, &topic) {
                    buffer.on_refused(first, count, code, &reason);
                }
                let (topic, messages) = (topic.as_str().to_owned(), count);
                self.shared.emit(Event::PublishRefused { topic, messages, code, reason });
            }
            node::Event::Flushed { id } => self.on_flushed(id),
            node::Event::Registered { registration } => {
                if let Some(entry) = self.registrations.get_mut(&registration)
                    && let Some(waiter) = entry.waiter.take()
                {
                    // As for subscriptions.
                    waiter.send(Ok(())).ok();
                }
            }
            node::Event::RegisterRefused { registration, code, reason } => {
                self.on_register_refused(registration, code, reason);
            }
            node::Event::Request {
                request,
                registration,
                caller,
                deadline,
                streaming,
                traceparent,
                body,
            } => self.on_request(NewRequest {
                request,
                registration,
                caller,
                deadline,
                streaming,
                traceparent,
                body,
            }),
            node::Event::RequestCancelled { request } => {
                // The entry goes when the task ends, which now has a grace to do so.
                if let Some(entry) = self.requests.get(&request) {
                    entry.cancelled.cancel();
                    if let Some(pipe) = &entry.pipe {
                        pipe.close();
                    }
                }
            }
            node::Event::StreamItem { end, body } => {
                if let Some(pipe) = self.pipe(end)
                    && pipe.deliver(body)
                {
                    self.followups.push(Input::StreamHandle { end, full: true });
                }
            }
            node::Event::StreamItemsEnd { request } => {
                if let Some(pipe) = self.pipe(StreamEnd::Handler(request)) {
                    pipe.end_incoming();
                }
            }
            node::Event::StreamRoom { end, full } => {
                if let Some(pipe) = self.pipe(end)
                    && pipe.set_blocked(full)
                {
                    let pipe = pipe.clone();
                    self.dirty_pipes.push_back(pipe);
                }
            }
            node::Event::CallDone { call, result } => {
                if let Some(entry) = self.calls.remove(&call) {
                    // The answer first: whoever sees the stream's end finds the result there.
                    entry.answer.send(result).ok();
                    if let Some(pipe) = entry.pipe {
                        pipe.close();
                    }
                }
            }
            node::Event::PeerLink { peer, link } => self.on_peer_link(peer, link),
            node::Event::LinkReady { link, peer, agent, observed, .. } => {
                self.on_link_ready(link, peer, agent, observed);
            }
            node::Event::RealmAnswered { realm, refusal, is_member, .. } => {
                self.on_realm_answered(realm, refusal, is_member);
            }
            node::Event::Expelled { peer, realm, reason } => {
                let realm = self.realm_name(&realm);
                self.shared.emit(Event::Expelled { peer, realm, reason });
            }
            node::Event::Revoked { realm, sequence, expelled, record } => {
                self.on_revoked(realm, sequence, expelled, record);
            }
            node::Event::RevokeRefused { reason } => {
                tracing::error!(reason, "a record of revocations cannot be used");
            }
            node::Event::PeerLeaving { link, reason, reconnect_in, .. } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.leaving = Some((reconnect_in, reason.clone()));
                    let peer = link.peer;
                    self.shared.emit(Event::PeerLeaving { peer, reason, reconnect_in });
                }
            }
            node::Event::LinkLost { link, peer, reason } => self.on_link_lost(link, peer, reason),
            other => tracing::debug!(?other, "an event of the core that is not known here"),
        }
    }

    fn on_delivery(&mut self, delivery: Delivery) {
        let subscription = delivery.subscription;
        // Unknown: dropped a moment ago.
        let Some(entry) = self.subscriptions.get(&subscription) else { return };
        if entry.queue.push(delivery) {
            self.followups.push(Input::HandleFull { subscription });
        }
    }

    fn on_subscribe_refused(
        &mut self,
        subscription: SubscriptionId,
        code: RefusalCode,
        reason: String,
    ) {
        let Some(entry) = self.subscriptions.remove(&subscription) else { return };
        let refused = SubscribeError::Refused { code, reason: reason.clone() };
        entry.queue.end(refused.clone());
        match entry.waiter {
            // Fails when the subscription was dropped meanwhile.
            Some(waiter) => drop(waiter.send(Err(refused))),
            None => {
                let pattern = entry.pattern.as_str().to_owned();
                self.shared.emit(Event::SubscriptionRefused { pattern, code, reason });
            }
        }
    }

    fn on_lost(&self, subscription: Option<SubscriptionId>, messages: u64, reason: LossReason) {
        let entry = subscription.and_then(|subscription| self.subscriptions.get(&subscription));
        if let Some(entry) = entry {
            entry.queue.add_lost(messages);
        }
        let pattern = entry.map(|entry| entry.pattern.as_str().to_owned());
        let reason = match reason {
            LossReason::SlowHere => "the router dropped them because this side was slow",
            LossReason::Gap => "they never came",
            _ => "unknown",
        };
        self.shared.emit(Event::Lost { pattern, messages, reason });
    }

    fn on_register_refused(
        &mut self,
        registration: RegistrationId,
        code: RefusalCode,
        reason: String,
    ) {
        let Some(entry) = self.registrations.remove(&registration) else { return };
        match entry.waiter {
            // Fails when the service was dropped meanwhile.
            Some(waiter) => drop(waiter.send(Err(ServeError::Refused { code, reason }))),
            None => {
                let procedure = entry.service.procedure.as_str().to_owned();
                self.shared.emit(Event::RegistrationRefused { procedure, code, reason });
            }
        }
    }

    fn on_request(&mut self, new: NewRequest) {
        let id = new.request;
        let Some(entry) = self.registrations.get(&new.registration) else {
            // Unregistered a moment ago.
            let mut gone = failure(ErrorClass::NoProvider, "the procedure is no longer served");
            gone.retry_safe = true;
            let reply = node::Command::Reply { request: id, result: Err(gone) };
            return self.followups.push(Input::Command(reply));
        };
        let service = entry.service.clone();
        let shared = self.shared.clone();
        let pipe = new.streaming.then(|| Pipe::new(StreamEnd::Handler(id), shared.clone()));
        let deadline = shared.clock.instant(new.deadline);
        let procedure = service.procedure.clone();
        let request = Request::new(procedure, new.body, new.caller, deadline, new.traceparent);
        let cancelled = request.cancel_token();
        let task_pipe = pipe.clone();
        let task = entry.service.tasks.spawn(async move {
            let result = service.answer(request, task_pipe.clone()).await;
            match task_pipe {
                Some(pipe) => pipe.answer(result),
                // Fails when the driver has ended: nobody waits for the answer then.
                None => drop(shared.doorbell.leave(|notes| notes.replies.push((id, result)))),
            }
        });
        let task = task.abort_handle();
        self.requests.insert(id, RequestEntry { task, cancelled, pipe });
    }

    fn pipe(&self, end: StreamEnd) -> Option<&Arc<Pipe>> {
        match end {
            StreamEnd::Caller(call) => self.calls.get(&call)?.pipe.as_ref(),
            StreamEnd::Handler(request) => self.requests.get(&request)?.pipe.as_ref(),
        }
    }

    fn on_link_ready(&mut self, id: LinkId, peer: EndpointId, agent: String, observed: String) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.is_ready = true;
        let remote = link.remote;
        match &link.origin {
            Origin::Accepted | Origin::Peer => {
                self.shared.emit(Event::PeerConnected { peer, agent, remote })
            }
            Origin::Dialled { gateway, .. } => {
                let gateway = gateway.clone();
                self.endpoint.relay_through(&link.transport);
                self.gateway = Some(gateway.clone());
                let is_tunnelled = link.transport.is_tunnelled();
                let before = self.gateway_link.replace((id, is_tunnelled));
                if before.is_some() {
                    // Nothing was lost in between.
                    return self.shared.emit(Event::Moved { peer, gateway, is_tunnelled });
                }
                self.shared.emit(if std::mem::replace(&mut self.was_connected, true) {
                    Event::Reconnected { peer, gateway, observed }
                } else {
                    Event::Connected { peer, gateway, observed }
                });
            }
        }
    }

    fn on_link_lost(&mut self, id: LinkId, peer: EndpointId, reason: String) {
        let Some(link) = self.links.get(&id) else { return };
        match &link.origin {
            Origin::Accepted | Origin::Peer => {
                self.shared.emit(Event::PeerDisconnected { peer, reason })
            }
            Origin::Dialled { gateway, .. } => {
                if self.gateway_link.is_some_and(|(used, _)| used != id) {
                    return;
                }
                let gateway = gateway.clone();
                (self.gateway, self.gateway_link) = (None, None);
                self.shared.emit(Event::Disconnected { peer, gateway, reason });
            }
        }
    }

    /// The name of a realm, or its id where the name is not known.
    fn realm_name(&self, realm: &RealmId) -> String {
        let known = self.realms.get(realm).map(|entry| entry.name.clone());
        known.unwrap_or_else(|| realm.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn on_revoked(&self, realm: RealmId, sequence: u64, expelled: usize, record: Bytes) {
        // Only of realms that the operator named: anybody can make others, and records for them.
        if self.realms.contains_key(&realm)
            && let Some(records) = self.shared.records.get()
            && records.try_send(Kept { realm, record }).is_err()
        {
            tracing::error!(?realm, sequence, "a record of revocations is not kept");
        }
        self.shared.emit(Event::Revoked { realm: self.realm_name(&realm), sequence, expelled });
    }

    fn on_realm_answered(
        &mut self,
        realm: RealmId,
        refusal: Option<(RefusalCode, String)>,
        is_member: bool,
    ) {
        let Some(entry) = self.realms.get_mut(&realm) else { return };
        let answer = match refusal {
            None => Ok(()),
            Some((_, reason)) => {
                let realm = entry.name.clone();
                let told = (realm.clone(), reason.clone());
                self.shared.emit(match (is_member, told) {
                    (false, (realm, reason)) => Event::RealmDenied { realm, reason },
                    (true, (realm, reason)) => Event::RenewalRefused { realm, reason },
                });
                Err(JoinError::Denied { realm, reason })
            }
        };
        if is_member && answer.is_err() {
            // What was shown before holds; the same may be tried again.
            entry.grant = Bytes::new();
        }
        for waiter in entry.waiters.drain(..) {
            // Fails when whoever waited has given up.
            waiter.send(answer.clone()).ok();
        }
        entry.answer = Some(if is_member { Ok(()) } else { answer });
    }
}
