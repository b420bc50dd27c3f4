//! What the director of a benchmark and its workers say to each other.

use serde::{Deserialize, Serialize};

use super::flood::Garbage;

/// What a worker does, from its start on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Job {
    /// Publishes until told to stop.
    Publish {
        /// Topic.
        topic: String,
        /// Payload, bytes.
        size: u32,
        /// Acknowledged.
        qos1: bool,
        /// Messages per second; `None`: as many as possible.
        rate: Option<u32>,
    },
    /// Counts messages on several subscriptions.
    Subscribe {
        /// Topic.
        topic: String,
        /// Subscriptions, each on a connection of its own.
        subscriptions: u32,
        /// `block`, `drop-oldest` or `disconnect`.
        policy: String,
        /// Record latencies of every message instead of a few.
        every: bool,
    },
    /// Answers calls with their argument.
    Provide {
        /// Procedure.
        procedure: String,
    },
    /// Calls until told to stop.
    Call {
        /// Procedure.
        procedure: String,
        /// Argument, bytes.
        size: u32,
        /// Calls open at once.
        in_flight: u32,
    },
    /// Many clients, each on a connection of its own, that call now and then and publish to one
    /// another until told to stop.
    Mingle {
        /// Prefix of their topics.
        topic: String,
        /// Procedure that they call.
        procedure: String,
        /// How many.
        clients: u32,
    },
    /// Sends garbage to the gateway until told to stop.
    Flood {
        /// Which.
        garbage: Garbage,
        /// Packets per second.
        rate: u32,
        /// Addresses that it comes from.
        sources: u8,
    },
}

/// A wish of the director while a worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wish {
    /// Begin publishing or calling.
    Begin,
    /// Forget what was measured so far: warming up is over.
    Reset,
    /// Say how much was done since the last `Reset`.
    Count,
    /// Stop publishing or calling, and then tell the rest.
    Stop,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    /// Connected; subscribed or registered where that is the job.
    Ready,
    /// Answers every wish.
    Count(Count),
    /// It did not work.
    Failed(String),
}

/// What was done since the last reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Count {
    /// Messages published or received, or calls answered; over all subscriptions.
    pub(crate) done: u64,
    /// The same since the start of the worker.
    pub(crate) done_ever: u64,
    /// Messages missing so far, or calls failed.
    pub(crate) lost: u64,
    /// Latencies as pairs of microseconds and how often.
    pub(crate) latencies_us: Vec<(u64, u64)>,
}
