//! The handle that publishes on one topic.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use macula_proto::RealmId;
use macula_proto::limits::MESSAGE_BYTES_MAX;
use macula_proto::node::Qos;
use macula_proto::pubsub::Topic;

use super::buffer::{Appended, Marks, NotAppended, Stage, TopicBuffer};
use crate::error::{PublishError, TryPublishError};
use crate::shared::{Command, Owner};

/// What all messages of a batch have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
}

/// How a single message is published; the default is QoS 0, not retained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishOptions {
    /// Quality of service.
    pub qos: Qos,
    /// Keep the message as the topic's retained one: later subscribers get it first.
    pub retain: bool,
}

impl PublishOptions {
    /// Asks for a quality of service.
    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// Asks to keep the message as the topic's retained one.
    pub fn retain(mut self, retain: bool) -> Self {
        self.retain = retain;
        self
    }
}

impl From<PublishOptions> for Kind {
    fn from(options: PublishOptions) -> Self {
        Self { qos: options.qos, retain: options.retain }
    }
}

/// What is known of a message that was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// Number of the message among this endpoint's messages on the topic, from 1.
    pub sequence: u64,
    /// The router holds the message in the topic's ring. Always false with QoS 0, which is not
    /// acknowledged.
    pub is_accepted: bool,
    /// Subscribers that the newest accepted batch of the topic went to, each endpoint once; 0 with
    /// QoS 0.
    pub receivers: u32,
}

/// How far the messages of a topic have come, counted over all publishers of this endpoint on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeliveryReport {
    /// Messages published.
    pub published: u64,
    /// Messages that are in the router's ring. QoS 0 messages are not acknowledged; they count
    /// only when a message with QoS 1 after them was accepted.
    pub accepted: u64,
    /// Messages that every subscriber known has taken; QoS 0 as above.
    pub delivered: u64,
    /// Messages that the router refused.
    pub refused: u64,
    /// Subscribers that the newest accepted batch went to, each endpoint once.
    pub receivers: u32,
}

impl From<Marks> for DeliveryReport {
    fn from(marks: Marks) -> Self {
        Self {
            published: marks.published,
            accepted: marks.accepted,
            delivered: marks.delivered,
            refused: marks.refused,
            receivers: marks.receivers,
        }
    }
}

/// Settings of a [`Publisher`]; made by [`crate::Node::publisher`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened before `open`"]
pub struct PublisherBuilder {
    owner: Arc<Owner>,
    realm: RealmId,
    topic: String,
    options: PublishOptions,
}

impl PublisherBuilder {
    pub(crate) fn new(owner: Arc<Owner>, realm: RealmId, topic: &str) -> Self {
        Self { owner, realm, topic: topic.to_owned(), options: PublishOptions::default() }
    }

    /// Quality of service of the messages. Default: [`Qos::AtMostOnce`].
    pub fn qos(mut self, qos: Qos) -> Self {
        self.options.qos = qos;
        self
    }

    /// Whether each message becomes the topic's retained one. Default: no.
    pub fn retain(mut self, retain: bool) -> Self {
        self.options.retain = retain;
        self
    }

    /// Makes the publisher; nothing goes over the network.
    ///
    /// # Errors
    /// [`PublishError::BadTopic`].
    pub fn open(self) -> Result<Publisher, PublishError> {
        let topic = Topic::parse(&self.topic)?;
        let buffer = self.owner.shared.topics.open(self.realm, topic);
        Ok(Publisher { owner: self.owner, buffer, kind: self.options.into() })
    }
}

/// Publishes on one topic; the fast way when there is more than a message now and then.
///
/// Cheap to clone. Messages of one endpoint on one topic keep the order in which they were
/// published, over all its publishers. A publisher buffers 256 KiB (or one larger message), from
/// which the endpoint takes whole batches; dropping the publisher drops none of them.
#[derive(Clone, Debug)]
pub struct Publisher {
    owner: Arc<Owner>,
    buffer: Arc<TopicBuffer>,
    kind: Kind,
}

impl Publisher {
    pub(crate) fn new(owner: Arc<Owner>, buffer: Arc<TopicBuffer>, kind: Kind) -> Self {
        Self { owner, buffer, kind }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        self.buffer.topic.as_str()
    }

