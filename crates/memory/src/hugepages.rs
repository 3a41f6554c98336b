//! Whether the kernel gives regions huge pages, which decides how fast fresh ones fill.

use std::fs;
use std::path::Path;

const SETTINGS: &str = "sys/kernel/mm/transparent_hugepage";

/// What an administrator should change so that regions fill at the speed of memory; `None` when nothing.
///
/// Regions ask for huge pages, but many systems ship with those switched off for shared memory. Each 4 KiB page then
/// costs a fault when it is first written, and a fresh region fills several times slower than memory can be copied.
pub fn region_page_advice() -> Option<String> {
    advice(Path::new("/"))
}

/// `root` stands for `/`. A kernel without these settings has no huge pages to switch on.
fn advice(root: &Path) -> Option<String> {
    let folder = root.join(SETTINGS);
    let whole = chosen(&folder.join("shmem_enabled"))?;
    // Since Linux 6.10 each size has a setting of its own, which may say to use the one for all.
    let sized = chosen(&folder.join("hugepages-2048kB/shmem_enabled")).filter(|setting| setting != "inherit");
    let setting = if whole == "deny" { &whole } else { sized.as_ref().unwrap_or(&whole) };
    if matches!(setting.as_str(), "always" | "within_size" | "advise" | "force") {
        return None;
    }
    Some(format!(
        "huge pages for shared memory are '{setting}' on this machine, so that fresh memory fills several times slower \
         than it could: write 'advise' to /{SETTINGS}/shmem_enabled"
    ))
}

/// The bracketed word of a setting such as `always [advise] never`.
fn chosen(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_counts_is_found() {
        let cases = [
            ("always within_size advise [never] deny force", None, true),
            ("always within_size [advise] never deny force", None, false),
            ("[always] within_size advise never deny force", Some("always [inherit] never"), false),
            ("always within_size advise [never] deny force", Some("always [inherit] never"), true),
            ("always within_size advise [never] deny force", Some("always inherit [advise] never"), false),
            ("always within_size [advise] never deny force", Some("always inherit advise [never]"), true),
            ("always within_size advise never [deny] force", Some("always inherit [advise] never"), true),
        ];
        for (whole, sized, has_advice) in cases {
            let root = tempfile::tempdir().unwrap();
            let folder = root.path().join(SETTINGS);
            fs::create_dir_all(folder.join("hugepages-2048kB")).unwrap();
            fs::write(folder.join("shmem_enabled"), whole).unwrap();
            if let Some(sized) = sized {
                fs::write(folder.join("hugepages-2048kB/shmem_enabled"), sized).unwrap();
            }
            assert_eq!(advice(root.path()).is_some(), has_advice, "{whole} and {sized:?}");
        }
        assert_eq!(advice(tempfile::tempdir().unwrap().path()), None);
    }
}
