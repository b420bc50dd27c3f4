//! How long messages are on the wire.

use macula_proto::RealmId;
use macula_proto::overlay::{Body, Load, Message, Record, Reply, TreeAct, wire};
use macula_proto::wire::message::Publish;

/// QUIC, UDP and IP headers with the authentication tag, per message sent on its own.
const PACKET: usize = 20 + 8 + 24 + 16;
/// Head of a frame.
const FRAME: usize = 8;
const CONTACT: usize = 32 + 6;
const CURSOR: usize = 12;

/// About how many bytes a message takes, packet headers included.
pub fn wire_bytes(message: &Message) -> usize {
    PACKET + FRAME + content(message)
}

/// Passes a message through the production codec, so that a world also proves that nothing is lost
/// on the wire.
///
/// # Panics
/// When the codec does not give back what it was given: that is a bug of it.
pub(crate) fn recode(realm: &RealmId, message: Message) -> Message {
    let decoded = wire::decode(realm, &wire::encode(&message));
    assert_eq!(decoded.as_ref(), Ok(&message), "the codec changes a message");
    message
}

fn content(message: &Message) -> usize {
    match message {
        Message::Route(route) => 8 + 20 + 2 + 20 + 2 + body(&route.body),
        Message::Answer(answer) => 9 + reply(&answer.reply),
        Message::Siblings { contacts, .. } => 8 + CONTACT * contacts.len(),
        Message::Replicate { records, .. } => 9 + records.iter().map(record).sum::<usize>(),
        Message::Tree(tree) => {
            let source = if tree.tree.source.is_some() { 33 } else { 1 };
            1 + source + tree.tree.topic.len() + act(&tree.act)
        }
        Message::Keep { .. } => 7,
        Message::Leave => 1,
        _ => 9,
    }
}

fn body(body: &Body) -> usize {
    match body {
        Body::Connect { .. } => CONTACT + 1,
        Body::Near { .. } => 22,
        Body::Put(stored) => record(stored),
        Body::Publish(batch) => publish(batch),
        Body::Audit { topic } => topic.len() + 2,
        Body::Call(call) => 44 + call.procedure.len() + call.body.len(),
        _ => 1,
    }
}

fn reply(reply: &Reply) -> usize {
    match reply {
        Reply::Closest(contacts) | Reply::Near(contacts) | Reply::Full(contacts) => {
            CONTACT * contacts.len()
        }
        Reply::Welcome(_) => CONTACT,
        Reply::Records(records) => records.iter().map(record).sum(),
        Reply::Result(body) => body.len() + 2,
        Reply::Failed(failure) => failure.message.len() + 12,
        Reply::Accepted { .. } => 16,
        _ => 12,
    }
}

fn act(act: &TreeAct) -> usize {
    match act {
        TreeAct::Redirect(contacts) => CONTACT * contacts.len(),
        TreeAct::Data { load: Load::Batch(batch) | Load::Head(batch), .. }
        | TreeAct::Hold { load: Load::Batch(batch) | Load::Head(batch), .. } => {
            CURSOR + publish(batch)
        }
        TreeAct::Prune { .. } | TreeAct::Graft { .. } => 34,
        TreeAct::Data { load: Load::Topic(topic), .. }
        | TreeAct::Hold { load: Load::Topic(topic), .. } => CURSOR + topic.len(),
        _ => CURSOR + 2,
    }
}

fn record(record: &Record) -> usize {
    20 + 1 + 32 + 8 + 8 + 64 + record.value.len()
}

fn publish(batch: &Publish) -> usize {
    32 + 8 + 8 + 8 + batch.topic.len() + batch.body.len()
}