    /// Publishes a message, waiting while there is no room (subscribers or the network are slow).
    ///
    /// `Ok` says that the message is on its way, in order; with QoS 1,
    /// [`Publisher::publish_acknowledged`] and [`Publisher::flush`] say that it has arrived.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`] and [`PublishError::Closed`]; nothing was published.
    ///
    /// # Cancel safety
    /// A future that is dropped before it is ready has published nothing.
    pub async fn publish(&self, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        let payload = payload.into();
        check_size(&payload)?;
        match self.buffer.append(self.kind, &payload) {
            Ok(appended) => self.ring(appended),
            Err(NotAppended::Closed) => Err(PublishError::Closed),
            Err(NotAppended::Full) => {
                let appended = self.buffer.append_when_room(self.kind, &payload).await?;
                self.ring(appended)
            }
        }
    }

    /// Publishes a message if there is room now.
    ///
    /// # Errors
    /// [`TryPublishError::WouldBlock`] when there is none; otherwise as [`Publisher::publish`].
    pub fn try_publish(&self, payload: impl Into<Bytes>) -> Result<(), TryPublishError> {
        let payload = payload.into();
        check_size(&payload)?;
        match self.buffer.append(self.kind, &payload) {
            Ok(appended) => Ok(self.ring(appended)?),
            Err(NotAppended::Full) => Err(TryPublishError::WouldBlock),
            Err(NotAppended::Closed) => Err(PublishError::Closed.into()),
        }
    }

    /// Publishes a message; with QoS 1, resolves once the router holds it in the realm's ring.
    ///
    /// With QoS 0 it resolves as [`Publisher::publish`] does.
    ///
    /// # Errors
    /// As [`Publisher::publish`], and [`PublishError::Refused`] when the router does not take it.
    /// After [`PublishError::Closed`] the message may or may not have been published.
    ///
    /// # Cancel safety
    /// A future that is dropped may have published its message.
    pub async fn publish_acknowledged(
        &self,
        payload: impl Into<Bytes>,
    ) -> Result<Published, PublishError> {
        let payload = payload.into();
        check_size(&payload)?;
        let appended = self.buffer.append_when_room(self.kind, &payload).await?;
        self.ring(appended)?;
        let sequence = appended.sequence;
        if self.kind.qos == Qos::AtMostOnce {
            return Ok(Published { sequence, is_accepted: false, receivers: 0 });
        }
        let marks = self.buffer.reached(Stage::Accepted, sequence).await?;
        Ok(Published { sequence, is_accepted: true, receivers: marks.receivers })
    }

    /// Waits until everything published so far on this topic has gone as far as it can.
    ///
    /// With QoS 1: until every subscriber known has taken it. With QoS 0: until it has reached the
    /// router, or cannot any more because the link broke.
    ///
    /// # Errors
    /// [`PublishError::Refused`] when the last message was refused, [`PublishError::Closed`].
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn flush(&self) -> Result<DeliveryReport, PublishError> {
        let marks = self.buffer.marks();
        let marks = match self.kind.qos {
            Qos::AtLeastOnce => self.buffer.reached(Stage::Delivered, marks.published_qos1).await?,
            Qos::AtMostOnce => {
                self.buffer.reached(Stage::Handed, marks.published).await?;
                self.owner.shared.ask(|answer| Command::Flush { answer }).await?;
                // a refusal was heard before the end of the flush
                self.buffer.reached(Stage::Handed, marks.published).await?
            }
        };
        Ok(marks.into())
    }

    /// Waits as [`Publisher::flush`] does, at most `timeout`, and says how far the messages came.
    ///
    /// # Cancel safety
    /// Dropping the future changes nothing.
    pub async fn flush_timeout(&self, timeout: Duration) -> DeliveryReport {
        match tokio::time::timeout(timeout, self.flush()).await {
            Ok(Ok(report)) => report,
            Ok(Err(_)) | Err(_) => self.report(),
        }
    }

    /// How far the messages on this topic have come.
    pub fn report(&self) -> DeliveryReport {
        self.buffer.marks().into()
    }

    /// Puts the buffer on the driver's list if it is not there yet.
    fn ring(&self, appended: Appended) -> Result<(), PublishError> {
        if appended.must_ring {
            let buffer = self.buffer.clone();
            let doorbell = &self.owner.shared.doorbell;
            if doorbell.leave(|notes| notes.topics.push(buffer)).is_err() {
                // Nobody will ever take what is in it.
                self.buffer.close();
                return Err(PublishError::Closed);
            }
        }
        Ok(())
    }
}

fn check_size(payload: &Bytes) -> Result<(), PublishError> {
    if payload.len() > MESSAGE_BYTES_MAX {
        return Err(PublishError::TooLarge { bytes: payload.len(), max: MESSAGE_BYTES_MAX });
    }
    Ok(())
}
