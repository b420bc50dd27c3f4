//! Nonces that need no memory: who asked, and when, under a key.

use std::time::Duration;

use macula_proto::Time;
use ring::hmac;

use super::api::Client;

/// How long a nonce holds; then clients are told a new one (438) and go on.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Bytes of the tag in a nonce.
const TAG_BYTES: usize = 16;

/// Makes and checks nonces.
#[derive(Debug)]
pub(super) struct Nonces {
    key: hmac::Key,
}

impl Nonces {
    pub(super) fn new(secret: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
    }

    /// The nonce for a client from `now` on.
    pub(super) fn make(&self, now: Time, client: &Client) -> String {
        self.sign(now.as_micros() / 1_000_000, client)
    }

    /// Whether a nonce was made for this client, not too long ago.
    pub(super) fn holds(&self, now: Time, client: &Client, nonce: &str) -> bool {
        let second = nonce.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let now = now.as_micros() / 1_000_000;
        second.is_some_and(|second| {
            second <= now
                && now - second <= LIFETIME.as_secs()
                // Nothing is gained by finding out a tag byte by byte: it is no proof of anything
                // but having been here.
                && self.sign(second, client) == nonce
        })
    }

    fn sign(&self, second: u64, client: &Client) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&second.to_be_bytes());
        context.update(&client.listener.0.to_be_bytes());
        context.update(client.remote.to_string().as_bytes());
        let tag = context.sign();
        let mut text = format!("{second:016x}");
        for byte in tag.as_ref().iter().take(TAG_BYTES) {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::ListenerId;
    use super::*;

    #[test]
    fn a_nonce_holds_for_its_client_for_an_hour() {
        let nonces = Nonces::new(&[1; 32]);
        let client = Client { listener: ListenerId(1), remote: "192.0.2.1:1".parse().unwrap() };
        let other = Client { remote: "192.0.2.1:2".parse().unwrap(), ..client };
        let second = |second: u64| Time::from_micros(second * 1_000_000);
        let nonce = nonces.make(second(10), &client);
        assert!(nonces.holds(second(10), &client, &nonce));
        assert!(nonces.holds(second(3_610), &client, &nonce));
        assert!(!nonces.holds(second(3_611), &client, &nonce), "too old");
        assert!(!nonces.holds(second(9), &client, &nonce), "of the future");
        assert!(!nonces.holds(second(10), &other, &nonce), "of somebody else");
        assert!(!Nonces::new(&[2; 32]).holds(second(10), &client, &nonce));
        for broken in ["", "0", "zzzzzzzzzzzzzzzz", "é0000000000000000", &nonce[1..]] {
            assert!(!nonces.holds(second(10), &client, broken), "{broken}");
        }
    }
}
