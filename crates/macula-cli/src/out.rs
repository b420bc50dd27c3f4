//! Writing to people and programs: results on stdout, everything else on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// Tells people something on stderr; a stderr that is gone is nobody to tell.
pub(crate) fn note(text: impl std::fmt::Display) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// Prints one line of result on stdout and flushes it.
///
/// # Errors
/// What writing says; [`Failure::quiet`] when the reader is gone.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(stdout_failure)
}

/// A reader of stdout that has gone away ends a program quietly.
pub(crate) fn stdout_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::quiet(),
        _ => Failure::from(error).context("cannot write to stdout"),
    }
}

/// Prints one JSON object on one line of stdout and flushes it.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    line(text)
}

/// Tells what ended the program.
pub(crate) fn failure(failure: &Failure) {
    if failure.what.is_empty() {
        return;
    }
    let paint = Paint::stderr();
    let mut lines = failure.what.lines();
    let first = lines.next().unwrap_or_default();
    note(format_args!("{} {first}", paint.red("error:")));
    lines.for_each(|line| note(format_args!("       {line}")));
    if !failure.advice.is_empty() {
        note(format_args!(" {} {}", paint.dim("hint:"), failure.advice));
    }
}

/// Colours, when the reader is a terminal that wants them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    coloured: bool,
}

impl Paint {
    /// For stderr.
    pub(crate) fn stderr() -> Self {
        Self { coloured: wants_colour(io::stderr().is_terminal()) }
    }

    /// For stdout.
    pub(crate) fn stdout() -> Self {
        Self { coloured: wants_colour(io::stdout().is_terminal()) }
    }

    fn with(self, code: &str, text: impl std::fmt::Display) -> String {
        if self.coloured { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }

    /// Something went wrong.
    pub(crate) fn red(self, text: impl std::fmt::Display) -> String {
        self.with("31", text)
    }

    /// Something held.
    pub(crate) fn green(self, text: impl std::fmt::Display) -> String {
        self.with("32", text)
    }

    /// Watch this.
    pub(crate) fn yellow(self, text: impl std::fmt::Display) -> String {
        self.with("33", text)
    }

    /// A name.
    pub(crate) fn cyan(self, text: impl std::fmt::Display) -> String {
        self.with("36", text)
    }

    /// A heading.
    pub(crate) fn bold(self, text: impl std::fmt::Display) -> String {
        self.with("1", text)
    }

    /// An aside.
    pub(crate) fn dim(self, text: impl std::fmt::Display) -> String {
        self.with("2", text)
    }
}

/// `NO_COLOR` (not empty) turns colours off, as <https://no-color.org> says; so does `TERM=dumb`.
fn wants_colour(terminal: bool) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    terminal && !no_color && !dumb
}

/// A progress bar on stderr; hidden unless stderr is a terminal.
///
/// `total` in the unit of `template`'s `{pos}` and `{len}`; `None` shows a spinner.
pub(crate) fn progress(total: Option<u64>, template: &str) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    let target = if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(5)
    } else {
        ProgressDrawTarget::hidden()
    };
    bar.set_draw_target(target);
    // The templates are literals of this program; a wrong one would show the plain style.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

/// A duration for people: `42 µs`, `1.2 ms`, `3.4 s`.
pub(crate) fn human_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.2} ms", duration.as_secs_f64() * 1e3),
        10_000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// Bytes for people: `512 B`, `1.2 kB`, `3.4 MB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let size = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", size / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", size / 1e6),
        _ => format!("{:.1} GB", size / 1e9),
    }
}

/// A count for people: thousands separated by blanks.
pub(crate) fn human_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Base64 with padding (RFC 4648 §4).
pub(crate) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for index in 0..4usize {
            if index <= chunk.len() {
                let value = bits >> (18 - 6 * index) & 63;
                text.push(char::from(ALPHABET[value as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648_section_10() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn counts_and_durations_read_well() {
        assert_eq!(human_count(0), "0");
        assert_eq!(human_count(999), "999");
        assert_eq!(human_count(1_000), "1 000");
        assert_eq!(human_count(1_234_567), "1 234 567");
        assert_eq!(human_duration(Duration::from_micros(42)), "42 µs");
        assert_eq!(human_duration(Duration::from_micros(1_240)), "1.24 ms");
        assert_eq!(human_duration(Duration::from_millis(250)), "250.0 ms");
        assert_eq!(human_duration(Duration::from_millis(3_400)), "3.4 s");
    }
}
