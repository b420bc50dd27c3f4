//! How `sub` writes messages: fast while they stream, at once when they trickle.

use std::io::{self, Write};

use serde::Serialize;

use crate::out;

/// Written when so much is held back, bytes.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// How messages are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// The payload's bytes and a newline.
    Payload,
    /// Topic, a blank, payload, newline.
    Topic,
    /// One JSON object per line.
    Json,
}

/// What is shown of a message.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    /// Topic.
    pub(crate) topic: &'a str,
    /// Publisher's endpoint id as text.
    pub(crate) publisher: &'a dyn std::fmt::Display,
    /// Sequence, within publisher and topic.
    pub(crate) sequence: u64,
    /// From before the subscription.
    pub(crate) retained: bool,
    /// Payload.
    pub(crate) payload: &'a [u8],
}

/// The JSON form of a message.
#[derive(Serialize)]
struct JsonMessage<'a> {
    topic: &'a str,
    publisher: String,
    sequence: u64,
    retained: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// Collects messages and writes them in large pieces; call [`Printer::flush`] when nothing waits.
#[derive(Debug)]
pub(crate) struct Printer<W> {
    format: Format,
    held: Vec<u8>,
    out: W,
}

impl<W: Write> Printer<W> {
    /// Writes to `out`, which should not buffer lines itself.
    pub(crate) fn new(format: Format, out: W) -> Self {
        Self { format, held: Vec::with_capacity(2 * HELD_BYTES_MAX), out }
    }

    /// Takes one message. Returns whether [`Printer::flush`] is due.
    pub(crate) fn take(&mut self, message: &Shown<'_>) -> bool {
        match self.format {
            Format::Payload => self.held.extend_from_slice(message.payload),
            Format::Topic => {
                self.held.extend_from_slice(message.topic.as_bytes());
                self.held.push(b' ');
                self.held.extend_from_slice(message.payload);
            }
            Format::Json => {
                let payload = std::str::from_utf8(message.payload).ok();
                let json = JsonMessage {
                    topic: message.topic,
                    publisher: message.publisher.to_string(),
                    sequence: message.sequence,
                    retained: message.retained,
                    payload,
                    payload_base64: payload.is_none().then(|| out::base64(message.payload)),
                };
                // Writing strings and numbers to memory does not fail.
                serde_json::to_writer(&mut self.held, &json).ok();
            }
        }
        self.held.push(b'\n');
        self.held.len() >= HELD_BYTES_MAX
    }

    /// Whether something is held back.
    pub(crate) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Writes everything held back. Blocks while the reader does not read.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.held)?;
        self.held.clear();
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(format: Format, payload: &[u8]) -> String {
        let mut printer = Printer::new(format, Vec::new());
        let message =
            Shown { topic: "a.b", publisher: &"id", sequence: 7, retained: false, payload };
        printer.take(&message);
        assert!(printer.is_holding() && printer.out.is_empty());
        printer.flush().unwrap();
        assert!(!printer.is_holding());
        String::from_utf8_lossy(&printer.out).into_owned()
    }

    #[test]
    fn each_format_is_one_line() {
        assert_eq!(print(Format::Payload, b"hi"), "hi\n");
        assert_eq!(print(Format::Topic, b"hi"), "a.b hi\n");
        assert_eq!(
            print(Format::Json, b"h\"i\n"),
            "{\"topic\":\"a.b\",\"publisher\":\"id\",\"sequence\":7,\"retained\":false,\
             \"payload\":\"h\\\"i\\n\"}\n"
        );
        assert_eq!(
            print(Format::Json, &[0xff]),
            "{\"topic\":\"a.b\",\"publisher\":\"id\",\"sequence\":7,\"retained\":false,\
             \"payload_base64\":\"/w==\"}\n"
        );
    }

    #[test]
    fn a_flush_is_due_when_much_is_held() {
        let mut printer = Printer::new(Format::Payload, Vec::new());
        let payload = vec![b'x'; HELD_BYTES_MAX];
        let message = Shown {
            topic: "a",
            publisher: &"id",
            sequence: 1,
            retained: false,
            payload: &payload[..10],
        };
        assert!(!printer.take(&message));
        assert!(printer.take(&Shown { payload: &payload, ..message }));
    }
}
