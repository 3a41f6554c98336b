//! What is said when a save cannot be recovered: which ranks are nowhere, and who was not asked.

use longshore_types::{Code, Error, redact_url};

use crate::sink::HeldRecords;

/// Ranks or workers that a message names.
const NAMED_MAX: usize = 16;

pub(super) fn nothing_held(url: &str, held: &HeldRecords) -> Error {
    Error::new(
        Code::FailedPrecondition,
        format!(
            "no worker holds copies of {} that a save could be made of again: only what was peer-durable (peer_copies) and not \
             committed can be recovered{}",
            redact_url(url),
            unanswered(held)
        ),
    )
}

pub(super) fn not_held(url: &str, missing: &[u32], unusable: &[String], held: &HeldRecords) -> Error {
    let ranks: Vec<String> = missing.iter().take(NAMED_MAX).map(u32::to_string).collect();
    let more = match missing.len() {
        ..=NAMED_MAX => String::new(),
        count => format!(" and {} more", count - NAMED_MAX),
    };
    let unusable: String = unusable.iter().take(NAMED_MAX).map(|why| format!("; {why}")).collect();
    Error::new(
        Code::FailedPrecondition,
        format!(
            "{} cannot be recovered: nobody holds rank {}{more}, and neither this node nor the origin has it{unusable}{}; if \
             another node has it, let that one finish its upload first, or recover there",
            redact_url(url),
            ranks.join(", "),
            unanswered(held)
        ),
    )
}

fn unanswered(held: &HeldRecords) -> String {
    if held.unanswered.is_empty() {
        return String::new();
    }
    let first: Vec<&str> = held.unanswered.iter().take(NAMED_MAX).map(String::as_str).collect();
    format!("; {} workers could not be asked: {}", held.unanswered.len(), first.join(", "))
}
