//! Remote procedure calls: from the local application, through a router, to a handler.
//!
//! Every call that a node knows of is a *relay* between a caller (the local application or a link)
//! and a callee (a local handler or a link); a client, a router and a provider differ only in which
//! ends are local. The relay's number is the call's number towards the callee and the
//! [`RequestId`] of a local handler. Whatever happens, the caller hears exactly one end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::link::{Cargo, Link, Queued};
use super::quota::SHORT;
use super::{Action, Event, Node, Role, StreamEnd};
use crate::auth::{Request, Verb};
use crate::id::{
    CallId, EndpointId, LinkId, RealmId, RealmTag, RegistrationId, RequestId, StreamId,
};
use crate::limits;
use crate::pubsub::ProcedureName;
use crate::rpc::Choice;
use crate::seeded::CountedMap;
use crate::time::Time;
use crate::wire::message::{
    Call, CallFailure, CloseCode, ErrorClass, Message, ProviderPolicy, RefusalCode, Register,
};
use crate::wire::{self, Channel};

/// The built-in procedure of routers that takes a record of revocations.
const REVOKE: &str = "macula.revoke";
/// What a caller that hears `Busy` should wait at least.
const BUSY_RETRY_AFTER: Duration = Duration::from_millis(100);
/// Bytes that may wait on the stream of a streaming call before its sender is told to wait.
const STREAM_QUEUE_HIGH: usize = 256 * 1024;
/// Bytes below which the sender may go on.
const STREAM_QUEUE_LOW: usize = 64 * 1024;
/// Answers up to this size are given to callers who hardly read, too.
const SMALL_ANSWER_BYTES_MAX: usize = 1024;
/// What an item that waits for somebody to run the call costs beside its bytes.
const EARLY_ITEM_OVERHEAD_BYTES: usize = 64;
/// How often a call may be moved to another provider.
const ATTEMPTS_MAX: usize = 8;

/// Who runs a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Callee {
    Local(RegistrationId),
    Link(LinkId),
}

/// Who waits for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Local(CallId),
    Link { link: LinkId, call: u64 },
}

/// A procedure that the local application serves.
#[derive(Debug)]
pub(super) struct LocalRegistration {
    pub(super) realm: RealmTag,
    pub(super) procedure: ProcedureName,
    pub(super) concurrency: u32,
    running: u32,
    waiting: VecDeque<u64>,
}

/// A call as the local application asks for it.
#[derive(Debug)]
pub(super) struct NewCall {
    pub(super) realm: RealmTag,
    pub(super) procedure: ProcedureName,
    pub(super) deadline: Duration,
    pub(super) policy: ProviderPolicy,
    pub(super) idempotent: bool,
    pub(super) streaming: bool,
    pub(super) target: Option<EndpointId>,
    pub(super) traceparent: Bytes,
    pub(super) body: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for a router.
    Parked,
    /// Waits for a local handler to be free.
    Waiting,
    /// Is with its callee.
    Running,
}

#[derive(Debug)]
struct Relay {
    caller: Caller,
    callee: Option<Callee>,
    stage: Stage,
    deadline: Time,
    /// What was asked; `call` is the caller's number.
    call: Call,
    procedure: ProcedureName,
    tried: Vec<Callee>,
    caller_stream: Option<StreamId>,
    callee_stream: Option<StreamId>,
    /// Items have passed, so that another provider cannot take over.
    items: bool,
    /// Items of the caller that came before anybody ran the call, their bytes, and whether they
    /// have ended.
    early: Vec<Bytes>,
    early_bytes: usize,
    early_end: bool,
    /// The caller's items wait because the callee's side is full, and the reverse.
    caller_held: bool,
    callee_held: bool,
}

/// All calls that a node knows of.
#[derive(Debug)]
pub(super) struct Calls {
    relays: CountedMap<u64, Relay>,
    next: u64,
    local: CountedMap<CallId, u64>,
    parked: BTreeSet<u64>,
}

impl Calls {
    pub(super) fn new() -> Self {
        Self {
            relays: CountedMap::default(),
            next: 1,
            local: CountedMap::default(),
            parked: BTreeSet::new(),
        }
    }

    /// Calls open at this moment.
    pub(super) fn len(&self) -> usize {
        self.relays.len()
    }
}

impl Node {
    // --- registrations ---------------------------------------------------------------------

    pub(super) fn register(
        &mut self,
        now: Time,
        registration: RegistrationId,
        realm_id: &RealmId,
        procedure: ProcedureName,
        concurrency: u32,
    ) {
        let tag = realm_id.tag();
        if self.registrations.contains_key(&registration) {
            return;
        }
        let denied = self.denied(realm_id);
        let refusal = if self.realm_mut(realm_id).is_none() {
            Some((RefusalCode::UnknownRealm, "this node did not join the realm"))
        } else if let Some(reason) = &denied {
            Some((RefusalCode::Denied, reason.as_str()))
        } else if procedure.is_builtin() {
            Some((RefusalCode::BadName, "procedures below `macula.` are built in"))
        } else {
            None
        };
        if let Some((code, reason)) = refusal {
            let reason = reason.to_owned();
            return self.events.push_back(Event::RegisterRefused { registration, code, reason });
        }
        let concurrency = concurrency.max(1);
        self.registrations.insert(
            registration,
            LocalRegistration {
                realm: tag,
                procedure: procedure.clone(),
                concurrency,
                running: 0,
                waiting: VecDeque::new(),
            },
        );
        if let Some(realm) = self.realms.get_mut(&tag) {
            let providers = realm.providers.entry(procedure.clone()).or_default();
            providers.add(Callee::Local(registration));
        }
        match self.config.role {
            Role::Router => self.events.push_back(Event::Registered { registration }),
            Role::Leaf => {
                let admitted = self.upstream.filter(|link| {
                    self.links.get(link).is_some_and(|link| link.realms.contains(&tag))
                });
                if let Some(link) = admitted {
                    let register = Register {
                        realm: tag,
                        registration: registration.0 as u32,
                        procedure: procedure.as_str().to_owned(),
                        concurrency,
                    };
                    self.send_control(now, link, &Message::Register(register));
                }
            }
        }
    }

