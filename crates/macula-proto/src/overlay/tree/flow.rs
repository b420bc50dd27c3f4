//! The flow of a steady publisher moves from the tree of its topic, the *shared* tree, to one that
//! is rooted at the publisher, its *source tree*.
//!
//! Each member of the shared tree decides for itself, by the rate that it sees, and moves make
//! before break: it joins the source tree, compares what comes there with what its parent in the
//! shared tree sends, and only when the source tree was there in time for a while it has its parent
//! leave the bodies out ([`Load::Head`]). The heads keep coming the old way. So places, gaps, rings
//! and all that is promised of QoS 1 are what they are without source trees: a batch has its place
//! by its head and its body from either side, and a body that does not come is asked for (`Want`).

use std::collections::{BTreeMap, VecDeque};

use super::super::message::{Cursor, Load, TreeAct, TreeId};
use super::limits::*;
use super::member::{Context, Tree};
use super::ring::cost;
use crate::id::{EndpointId, LinkId};
use crate::time::Time;
use crate::wire::message::Publish;

/// What the trees of a node ask of each other.
#[derive(Debug)]
pub(super) enum Order {
    /// The shared tree wants a source tree, or wants it no more.
    Tap(TreeId, bool),
    /// The shared tree has heads for which no body has come.
    Doubt(TreeId),
    /// The application publishes.
    Give(TreeId, Publish),
    /// A batch has come down the source tree.
    Came(TreeId, Publish),
    /// The source tree has no parent for the moment.
    Lost(TreeId),
    /// The source tree could not be joined.
    Failed(TreeId),
    /// The publisher has become the root of its topic.
    End(TreeId),
}

/// Flows through the shared tree, at one member.
#[derive(Debug, Default)]
pub(super) struct Flows {
    of: BTreeMap<EndpointId, Flow>,
    /// By offset: heads whose bodies are still to come.
    heads: BTreeMap<u64, Head>,
    /// What copies take that wait for their heads.
    copy_bytes: usize,
}

/// The flow of one publisher.
#[derive(Debug)]
struct Flow {
    /// Messages in the window that ends then.
    messages: u32,
    window: Time,
    /// Windows in a row that speak for a move.
    streak: u8,
    /// Not to be moved before; it is longer with each failure.
    rest: Time,
    failures: u8,
    moved: Option<Box<Moved>>,
}

/// A flow for which this node is in the source tree.
#[derive(Debug, Default)]
struct Moved {
    /// By epoch and first sequence: what the source tree brought before its head came, and when.
    copies: BTreeMap<(u64, u64), (Time, Publish)>,
    /// What the shared tree brought whole and before the source tree.
    late: VecDeque<((u64, u64), Time)>,
    /// Batches in a row that the source tree brought in time, and how many it must bring.
    good: u32,
    needed: u32,
    /// When the parent was last told to send heads only.
    pruned: Option<Time>,
}

#[derive(Debug)]
struct Head {
    stream: u64,
    publish: Publish,
    /// Until when the body may come by the source tree; none: the parent is asked for it.
    due: Option<Time>,
    /// Times that the parent was.
    asked: u8,
}

const fn name(publish: &Publish) -> (u64, u64) {
    (publish.epoch, publish.first)
}

impl TreeId {
    fn source_of(&self, publisher: EndpointId) -> Self {
        Self { source: Some(publisher), ..self.clone() }
    }
}

impl Flows {
    pub(super) const fn bytes(&self) -> usize {
        self.copy_bytes
    }

    fn moved(&mut self, publisher: &EndpointId) -> Option<&mut Moved> {
        self.of.get_mut(publisher)?.moved.as_deref_mut()
    }

    /// The publishers whose source trees this node wants.
    pub(super) fn moved_of(&self) -> impl Iterator<Item = EndpointId> {
        self.of.iter().filter(|(_, flow)| flow.moved.is_some()).map(|(publisher, _)| *publisher)
    }

    /// Whether a head has come for this place, and its body may still.
    pub(super) fn is_awaited(&self, at: Cursor) -> bool {
        let is_it = |head: &Head| head.stream == at.stream && head.due.is_some();
        self.heads.get(&at.offset).is_some_and(is_it)
    }

    /// The parent is asked for what is missing up to here.
    pub(super) fn asked(&mut self, until: u64) {
        for head in self.heads.range_mut(..=until).map(|(_, head)| head) {
            head.asked = head.asked.saturating_add(u8::from(head.due.is_none()));
        }
    }

