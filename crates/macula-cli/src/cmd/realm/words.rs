//! Times in words.

use macula_grant::UnixTime;

/// `in 23 h 59 min (2026-11-23T12:00:00Z)`, `2 d 3 h ago (…)`.
pub(super) fn moment(time: UnixTime, now: UnixTime) -> String {
    let seconds = time.as_secs().abs_diff(now.as_secs());
    let absolute = time.to_rfc3339();
    if time > now {
        format!("in {} ({absolute})", span(seconds))
    } else {
        format!("{} ago ({absolute})", span(seconds))
    }
}

/// `42 s`, `7 min 12 s`, `2 h 5 min`, `3 d 4 h`.
fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3_600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match seconds {
        0..60 => format!("{rest} s"),
        60..3_600 => format!("{minutes} min {rest} s"),
        3_600..86_400 => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_well() {
        let now = UnixTime::from_secs(1_795_348_800);
        let after = |seconds: u64| moment(UnixTime::from_secs(now.as_secs() + seconds), now);
        assert_eq!(after(432), "in 7 min 12 s (2026-11-22T12:07:12Z)");
        assert_eq!(after(86_400), "in 1 d 0 h (2026-11-23T12:00:00Z)");
        let before = UnixTime::from_secs(now.as_secs() - 7_500);
        assert_eq!(moment(before, now), "2 h 5 min ago (2026-11-22T09:55:00Z)");
        assert_eq!(moment(now, now), "0 s ago (2026-11-22T12:00:00Z)");
    }
}