    pub(super) fn unregister(&mut self, now: Time, registration: RegistrationId) {
        let Some(local) = self.registrations.remove(&registration) else { return };
        self.remove_provider(local.realm, &local.procedure, Callee::Local(registration));
        if let (Role::Leaf, Some(link)) = (self.config.role, self.upstream) {
            let registration = registration.0 as u32;
            let message = Message::Unregister { realm: local.realm, registration };
            self.send_control(now, link, &message);
        }
        for relay in local.waiting {
            self.lose_callee(now, relay, true, "the provider stopped serving");
        }
    }

    /// A registration of the local application ends because the router refuses it.
    pub(super) fn end_registration(&mut self, registration: RegistrationId) {
        let Some(local) = self.registrations.remove(&registration) else { return };
        self.remove_provider(local.realm, &local.procedure, Callee::Local(registration));
        let now = self.now;
        for relay in local.waiting {
            self.lose_callee(now, relay, true, "the provider stopped serving");
        }
    }

    fn remove_provider(&mut self, tag: RealmTag, procedure: &ProcedureName, callee: Callee) {
        let Some(realm) = self.realms.get_mut(&tag) else { return };
        let Some(providers) = realm.providers.get_mut(procedure) else { return };
        providers.remove(callee);
        if providers.is_empty() {
            realm.providers.remove(procedure);
        }
    }

    pub(super) fn on_register(&mut self, now: Time, link_id: LinkId, register: Register) {
        // a number that is used again stands for something else from now on
        let key = (register.realm, register.registration);
        let known = self.links.get(&link_id).and_then(|link| link.registrations.get(&key));
        if known.is_some_and(|known| known.as_str() != register.procedure) {
            self.on_unregister(link_id, register.realm, register.registration);
        }
        let refusal = self
            .charge_change(now, link_id)
            .and_then(|()| self.admit_registration(link_id, &register))
            .err();
        let answer = Message::RegisterResult {
            realm: register.realm,
            registration: register.registration,
            refusal,
        };
        self.send_control(now, link_id, &answer);
    }

    fn admit_registration(
        &mut self,
        link_id: LinkId,
        register: &Register,
    ) -> Result<(), (RefusalCode, String)> {
        let max = self.config.registrations_per_link_max;
        let is_router = self.config.role == Role::Router;
        let Some(link) = self.links.get(&link_id) else { return Ok(()) };
        let admitted = is_router && link.realms.contains(&register.realm);
        if !admitted || !self.realms.contains_key(&register.realm) {
            return Err((RefusalCode::UnknownRealm, "not admitted to the realm".to_owned()));
        }
        let procedure = ProcedureName::parse(&register.procedure)
            .map_err(|error| (RefusalCode::BadName, error.to_string()))?;
        if procedure.is_builtin() {
            let text = "procedures below `macula.` are built in";
            return Err((RefusalCode::BadName, text.to_owned()));
        }
        self.check_serve(link_id, register.realm, &procedure)?;
        let Some(link) = self.links.get_mut(&link_id) else { return Ok(()) };
        let Some(realm) = self.realms.get_mut(&register.realm) else { return Ok(()) };
        if link.registrations.len() >= max {
            return Err((RefusalCode::Limit, format!("a link may have {max} registrations")));
        }
        let key = (register.realm, register.registration);
        let is_new = !link.registrations.contains_key(&key);
        if is_new && realm.peer_registrations >= self.config.registrations_per_realm_max {
            self.stats.over_limit += 1;
            let text = "the realm has as many registrations as it may".to_owned();
            return Err((RefusalCode::Limit, text));
        }
        realm.peer_registrations += usize::from(is_new);
        link.registrations.insert(key, procedure.clone());
        realm.providers.entry(procedure).or_default().add(Callee::Link(link_id));
        Ok(())
    }