    /// Up to where a parent that says how far it is has said what will not come: not as far as a body
    /// for which it was not asked. Asked twice: the first time its word may have been under way.
    pub(super) fn settled(&mut self, at: Cursor, is_new: bool) -> u64 {
        let is_open = |head: &Head| head.stream == at.stream && head.asked < 2 && !is_new;
        let open = self.heads.iter().find(|(_, head)| is_open(head)).map(|(offset, _)| *offset);
        let until = open.map_or(at.offset, |open| at.offset.min(open.saturating_sub(1)));
        while let Some(head) = self.heads.first_entry() {
            if *head.key() > until {
                break;
            }
            head.remove();
        }
        until
    }

    /// A place has been filled.
    pub(super) fn filled(&mut self, offset: u64) {
        self.heads.remove(&offset);
    }

    pub(super) fn due(&self) -> Option<Time> {
        let heads = self.heads.values().filter_map(|head| head.due);
        let flows = self.of.values().filter_map(|flow| {
            let moved = flow.moved.as_ref()?;
            let prune = moved.pruned.map(|at| at + PRUNE_AGAIN);
            Some(prune.map_or(flow.window, |prune| prune.min(flow.window)))
        });
        heads.chain(flows).min()
    }

    /// Takes a copy out.
    fn take_copy(&mut self, head: &Publish) -> Option<Publish> {
        let moved = self.of.get_mut(&head.publisher)?.moved.as_deref_mut()?;
        let (came, publish) = moved.copies.remove(&name(head))?;
        if publish.count == head.count && publish.qos1 == head.qos1 {
            self.copy_bytes -= cost(&publish);
            return Some(publish);
        }
        moved.copies.insert(name(head), (came, publish));
        None
    }

    /// Drops copies that came before `before`, or the oldest of a publisher until `room` is enough.
    fn drop_copies(&mut self, before: Time, room: usize) -> u64 {
        let mut dropped = 0;
        for moved in self.of.values_mut().filter_map(|flow| flow.moved.as_deref_mut()) {
            while let Some(oldest) = moved.copies.first_entry() {
                let is_old = oldest.get().0 < before;
                if !is_old && self.copy_bytes <= room {
                    break;
                }
                dropped += u64::from(!is_old);
                self.copy_bytes -= cost(&oldest.remove().1);
            }
        }
        dropped
    }

    fn end(&mut self, publisher: &EndpointId, rest: Time) -> Option<Box<Moved>> {
        let flow = self.of.get_mut(publisher)?;
        let moved = flow.moved.take()?;
        flow.rest = rest;
        flow.streak = 0;
        let bytes: usize = moved.copies.values().map(|(_, publish)| cost(publish)).sum();
        self.copy_bytes -= bytes;
        Some(moved)
    }
}

impl Moved {
    fn new() -> Self {
        Self { needed: PRUNE_AFTER, ..Self::default() }
    }

    /// Forgets what the source tree should have brought by now, and begins to count again.
    fn expire_late(&mut self, now: Time) {
        while self.late.front().is_some_and(|(_, came)| now > *came + COPY_LATE) {
            self.late.pop_front();
            self.good = 0;
        }
    }
}

impl Tree {
    // --- the shared tree

    /// A batch, or its head, has come from the parent.
    pub(super) fn count_flow(&mut self, cx: &mut Context<'_>, publish: &Publish) {
        let (now, publisher) = (cx.now, publish.publisher);
        if cx.id.is_index || cx.id.source.is_some() || self.root.is_some() {
            return;
        }
        if !self.flows.of.contains_key(&publisher) {
            if self.flows.of.len() >= FLOWS_MAX {
                let others = self.flows.of.iter().filter(|(_, flow)| flow.moved.is_none());
                let idle = others.min_by_key(|(_, flow)| flow.window).map(|(of, _)| *of);
                let Some(idle) = idle else { return };
                self.flows.of.remove(&idle);
            }
            let window = now + cx.core.jittered(FLOW_WINDOW);
            let flow = Flow { messages: 0, window, streak: 0, rest: now, failures: 0, moved: None };
            self.flows.of.insert(publisher, flow);
        }
        let Some(flow) = self.flows.of.get_mut(&publisher) else { return };
        if flow.moved.is_none() && now >= flow.window {
            let is_steady = flow.messages >= FLOW_START && now < flow.window + FLOW_WINDOW;
            flow.streak = if is_steady { flow.streak + 1 } else { 0 };
            flow.messages = 0;
            flow.window = now + cx.core.jittered(FLOW_WINDOW);
        }
        flow.messages = flow.messages.saturating_add(publish.count);
        if flow.moved.is_none() && flow.streak >= FLOW_WINDOWS && now >= flow.rest {
            self.move_flow(cx, publisher);
        }
    }

