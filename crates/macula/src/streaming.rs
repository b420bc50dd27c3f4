//! Streaming calls: items in both directions, then one result.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_core::Stream;
use macula_proto::id::RequestId;
use macula_proto::limits::LANE_MESSAGE_BYTES_MAX;
use macula_proto::node::StreamEnd;
use macula_proto::wire::message::CallFailure;
use tokio::sync::Notify;

use crate::call::PendingCall;
use crate::error::{CallError, StreamError};
use crate::lock;
use crate::shared::Shared;

/// Largest item of a streaming call, and largest argument and result of one, bytes.
pub const ITEM_BYTES_MAX: usize = LANE_MESSAGE_BYTES_MAX;
/// Items on their way out may take so many bytes; one item always fits.
const OUTGOING_BYTES_MAX: usize = 256 * 1024;
/// Above so many bytes waiting to be read, the other side is made to wait.
const INCOMING_BYTES_MAX: usize = 1024 * 1024;
/// What an item costs beside its bytes.
const ITEM_OVERHEAD_BYTES: usize = 64;

/// A streaming call at the caller's end; dropping it cancels the call.
///
/// Server streaming: call [`CallStream::finish`] at once and read. Client streaming: send, finish,
/// await the [`CallStream::result`]. Both: [`CallStream::split`] it.
#[derive(Debug)]
pub struct CallStream {
    sender: Option<ItemSender>,
    receiver: ItemReceiver,
    outcome: PendingCall,
}

impl CallStream {
    pub(crate) fn new(pipe: &Arc<Pipe>, outcome: PendingCall) -> Self {
        let (sender, receiver) = pipe.ends();
        Self { sender: Some(sender), receiver, outcome }
    }

    /// Sends an item, waiting while the provider does not keep up.
    ///
    /// # Errors
    /// [`StreamError::Ended`] after [`CallStream::finish`] and when the call has ended; the
    /// [`CallStream::result`] says why.
    ///
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send(&self, item: impl Into<Bytes>) -> Result<(), StreamError> {
        match &self.sender {
            Some(sender) => sender.send(item).await,
            None => Err(StreamError::Ended),
        }
    }

    /// Tells the provider that no more items come from here.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    /// The provider's next item; `None` when the call has ended, in whichever way.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.receiver.next().await
    }

    /// Sends no more items, drops those that still come, and waits for the result.
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn result(self) -> Result<Bytes, CallError> {
        let Self { sender, receiver, outcome } = self;
        drop((sender, receiver));
        outcome.answer().await
    }

    /// The two directions and the result apart, for use in different tasks. Dropping the result
    /// cancels the call.
    pub fn split(self) -> (Option<ItemSender>, ItemReceiver, CallResult) {
        (self.sender, self.receiver, CallResult { outcome: self.outcome })
    }
}

/// The result that a [`CallStream`] will have; dropping it cancels the call.
#[derive(Debug)]
pub struct CallResult {
    outcome: PendingCall,
}

impl CallResult {
    /// Waits for the end of the call.
    ///
    /// # Errors
    /// See [`CallError`].
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call.
    pub async fn wait(self) -> Result<Bytes, CallError> {
        self.outcome.answer().await
    }
}

/// Sends the items of one direction of a streaming call; dropping it says that no more come.
#[derive(Debug)]
pub struct ItemSender {
    pipe: Arc<Pipe>,
}

impl ItemSender {
    /// Sends an item, waiting while the other side does not keep up.
    ///
    /// # Errors
    /// [`StreamError::TooLarge`] above 64 KiB, [`StreamError::Ended`] when the call has ended.
    ///
    /// # Cancel safety
    /// A future that is dropped before it is ready has sent nothing.
    pub async fn send(&self, item: impl Into<Bytes>) -> Result<(), StreamError> {
        let item = item.into();
        if item.len() > ITEM_BYTES_MAX {
            return Err(StreamError::TooLarge { bytes: item.len(), max: ITEM_BYTES_MAX });
        }
        loop {
            let room = self.pipe.room.notified();
            match self.pipe.push(&item) {
                Pushed::Done => return Ok(()),
                Pushed::Ended => return Err(StreamError::Ended),
                Pushed::Full => room.await,
            }
        }
    }
}

