//! Calls over the overlay: who provides a procedure is a record at the procedure's key; the call
//! itself is routed to the provider's node key, and its answer comes back the same way.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::api::Event;
use super::core::{Arrival, Core, Outcome, Tag};
use super::message::{Body, Contact, Reply, RoutedCall};
use super::record::{Record, kind, provider_value, read_provider};
use super::records::Records;
use crate::id::{EndpointId, Key, KeyKind, QueryId};
use crate::limits::ROUTED_BYTES_MAX;
use crate::pubsub::ProcedureName;
use crate::time::Time;
use crate::wire::message::{CallFailure, ErrorClass, ProviderPolicy};

/// How long a provider's record lives; it is announced again after a quarter.
const PROVIDER_LIFETIME: Duration = Duration::from_secs(300);
/// Calls of this node that have not ended.
const CALLS_MAX: usize = 4096;
/// Requests that this node works on or has queued.
const REQUESTS_MAX: usize = 1024;
/// Answered requests that are remembered, so that a call that comes again does not run again.
const ANSWERED_MAX: usize = 1024;
/// Bytes of the answers that are remembered; beyond it, only that they were given.
const ANSWERED_BYTES_MAX: usize = 1024 * 1024;
/// Ways on which one call has come, all of which get the answer.
const WAYS_MAX: usize = 8;
/// Providers that one call tries.
const TRIES_MAX: usize = 4;
/// A provider that failed is avoided for this long.
const AVOIDED_FOR: Duration = Duration::from_secs(30);
/// Failed providers that are remembered.
const AVOIDED_MAX: usize = 256;
/// What a caller shall wait when a provider is full.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// What the application asked for.
#[derive(Debug)]
pub(super) struct NewCall {
    pub(super) query: QueryId,
    pub(super) procedure: ProcedureName,
    pub(super) body: Bytes,
    pub(super) deadline: Duration,
    pub(super) policy: ProviderPolicy,
    pub(super) idempotent: bool,
}

/// A call of this node.
#[derive(Debug)]
struct Open {
    new: NewCall,
    until: Time,
    /// Drawn once: whoever gets the call twice runs it once.
    id: u64,
    providers: Vec<Contact>,
    tried: Vec<EndpointId>,
    hops: u8,
}

/// Where the answer to a request goes.
#[derive(Debug)]
enum Way {
    Arrived(Box<Arrival>),
    Own(u64),
}

/// A request that the application works on.
#[derive(Debug)]
struct Running {
    caller: EndpointId,
    call: u64,
    ways: Vec<Way>,
    until: Time,
}

/// The calls part of a node.
#[derive(Debug, Default)]
pub(super) struct Calls {
    provided: BTreeMap<ProcedureName, ()>,
    open: BTreeMap<u64, Open>,
    next: u64,
    running: BTreeMap<u64, Running>,
    by_call: BTreeMap<(EndpointId, u64), u64>,
    answered: BTreeMap<(EndpointId, u64), Option<Result<Bytes, CallFailure>>>,
    answered_order: VecDeque<(EndpointId, u64, usize)>,
    answered_bytes: usize,
    avoided: BTreeMap<EndpointId, Time>,
    turn: usize,
}

fn failure(class: ErrorClass, message: &str, retry_safe: bool) -> CallFailure {
    let retry_after = if class == ErrorClass::Busy { RETRY_AFTER } else { Duration::ZERO };
    CallFailure { class, code: 0, message: message.to_owned(), retry_after, retry_safe }
}

fn key_of(core: &Core, procedure: &ProcedureName) -> Key {
    Key::derive(&core.realm, KeyKind::Procedure, procedure.as_str().as_bytes())
}

