//! The tasks that write. Each outgoing stream has one, so that a blocked stream blocks only itself.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use macula_proto::limits;
use macula_proto::wire::frame::{Channel, Class};
use tokio::sync::Mutex;

use super::{Shared, TYPE_BULK, TYPE_CONTROL, TYPE_LANE, TYPE_STREAM, reader};
use crate::event::LinkEventKind;
use crate::queue::{Next, Queue};
use crate::quic::{Lost, SendStream, WriteError};
use crate::stream::Stream;
use crate::sync::lock;

/// Lanes that were opened before they had anything to write.
///
/// The peer allows as many unidirectional streams as there are lanes and concurrent bulk frames. If
/// lanes were opened only when needed, bulk frames could take their places.
#[derive(Debug, Default)]
pub(super) struct LaneStreams {
    state: Mutex<OpenLanes>,
}

#[derive(Debug, Default)]
struct OpenLanes {
    is_open: [bool; limits::LANE_COUNT as usize],
    waiting: [Option<SendStream>; limits::LANE_COUNT as usize],
}

impl LaneStreams {
    /// The stream of a lane, opened if need be.
    async fn take(&self, shared: &Shared, lane: u8) -> Result<SendStream, Lost> {
        let mut state = self.state.lock().await;
        let index = usize::from(lane);
        if let Some(send) = state.waiting.get_mut(index).and_then(Option::take) {
            return Ok(send);
        }
        let send = open_lane(shared, lane).await?;
        if let Some(is_open) = state.is_open.get_mut(index) {
            *is_open = true;
        }
        Ok(send)
    }

    /// Opens every lane that is not open.
    async fn open_all(&self, shared: &Shared) -> Result<(), Lost> {
        let mut state = self.state.lock().await;
        let OpenLanes { is_open, waiting } = &mut *state;
        for (lane, (is_open, waiting)) in (0..).zip(is_open.iter_mut().zip(waiting)) {
            if !*is_open {
                *waiting = Some(open_lane(shared, lane).await?);
                *is_open = true;
            }
        }
        Ok(())
    }
}

async fn open_lane(shared: &Shared, lane: u8) -> Result<SendStream, Lost> {
    let mut send = shared.connection.open_uni(Channel::Lane(lane).class()).await?;
    write_type(&mut send, TYPE_LANE | lane).await?;
    Ok(send)
}

async fn write_type(send: &mut SendStream, kind: u8) -> Result<(), Lost> {
    send.write_all(&mut [Bytes::copy_from_slice(&[kind])]).await.map_err(|_| Lost)
}

/// How a writer's work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// All of it, on purpose.
    Finished,
    /// Not all of it, on purpose.
    Reset,
    /// The peer does not read the stream any more.
    Stopped,
    /// The connection is gone.
    Lost,
}

/// Runs `work`, or drops it when the queue is reset.
async fn unless_reset<T>(queue: &Queue, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| match queue.poll_reset(cx) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(cx).map(Some),
    })
    .await
}

/// Writes what comes into `queue` until that ends or the stream does.
async fn write(shared: &Shared, queue: &Queue, send: &mut SendStream, channel: Channel) -> Written {
    loop {
        match poll_fn(|cx| queue.poll_next(cx)).await {
            Next::Write(mut batch) => {
                match unless_reset(queue, send.write_all(&mut batch.pieces)).await {
                    Some(Ok(())) => {
                        shared.emit(LinkEventKind::Sent { channel, bytes: batch.bytes }).await;
                    }
                    Some(Err(WriteError::Stopped)) => return Written::Stopped,
                    Some(Err(WriteError::Lost)) => return Written::Lost,
                    None => {
                        send.reset();
                        return Written::Reset;
                    }
                }
            }
            Next::Finish => {
                send.finish();
                return Written::Finished;
            }
            Next::Reset => {
                send.reset();
                return Written::Reset;
            }
        }
    }
}

pub(super) async fn run_control(shared: Arc<Shared>, mut send: SendStream) {
    if shared.dialled && write_type(&mut send, TYPE_CONTROL).await.is_err() {
        return;
    }
    match write(&shared, &shared.outgoing.control, &mut send, Channel::Control).await {
        Written::Finished => send.delivered().await,
        Written::Stopped => shared.fail("the peer does not read control".to_owned()),
        Written::Reset | Written::Lost => {}
    }
    shared.goodbye_said.cancel();
}

pub(super) async fn run_lane(shared: Arc<Shared>, lane: u8) {
    let Some(queue) = shared.outgoing.lane(lane) else { return };
    let Ok(mut send) = shared.lane_streams.take(&shared, lane).await else { return };
    if write(&shared, queue, &mut send, Channel::Lane(lane)).await == Written::Stopped {
        shared.fail(format!("the peer does not read lane {lane}"));
    }
}

/// Starts another writer of bulk frames when there may be one.
pub(super) fn start_bulk(shared: &Arc<Shared>) {
    let mut writers = lock(&shared.bulk_writers);
    if *writers < limits::BULK_PER_LINK_MAX {
        *writers += 1;
        shared.spawn(run_bulk(Arc::clone(shared)));
    }
}

async fn run_bulk(shared: Arc<Shared>) {
    if shared.lane_streams.open_all(&shared).await.is_err() {
        return;
    }
    loop {
        let retire = || *lock(&shared.bulk_writers) -= 1;
        let Some(frame) = shared.outgoing.bulk.pop_or_retire(retire) else { return };
        let bytes = frame.wire_bytes();
        let Ok(mut send) = shared.connection.open_uni(Class::Bulk).await else { return };
        let kind = Bytes::from_static(&[TYPE_BULK]);
        let mut pieces = [kind, frame.head, frame.body];
        if send.write_all(&mut pieces).await.is_err() {
            // Only a lost connection leaves a bulk frame unread in a peer that keeps the rules.
            return shared.fail("the peer does not read a bulk frame".to_owned());
        }
        send.finish();
        shared.emit(LinkEventKind::Sent { channel: Channel::Bulk, bytes }).await;
    }
}

/// Opens a stream of our own and serves both directions.
pub(super) async fn run_opened_stream(shared: Arc<Shared>, stream: Arc<Stream>) {
    let opened = unless_reset(&stream.queue, shared.connection.open_bi(Class::Publish)).await;
    let Some(Ok((mut send, recv))) = opened else {
        shared.end_half(&stream).await;
        return shared.end_half(&stream).await;
    };
    // Fails only where the next write does as well.
    let _failed = write_type(&mut send, TYPE_STREAM).await;
    shared.spawn(reader::run_stream(Arc::clone(&shared), Arc::clone(&stream), recv));
    run_stream(shared, stream, send).await;
}

pub(super) async fn run_stream(shared: Arc<Shared>, stream: Arc<Stream>, mut send: SendStream) {
    // Stopped is no error: a peer that finishes a stream stops reading it, and its last frames may
    // still be on their way to our reader.
    write(&shared, &stream.queue, &mut send, Channel::Stream(stream.id)).await;
    drop(send);
    shared.end_half(&stream).await;
}
