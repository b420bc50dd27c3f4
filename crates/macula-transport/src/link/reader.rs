//! The tasks that read. Each incoming stream has one, and each asks its gate before it reads.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, ready};

use bytes::Bytes;
use macula_proto::limits;
use macula_proto::wire::frame::{Channel, HEADER_BYTES, RawFrame};
use tokio::time::{sleep, timeout};

use super::{
    PEER_GOODBYE_TIMEOUT, Shared, TYPE_BULK, TYPE_CONTROL, TYPE_LANE, TYPE_STREAM, writer,
};
use crate::assemble::Assembler;
use crate::event::LinkEventKind;
use crate::gate::{Gate, Passage};
use crate::loading::STALL_TIMEOUT;
use crate::queue::End;
use crate::quic::{Read, RecvStream, SendStream};
use crate::stream::Stream;
use crate::sync::lock;

/// Pieces (packets, as a rule) taken in one read.
const PIECES_MAX: usize = 32;

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The peer finished the stream, between two frames.
    Finished,
    /// The peer abandoned the stream.
    Reset,
    /// This side reads no more.
    Stopped,
    /// The connection is gone, or will be because the peer broke the protocol.
    Lost,
}

/// Reads once, when the gate allows it; `None` when it never will again. Cancel-safe.
async fn read(gate: &Gate, recv: &mut RecvStream, pieces: &mut [Bytes]) -> Option<Read> {
    let mut reading = pin!(recv.read(pieces));
    poll_fn(|cx| match ready!(gate.poll(cx)) {
        Passage::Open => reading.as_mut().poll(cx).map(Some),
        Passage::Ended => Poll::Ready(None),
    })
    .await
}

/// Reads a channel to its end and hands out its frames.
async fn read_frames(
    shared: &Shared,
    gate: &Arc<Gate>,
    recv: &mut RecvStream,
    channel: Channel,
) -> Ended {
    let mut assembler = Assembler::new(channel);
    let mut pieces: [Bytes; PIECES_MAX] = Default::default();
    loop {
        let count = match read(gate, recv, &mut pieces).await {
            Some(Read::Pieces(count)) => count,
            Some(Read::Finished) if assembler.is_empty() => return Ended::Finished,
            Some(Read::Finished) => {
                shared.fail(format!("{channel:?} ends within a frame"));
                return Ended::Lost;
            }
            Some(Read::Reset) => return Ended::Reset,
            Some(Read::Lost) => return Ended::Lost,
            None => {
                recv.stop();
                return Ended::Stopped;
            }
        };
        let mut frames = Vec::new();
        for piece in pieces.iter_mut().take(count) {
            if let Err(error) = assembler.push(std::mem::take(piece), &mut frames) {
                shared.fail(format!("{channel:?}: {error}"));
                return Ended::Lost;
            }
        }
        if !frames.is_empty() {
            hand_out(shared, gate, channel, frames).await;
        }
    }
}

async fn hand_out(shared: &Shared, gate: &Arc<Gate>, channel: Channel, frames: Vec<RawFrame>) {
    shared.note_use();
    let payload: usize = frames.iter().map(|frame| frame.payload.len()).sum();
    let permit = gate.hold(payload + frames.len() * HEADER_BYTES);
    shared.emit(LinkEventKind::Frames { channel, frames, permit }).await;
}

pub(super) async fn run_control(shared: Arc<Shared>, mut recv: RecvStream) {
    let gate = &shared.incoming.control;
    match read_frames(&shared, gate, &mut recv, Channel::Control).await {
        Ended::Finished => {
            // The peer waits for our acknowledgement before it closes.
            shared.connection.ping();
            tokio::select! {
                () = shared.lost.cancelled() => {}
                () = sleep(PEER_GOODBYE_TIMEOUT) => {
                    shared.fail("control was finished but the link was not closed".to_owned());
                }
            }
        }
        Ended::Reset => shared.fail("control was reset".to_owned()),
        Ended::Stopped | Ended::Lost => {}
    }
}

