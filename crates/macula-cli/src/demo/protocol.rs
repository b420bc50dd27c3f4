//! What the demo's director and its peers say to each other: JSON lines over stdin and stdout.

use serde::{Deserialize, Serialize};

/// A wish of the director. Answered by exactly one [`Told::Done`] with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Number for the answer.
    pub(crate) id: u64,
    /// What to do.
    pub(crate) task: Task,
}

/// What a peer can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Task {
    /// Subscribe; done when the gateway has it.
    Subscribe {
        /// Realm.
        realm: String,
        /// Pattern.
        pattern: String,
        /// Tell each message at once ([`Told::Heard`]).
        tell: bool,
    },
    /// Publish numbered messages; done when they are on their way, with QoS 1 when delivered.
    Publish {
        /// Realm.
        realm: String,
        /// Topics, used in turn.
        topics: Vec<String>,
        /// Texts, used in turn.
        texts: Vec<String>,
        /// Messages in all.
        count: u64,
        /// Acknowledged.
        qos1: bool,
        /// Pause between two, microseconds.
        pause_us: u64,
    },
    /// Serve a procedure that squares a number; done when the gateway has it.
    Serve {
        /// Realm.
        realm: String,
        /// Procedure.
        procedure: String,
    },
    /// Call it again and again, one call after another; done with the last.
    Call {
        /// Realm.
        realm: String,
        /// Procedure.
        procedure: String,
        /// Calls in all.
        count: u64,
        /// Pause between two, microseconds.
        pause_us: u64,
    },
    /// Tell what was received since the last time, once `expected` messages are here or time is up.
    Count {
        /// Messages to wait for.
        expected: u64,
        /// Wait at most, milliseconds.
        within_ms: u64,
    },
}

/// What a peer tells the director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Told {
    /// A message, if the subscription wanted it told.
    Heard {
        /// Topic.
        topic: String,
        /// Text.
        text: String,
        /// From publish to here, microseconds.
        latency_us: u64,
    },
    /// A third of the work of an order is done.
    Third {
        /// The order.
        id: u64,
    },
    /// The connection to the gateway changed.
    Link {
        /// In words.
        what: String,
    },
    /// An order is done.
    Done {
        /// The order.
        id: u64,
        /// How it went.
        outcome: Outcome,
    },
}

/// How an order went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// As wished.
    Ready,
    /// It did not work.
    Failed(String),
    /// Messages were published.
    Published {
        /// How many.
        sent: u64,
    },
    /// Calls were made.
    Called {
        /// Right answers, by the name of the provider.
        answers: Vec<(String, u64)>,
        /// Failed calls and wrong answers.
        failed: u64,
        /// The first failure, in words.
        first_failure: Option<String>,
        /// Round trips, microseconds.
        latencies_us: Vec<u64>,
    },
    /// Messages were received.
    Received(Received),
}

/// What a peer received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Received {
    /// Messages.
    pub(crate) messages: u64,
    /// Messages that came again.
    pub(crate) doubled: u64,
    /// Messages that came before an earlier one of the same publisher and topic.
    pub(crate) out_of_order: u64,
    /// Messages published in another realm than the one subscribed in.
    pub(crate) foreign: u64,
    /// From publish to here, microseconds.
    pub(crate) latencies_us: Vec<u64>,
}

/// A message of the demo as it travels: number on its topic, time, realm, text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parcel<'a> {
    /// Number on its topic, from 0.
    pub(crate) number: u64,
    /// Unix time at which it was published, microseconds.
    pub(crate) sent_us: u64,
    /// Realm in which it was published.
    pub(crate) realm: &'a str,
    /// Text.
    pub(crate) text: &'a str,
}

impl<'a> Parcel<'a> {
    /// As bytes.
    pub(crate) fn encode(&self) -> String {
        format!("{} {} {} {}", self.number, self.sent_us, self.realm, self.text)
    }

    /// From bytes; `None` when it is something else.
    pub(crate) fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(payload).ok()?.splitn(4, ' ');
        Some(Self {
            number: fields.next()?.parse().ok()?,
            sent_us: fields.next()?.parse().ok()?,
            realm: fields.next()?,
            text: fields.next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parcels_round_trip() {
        let parcel = Parcel { number: 7, sent_us: 42, realm: "a.b", text: "two words" };
        assert_eq!(Parcel::decode(parcel.encode().as_bytes()), Some(parcel));
        assert_eq!(Parcel::decode(b"nonsense"), None);
        assert_eq!(Parcel::decode(&[0xff]), None);
    }

    #[test]
    fn orders_round_trip() {
        let order = Order { id: 1, task: Task::Count { expected: 2, within_ms: 3 } };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap(), order);
    }
}
