//! Topics as v0.7 has them: `*` is one segment, `**` any number of them, anywhere.

/// Longest topic or pattern that is looked at, bytes.
pub const TOPIC_BYTES_MAX: usize = 1_024;

/// Whether a message on `topic` is asked for by `pattern`.
pub fn matches(pattern: &[u8], topic: &[u8]) -> bool {
    let pattern: Vec<&[u8]> = pattern.split(|byte| *byte == b'.').collect();
    let topic: Vec<&[u8]> = topic.split(|byte| *byte == b'.').collect();
    let (mut wanted, mut found) = (0, 0);
    // Where to go on if it does not work out: behind the last `**`, which then takes one segment more.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(segment) = topic.get(found) {
        match pattern.get(wanted) {
            Some(&b"**") => {
                wanted += 1;
                retry = Some((wanted, found));
            }
            Some(here) if *here == b"*" || here == segment => {
                (wanted, found) = (wanted + 1, found + 1)
            }
            _ => {
                let Some((behind, taken)) = retry else { return false };
                retry = Some((behind, taken + 1));
                (wanted, found) = (behind, taken + 1);
            }
        }
    }
    pattern.get(wanted..).unwrap_or_default().iter().all(|segment| *segment == b"**")
}

/// Whether a pattern has wildcards.
pub fn has_wildcards(pattern: &[u8]) -> bool {
    pattern.split(|byte| *byte == b'.').any(|segment| matches!(segment, b"*" | b"**"))
}

/// The pattern by which native peers' messages are asked for: it matches whatever `pattern` matches,
/// and more where `**` is not at the end. `None`: no native topic can match.
pub fn native(pattern: &[u8]) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    for segment in std::str::from_utf8(pattern).ok()?.split('.') {
        match segment {
            "**" => {
                kept.push("**");
                break;
            }
            // No native topic has a star or is empty somewhere.
            "" => return None,
            _ if segment.contains('*') && segment != "*" => return None,
            _ => kept.push(segment),
        }
    }
    Some(kept.join("."))
}