impl Calls {
    /// Calls under way, requests being worked on, answers remembered.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.open.len(), self.running.len(), self.answered.len())
    }

    /// Offers a procedure.
    pub(super) fn provide(
        &mut self,
        core: &mut Core,
        records: &mut Records,
        now: Time,
        procedure: ProcedureName,
    ) {
        let value = provider_value(core.me().at, procedure.as_str());
        let key = key_of(core, &procedure);
        records.announce(core, now, key, kind::PROVIDER, value, PROVIDER_LIFETIME);
        self.provided.insert(procedure, ());
    }

    /// Offers it no more.
    pub(super) fn withdraw(
        &mut self,
        core: &mut Core,
        records: &mut Records,
        now: Time,
        procedure: &ProcedureName,
    ) {
        if self.provided.remove(procedure).is_some() {
            records.retract(core, now, key_of(core, procedure), kind::PROVIDER);
        }
    }

    /// Begins a call: by a provider here, else by one that the store knows.
    pub(super) fn call(&mut self, core: &mut Core, records: &mut Records, now: Time, new: NewCall) {
        if self.open.len() >= CALLS_MAX || new.body.len() > ROUTED_BYTES_MAX {
            core.stats.calls_refused_busy += 1;
            let result = Err(failure(ErrorClass::Busy, "too many or too large calls", true));
            let (query, provider, hops) = (new.query, None, 0);
            return core.event(Event::CallDone { query, provider, hops, result });
        }
        self.next += 1;
        let number = self.next;
        let id = core.draw();
        let (until, key) = (now + new.deadline, key_of(core, &new.procedure));
        let here = self.provided.contains_key(&new.procedure);
        let open = Open { new, until, id, providers: Vec::new(), tried: Vec::new(), hops: 0 };
        let routed = self.routed(core, now, &open);
        self.open.insert(number, open);
        if here {
            self.start(core, now, routed, Way::Own(number));
        } else {
            records.fetch_for_call(core, now, number, key);
        }
    }

    fn routed(&self, core: &Core, now: Time, open: &Open) -> RoutedCall {
        RoutedCall {
            call: open.id,
            caller: core.id,
            procedure: Bytes::copy_from_slice(open.new.procedure.as_str().as_bytes()),
            deadline: open.until.saturating_since(now),
            body: open.new.body.clone(),
        }
    }

    /// The providers of a call's procedure are known, or there are none.
    pub(super) fn fetched(
        &mut self,
        core: &mut Core,
        now: Time,
        call: u64,
        records: Option<Vec<Record>>,
    ) {
        let Some(open) = self.open.get_mut(&call) else { return };
        let Some(records) = records else {
            let unreachable = "nobody answered who would know the providers";
            return self.end(
                core,
                call,
                None,
                Err(failure(ErrorClass::Unreachable, unreachable, true)),
            );
        };
        for record in records {
            let Some((at, procedure)) = read_provider(&record.value) else { continue };
            if procedure == open.new.procedure.as_str().as_bytes() {
                open.providers.push(Contact::new(&core.realm, record.author, at));
            }
        }
        self.try_next(core, now, call, None);
    }

    /// Sends a call to the next provider, or ends it with `last`.
    fn try_next(&mut self, core: &mut Core, now: Time, call: u64, last: Option<CallFailure>) {
        let Some(provider) = self.choose(core, now, call) else {
            let none = || failure(ErrorClass::NoProvider, "nobody provides the procedure", true);
            return self.end(core, call, None, Err(last.unwrap_or_else(none)));
        };
        let Some(open) = self.open.get_mut(&call) else { return };
        open.tried.push(provider.id);
        let until = open.until;
        let Some(open) = self.open.get(&call) else { return };
        let body = Body::Call(self.routed(core, now, open));
        core.request_by(now, provider.key, body, 1, Tag::Call(call), until);
    }

    fn choose(&mut self, core: &Core, now: Time, call: u64) -> Option<Contact> {
        let open = self.open.get(&call)?;
        if open.tried.len() >= TRIES_MAX {
            return None;
        }
        let is_avoided = |id: &EndpointId| self.avoided.get(id).is_some_and(|until| *until > now);
        let left: Vec<&Contact> =
            open.providers.iter().filter(|contact| !open.tried.contains(&contact.id)).collect();
        // those that failed lately only when there is nobody else
        let good: Vec<&Contact> =
            left.iter().copied().filter(|contact| !is_avoided(&contact.id)).collect();
        let among = if good.is_empty() { left } else { good };
        let here = core.me().at;
        let rtt = |contact: &Contact| match core.link_to(&contact.id) {
            Some(link) => core.rtt(link),
            None => here.rtt(&contact.at),
        };
        self.turn = self.turn.wrapping_add(1);
        let count = among.len().max(1);
        match open.new.policy {
            ProviderPolicy::Nearest => {
                among.into_iter().min_by_key(|contact| rtt(contact)).copied()
            }
            ProviderPolicy::RoundRobin => among.get(self.turn % count).map(|contact| **contact),
            ProviderPolicy::Random => among.get(open.id as usize % count).map(|contact| **contact),
            ProviderPolicy::First => among.first().map(|contact| **contact),
        }
    }

    /// A routed call has come to its end here.
    pub(super) fn arrived(&mut self, core: &mut Core, now: Time, arrival: Arrival) {
        let Body::Call(routed) = &arrival.body else { return };
        if arrival.target != core.key {
            let gone = failure(ErrorClass::Unreachable, "the provider is not there", true);
            return core.answer(now, &arrival, Reply::Failed(gone));
        }
        let mut routed = routed.clone();
        let call = (routed.caller, routed.call);
        if let Some(answered) = self.answered.get(&call) {
            core.stats.calls_duplicate += 1;
            let reply = match answered {
                Some(Ok(body)) => Reply::Result(body.clone()),
                Some(Err(failure)) => Reply::Failed(failure.clone()),
                None => {
                    let forgotten = "the call ran; its answer is no longer here";
                    Reply::Failed(failure(ErrorClass::Unreachable, forgotten, false))
                }
            };
            return core.answer(now, &arrival, reply);
        }
        if let Some(running) = self.by_call.get(&call).and_then(|id| self.running.get_mut(id)) {
            core.stats.calls_duplicate += 1;
            if running.ways.len() < WAYS_MAX {
                running.ways.push(Way::Arrived(Box::new(arrival)));
            }
            return;
        }
        routed.body = std::mem::take(&mut routed.body);
        self.start(core, now, routed, Way::Arrived(Box::new(arrival)));
    }

    fn start(&mut self, core: &mut Core, now: Time, call: RoutedCall, way: Way) {
        let name = std::str::from_utf8(&call.procedure).ok();
        let procedure = name.and_then(|name| ProcedureName::parse(name).ok());
        let procedure = procedure.filter(|name| self.provided.contains_key(name));
        let Some(procedure) = procedure else {
            let not_here = failure(ErrorClass::NoProvider, "not provided here any more", true);
            return self.give(core, now, way, &Err(not_here));
        };
        if self.running.len() >= REQUESTS_MAX {
            core.stats.calls_refused_busy += 1;
            let busy = failure(ErrorClass::Busy, "the provider has no room", true);
            return self.give(core, now, way, &Err(busy));
        }
        self.next += 1;
        let request = self.next;
        self.by_call.insert((call.caller, call.call), request);
        let until = now + call.deadline;
        let running = Running { caller: call.caller, call: call.call, ways: vec![way], until };
        self.running.insert(request, running);
        core.event(Event::Request {
            request,
            caller: call.caller,
            procedure,
            body: call.body,
            deadline: call.deadline,
        });
    }

    /// The application answers a request.
    pub(super) fn respond(
        &mut self,
        core: &mut Core,
        now: Time,
        request: u64,
        result: Result<Bytes, CallFailure>,
    ) {
        let Some(running) = self.running.remove(&request) else { return };
        let call = (running.caller, running.call);
        self.by_call.remove(&call);
        let result = match result {
            Ok(body) if body.len() > ROUTED_BYTES_MAX => {
                Err(failure(ErrorClass::Internal, "the result is too long", false))
            }
            result => result,
        };
        for way in running.ways {
            self.give(core, now, way, &result);
        }
        self.remember(call, result);
    }

    fn remember(&mut self, call: (EndpointId, u64), result: Result<Bytes, CallFailure>) {
        let bytes = result.as_ref().map_or(256, Bytes::len);
        let fits = self.answered_bytes + bytes <= ANSWERED_BYTES_MAX;
        let (kept, cost) = if fits { (Some(result), bytes) } else { (None, 0) };
        self.answered_bytes += cost;
        self.answered.insert(call, kept);
        self.answered_order.push_back((call.0, call.1, cost));
        if self.answered_order.len() > ANSWERED_MAX
            && let Some((caller, id, cost)) = self.answered_order.pop_front()
        {
            self.answered.remove(&(caller, id));
            self.answered_bytes -= cost;
        }
    }

    fn give(&mut self, core: &mut Core, now: Time, way: Way, result: &Result<Bytes, CallFailure>) {
        match way {
            Way::Own(call) => self.end(core, call, Some(core.id), result.clone()),
            Way::Arrived(arrival) => {
                let reply = match result {
                    Ok(body) => Reply::Result(body.clone()),
                    Err(failure) => Reply::Failed(failure.clone()),
                };
                core.answer(now, &arrival, reply);
            }
        }
    }

    /// A way to a provider has ended.
    pub(super) fn replied(
        &mut self,
        core: &mut Core,
        records: &mut Records,
        now: Time,
        tag: Tag,
        outcome: Outcome,
    ) {
        let Tag::Call(call) = tag else { return };
        let Some(open) = self.open.get_mut(&call) else { return };
        open.hops = outcome.hops;
        let provider = open.tried.last().copied();
        let is_idempotent = open.new.idempotent;
        let key = key_of(core, &open.new.procedure);
        let last = match outcome.reply {
            Some(Reply::Result(body)) => return self.end(core, call, provider, Ok(body)),
            Some(Reply::Failed(failure)) => failure,
            _ => failure(
                ErrorClass::Unreachable,
                "the provider did not answer",
                !outcome.may_have_run,
            ),
        };
        let is_gone = matches!(last.class, ErrorClass::Unreachable | ErrorClass::NoProvider);
        if is_gone {
            records.forget_cached(key, kind::PROVIDER);
            self.avoid(now, provider);
        }
        let may_go_on = last.retry_safe || (is_idempotent && is_gone);
        match may_go_on && now < self.open.get(&call).map_or(now, |open| open.until) {
            true => self.try_next(core, now, call, Some(last)),
            false => self.end(core, call, provider, Err(last)),
        }
    }

    fn avoid(&mut self, now: Time, provider: Option<EndpointId>) {
        if self.avoided.len() >= AVOIDED_MAX {
            self.avoided.retain(|_, until| *until > now);
        }
        if let Some(provider) = provider
            && self.avoided.len() < AVOIDED_MAX
        {
            self.avoided.insert(provider, now + AVOIDED_FOR);
        }
    }

    fn end(
        &mut self,
        core: &mut Core,
        call: u64,
        provider: Option<EndpointId>,
        result: Result<Bytes, CallFailure>,
    ) {
        if let Some(open) = self.open.remove(&call) {
            let (query, hops) = (open.new.query, open.hops);
            core.event(Event::CallDone { query, provider, hops, result });
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let open = self.open.values().map(|open| open.until);
        open.chain(self.running.values().map(|running| running.until)).min()
    }

    pub(super) fn tick(&mut self, core: &mut Core, now: Time) {
        let due = |(call, open): (&u64, &Open)| (open.until <= now).then_some(*call);
        let late: Vec<u64> = self.open.iter().filter_map(due).collect();
        for call in late {
            let passed = failure(ErrorClass::Deadline, "the deadline has passed", false);
            self.end(core, call, None, Err(passed));
        }
        // whoever asked has given up; a late answer is not wanted
        let over: Vec<u64> = self
            .running
            .iter()
            .filter(|(_, running)| running.until <= now)
            .map(|(request, _)| *request)
            .collect();
        for request in over {
            if let Some(running) = self.running.remove(&request) {
                let call = (running.caller, running.call);
                self.by_call.remove(&call);
                self.remember(call, Err(failure(ErrorClass::Deadline, "too late", false)));
            }
        }
    }
}
