//! File names that come from outside (a listing, an index) checked before they touch a disk or a URL.

use crate::error::{Code, Error, Result};

/// Longest relative name, in bytes.
pub const NAME_BYTES_MAX: usize = 1024;

/// Checks that `name` is a plain relative path: no empty, `.` or `..` parts, no leading or trailing slash,
/// no backslash, no control character. `where_from` names the source of the name in the error.
///
/// # Errors
/// [`Code::InvalidArgument`], naming `where_from` and the reason.
pub fn check_relative(name: &str, where_from: &str) -> Result<()> {
    let reason = if name.is_empty() || name.len() > NAME_BYTES_MAX {
        "is empty or too long"
    } else if name.chars().any(|c| c.is_control() || c == '\\') {
        "holds a control character or a backslash"
    } else if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        "is not a plain relative path (empty, '.' or '..' part)"
    } else {
        return Ok(());
    };
    Err(Error::new(Code::InvalidArgument, format!("file name {name:?} in {where_from} {reason}")))
}

/// The folder part of a relative name, without its slash; empty for a name at the top.
pub fn folder_of(name: &str) -> &str {
    name.rfind('/').map_or("", |slash| &name[..slash])
}

/// The last part of a relative name.
pub fn base_of(name: &str) -> &str {
    name.rfind('/').map_or(name, |slash| &name[slash + 1..])
}

/// `folder/base`, or `base` when the folder is empty.
pub fn join(folder: &str, base: &str) -> String {
    if folder.is_empty() { base.to_owned() } else { format!("{folder}/{base}") }
}

/// Matches `name` against a pattern where `*` stands for any run of characters (slashes too) and `?` for one.
/// A pattern without a slash is also tried against the last part of the name.
pub fn matches(pattern: &str, name: &str) -> bool {
    wildcard(pattern.as_bytes(), name.as_bytes())
        || (!pattern.contains('/') && wildcard(pattern.as_bytes(), base_of(name).as_bytes()))
}

/// Greedy matching with one point to come back to: linear in practice, never exponential.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut back) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                back = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match back {
                Some((star, from)) => {
                    p = star;
                    n = from + 1;
                    back = Some((star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tricks_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "a\0b", "a\nb"] {
            assert!(check_relative(bad, "test").is_err(), "{bad:?}");
        }
        for good in ["a", "a/b.c", "..a", "a..", "model-00001-of-00002.safetensors", "日本/語"] {
            assert!(check_relative(good, "test").is_ok(), "{good:?}");
        }
    }

    #[test]
    fn wildcards() {
        assert!(matches("*.json", "a/b.json"));
        assert!(matches("a/*", "a/b/c"));
        assert!(!matches("a/*.bin", "b/a.bin"));
        assert!(matches("m?del*", "model.safetensors"));
        assert!(!matches(&"*a".repeat(40), &"b".repeat(200)));
    }
}