    pub(super) fn on_unregister(&mut self, link_id: LinkId, tag: RealmTag, registration: u32) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let Some(procedure) = link.registrations.remove(&(tag, registration)) else { return };
        if let Some(realm) = self.realms.get_mut(&tag) {
            realm.peer_registrations = realm.peer_registrations.saturating_sub(1);
        }
        let again =
            link.registrations.iter().any(|((realm, _), name)| *realm == tag && *name == procedure);
        if !again {
            self.remove_provider(tag, &procedure, Callee::Link(link_id));
        }
    }

    /// A peer is gone: nothing that it served can be called there any more.
    pub(super) fn remove_providers(&mut self, link_id: LinkId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        for ((tag, _), procedure) in std::mem::take(&mut link.registrations) {
            if let Some(realm) = self.realms.get_mut(&tag) {
                realm.peer_registrations = realm.peer_registrations.saturating_sub(1);
            }
            self.remove_provider(tag, &procedure, Callee::Link(link_id));
        }
    }

    pub(super) fn on_register_result(
        &mut self,
        link: LinkId,
        registration: u32,
        refusal: Option<(RefusalCode, String)>,
    ) {
        let registration = RegistrationId(u64::from(registration));
        if self.upstream != Some(link) || !self.registrations.contains_key(&registration) {
            return;
        }
        let event = match refusal {
            None => Event::Registered { registration },
            Some((code, reason)) => {
                self.end_registration(registration);
                Event::RegisterRefused { registration, code, reason }
            }
        };
        self.events.push_back(event);
    }

    // --- calls come in ---------------------------------------------------------------------

    /// The local application calls.
    pub(super) fn call(&mut self, now: Time, call: CallId, new: NewCall) {
        self.stats.calls += 1;
        let refusal = if self.draining {
            Some(Self::failure(ErrorClass::Cancelled, "this node is closing", true))
        } else if self.calls.local.contains_key(&call) {
            return;
        } else if self.calls.len() >= self.config.calls_max {
            Some(busy("this node has as many calls open as it may"))
        } else if new.body.len() > limits::MESSAGE_BYTES_MAX {
            let text = "an argument may have 8 MiB; larger things need a streaming call";
            Some(Self::failure(ErrorClass::Refused, text, false))
        } else if new.streaming && new.body.len() > limits::LANE_MESSAGE_BYTES_MAX {
            let text = "the argument of a streaming call may have 64 KiB; send items";
            Some(Self::failure(ErrorClass::Refused, text, false))
        } else {
            None
        };
        if let Some(failure) = refusal {
            self.stats.calls_failed += 1;
            return self.events.push_back(Event::CallDone { call, result: Err(failure) });
        }
        let wire_call = Call {
            call: 0,
            realm: new.realm,
            procedure: new.procedure.as_str().to_owned(),
            deadline: new.deadline,
            policy: new.policy,
            idempotent: new.idempotent,
            streaming: new.streaming,
            target: new.target,
            caller: Some(self.id),
            traceparent: new.traceparent,
            body: new.body,
        };
        let relay = self.open_relay(now, Caller::Local(call), new.procedure, wire_call, None);
        self.calls.local.insert(call, relay);
        self.dispatch(now, relay);
    }

    /// A peer calls.
    pub(super) fn on_call(&mut self, now: Time, link_id: LinkId, channel: Channel, mut call: Call) {
        let (calls_per_link_max, calls_max) =
            (self.config.calls_per_link_max, self.config.calls_max);
        let bytes_max = match self.config.role {
            Role::Router => self.config.call_bytes_per_link_max,
            Role::Leaf => usize::MAX, // the limit is the concurrency of its handlers
        };
        let Some(link) = self.links.get_mut(&link_id) else { return };
        let stream = match channel {
            Channel::Stream(stream) => Some(stream),
            Channel::Control | Channel::Lane(_) | Channel::Bulk => None,
        };
        if call.streaming != stream.is_some() {
            return self.protocol_error(now, link_id, "a call on the wrong sort of stream");
        }
        if link.calls_in.contains_key(&call.call) {
            return self.protocol_error(now, link_id, "two calls with one number");
        }
        if stream.is_some_and(|stream| link.stream_relays.contains_key(&stream)) {
            return self.protocol_error(now, link_id, "two calls on one stream");
        }
        // Only a router's word counts, and only leaves have one at the other end.
        let from_router = self.config.role == Role::Leaf && link.is_upstream();
        if !from_router {
            call.caller = Some(link.peer);
        }
        self.stats.calls += 1;
        let known = self.realms.get(&call.realm).and_then(|realm| {
            realm.providers.get_key_value(call.procedure.as_str()).map(|(name, _)| name.clone())
        });
        let procedure = known.map_or_else(|| ProcedureName::parse(&call.procedure), Ok);
        let admitted =
            link.realms.contains(&call.realm) || call.realm == RealmTag::ENDPOINT || from_router;
        let is_router = self.config.role == Role::Router;
        let message_max = if is_router { self.config.message_bytes_max } else { usize::MAX };
        let open_calls = self.realms.get(&call.realm).map_or(0, |realm| realm.open_calls);
        let is_full = is_router && open_calls >= self.config.calls_per_realm_max;
        let (calls_in, calls_in_bytes) = (link.calls_in.len(), link.calls_in_bytes);
        let is_short = self.is_short(now);
        let verdict = if admitted && !from_router {
            self.check(link_id, call.realm, Request::Use(Verb::Call, &call.procedure))
        } else {
            Ok(())
        };
        let refusal = if calls_in >= calls_per_link_max
            || (calls_in_bytes > 0 && calls_in_bytes.saturating_add(call.body.len()) > bytes_max)
        {
            Some(busy("this link has as many calls open as it may"))
        } else if self.calls.len() >= calls_max {
            Some(busy("this gateway has as many calls open as it may"))
        } else if is_full {
            Some(busy("the realm has as many calls open as it may"))
        } else if is_short {
            Some(busy(SHORT))
        } else if call.body.len() > message_max {
            let text = format!("an argument may have {message_max} bytes here");
            Some(Self::failure(ErrorClass::Refused, &text, false))
        } else if self.draining {
            Some(busy("this gateway is going down"))
        } else if !admitted {
            Some(Self::failure(ErrorClass::Denied, "not admitted to the realm", false))
        } else if let Err(denial) = verdict {
            Some(Self::failure(ErrorClass::Denied, &denial.to_string(), false))
        } else {
            match &procedure {
                Ok(_) => None,
                Err(error) => Some(Self::failure(ErrorClass::NoProvider, &error.to_string(), true)),
            }
        };
        let caller = Caller::Link { link: link_id, call: call.call };
        match (refusal, procedure) {
            (None, Ok(procedure)) => {
                let (number, bytes) = (call.call, call.body.len());
                let relay = self.open_relay(now, caller, procedure, call, stream);
                if let Some(link) = self.links.get_mut(&link_id) {
                    link.calls_in.insert(number, relay);
                    link.calls_in_bytes += bytes;
                    if let Some(stream) = stream {
                        link.stream_relays.insert(stream, relay);
                        if link.is_slowed {
                            self.actions.push_back(Action::Pause { link: link_id, channel });
                        }
                    }
                }
                self.dispatch(now, relay);
            }
            (refusal, _) => {
                self.stats.calls_failed += 1;
                let failure = refusal
                    .unwrap_or_else(|| Self::failure(ErrorClass::NoProvider, "bad name", true));
                self.answer(now, caller, stream, Err(failure));
            }
        }
    }

    fn open_relay(
        &mut self,
        now: Time,
        caller: Caller,
        procedure: ProcedureName,
        call: Call,
        caller_stream: Option<StreamId>,
    ) -> u64 {
        let id = self.calls.next;
        self.calls.next += 1;
        let deadline = now + call.deadline.min(self.config.call_deadline_max);
        self.timers.set_deadline(id, deadline);
        if let Some(realm) = self.realms.get_mut(&call.realm) {
            realm.open_calls += 1;
        }
        let relay = Relay {
            caller,
            callee: None,
            stage: Stage::Parked,
            deadline,
            call,
            procedure,
            tried: Vec::new(),
            caller_stream,
            callee_stream: None,
            items: false,
            early: Vec::new(),
            early_bytes: 0,
            early_end: false,
            caller_held: false,
            callee_held: false,
        };
        self.calls.relays.insert(id, relay);
        id
    }

    // --- finding a callee ------------------------------------------------------------------

    /// Finds somebody to run the call, or ends it.
    fn dispatch(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        if relay.procedure.is_builtin() {
            return self.dispatch_builtin(now, id);
        }
        let is_local = matches!(relay.caller, Caller::Local(_));
        let tag = relay.call.realm;
        let target = relay.call.target;
        match self.config.role {
            Role::Router => match self.choose(now, id) {
                Some(callee) => self.assign(now, id, callee),
                None => self.no_provider(now, id),
            },
            Role::Leaf => {
                let here = target.is_none_or(|target| target == self.id);
                let local = self
                    .realms
                    .get(&tag)
                    .and_then(|realm| realm.providers.get(&relay.procedure))
                    .and_then(|providers| providers.iter().find(|it| !relay.tried.contains(it)))
                    .filter(|_| here);
                let direct = target.filter(|_| is_local).and_then(|it| self.peer_link(it, tag));
                let direct = direct.map(Callee::Link).filter(|it| !relay.tried.contains(it));
                match (local.or(direct), is_local) {
                    (Some(callee), _) => self.assign(now, id, callee),
                    (None, true) if target != Some(self.id) => self.send_upstream(now, id),
                    (None, _) => self.no_provider(now, id),
                }
            }
        }
    }

    /// A router chooses among the providers that it knows.
    fn choose(&mut self, now: Time, id: u64) -> Option<Callee> {
        let relay = self.calls.relays.get(&id)?;
        let realm = self.realms.get_mut(&relay.call.realm)?;
        let providers = realm.providers.get_mut(&relay.procedure)?;
        let (links, own) = (&self.links, self.id);
        if let Some(target) = relay.call.target {
            return providers.iter().filter(|callee| !relay.tried.contains(callee)).find(
                |callee| match callee {
                    Callee::Local(_) => target == own,
                    Callee::Link(link) => links.get(link).is_some_and(|link| link.peer == target),
                },
            );
        }
        let suspects = providers
            .iter()
            .filter(|callee| matches!(callee, Callee::Link(link) if links.get(link).is_none_or(|link| link.suspect)));
        let exclude: Vec<Callee> = relay.tried.iter().copied().chain(suspects).collect();
        let rtt = |callee: Callee| match callee {
            Callee::Local(_) => Some(Duration::ZERO),
            Callee::Link(link) => links.get(&link).and_then(|link| link.rtt),
        };
        let policy = relay.call.policy;
        let choice = Choice { policy, exclude: &exclude };
        let found = providers.choose(now, &choice, rtt, &mut self.rng);
        // all are suspect: better to ask one of them than nobody
        found.or_else(|| {
            let choice = Choice { policy, exclude: &relay.tried };
            providers.choose(now, &choice, rtt, &mut self.rng)
        })
    }

    fn no_provider(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let failure = if relay.tried.is_empty() {
            Self::failure(ErrorClass::NoProvider, "nobody serves this procedure", true)
        } else {
            Self::failure(ErrorClass::Unreachable, "every provider was tried", true)
        };
        self.finish(now, id, Err(failure));
    }

    fn send_upstream(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        let tag = relay.call.realm;
        let admitted = self.upstream.filter(|link| {
            self.links.get(link).is_some_and(|link| {
                link.is_ready() && (tag == RealmTag::ENDPOINT || link.realms.contains(&tag))
            })
        });
        let denied = self.realms.get(&tag).and_then(|realm| realm.denied.as_deref());
        match (admitted, denied) {
            (Some(link), _) => self.assign(now, id, Callee::Link(link)),
            (None, Some(reason)) => {
                let failure = Self::failure(ErrorClass::Denied, reason, true);
                self.finish(now, id, Err(failure));
            }
            (None, None) => {
                relay.stage = Stage::Parked;
                relay.callee = None;
                self.calls.parked.insert(id);
            }
        }
    }

    /// A router is there: calls that waited for one go out.
    pub(super) fn dispatch_parked(&mut self, now: Time) {
        for id in std::mem::take(&mut self.calls.parked) {
            self.dispatch(now, id);
        }
    }

    /// The procedures that every node answers; `target` says which node.
    fn dispatch_builtin(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let is_local = matches!(relay.caller, Caller::Local(_));
        let is_leaf = self.config.role == Role::Leaf;
        match relay.call.target {
            Some(target) if target != self.id => {
                if is_leaf && is_local {
                    let direct = self.peer_link(target, relay.call.realm).map(Callee::Link);
                    return match direct.filter(|it| !relay.tried.contains(it)) {
                        Some(callee) => self.assign(now, id, callee),
                        None => self.send_upstream(now, id),
                    };
                }
                match self.neighbour(relay, target) {
                    Some(link) => self.assign(now, id, Callee::Link(link)),
                    None => {
                        let text = "no such endpoint in your realms";
                        let failure = Self::failure(ErrorClass::NoProvider, text, true);
                        self.finish(now, id, Err(failure));
                    }
                }
            }
            None if is_leaf && is_local => self.send_upstream(now, id),
            Some(_) | None => {
                let asker = match relay.caller {
                    Caller::Local(_) => None,
                    Caller::Link { link, .. } => Some(link),
                };
                if relay.procedure.as_str() == REVOKE && !is_leaf {
                    let record = relay.call.body.clone();
                    let result = self.revoke_for(now, asker, &record).map_err(|denial| {
                        Self::failure(ErrorClass::Denied, &denial.to_string(), false)
                    });
                    return self.finish(now, id, result);
                }
                let (body, realm) = (&relay.call.body, relay.call.realm);
                let result = self.builtin(relay.procedure.as_str(), body, asker, realm);
                let result = result.ok_or_else(|| {
                    Self::failure(ErrorClass::NoProvider, "no such built-in procedure", true)
                });
                self.finish(now, id, result);
            }
        }
    }

    /// The link to `target`, if it shares a realm with the caller: tenants do not see each other.
    fn neighbour(&self, relay: &Relay, target: EndpointId) -> Option<LinkId> {
        let session = self.sessions_by_peer.get(&target)?;
        let link_id = self.sessions.get(session)?.link?;
        let link = self.links.get(&link_id)?;
        let shares = match relay.caller {
            Caller::Local(_) => true,
            Caller::Link { link: from, .. } => {
                let from = self.links.get(&from)?;
                from.realms.intersection(&link.realms).next().is_some()
            }
        };
        (shares && !relay.tried.contains(&Callee::Link(link_id))).then_some(link_id)
    }

    /// Gives the call to a callee.
    fn assign(&mut self, now: Time, id: u64, callee: Callee) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        relay.callee = Some(callee);
        relay.stage = Stage::Waiting;
        let tag = relay.call.realm;
        if let Some(providers) =
            self.realms.get_mut(&tag).and_then(|realm| realm.providers.get_mut(&relay.procedure))
        {
            providers.call_started(callee);
        }
        match callee {
            Callee::Local(registration) => self.assign_local(now, id, registration),
            Callee::Link(link) => self.assign_link(now, id, link),
        }
    }

    fn assign_local(&mut self, now: Time, id: u64, registration: RegistrationId) {
        let Some(local) = self.registrations.get_mut(&registration) else {
            return self.lose_callee(now, id, true, "the provider stopped serving");
        };
        if local.running < local.concurrency {
            local.running += 1;
            self.start_request(now, id, registration);
        } else if local.waiting.len() < local.concurrency as usize {
            local.waiting.push_back(id);
        } else {
            let failure = busy("every handler is busy and the queue is full");
            self.on_attempt_failed(now, id, failure);
        }
    }

    fn start_request(&mut self, now: Time, id: u64, registration: RegistrationId) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        relay.stage = Stage::Running;
        self.events.push_back(Event::Request {
            request: RequestId(id),
            registration,
            caller: relay.call.caller.unwrap_or(self.id),
            deadline: relay.deadline,
            streaming: relay.call.streaming,
            traceparent: relay.call.traceparent.clone(),
            body: relay.call.body.clone(),
        });
        self.pass_early_items(now, id);
    }

    fn assign_link(&mut self, now: Time, id: u64, link_id: LinkId) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        let Some(link) = self.links.get_mut(&link_id).filter(|link| link.is_ready()) else {
            return self.lose_callee(now, id, true, "the provider is gone");
        };
        if self.config.role == Role::Router && link.call_bytes() > self.config.call_queue_bytes_max
        {
            let failure = busy("the provider does not keep up with what it is sent");
            return self.on_attempt_failed(now, id, failure);
        }
        relay.stage = Stage::Running;
        let call = &relay.call;
        let channel = if call.streaming {
            if link.stream_relays.len() >= limits::STREAMS_PER_LINK_MAX {
                let failure = busy("as many streaming calls as one link may carry");
                return self.on_attempt_failed(now, id, failure);
            }
            let stream = link.open_stream();
            relay.callee_stream = Some(stream);
            link.stream_relays.insert(stream, id);
            let channel = Channel::Stream(stream);
            if link.is_slowed {
                self.actions.push_back(Action::Pause { link: link_id, channel });
            }
            channel
        } else if call.body.len() > limits::LANE_MESSAGE_BYTES_MAX {
            Channel::Bulk
        } else {
            Channel::CALLS
        };
        link.calls_out.insert(id);
        let frame = wire::encode_call(call, id, relay.deadline - now);
        self.push(now, link_id, channel, Queued { frame, cargo: Cargo::Call { relay: id } });
        self.watch(now, link_id);
        self.pass_early_items(now, id);
    }

    // --- ends ------------------------------------------------------------------------------

    /// A handler of the local application is done.
    pub(super) fn reply(
        &mut self,
        now: Time,
        request: RequestId,
        result: Result<Bytes, CallFailure>,
    ) {
        let id = request.0;
        let is_ours = self.calls.relays.get(&id).is_some_and(|relay| {
            matches!(relay.callee, Some(Callee::Local(_))) && relay.stage == Stage::Running
        });
        if !is_ours {
            return;
        }
        match result {
            Ok(body) if body.len() > limits::MESSAGE_BYTES_MAX => {
                let text = "the result is larger than 8 MiB; larger things need a streaming call";
                self.finish(now, id, Err(Self::failure(ErrorClass::Internal, text, false)));
            }
            result => self.finish(now, id, result),
        }
    }

    /// A callee on a link is done.
    pub(super) fn on_reply(
        &mut self,
        now: Time,
        link_id: LinkId,
        id: u64,
        result: Result<Bytes, CallFailure>,
    ) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        if relay.callee != Some(Callee::Link(link_id)) {
            return; // late, after the call went elsewhere, or not theirs
        }
        match result {
            Err(failure)
                if failure.retry_safe
                    && matches!(
                        failure.class,
                        ErrorClass::Busy | ErrorClass::Unreachable | ErrorClass::NoProvider
                    ) =>
            {
                self.on_attempt_failed(now, id, failure);
            }
            result => {
                if result.is_ok() {
                    self.report(now, id, Callee::Link(link_id), true);
                }
                self.finish(now, id, result);
            }
        }
    }

    fn report(&mut self, now: Time, id: u64, callee: Callee, good: bool) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let Some(providers) = self
            .realms
            .get_mut(&relay.call.realm)
            .and_then(|realm| realm.providers.get_mut(&relay.procedure))
        else {
            return;
        };
        if good {
            providers.report_success(callee);
        } else {
            providers.report_failure(callee, now);
        }
    }

    /// The call surely did not run where it was: another provider gets it, or the caller is told.
    fn on_attempt_failed(&mut self, now: Time, id: u64, failure: CallFailure) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let may_move = self.config.role == Role::Router
            && !relay.items
            && !relay.procedure.is_builtin()
            && relay.tried.len() < ATTEMPTS_MAX;
        self.release_callee(id, true);
        match may_move.then(|| self.choose(now, id)).flatten() {
            Some(callee) => {
                self.stats.failovers += 1;
                self.assign(now, id, callee);
            }
            None => self.finish(now, id, Err(failure)),
        }
    }

    /// The callee of a call is gone. `not_run`: the call surely did not run there.
    fn lose_callee(&mut self, now: Time, id: u64, not_run: bool, reason: &str) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let may_repeat = (not_run || relay.call.idempotent) && !relay.items;
        let attempts_left = relay.tried.len() < ATTEMPTS_MAX;
        let is_leaf_caller =
            self.config.role == Role::Leaf && matches!(relay.caller, Caller::Local(_));
        if let Some(callee) = relay.callee {
            self.report(now, id, callee, false);
        }
        self.release_callee(id, true);
        if may_repeat && attempts_left {
            if is_leaf_caller {
                return self.dispatch(now, id);
            }
            if let Some(callee) = self.choose(now, id) {
                self.stats.failovers += 1;
                return self.assign(now, id, callee);
            }
        }
        let failure = Self::failure(ErrorClass::Unreachable, reason, may_repeat);
        self.finish(now, id, Err(failure));
    }

    /// Takes a call from its callee. `tried`: it shall not get the call again.
    fn release_callee(&mut self, id: u64, tried: bool) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        let Some(callee) = relay.callee.take() else { return };
        let was_running = relay.stage == Stage::Running;
        relay.stage = Stage::Waiting;
        let stream = relay.callee_stream.take();
        if tried {
            relay.tried.push(callee);
        }
        if let Some(providers) = self
            .realms
            .get_mut(&relay.call.realm)
            .and_then(|realm| realm.providers.get_mut(&relay.procedure))
        {
            providers.call_ended(callee);
        }
        match callee {
            Callee::Link(link_id) => {
                if let Some(link) = self.links.get_mut(&link_id) {
                    link.calls_out.remove(&id);
                    if let Some(stream) = stream {
                        link.stream_relays.remove(&stream);
                        self.actions.push_back(Action::FinishStream { link: link_id, stream });
                    }
                }
            }
            Callee::Local(registration) => {
                let Some(local) = self.registrations.get_mut(&registration) else { return };
                if !was_running {
                    return local.waiting.retain(|waiting| *waiting != id);
                }
                if local.running == 0 {
                    return;
                }
                local.running -= 1;
                if let Some(next) = local.waiting.pop_front() {
                    local.running += 1;
                    self.start_request(self.now, next, registration);
                }
            }
        }
    }

    fn remove_relay(&mut self, id: u64) -> Option<Relay> {
        let relay = self.calls.relays.remove(&id)?;
        self.timers.clear_deadline(id, relay.deadline);
        self.calls.parked.remove(&id);
        if let Some(realm) = self.realms.get_mut(&relay.call.realm) {
            realm.open_calls = realm.open_calls.saturating_sub(1);
        }
        Some(relay)
    }

    /// Ends a call: its callee is free, its caller hears `result`.
    fn finish(&mut self, now: Time, id: u64, result: Result<Bytes, CallFailure>) {
        self.release_callee(id, false);
        let Some(relay) = self.remove_relay(id) else { return };
        if result.is_err() {
            self.stats.calls_failed += 1;
        }
        match relay.caller {
            Caller::Local(call) => {
                self.calls.local.remove(&call);
                self.events.push_back(Event::CallDone { call, result });
            }
            Caller::Link { link: link_id, call } => {
                if let Some(link) = self.links.get_mut(&link_id) {
                    link.calls_in.remove(&call);
                    link.calls_in_bytes = link.calls_in_bytes.saturating_sub(relay.call.body.len());
                    if let Some(stream) = relay.caller_stream {
                        link.stream_relays.remove(&stream);
                    }
                    self.answer(now, relay.caller, relay.caller_stream, result);
                }
            }
        }
    }

    fn answer(
        &mut self,
        now: Time,
        caller: Caller,
        stream: Option<StreamId>,
        result: Result<Bytes, CallFailure>,
    ) {
        let Caller::Link { link, call } = caller else { return };
        let waiting = self.links.get(&link).map_or(0, Link::call_bytes);
        let max = match self.config.role {
            Role::Router => self.config.call_queue_bytes_max,
            Role::Leaf => usize::MAX, // its handlers are its own affair
        };
        if waiting / 2 > max {
            let reason = "does not read the answers to its calls";
            return self.close_link(now, link, CloseCode::SlowConsumer, reason);
        }
        let result = match result {
            Ok(body) if waiting > max && body.len() > SMALL_ANSWER_BYTES_MAX => {
                let text = "the caller does not read the answers to its calls";
                Err(Self::failure(ErrorClass::Busy, text, false))
            }
            // a provider may have sent it on another channel, where it fits
            Ok(body) if stream.is_some() && body.len() > limits::LANE_MESSAGE_BYTES_MAX => {
                let text = "the result of a streaming call is larger than 64 KiB";
                Err(Self::failure(ErrorClass::Internal, text, false))
            }
            result => result,
        };
        let message = match result {
            Ok(body) => Message::Reply { call, body },
            Err(failure) => Message::CallError { call, failure },
        };
        let frame = wire::encode(&message);
        match stream {
            Some(stream) => {
                self.push_plain(now, link, Channel::Stream(stream), frame);
                let queue =
                    self.links.get_mut(&link).and_then(|link| link.streams.get_mut(&stream));
                match queue {
                    // what the transport has no room for yet must go out first
                    Some(queue) if !queue.queue.is_empty() => queue.finishes = true,
                    _ => self.actions.push_back(Action::FinishStream { link, stream }),
                }
            }
            None if frame.body.len() > limits::LANE_MESSAGE_BYTES_MAX => {
                self.push_plain(now, link, Channel::Bulk, frame);
            }
            None => self.push_plain(now, link, Channel::CALLS, frame),
        }
    }

    /// Tells the callee that nobody waits any more.
    fn cancel_callee(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let stream = relay.callee_stream;
        match relay.callee {
            Some(Callee::Link(link)) => {
                self.send_call_lane(now, link, &Message::Cancel { call: id });
                if let Some(stream) = stream {
                    self.actions.push_back(Action::ResetStream { link, stream });
                }
            }
            Some(Callee::Local(_)) if relay.stage == Stage::Running => {
                self.events.push_back(Event::RequestCancelled { request: RequestId(id) });
            }
            Some(Callee::Local(_)) | None => {}
        }
    }

    /// The local caller gave up.
    pub(super) fn cancel_call(&mut self, now: Time, call: CallId) {
        let Some(id) = self.calls.local.get(&call).copied() else { return };
        self.cancel_callee(now, id);
        let failure = Self::failure(ErrorClass::Cancelled, "the caller gave up", false);
        self.finish(now, id, Err(failure));
    }

    /// A calling peer gave up.
    pub(super) fn on_cancel(&mut self, now: Time, link_id: LinkId, call: u64) {
        let relay = self.links.get(&link_id).and_then(|link| link.calls_in.get(&call).copied());
        if let Some(id) = relay {
            self.drop_call(now, id);
        }
    }

    /// Ends a call whose caller does not listen any more.
    fn drop_call(&mut self, now: Time, id: u64) {
        self.cancel_callee(now, id);
        self.release_callee(id, false);
        let Some(relay) = self.remove_relay(id) else { return };
        self.stats.calls_failed += 1;
        if let Caller::Link { link: link_id, call } = relay.caller
            && let Some(link) = self.links.get_mut(&link_id)
        {
            link.calls_in.remove(&call);
            link.calls_in_bytes = link.calls_in_bytes.saturating_sub(relay.call.body.len());
            if let Some(stream) = relay.caller_stream {
                link.stream_relays.remove(&stream);
                self.actions.push_back(Action::ResetStream { link: link_id, stream });
            }
        }
    }

    pub(super) fn on_deadline(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get(&id) else { return };
        let text = match relay.stage {
            Stage::Parked => "no gateway was there before the deadline",
            Stage::Waiting => "no handler was free before the deadline",
            Stage::Running => "no answer came before the deadline",
        };
        let retry_safe = relay.stage != Stage::Running;
        self.cancel_callee(now, id);
        self.finish(now, id, Err(Self::failure(ErrorClass::Deadline, text, retry_safe)));
    }

    /// A link is gone, with the calls that came from it and those that went to it.
    pub(super) fn calls_of_lost_link(&mut self, now: Time, link_id: LinkId, link: &Link) {
        for id in link.calls_in.values() {
            self.drop_call(now, *id);
        }
        let unsent: BTreeSet<u64> = link
            .lanes
            .first()
            .into_iter()
            .chain([&link.bulk_out])
            .flat_map(|queue| queue.queue.iter())
            .filter_map(|queued| match queued.cargo {
                Cargo::Call { relay } => Some(relay),
                Cargo::Plain | Cargo::AtMostOnce { .. } | Cargo::AtLeastOnce { .. } => None,
            })
            .collect();
        for id in &link.calls_out {
            let still = self
                .calls
                .relays
                .get(id)
                .is_some_and(|relay| relay.callee == Some(Callee::Link(link_id)));
            if still {
                self.lose_callee(now, *id, unsent.contains(id), "the link to the provider broke");
            }
        }
    }

    /// A provider is silent: calls that may run twice go to another one, if there is one.
    pub(super) fn fail_over_from(&mut self, now: Time, link_id: LinkId) {
        let Some(link) = self.links.get(&link_id) else { return };
        if self.config.role != Role::Router {
            return;
        }
        for id in link.calls_out.clone() {
            let Some(relay) = self.calls.relays.get(&id) else { continue };
            let may_move = relay.call.idempotent && !relay.items && relay.call.target.is_none();
            if !may_move || relay.tried.len() >= ATTEMPTS_MAX {
                continue;
            }
            let tag = relay.call.realm;
            let others = self
                .realms
                .get(&tag)
                .and_then(|realm| realm.providers.get(&relay.procedure))
                .is_some_and(|providers| {
                    providers.iter().any(|callee| {
                        callee != Callee::Link(link_id) && !relay.tried.contains(&callee)
                    })
                });
            if others {
                self.cancel_callee(now, id);
                self.lose_callee(now, id, false, "the provider is silent");
            }
        }
    }

    // --- streaming calls -------------------------------------------------------------------

    /// An item from the local application.
    pub(super) fn send_item(&mut self, now: Time, end: StreamEnd, body: Bytes) {
        let Some(id) = self.relay_of(end) else { return };
        if body.len() > limits::LANE_MESSAGE_BYTES_MAX {
            self.cancel_callee(now, id);
            let text = "an item of a streaming call may have 64 KiB";
            return self.finish(now, id, Err(Self::failure(ErrorClass::Refused, text, false)));
        }
        self.pass_item(now, id, matches!(end, StreamEnd::Caller(_)), body);
    }

    fn relay_of(&self, end: StreamEnd) -> Option<u64> {
        match end {
            StreamEnd::Caller(call) => self.calls.local.get(&call).copied(),
            StreamEnd::Handler(request) => {
                let relay = self.calls.relays.get(&request.0)?;
                matches!(relay.callee, Some(Callee::Local(_))).then_some(request.0)
            }
        }
    }

    /// The caller sends no more items.
    pub(super) fn send_items_end(&mut self, now: Time, call: CallId) {
        if let Some(id) = self.calls.local.get(&call).copied() {
            self.pass_items_end(now, id);
        }
    }

    /// Whether a frame on a stream comes from the caller of its call; `None`: it belongs to none.
    fn direction(&self, link_id: LinkId, channel: Channel, call: u64) -> Option<(u64, bool)> {
        let Channel::Stream(stream) = channel else { return None };
        let id = *self.links.get(&link_id)?.stream_relays.get(&stream)?;
        let relay = self.calls.relays.get(&id)?;
        match relay.caller {
            Caller::Link { link, call: number }
                if link == link_id && relay.caller_stream == Some(stream) =>
            {
                (number == call).then_some((id, true))
            }
            Caller::Link { .. } | Caller::Local(_) => {
                (relay.callee == Some(Callee::Link(link_id)) && id == call).then_some((id, false))
            }
        }
    }

    /// An item came over a link.
    pub(super) fn on_item(
        &mut self,
        now: Time,
        link: LinkId,
        channel: Channel,
        call: u64,
        body: Bytes,
    ) {
        if let Some((id, from_caller)) = self.direction(link, channel, call) {
            self.pass_item(now, id, from_caller, body);
        }
    }

    pub(super) fn on_items_end(&mut self, now: Time, link: LinkId, channel: Channel, call: u64) {
        if let Some((id, true)) = self.direction(link, channel, call) {
            self.pass_items_end(now, id);
        }
    }

    fn pass_item(&mut self, now: Time, id: u64, from_caller: bool, body: Bytes) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        if from_caller && relay.stage != Stage::Running {
            relay.early_bytes += body.len() + EARLY_ITEM_OVERHEAD_BYTES;
            relay.early.push(body);
            if relay.early_bytes > STREAM_QUEUE_HIGH {
                self.hold_items(id, true, true);
            }
            return;
        }
        relay.items = true;
        let (end, link, number, stream) = if from_caller {
            match relay.callee {
                Some(Callee::Local(_)) => (Some(StreamEnd::Handler(RequestId(id))), None, 0, None),
                Some(Callee::Link(link)) => (None, Some(link), id, relay.callee_stream),
                None => return,
            }
        } else {
            match relay.caller {
                Caller::Local(call) => (Some(StreamEnd::Caller(call)), None, 0, None),
                Caller::Link { link, call } => (None, Some(link), call, relay.caller_stream),
            }
        };
        if let Some(end) = end {
            return self.events.push_back(Event::StreamItem { end, body });
        }
        let (Some(link), Some(stream)) = (link, stream) else { return };
        let frame = wire::encode(&Message::Item { call: number, body });
        self.push_plain(now, link, Channel::Stream(stream), frame);
        let waiting = self
            .links
            .get(&link)
            .and_then(|link| link.streams.get(&stream))
            .map_or(0, |queue| queue.bytes);
        if waiting > STREAM_QUEUE_HIGH {
            self.hold_items(id, from_caller, true);
        }
    }

    /// Somebody runs the call: the items that came before go there.
    fn pass_early_items(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        relay.early_bytes = 0;
        let (early, has_ended) =
            (std::mem::take(&mut relay.early), std::mem::take(&mut relay.early_end));
        if early.is_empty() && !has_ended {
            return;
        }
        self.hold_items(id, true, false);
        for body in early {
            self.pass_item(now, id, true, body);
        }
        if has_ended {
            self.pass_items_end(now, id);
        }
    }

    fn pass_items_end(&mut self, now: Time, id: u64) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        if relay.stage != Stage::Running {
            relay.early_end = true;
            return;
        }
        match (relay.callee, relay.callee_stream) {
            (Some(Callee::Local(_)), _) => {
                self.events.push_back(Event::StreamItemsEnd { request: RequestId(id) });
            }
            (Some(Callee::Link(link)), Some(stream)) => {
                let frame = wire::encode(&Message::ItemsEnd { call: id });
                self.push_plain(now, link, Channel::Stream(stream), frame);
            }
            (Some(Callee::Link(_)), None) | (None, _) => {}
        }
    }

    /// Whether the items that come on this stream wait because the other side is full.
    pub(super) fn is_held(&self, relay: u64, link: LinkId, stream: StreamId) -> bool {
        let Some(relay) = self.calls.relays.get(&relay) else { return false };
        match relay.caller {
            Caller::Link { link: from, .. }
                if from == link && relay.caller_stream == Some(stream) =>
            {
                relay.caller_held
            }
            _ => relay.callee_held,
        }
    }

    /// Makes the sender of items wait, or lets it go on.
    fn hold_items(&mut self, id: u64, from_caller: bool, hold: bool) {
        let Some(relay) = self.calls.relays.get_mut(&id) else { return };
        let held = if from_caller { &mut relay.caller_held } else { &mut relay.callee_held };
        if std::mem::replace(held, hold) == hold {
            return;
        }
        let (end, link, stream) = if from_caller {
            match relay.caller {
                Caller::Local(call) => (Some(StreamEnd::Caller(call)), None, None),
                Caller::Link { link, .. } => (None, Some(link), relay.caller_stream),
            }
        } else {
            match relay.callee {
                Some(Callee::Local(_)) => (Some(StreamEnd::Handler(RequestId(id))), None, None),
                Some(Callee::Link(link)) => (None, Some(link), relay.callee_stream),
                None => return,
            }
        };
        let is_slowed =
            link.and_then(|link| self.links.get(&link)).is_some_and(|link| link.is_slowed);
        if let Some(end) = end {
            self.events.push_back(Event::StreamRoom { end, full: hold });
        } else if let (Some(link), Some(stream)) = (link, stream) {
            let channel = Channel::Stream(stream);
            if hold {
                self.actions.push_back(Action::Pause { link, channel });
            } else if !is_slowed {
                self.actions.push_back(Action::Resume { link, channel });
            }
        }
    }

    pub(super) fn on_stream_drained(&mut self, _now: Time, link_id: LinkId, stream: StreamId) {
        let Some(link) = self.links.get(&link_id) else { return };
        if link.streams.get(&stream).is_some_and(|queue| queue.bytes > STREAM_QUEUE_LOW) {
            return;
        }
        let Some(id) = link.stream_relays.get(&stream).copied() else { return };
        let Some(relay) = self.calls.relays.get(&id) else { return };
        // what drains towards the callee came from the caller
        let from_caller =
            relay.callee_stream == Some(stream) && relay.callee == Some(Callee::Link(link_id));
        self.hold_items(id, from_caller, false);
    }

    /// The local queue of a streaming call is full or has room again.
    pub(super) fn on_stream_handle(&mut self, _now: Time, end: StreamEnd, full: bool) {
        if let Some(id) = self.relay_of(end) {
            self.hold_items(id, matches!(end, StreamEnd::Handler(_)), full);
        }
    }

    /// The stream of a streaming call is over; if the call is not, it cannot go on.
    pub(super) fn on_stream_closed(&mut self, now: Time, link_id: LinkId, stream: StreamId) {
        let Some(link) = self.links.get_mut(&link_id) else { return };
        link.streams.remove(&stream);
        let Some(id) = link.stream_relays.remove(&stream) else { return };
        let Some(relay) = self.calls.relays.get(&id) else { return };
        if relay.callee == Some(Callee::Link(link_id)) && relay.callee_stream == Some(stream) {
            self.lose_callee(now, id, false, "the provider broke the stream off");
        } else {
            self.drop_call(now, id);
        }
    }
}

fn busy(message: &str) -> CallFailure {
    CallFailure { retry_after: BUSY_RETRY_AFTER, ..Node::failure(ErrorClass::Busy, message, true) }
}

/// Registrations of a link: the peer's number in a realm -> what it serves.
pub(super) type LinkRegistrations = BTreeMap<(RealmTag, u32), ProcedureName>;