    fn move_flow(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        let is_full = self.flows.moved_of().count() >= cx.core.config.trees.sources_per_topic_max;
        cx.core.stats.tree_sources_refused += u64::from(is_full);
        let Some(flow) = self.flows.of.get_mut(&publisher) else { return };
        flow.streak = 0;
        if is_full {
            flow.rest = cx.now + FLOW_REST;
            return;
        }
        flow.moved = Some(Box::new(Moved::new()));
        cx.core.stats.tree_flows_moved += 1;
        cx.node.orders.push(Order::Tap(cx.id.source_of(publisher), true));
    }

    /// The flow goes by the shared tree again.
    fn move_back(&mut self, cx: &mut Context<'_>, publisher: EndpointId, rest: Time) {
        let Some(moved) = self.flows.end(&publisher, rest) else { return };
        cx.core.stats.tree_flows_moved_back += 1;
        if moved.pruned.is_some() {
            self.send_graft(cx, publisher);
        }
        self.hurry(cx.now, &publisher);
        cx.node.orders.push(Order::Tap(cx.id.source_of(publisher), false));
    }

    /// Nothing flows to this node any more, or it is the root.
    pub(super) fn end_flows(&mut self, cx: &mut Context<'_>) {
        for publisher in std::mem::take(&mut self.flows).moved_of() {
            cx.core.stats.tree_flows_moved_back += 1;
            cx.node.orders.push(Order::Tap(cx.id.source_of(publisher), false));
        }
    }

    /// The source tree could not be joined.
    pub(super) fn flow_failed(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        cx.core.stats.tree_sources_refused += 1;
        let Some(flow) = self.flows.of.get_mut(&publisher) else { return };
        let rest = FLOW_REST * (1 << flow.failures);
        flow.failures = (flow.failures + 1).min(FLOW_FAILURES_MAX);
        self.move_back(cx, publisher, cx.now + rest);
        self.flow_tick(cx);
    }

    /// The source tree brings nothing for the moment.
    pub(super) fn flow_lost(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        self.graft(cx, publisher);
        self.hurry(cx.now, &publisher);
        self.flow_tick(cx);
    }

    /// No body that is still to come is waited for.
    fn hurry(&mut self, now: Time, publisher: &EndpointId) {
        let of = |head: &&mut Head| head.publish.publisher == *publisher;
        for head in self.flows.heads.values_mut().filter(of) {
            head.due = head.due.and(Some(now));
        }
    }

    /// There is a new parent, which sends whole batches.
    pub(super) fn unpruned(&mut self) {
        for moved in self.flows.of.values_mut().filter_map(|flow| flow.moved.as_deref_mut()) {
            moved.pruned = None;
            moved.good = 0;
            moved.late.clear();
        }
    }

    /// Wants whole batches again.
    fn graft(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        let Some(moved) = self.flows.moved(&publisher) else { return };
        moved.good = 0;
        if moved.pruned.take().is_some() {
            moved.needed = (moved.needed * 2).min(PRUNE_AFTER_MAX);
            self.send_graft(cx, publisher);
        }
    }

    fn send_graft(&mut self, cx: &mut Context<'_>, source: EndpointId) {
        if let Some(link) = self.joined_link() {
            cx.core.stats.tree_grafts += 1;
            cx.send(link, TreeAct::Graft { source });
        }
    }

    fn send_prune(&mut self, cx: &mut Context<'_>, source: EndpointId) {
        if let Some(link) = self.joined_link()
            && let Some(moved) = self.flows.moved(&source)
        {
            moved.pruned = Some(cx.now);
            cx.core.stats.tree_prunes += 1;
            cx.send(link, TreeAct::Prune { source });
        }
    }

    /// The parent has sent a batch whole.
    pub(super) fn whole_came(&mut self, cx: &mut Context<'_>, publish: &Publish) {
        let copy = self.flows.take_copy(publish);
        let Some(moved) = self.flows.moved(&publish.publisher) else { return };
        moved.expire_late(cx.now);
        if copy.is_some() {
            self.copy_was_good(cx, publish.publisher);
        } else {
            if moved.late.len() >= LATE_MAX {
                moved.late.pop_front();
                moved.good = 0;
            }
            moved.late.push_back((name(publish), cx.now));
        }
    }

    fn copy_was_good(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        let Some(moved) = self.flows.moved(&publisher) else { return };
        moved.good = moved.good.saturating_add(1);
        if moved.pruned.is_none() && moved.good >= moved.needed {
            self.send_prune(cx, publisher);
        }
    }

