//! What handles ask for.

use bytes::Bytes;
use macula_proto::Time;
use macula_proto::id::RequestId;
use macula_proto::node::{self, Input, Role, StreamEnd};
use macula_proto::wire::message::CallFailure;

use tokio::sync::oneshot;

use super::{CallEntry, Driver, RegistrationEntry, SubscriptionEntry};
use crate::doorbell::{Dropped, Notes};
use crate::error::JoinError;
use crate::membership::Membership;
use crate::shared::{CallCommand, Command};
use crate::status::{RealmStatus, Status};

impl Driver {
    pub(super) fn on_command(&mut self, now: Time, command: Command) {
        // Once closing, dropping a command tells its future that the node is closed.
        let is_closing = self.closing.is_some();
        match command {
            Command::Status { answer } => drop(answer.send(self.status())),
            Command::Close(close) => self.start_closing(now, close),
            _ if is_closing => {}
            Command::Join { membership, answer } => self.join(now, membership, answer),
            Command::Revoke { record } => self.command(now, node::Command::Revoke { record }),
            Command::Subscribe { subscription, realm, pattern, options, queue, answer } => {
                // Dropped already? Then nobody would ever unsubscribe.
                if !queue.is_abandoned() {
                    let entry =
                        SubscriptionEntry { queue, pattern: pattern.clone(), waiter: Some(answer) };
                    self.subscriptions.insert(subscription, entry);
                    let subscribe =
                        node::Command::Subscribe { subscription, realm, pattern, options };
                    self.command(now, subscribe);
                }
            }
            Command::Register { registration, realm, procedure, concurrency, service, answer } => {
                if !service.is_dropped() {
                    let entry = RegistrationEntry { service, waiter: Some(answer) };
                    self.registrations.insert(registration, entry);
                    let register =
                        node::Command::Register { registration, realm, procedure, concurrency };
                    self.command(now, register);
                }
            }
            Command::Unregister { registration, answer } => {
                if self.registrations.remove(&registration).is_some() {
                    self.command(now, node::Command::Unregister { registration });
                }
                // Fails when whoever asked has given up.
                answer.send(()).ok();
            }
            Command::Call(call) => self.call(now, call),
            Command::Flush { answer } => self.flush(now, answer),
            Command::Peer { peer, answer } => self.want_peer(peer, answer),
            Command::Carry { peer, carrier, answer } => {
                // Fails when whoever asked has given up.
                answer.send(self.carry(peer, carrier)).ok();
            }
            Command::PeerFailed { peer, error } => self.on_peer_failed(peer, &error),
        }
    }

    fn join(
        &mut self,
        now: Time,
        membership: Membership,
        answer: oneshot::Sender<Result<(), JoinError>>,
    ) {
        let Membership { realm, name, grant } = membership;
        let is_new = self.realms.get(&realm).is_none_or(|entry| entry.grant != grant);
        let entry = self.realms.entry(realm).or_default();
        entry.name = name;
        if is_new {
            entry.grant = grant.clone();
            // Only the answer to this one counts.
            entry.answer = None;
        }
        if self.shared.role == Role::Router {
            // A router hosts what it joins; nobody has to agree.
            entry.answer = Some(Ok(()));
        }
        match &entry.answer {
            Some(known) => drop(answer.send(known.clone())),
            None => {
                // Those who gave up waiting make room.
                entry.waiters.retain(|waiter| !waiter.is_closed());
                entry.waiters.push(answer);
            }
        }
        if is_new {
            self.command(now, node::Command::Join { realm, grant });
        }
    }

    fn call(&mut self, now: Time, call: CallCommand) {
        if call.answer.is_closed() {
            return;
        }
        let streaming = call.pipe.is_some();
        self.calls.insert(call.call, CallEntry { answer: call.answer, pipe: call.pipe });
        let command = node::Command::Call {
            call: call.call,
            realm: call.realm,
            procedure: call.procedure,
            deadline: call.deadline,
            policy: call.policy,
            idempotent: call.idempotent,
            streaming,
            target: call.target,
            traceparent: call.traceparent,
            body: call.body,
        };
        self.command(now, command);
    }

    pub(super) fn on_notes(&mut self, now: Time, notes: &mut Notes) {
        self.dirty_topics.extend(notes.topics.drain(..));
        self.dirty_pipes.extend(notes.pipes.drain(..));
        for (request, result) in notes.replies.drain(..) {
            self.reply(now, request, result);
        }
        for subscription in notes.subscriptions_ready.drain(..) {
            if self.subscriptions.contains_key(&subscription) {
                self.node.handle_input(now, Input::HandleReady { subscription });
            }
        }
        for end in notes.pipes_ready.drain(..) {
            let is_alive = match end {
                StreamEnd::Caller(call) => self.calls.contains_key(&call),
                StreamEnd::Handler(request) => self.requests.contains_key(&request),
            };
            if is_alive {
                self.node.handle_input(now, Input::StreamHandle { end, full: false });
            }
        }
        for dropped in notes.dropped.drain(..) {
            self.on_dropped(now, dropped);
        }
    }

    fn on_dropped(&mut self, now: Time, dropped: Dropped) {
        match dropped {
            Dropped::Subscription(subscription) => {
                if self.subscriptions.remove(&subscription).is_some() {
                    self.command(now, node::Command::Unsubscribe { subscription });
                }
            }
            Dropped::Registration(registration) => {
                if self.registrations.remove(&registration).is_some() {
                    self.command(now, node::Command::Unregister { registration });
                }
            }
            Dropped::Call(call) => {
                if let Some(entry) = self.calls.remove(&call) {
                    if let Some(pipe) = entry.pipe {
                        pipe.close();
                    }
                    self.command(now, node::Command::CancelCall { call });
                }
            }
        }
    }

    /// A handler has ended.
    pub(super) fn reply(
        &mut self,
        now: Time,
        request: RequestId,
        result: Result<Bytes, CallFailure>,
    ) {
        let Some(entry) = self.requests.remove(&request) else { return };
        if let Some(pipe) = entry.pipe {
            pipe.close();
        }
        // Nobody waits for the answer to a cancelled request.
        if !entry.cancelled.is_cancelled() {
            self.command(now, node::Command::Reply { request, result });
        }
    }

    fn status(&self) -> Status {
        let node::NodeStatus { links, realms, .. } = self.node.status();
        let realms = realms.into_iter().map(|summary| RealmStatus {
            name: self.realms.get(&summary.realm).map(|entry| entry.name.clone()),
            summary,
        });
        let paths =
            self.links.values().filter_map(|link| Some((link.peer, link.transport.path()?)));
        Status {
            paths: paths.collect(),
            turn: self.endpoint.turn_status(),
            searches: self.endpoint.searches(),
            id: self.shared.id,
            role: self.shared.role,
            uptime: self.shared.clock.now() - Time::START,
            gateway: self.gateway.clone(),
            is_tunnelled: self.gateway_link.is_some_and(|(_, is_tunnelled)| is_tunnelled),
            links,
            realms: realms.collect(),
            stats: self.node.stats().clone(),
        }
    }
}
