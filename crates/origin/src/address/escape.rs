//! What would end the path of a URL, in the names of buckets and hubs: `%3F` stands for `?`, `%23` for `#` and `%25` for
//! `%`. Any other `%` stands for itself, so that a key with `%20` in it is written as the store's own tools write it.
//!
//! [`escape`] gives each name its one canonical text, from which [`unescape`] gives the name back.

/// The character that the escape at the begin of `text` stands for; escapes have three bytes.
fn escaped_at(text: &str) -> Option<char> {
    match text.get(..3)? {
        "%25" => Some('%'),
        "%23" => Some('#'),
        "%3F" | "%3f" => Some('?'),
        _ => None,
    }
}

/// The canonical text of a name.
pub(super) fn escape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        match c {
            '?' => text.push_str("%3F"),
            '#' => text.push_str("%23"),
            '%' if escaped_at(&name[at..]).is_some() => text.push_str("%25"),
            c => text.push(c),
        }
    }
    text
}

/// The name that a text stands for.
pub(super) fn unescape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        name.push_str(before);
        let (c, len) = escaped_at(escape).map_or(('%', 1), |c| (c, 3));
        name.push(c);
        rest = &escape[len..];
    }
    name + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::{Address, Cloud, HubPlace};

    #[test]
    fn texts() {
        for (name, text) in [
            ("a b%20.bin", "a b%20.bin"),
            ("100%", "100%"),
            ("why?#1", "why%3F%231"),
            ("%3F", "%253F"),
            ("%3f", "%253f"),
            ("%25", "%2525"),
            ("%%?", "%%%3F"),
        ] {
            assert_eq!(escape(name), text);
            assert_eq!(unescape(text), name);
        }
    }

    /// Names made of what can go wrong, and any others.
    fn part() -> impl Strategy<Value = String> {
        let of_escapes = "([%?#235Ff:@&+.a~é ]|%25|%3F|%23){1,12}".prop_map(String::from);
        let of_anything = "\\PC{1,20}".prop_map(|name| name.replace(['/', '\\'], "x"));
        prop_oneof![of_escapes, of_anything]
            .prop_filter("not a plain name", |name| longshore_types::names::check_relative(name, "").is_ok())
    }

    proptest! {
        #[test]
        fn a_url_gives_back_the_name_it_was_made_of(name in prop::collection::vec(part(), 1..4), kind in 0..7) {
            let bucket = |cloud| Address::Bucket { cloud, bucket: "b".to_owned(), key: "model".to_owned() };
            let place = HubPlace { repo: "o/n".to_owned(), revision: "main".to_owned(), path: String::new() };
            let folder = match kind {
                0 => bucket(Cloud::S3),
                1 => bucket(Cloud::Gcs),
                2 => bucket(Cloud::Azure),
                3 => Address::Hub(place),
                4 => Address::Hub(place.at("0123abcd")),
                5 => Address::File("/folder".into()),
                _ => Address::Web { server: "http://host:1".to_owned(), path: "folder".to_owned() },
            };
            let address = folder.child(&name.join("/"));
            let url = address.to_string();
            prop_assert!(!url.contains(['?', '#']), "{url}");
            prop_assert_eq!(&longshore_types::redact_url(&url), &url, "nothing of it looks like a secret");
            let parsed = Address::parse(&url).unwrap();
            prop_assert_eq!(&parsed, &address);
            prop_assert_eq!(parsed.to_string(), url);
            prop_assert_eq!(parsed.base_name(), name.last().unwrap().as_str());
        }

        #[test]
        fn two_names_have_two_texts(a in "[%?#235Ff]{0,6}", b in "[%?#235Ff]{0,6}") {
            prop_assert_eq!(escape(&a) == escape(&b), a == b);
            let canonical = escape(&unescape(&a));
            prop_assert_eq!(unescape(&canonical), unescape(&a));
        }
    }
}
