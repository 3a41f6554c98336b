//! The deadline that a gRPC request carries. tonic bounds the time to the head of an answer by it; a load is a stream
//! that has its head at once, so the stream is bounded here.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Digits that the protocol allows.
const DIGITS_MAX: usize = 8;

/// The time the client gives, or `None` when it waits for ever or says something that is no time.
pub(crate) fn of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_and_nonsense_is_ignored() {
        assert_eq!(parse("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "3", "-3S", "999999999S", "3s", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
