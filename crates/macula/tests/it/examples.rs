//! The examples run by themselves and end by themselves.

use crate::support::within;

#[expect(dead_code, reason = "its main is for running it alone")]
#[path = "../../examples/chat.rs"]
mod chat;
#[expect(dead_code, reason = "its main is for running it alone")]
#[path = "../../examples/request_reply.rs"]
mod request_reply;
#[expect(dead_code, reason = "its main is for running it alone")]
#[path = "../../examples/sensor.rs"]
mod sensor;
#[expect(dead_code, reason = "its main is for running it alone")]
#[path = "../../examples/streaming.rs"]
mod streaming;

#[tokio::test]
async fn chat_ends_well() {
    within(chat::run()).await.unwrap();
}

#[tokio::test]
async fn sensor_ends_well() {
    within(sensor::run()).await.unwrap();
}

#[tokio::test]
async fn request_reply_ends_well() {
    within(request_reply::run()).await.unwrap();
}

#[tokio::test]
async fn streaming_ends_well() {
    within(streaming::run()).await.unwrap();
}