impl Drop for ItemSender {
    fn drop(&mut self) {
        self.pipe.finish_items();
    }
}

/// Receives the items of one direction of a streaming call; once dropped, items are discarded.
#[derive(Debug)]
pub struct ItemReceiver {
    pipe: Arc<Pipe>,
}

impl ItemReceiver {
    /// The next item; `None` when the other side sends no more or the call has ended.
    ///
    /// # Cancel safety
    /// Dropping the future loses no item.
    pub async fn next(&mut self) -> Option<Bytes> {
        std::future::poll_fn(|context| self.pipe.poll_pop(context)).await
    }
}

impl Stream for ItemReceiver {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.pipe.poll_pop(context)
    }
}

impl Drop for ItemReceiver {
    fn drop(&mut self) {
        self.pipe.discard_incoming();
    }
}

/// One end of a streaming call, between driver and application.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) end: StreamEnd,
    shared: Arc<Shared>,
    /// For the driver's list.
    this: Weak<Self>,
    outgoing: Mutex<Outgoing>,
    /// Rings when there is room for more outgoing items.
    room: Notify,
    incoming: Mutex<Incoming>,
}

#[derive(Debug, Default)]
struct Outgoing {
    items: VecDeque<Bytes>,
    bytes: usize,
    /// No more items come; still to be told.
    items_end: bool,
    /// The handler's answer; told behind all items.
    result: Option<Result<Bytes, CallFailure>>,
    /// The core has no room.
    is_blocked: bool,
    /// On the driver's list.
    is_dirty: bool,
    /// Takes no more items.
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Incoming {
    items: VecDeque<Bytes>,
    bytes: usize,
    /// The core was told that the queue is full.
    is_full: bool,
    has_ended: bool,
    is_discarded: bool,
    reader: Option<Waker>,
}

/// What the driver shall tell the core next.
#[derive(Debug)]
pub(crate) enum Outgo {
    Item(Bytes),
    ItemsEnd,
    Result(Result<Bytes, CallFailure>),
}

enum Pushed {
    Done,
    Full,
    Ended,
}

impl Pipe {
    pub(crate) fn new(end: StreamEnd, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            end,
            shared,
            this: this.clone(),
            outgoing: Mutex::default(),
            room: Notify::new(),
            incoming: Mutex::default(),
        })
    }

    /// The end of a call that has no items; numbers of requests start at zero, so that of the end
    /// is never looked at.
    pub(crate) fn ended(shared: Arc<Shared>) -> Arc<Self> {
        let pipe = Self::new(StreamEnd::Handler(RequestId(u64::MAX)), shared);
        pipe.close();
        pipe
    }

    /// The two handles of the application.
    pub(crate) fn ends(self: &Arc<Self>) -> (ItemSender, ItemReceiver) {
        (ItemSender { pipe: self.clone() }, ItemReceiver { pipe: self.clone() })
    }

    /// Answers the request behind all items sent so far; takes no more items.
    pub(crate) fn answer(&self, result: Result<Bytes, CallFailure>) {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.result.is_some() {
            return;
        }
        outgoing.is_closed = true;
        outgoing.result = Some(result);
        self.ring(outgoing);
    }

    /// The next thing for the core, unless it has no room. Off the driver's list when there is
    /// none; [`Pipe::set_blocked`] puts it back.
    pub(crate) fn take(&self) -> Option<Outgo> {
        let mut outgoing = lock(&self.outgoing);
        if !outgoing.is_blocked
            && let Some(item) = outgoing.items.pop_front()
        {
            outgoing.bytes -= cost(&item);
            drop(outgoing);
            self.room.notify_waiters();
            return Some(Outgo::Item(item));
        }
        if outgoing.items.is_empty() {
            if std::mem::take(&mut outgoing.items_end) && outgoing.result.is_none() {
                return Some(Outgo::ItemsEnd);
            }
            if let Some(result) = outgoing.result.take() {
                return Some(Outgo::Result(result));
            }
        }
        outgoing.is_dirty = false;
        None
    }

    /// Takes in whether the core has room. Returns whether the pipe belongs on the driver's list.
    #[must_use]
    pub(crate) fn set_blocked(&self, is_blocked: bool) -> bool {
        let mut outgoing = lock(&self.outgoing);
        outgoing.is_blocked = is_blocked;
        let has_something = !outgoing.items.is_empty();
        !is_blocked && has_something && !std::mem::replace(&mut outgoing.is_dirty, true)
    }

    /// Adds an item from the other side. Returns whether the core shall hear that it is enough.
    #[must_use]
    pub(crate) fn deliver(&self, item: Bytes) -> bool {
        let mut incoming = lock(&self.incoming);
        if incoming.is_discarded || incoming.has_ended {
            return false;
        }
        incoming.bytes += cost(&item);
        incoming.items.push_back(item);
        let became_full = incoming.bytes > INCOMING_BYTES_MAX && !incoming.is_full;
        incoming.is_full |= became_full;
        incoming.wake();
        became_full
    }

    /// The other side sends no more items.
    pub(crate) fn end_incoming(&self) {
        let mut incoming = lock(&self.incoming);
        incoming.has_ended = true;
        incoming.wake();
    }

    /// The call has ended: nothing goes out any more, and nothing comes in.
    pub(crate) fn close(&self) {
        self.end_incoming();
        let mut outgoing = lock(&self.outgoing);
        outgoing.is_closed = true;
        outgoing.items.clear();
        outgoing.bytes = 0;
        drop(outgoing);
        self.room.notify_waiters();
    }

    fn push(&self, item: &Bytes) -> Pushed {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.is_closed {
            return Pushed::Ended;
        }
        if outgoing.bytes > 0 && outgoing.bytes + cost(item) > OUTGOING_BYTES_MAX {
            return Pushed::Full;
        }
        outgoing.bytes += cost(item);
        outgoing.items.push_back(item.clone());
        self.ring(outgoing);
        Pushed::Done
    }

    fn finish_items(&self) {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.is_closed {
            return;
        }
        outgoing.is_closed = true;
        // The end of a handler's items is its result.
        if matches!(self.end, StreamEnd::Caller(_)) {
            outgoing.items_end = true;
            self.ring(outgoing);
        }
    }

    /// Puts the pipe on the driver's list if it is not there yet.
    fn ring(&self, mut outgoing: std::sync::MutexGuard<'_, Outgoing>) {
        if !std::mem::replace(&mut outgoing.is_dirty, true) {
            drop(outgoing);
            if let Some(this) = self.this.upgrade() {
                // A driver that has ended closes its pipes, so nobody waits for it.
                self.shared.doorbell.leave(|notes| notes.pipes.push(this)).ok();
            }
        }
    }

    fn poll_pop(&self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut incoming = lock(&self.incoming);
        if let Some(item) = incoming.items.pop_front() {
            incoming.bytes -= cost(&item);
            let has_room_again = incoming.is_full && incoming.bytes <= INCOMING_BYTES_MAX / 2;
            incoming.is_full &= !has_room_again;
            drop(incoming);
            if has_room_again {
                self.ring_ready();
            }
            return Poll::Ready(Some(item));
        }
        if incoming.has_ended || self.shared.closed.is_cancelled() {
            return Poll::Ready(None);
        }
        match &mut incoming.reader {
            Some(reader) => reader.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn discard_incoming(&self) {
        let mut incoming = lock(&self.incoming);
        let was_full = incoming.is_full;
        let has_ended = incoming.has_ended;
        *incoming = Incoming { is_discarded: true, has_ended, ..Incoming::default() };
        drop(incoming);
        if was_full {
            self.ring_ready();
        }
    }

    fn ring_ready(&self) {
        let end = self.end;
        self.shared.doorbell.leave(|notes| notes.pipes_ready.push(end)).ok();
    }
}

impl Incoming {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

fn cost(item: &Bytes) -> usize {
    item.len() + ITEM_OVERHEAD_BYTES
}
