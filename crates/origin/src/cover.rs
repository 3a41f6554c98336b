//! Which artifacts a URL stands for, when what was cached of it is to be dropped.

/// Length of a full commit id of a hub.
const COMMIT_LEN: usize = 40;

/// Whether the canonical URL `url` is at the canonical URL `root` or below it.
///
/// Files of a hub are known by their commit and not by the branch that was asked for, so a branch or tag covers its
/// repository at every commit; a full commit covers itself alone.
pub fn covers(root: &str, url: &str) -> bool {
    if is_below(root, url) {
        return true;
    }
    match (hub_parts(root), hub_parts(url)) {
        (Some(root), Some(url)) => !is_commit(root.revision) && root.repo == url.repo && is_below(root.path, url.path),
        _ => false,
    }
}

fn is_below(root: &str, text: &str) -> bool {
    let rest = text.strip_prefix(root);
    rest.is_some_and(|rest| root.is_empty() || root.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

struct HubParts<'a> {
    repo: &'a str,
    revision: &'a str,
    path: &'a str,
}

/// The parts of a canonical URL, which has a revision always.
fn hub_parts(url: &str) -> Option<HubParts<'_>> {
    let (repo, rest) = url.strip_prefix("hf://")?.split_once('@')?;
    let (revision, path) = rest.split_once('/').unwrap_or((rest, ""));
    Some(HubParts { repo, revision, path })
}

fn is_commit(revision: &str) -> bool {
    revision.len() == COMMIT_LEN && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::covers;

    #[test]
    fn folders_cover_what_is_in_them() {
        assert!(covers("s3://b/model", "s3://b/model"));
        assert!(covers("s3://b/model", "s3://b/model/a/b"));
        assert!(covers("s3://", "s3://b/model"));
        assert!(!covers("s3://b/model", "s3://b/model-2"));
        assert!(!covers("s3://b/model/a", "s3://b/model"));
    }

    #[test]
    fn a_branch_covers_every_commit_and_a_commit_only_itself() {
        let (one, two) = ("1a".repeat(20), "2b".repeat(20));
        for root in ["hf://o/n@main", "hf://o/n@refs%2Fpr%2F1", "hf://o/n@main/sub", "hf://o/n@main/sub/x"] {
            assert!(covers(root, &format!("hf://o/n@{one}/sub/x")), "{root}");
            assert!(!covers(root, &format!("hf://o/n2@{one}/sub/x")), "{root}");
        }
        assert!(!covers("hf://o/n@main/su", &format!("hf://o/n@{one}/sub/x")));
        assert!(covers(&format!("hf://o/n@{one}"), &format!("hf://o/n@{one}/sub/x")));
        assert!(!covers(&format!("hf://o/n@{one}"), &format!("hf://o/n@{two}/sub/x")));
        assert!(!covers(&format!("hf://o/n@{one}"), "hf://o/n@main"));
    }
}