/// Finds out what a new unidirectional stream is, and reads it.
pub(super) async fn run_uni(shared: Arc<Shared>, mut recv: RecvStream) {
    match recv.read_type().await {
        Some(TYPE_BULK) => run_bulk(shared, recv).await,
        Some(kind) if (TYPE_LANE..TYPE_LANE + limits::LANE_COUNT).contains(&kind) => {
            run_lane(shared, recv, kind - TYPE_LANE).await;
        }
        Some(kind) => shared.fail(format!("unidirectional stream of unknown type {kind:#04x}")),
        None if shared.lost.is_cancelled() => {}
        None => shared.fail("stream without a type".to_owned()),
    }
}

async fn run_lane(shared: Arc<Shared>, mut recv: RecvStream, lane: u8) {
    let bit = 1 << lane;
    if shared.lanes_seen.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return shared.fail(format!("lane {lane} was opened twice"));
    }
    let channel = Channel::Lane(lane);
    let Some(gate) = shared.gate(channel) else { return };
    match read_frames(&shared, &gate, &mut recv, channel).await {
        Ended::Finished | Ended::Reset => shared.fail(format!("lane {lane} was ended")),
        Ended::Stopped | Ended::Lost => {}
    }
}

/// Reads the one frame of a bulk stream. The frame is handed out at the end of the stream, when it
/// is certain that nothing follows.
async fn run_bulk(shared: Arc<Shared>, mut recv: RecvStream) {
    let Ok(_slot) = shared.bulk_readers.acquire().await else { return };
    let gate = Arc::clone(&shared.incoming.bulk);
    let mut assembler = Assembler::new(Channel::Bulk);
    let mut pieces: [Bytes; PIECES_MAX] = Default::default();
    let mut frames = Vec::new();
    let mut load = shared.loading.begin();
    // Bytes behind the frame would be a second one.
    let is_whole =
        |frames: &Vec<RawFrame>, assembler: &Assembler| frames.len() == 1 && assembler.is_empty();
    loop {
        tokio::select! {
            () = load.may_go_on() => {}
            () = shared.lost.cancelled() => return,
        }
        let coming = timeout(STALL_TIMEOUT, read(&gate, &mut recv, &mut pieces)).await;
        if load.must_give_way(coming.is_err()) {
            let reason = "a large message did not come in time while there was no room for it";
            return shared.fail(reason.to_owned());
        }
        let Ok(read) = coming else { continue };
        match read {
            Some(Read::Pieces(count)) => {
                for piece in pieces.iter_mut().take(count) {
                    load.add(piece.len());
                    if let Err(error) = assembler.push(std::mem::take(piece), &mut frames) {
                        return shared.fail(format!("bulk: {error}"));
                    }
                }
                if frames.len() > 1 {
                    return shared.fail("bulk stream with more than one frame".to_owned());
                }
            }
            Some(Read::Finished) if is_whole(&frames, &assembler) => {
                // From here on the gate counts it.
                drop(load);
                return hand_out(&shared, &gate, Channel::Bulk, frames).await;
            }
            Some(Read::Finished) => {
                return shared.fail("bulk stream that is not one frame".to_owned());
            }
            Some(Read::Reset) => return shared.fail("bulk stream was reset".to_owned()),
            Some(Read::Lost) => return,
            None => return recv.stop(),
        }
    }
}

/// Finds out what a new bidirectional stream is, and serves it.
pub(super) async fn run_bi(shared: Arc<Shared>, send: SendStream, mut recv: RecvStream) {
    match recv.read_type().await {
        Some(TYPE_STREAM) => {
            let Some(stream) = lock(&shared.streams).accept() else { return };
            shared.spawn(writer::run_stream(Arc::clone(&shared), Arc::clone(&stream), send));
            run_stream(shared, stream, recv).await;
        }
        Some(TYPE_CONTROL) => shared.fail("a second control stream".to_owned()),
        Some(kind) => shared.fail(format!("bidirectional stream of unknown type {kind:#04x}")),
        // Given up before it was begun.
        None => {}
    }
}

pub(super) async fn run_stream(shared: Arc<Shared>, stream: Arc<Stream>, mut recv: RecvStream) {
    let channel = Channel::Stream(stream.id);
    match read_frames(&shared, &stream.gate, &mut recv, channel).await {
        // The peer ends both directions at once, so nobody reads what we might still send.
        Ended::Finished | Ended::Reset => stream.queue.end(End::Reset),
        Ended::Stopped | Ended::Lost => {}
    }
    drop(recv);
    shared.end_half(&stream).await;
}
