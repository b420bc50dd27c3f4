//! Durations and sizes as people write them: `5s`, `250ms`, `64MiB`.

use std::time::Duration;

/// A text is neither a duration nor a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HumanError {
    /// Not a duration.
    #[error("`{0}` is not a duration; write for example 250ms, 5s, 2m or 1h")]
    Duration(String),
    /// Not a size.
    #[error("`{0}` is not a size; write for example 65536, 64KiB or 8MiB")]
    Size(String),
}

/// Reads `250ms`, `5s`, `2m`, `1h`, `1.5s`; a bare number means seconds.
///
/// # Errors
/// [`HumanError::Duration`] for anything else, negative and infinite ones included.
pub fn parse_duration(text: &str) -> Result<Duration, HumanError> {
    let wrong = || HumanError::Duration(text.to_owned());
    let (number, unit) = split_unit(text.trim());
    let seconds_per_unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    // Rounded to microseconds, so that what is printed reads back as the same value.
    let micros = (number * seconds_per_unit * 1e6).round();
    if !micros.is_finite() || !(0.0..=1e18).contains(&micros) {
        return Err(wrong());
    }
    Ok(Duration::from_micros(micros as u64))
}

/// Writes a duration in the largest unit that keeps it whole, so that [`parse_duration`] reads it
/// back as the same microseconds.
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    for (unit, size) in [("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000)] {
        if micros >= size && micros.is_multiple_of(size) {
            return format!("{}{unit}", micros / size);
        }
    }
    if micros == 0 { "0s".to_owned() } else { format!("{micros}us") }
}

/// Reads `65536`, `64KiB`, `8MiB`, `1GiB`, `64kB`, `8MB`.
///
/// # Errors
/// [`HumanError::Size`] for anything else.
pub fn parse_size(text: &str) -> Result<usize, HumanError> {
    let wrong = || HumanError::Size(text.to_owned());
    let (number, unit) = split_unit(text.trim());
    let factor: usize = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: usize = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Writes a size in the largest binary unit that keeps it whole.
pub fn format_size(size_bytes: usize) -> String {
    for (unit, factor) in
        [("TiB", 1usize << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
    {
        if size_bytes >= factor && size_bytes.is_multiple_of(factor) {
            return format!("{}{unit}", size_bytes / factor);
        }
    }
    size_bytes.to_string()
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// Serde of a [`Duration`] as text.
pub(crate) mod duration {
    use super::{Duration, format_duration, parse_duration};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse_duration(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Serde of a size as text or as a plain number.
pub(crate) mod size {
    use super::{format_size, parse_size};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size such as 65536 or \"8MiB\"")]
    enum Either {
        Number(usize),
        Text(String),
    }

    pub(crate) fn serialize<S: Serializer>(value: &usize, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_size(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => parse_size(&text).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        let check = |text: &str, millis: u64| {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        };
        check("5s", 5_000);
        check("250ms", 250);
        check("5", 5_000);
        check("0.5", 500);
        check("1.5 s", 1_500);
        check("2m", 120_000);
        check("1h", 3_600_000);
        check("0s", 0);
        for wrong in ["", "s", "5 parsecs", "-1s", "1e9s", "..", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_round_trip() {
        for micros in [0, 1, 999, 1_000, 250_000, 1_000_000, 90_000_000, 3_600_000_000] {
            let duration = Duration::from_micros(micros);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn sizes_read_and_round_trip() {
        assert_eq!(parse_size("64KiB"), Ok(65_536));
        assert_eq!(parse_size("8 MiB"), Ok(8 << 20));
        assert_eq!(parse_size("65537"), Ok(65_537));
        for wrong in ["", "MiB", "8 mebi", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        for size in [0, 1, 1_023, 1_024, 65_537, 8 << 20, 3 << 30] {
            assert_eq!(parse_size(&format_size(size)), Ok(size));
        }
    }
}