    /// A batch has come down the source tree.
    pub(super) fn copy_came(&mut self, cx: &mut Context<'_>, publish: Publish) {
        let now = cx.now;
        let stream = self.place.stream;
        let awaited = self.flows.heads.iter().find(|(_, head)| {
            head.stream == stream
                && head.publish.publisher == publish.publisher
                && name(&head.publish) == name(&publish)
                && head.publish.count == publish.count
                && head.publish.qos1 == publish.qos1
        });
        if let Some(at) = awaited.map(|(offset, _)| Cursor { stream, offset: *offset })
            && let Some(head) = self.flows.heads.remove(&at.offset)
        {
            return self.filled(cx, at, Publish { body: publish.body, ..head.publish }, false);
        }
        let Some(moved) = self.flows.moved(&publish.publisher) else { return };
        moved.expire_late(now);
        if let Some(place) = moved.late.iter().position(|(of, _)| *of == name(&publish)) {
            moved.late.remove(place);
            return self.copy_was_good(cx, publish.publisher);
        }
        let publisher = publish.publisher;
        if moved.copies.contains_key(&name(&publish)) {
            // never twice down one tree: somebody makes them up
            cx.core.stats.messages_unexpected += 1;
            return self.graft(cx, publisher);
        }
        moved.copies.insert(name(&publish), (now, publish.clone()));
        let room = self.ring_room(cx) / 4;
        self.flows.copy_bytes += cost(&publish);
        cx.core.stats.tree_copies_dropped += self.flows.drop_copies(Time::START, room);
        self.deliver_early(cx, publish);
    }

    /// What came down the source tree and has no place yet.
    pub(super) fn copies(&self) -> Vec<Publish> {
        let moved = self.flows.of.values().filter_map(|flow| flow.moved.as_ref());
        moved.flat_map(|moved| moved.copies.values()).map(|(_, publish)| publish.clone()).collect()
    }

    /// The parent has sent the head of a batch.
    pub(super) fn head_came(
        &mut self,
        cx: &mut Context<'_>,
        at: Cursor,
        head: Publish,
        replay: bool,
    ) {
        let kept = self.ring.get(&head.publisher, head.epoch, head.first);
        let kept = kept.filter(|kept| kept.count == head.count).cloned();
        if let Some(publish) = self.flows.take_copy(&head).or(kept) {
            return self.filled(cx, at, Publish { body: publish.body, ..head }, replay);
        }
        let publisher = head.publisher;
        let is_pruned = self.flows.moved(&publisher).is_some_and(|moved| moved.pruned.is_some());
        if self.flows.heads.len() >= HEADS_MAX {
            self.flows.heads.pop_first();
            cx.core.stats.tree_heads_late += 1;
        }
        let wait = if is_pruned { HEAD_WAIT } else { std::time::Duration::ZERO };
        let head = Head { stream: at.stream, publish: head, due: Some(cx.now + wait), asked: 0 };
        self.flows.heads.insert(at.offset, head);
        if !is_pruned {
            // the parent remembers what this node has forgotten
            self.send_graft(cx, publisher);
        }
        self.flow_tick(cx);
    }

    pub(super) fn flow_tick(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        let mut failed = Vec::new();
        let heads = &mut self.flows.heads;
        let stream = self.place.stream;
        heads.retain(|_, head| head.stream == stream);
        for (offset, head) in heads {
            if head.due.is_some_and(|due| due <= now) {
                head.due = None;
                self.place.hear(*offset);
                failed.push(head.publish.publisher);
            }
        }
        cx.core.stats.tree_heads_late += failed.len() as u64;
        failed.sort_unstable();
        failed.dedup();
        for publisher in &failed {
            let is_pruned = self.flows.moved(publisher).is_some_and(|moved| moved.pruned.is_some());
            if is_pruned {
                self.graft(cx, *publisher);
                cx.node.orders.push(Order::Doubt(cx.id.source_of(*publisher)));
            }
        }
        self.check_gap(cx);
        let over: Vec<EndpointId> = self.flows.moved_of().collect();
        for publisher in over {
            self.moved_tick(cx, publisher);
        }
    }

