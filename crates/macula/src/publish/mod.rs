//! Publishing: handles, and the buffers between them and the driver.
//!
//! All publishers of a topic share one [`TopicBuffer`], so that the order of publishing is the
//! order of the topic's sequence numbers. Appending takes one lock and no channel; the driver
//! takes whole batches.

mod buffer;
mod publisher;
mod topics;

pub(crate) use buffer::{Taken, TopicBuffer};
pub(crate) use publisher::Kind;
pub use publisher::{DeliveryReport, PublishOptions, Published, Publisher, PublisherBuilder};
pub(crate) use topics::{PublisherCache, Topics};
