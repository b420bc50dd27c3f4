//! Credentials of TURN that expire by themselves (draft-uberti-behave-turn-rest).
//!
//! The username says until when it holds and for whom, the password is its HMAC. Whoever knows the
//! secret can check them, so an external server (coturn with `use-auth-secret`) takes the same ones.

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

/// Longest user name that is looked at (RFC 8489 §14.3: fewer than 509 bytes).
pub const USERNAME_BYTES_MAX: usize = 508;

/// What one needs to use a TURN server until they expire.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `EXPIRY:USER`; the expiry in seconds since 1970.
    pub username: String,
    /// Base64 of the HMAC-SHA1 of the username.
    pub password: String,
    /// How long they hold from when they were made.
    pub lifetime: Duration,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Makes credentials and checks them.
#[derive(Clone)]
pub struct Issuer {
    key: hmac::Key,
    lifetime: Duration,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

/// Why a username is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsernameError {
    /// Not of the form `EXPIRY:USER`, or too long.
    #[error("the username is not EXPIRY:USER")]
    Malformed,
    /// It held once.
    #[error("the username has expired")]
    Expired,
}

impl Issuer {
    /// An issuer of credentials that hold for `lifetime`. `secret` is what coturn calls
    /// `static-auth-secret`; its bytes are the key.
    pub fn new(secret: &[u8], lifetime: Duration) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret), lifetime }
    }

    /// Credentials for `user` from `unix` on, in seconds since 1970.
    pub fn issue(&self, user: &str, unix: u64) -> Credentials {
        let expiry = unix.saturating_add(self.lifetime.as_secs());
        let username = format!("{expiry}:{user}");
        let password = self.password(&username);
        Credentials { username, password, lifetime: self.lifetime }
    }

    /// The password of a username.
    pub fn password(&self, username: &str) -> String {
        STANDARD.encode(hmac::sign(&self.key, username.as_bytes()))
    }
}

/// Reads a username; returns the user in it. Says nothing about the password.
///
/// # Errors
/// [`UsernameError::Expired`] from the second of its expiry on, [`UsernameError::Malformed`].
pub fn user_of(username: &str, unix: u64) -> Result<&str, UsernameError> {
    if username.len() > USERNAME_BYTES_MAX {
        return Err(UsernameError::Malformed);
    }
    let (expiry, user) = username.split_once(':').ok_or(UsernameError::Malformed)?;
    let is_plain = !expiry.is_empty() && expiry.bytes().all(|byte| byte.is_ascii_digit());
    let expiry: u64 = expiry.parse().ok().filter(|_| is_plain).ok_or(UsernameError::Malformed)?;
    if user.is_empty() {
        return Err(UsernameError::Malformed);
    }
    if expiry <= unix { Err(UsernameError::Expired) } else { Ok(user) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_coturn() {
        let issuer = Issuer::new(b"north", Duration::from_secs(100));
        let credentials = issuer.issue("alice", 1_000);
        assert_eq!(credentials.username, "1100:alice");
        // printf '1100:alice' | openssl dgst -sha1 -hmac north -binary | base64
        assert_eq!(credentials.password, "sBnsUW1PyEpAAVNhyiVQY53XJO8=");
        assert_eq!(user_of("1100:alice", 1_099), Ok("alice"));
        assert_eq!(user_of("1100:alice", 1_100), Err(UsernameError::Expired));
        assert_ne!(issuer.password("1101:alice"), credentials.password);
    }

    #[test]
    fn other_names_are_no_usernames() {
        let long = format!("9999:{}", "x".repeat(USERNAME_BYTES_MAX));
        for name in
            ["", ":", "12", "12:", ":a", "+12:a", "-1:a", "0x9:a", "99999999999999999999:a", &long]
        {
            assert_eq!(user_of(name, 0), Err(UsernameError::Malformed), "{name}");
        }
        assert_eq!(user_of("5:a:b", 0), Ok("a:b"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let issuer = Issuer::new(b"north", Duration::from_secs(100));
        let shown = format!("{issuer:?} {:?}", issuer.issue("a", 0));
        assert!(!shown.contains("north") && !shown.contains(&issuer.password("100:a")), "{shown}");
    }
}