    fn moved_tick(&mut self, cx: &mut Context<'_>, publisher: EndpointId) {
        let now = cx.now;
        let Some(flow) = self.flows.of.get_mut(&publisher) else { return };
        let Some(moved) = flow.moved.as_deref_mut() else { return };
        moved.expire_late(now);
        if moved.pruned.is_some_and(|at| now >= at + PRUNE_AGAIN) {
            // without a parent nobody is told, and the next one sends whole batches
            moved.pruned = None;
            self.send_prune(cx, publisher);
        }
        let Some(flow) = self.flows.of.get_mut(&publisher) else { return };
        if now < flow.window {
            return;
        }
        flow.streak = if flow.messages < FLOW_STOP { flow.streak + 1 } else { 0 };
        flow.messages = 0;
        flow.window = now + cx.core.jittered(FLOW_WINDOW);
        if flow.streak >= FLOW_WINDOWS {
            return self.move_back(cx, publisher, now);
        }
        let before = Time::START + now.saturating_since(Time::START).saturating_sub(COPY_KEPT);
        self.flows.drop_copies(before, usize::MAX);
    }

    // --- a parent of the shared tree

    /// A child has a publisher's bodies from elsewhere.
    pub(super) fn pruned(&mut self, cx: &mut Context<'_>, link: LinkId, source: EndpointId) {
        let max = cx.core.config.trees.sources_per_topic_max;
        let Some(child) = self.children.get_mut(&link) else {
            cx.core.stats.messages_unexpected += 1;
            return;
        };
        child.pruned.retain(|(of, until)| *of != source && *until > cx.now);
        if child.pruned.len() < max && cx.id.source.is_none() && !cx.id.is_index {
            child.pruned.push((source, cx.now + PRUNE_FOR));
        }
    }

    pub(super) fn grafted(&mut self, cx: &mut Context<'_>, link: LinkId, source: EndpointId) {
        match self.children.get_mut(&link) {
            Some(child) => child.pruned.retain(|(of, _)| *of != source),
            None => cx.core.stats.messages_unexpected += 1,
        }
    }

    /// Sends a batch to the children, without the body to those that have it from elsewhere.
    pub(super) fn send_batch(
        &mut self,
        cx: &mut Context<'_>,
        at: Cursor,
        publish: &Publish,
        replay: bool,
    ) {
        let whole = TreeAct::Data { at, replay, load: Load::Batch(publish.clone()) };
        let body = bytes::Bytes::new();
        let head = Load::Head(Publish { body, ..publish.clone() });
        let head = TreeAct::Data { at, replay, load: head };
        for (link, child) in self.children.iter().filter(|(_, child)| child.waits.is_none()) {
            let has_it =
                |(of, until): &(EndpointId, Time)| *of == publish.publisher && *until > cx.now;
            let is_pruned = !replay && child.pruned.iter().any(has_it);
            cx.send(*link, if is_pruned { &head } else { &whole }.clone());
        }
        self.sent = cx.now;
    }

    // --- the source tree

    /// This node's member of the shared tree wants it, or wants it no more.
    pub(super) fn tap(&mut self, cx: &mut Context<'_>, is_wanted: bool) {
        self.is_tapped = is_wanted;
        if is_wanted {
            self.idle = None;
            self.want(cx);
        }
    }

    /// The publisher gives a batch out.
    pub(super) fn give(&mut self, cx: &mut Context<'_>, publish: Publish) {
        if !self.is_source {
            return;
        }
        let offset = self.place.at().offset + 1;
        self.source_data(cx, Cursor { stream: self.place.stream, offset }, publish);
    }

    /// Something has come down the source tree.
    pub(super) fn source_data(&mut self, cx: &mut Context<'_>, at: Cursor, publish: Publish) {
        if cx.id.source != Some(publish.publisher) {
            cx.core.stats.messages_unexpected += 1;
            return;
        }
        if at.stream != self.place.stream {
            self.place = super::ring::Place::begin(at.stream, at.offset.saturating_sub(1));
        }
        if !self.place.accept(at.offset) {
            return;
        }
        self.active = cx.now;
        if !self.children.is_empty() {
            self.send_batch(cx, at, &publish, false);
        }
        if self.is_tapped {
            cx.node.orders.push(Order::Came(cx.id.clone(), publish));
        }
    }

    /// The shared tree has waited in vain for what should have come from the parent.
    pub(super) fn doubted(&mut self, cx: &mut Context<'_>) {
        if self.joined_since().is_some_and(|since| cx.now >= since + DOUBT_AFTER) {
            cx.core.stats.tree_parents_silent += 1;
            self.leave_parent(cx, AVOID);
        }
    }

    /// The publisher is not to be reached, or is none: the tree ends here.
    pub(super) fn end_source(&mut self, cx: &mut Context<'_>) {
        let links: Vec<LinkId> = self.children.keys().copied().collect();
        for link in links {
            self.remove_child(cx, link);
            cx.send(link, TreeAct::Part);
        }
        self.forget_parent(cx);
        if std::mem::take(&mut self.is_tapped) {
            cx.node.orders.push(Order::Failed(cx.id.clone()));
        }
    }
}
