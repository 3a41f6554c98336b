//! The routes of the Hugging Face hub that a reader of models uses.
//!
//! A commit is the digest of the names and contents of a repository; each commit that was ever told stays readable, as
//! in the real one, so that a change of `main` does not take away what a client has resolved.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::header;
use hyper::{Response, StatusCode};
use longshore_types::names;
use serde_json::{Value, json};

use super::body::{self, Body};
use super::faults::Verb;
use super::request::Ask;
use super::serve::{Call, Side, built};
use super::state::{Files, Object, State};
use super::stores::Failure;
use super::text::{decode, encode, encode_path, iso_date};
use crate::content::{Content, hex};

/// Files of that size, and those that look like weights, are kept apart (LFS) and may be redirected.
const LARGE_BYTES: u64 = 10 << 20;
const LARGE_ENDINGS: [&str; 4] = ["*.safetensors", "*.bin", "*.gguf", "*.pt"];

pub(super) enum HubRoute {
    Info { repo: String, commit: String, files: Files },
    Tree { commit: String, files: Files, folder: String },
    File { name: String, commit: String, object: Arc<Object> },
    Redirect { name: String, commit: String, object: Arc<Object>, repo: String },
    Missing(Failure),
}

pub(super) fn commit(state: &State, repo: &str) -> Option<String> {
    let prefix = format!("{repo}/");
    let files: Files = state
        .objects_under(&prefix, "")
        .into_iter()
        .map(|(path, object)| (path[prefix.len()..].to_owned(), object))
        .collect();
    if files.is_empty() {
        return None;
    }
    let text: String = files.iter().map(|(name, object)| format!("{name}\0{}\0", object.etag)).collect();
    let commit = Content::from(text.into_bytes()).sha256()[..40].to_owned();
    state.commits.lock().entry((repo.to_owned(), commit.clone())).or_insert(files);
    Some(commit)
}

pub(super) fn route(state: &State, ask: &Ask, side: Side, verb: Verb) -> (HubRoute, Verb, String) {
    // Cut before decoding: a revision may hold an encoded slash.
    let parts: Vec<String> = ask.raw_path.split('/').skip(1).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if let ["api", "models", rest @ ..] = &parts[..] {
        let cut = rest.iter().position(|part| matches!(*part, "revision" | "tree")).unwrap_or(rest.len());
        let repo = rest[..cut].join("/");
        let revision = rest.get(cut + 1).copied().unwrap_or("main");
        let route = find(state, &repo, revision).map(|(commit, files)| match rest.get(cut) {
            Some(&"tree") => {
                let folder = rest.get(cut + 2..).unwrap_or_default().join("/");
                HubRoute::Tree { commit, files, folder }
            }
            _ => HubRoute::Info { repo: repo.clone(), commit, files },
        });
        return (route.unwrap_or_else(HubRoute::Missing), Verb::List, repo);
    }
    let Some(cut) = parts.iter().position(|part| *part == "resolve").filter(|cut| parts.len() > cut + 2) else {
        return (HubRoute::Missing(Failure::of_status(404)), verb, ask.path.clone());
    };
    let (repo, name) = (parts[..cut].join("/"), parts[cut + 2..].join("/"));
    let path = format!("{repo}/{name}");
    let route = find(state, &repo, parts[cut + 1]).and_then(|(commit, files)| {
        let object = files.get(&name).cloned();
        let object = object.ok_or_else(|| Failure::new(404, "EntryNotFound", "Entry not found"))?;
        let redirects = state.config.redirects_large_files && side == Side::Front && is_large(&name, &object);
        Ok(match redirects {
            true => HubRoute::Redirect { name, commit, object, repo },
            false => HubRoute::File { name, commit, object },
        })
    });
    let verb = if matches!(route, Ok(HubRoute::Redirect { .. })) { Verb::Head } else { verb };
    (route.unwrap_or_else(HubRoute::Missing), verb, path)
}

fn find(state: &State, repo: &str, revision: &str) -> Result<(String, Files), Failure> {
    let main = commit(state, repo).ok_or_else(|| {
        // The real one does not tell strangers what is private and what is not there.
        let status = if state.config.token.is_some() { 404 } else { 401 };
        Failure::new(status, "RepoNotFound", "Repository not found")
    })?;
    let commit = if revision == "main" { main } else { revision.to_owned() };
    let files = state.commits.lock().get(&(repo.to_owned(), commit.clone())).cloned();
    let files = files.ok_or_else(|| Failure::new(404, "RevisionNotFound", format!("Invalid rev id: {revision}")))?;
    Ok((commit, files))
}

fn is_large(name: &str, object: &Object) -> bool {
    object.content.len_bytes() >= LARGE_BYTES || LARGE_ENDINGS.iter().any(|ending| names::matches(ending, name))
}

/// SHA-256 of a large file; small ones have a git id of 40 digits.
fn oid(name: &str, object: &Object) -> String {
    let digest = object.sha256();
    if is_large(name, object) { digest.to_owned() } else { digest[..40].to_owned() }
}

pub(super) fn answer(call: Call, route: HubRoute) -> Response<Body> {
    match route {
        HubRoute::Info { repo, commit, files } => {
            let siblings: Vec<Value> = files.keys().map(|name| json!({ "rfilename": name })).collect();
            let modified = files.values().map(|object| object.modified).max().map(iso_date);
            let info = json!({
                "_id": hex(&commit.as_bytes()[..12]), "id": repo, "modelId": repo, "sha": commit, "lastModified": modified,
                "private": false, "gated": false, "disabled": false, "tags": [], "downloads": 0, "likes": 0,
                "siblings": siblings,
            });
            call.text(StatusCode::OK, "application/json", info.to_string())
        }
        HubRoute::Tree { commit, files, folder } => tree(call, &commit, &files, &folder),
        HubRoute::File { name, commit, object } => {
            let etag = format!("\"{}\"", oid(&name, &object));
            call.object(object, vec![("x-repo-commit", commit), ("etag", etag)])
        }
        HubRoute::Redirect { name, commit, object, repo } => {
            let target = format!(
                "http://{}/{}/resolve/{commit}/{}?X-Amz-Signature=fake",
                call.state.cdn_address,
                encode_path(&repo),
                encode_path(&name)
            );
            call.ticket.status(302);
            let response = Response::builder()
                .status(StatusCode::FOUND)
                .header(header::LOCATION, target)
                .header("x-repo-commit", commit)
                .header("x-linked-size", object.content.len_bytes())
                .header("x-linked-etag", format!("\"{}\"", oid(&name, &object)));
            built(response.body(body::empty()))
        }
        HubRoute::Missing(failure) => call.fail(failure),
    }
}

/// Pages by `cursor`, with the address of the next page in a `Link` header.
fn tree(call: Call, commit: &str, files: &Files, folder: &str) -> Response<Body> {
    let recursive = call.ask.param("recursive").is_some_and(|value| matches!(value, "true" | "True" | "1"));
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    for (name, object) in files.iter().filter(|(name, _)| name.starts_with(&prefix)) {
        let inner = &name[prefix.len()..];
        for (cut, _) in inner.match_indices('/').take(if recursive { usize::MAX } else { 1 }) {
            let path = format!("{prefix}{}", &inner[..cut]);
            let oid = &Content::from(path.clone().into_bytes()).sha256()[..40];
            entries.insert(path.clone(), json!({ "type": "directory", "oid": oid, "size": 0, "path": path }));
        }
        if recursive || !inner.contains('/') {
            let size = object.content.len_bytes();
            let mut entry = json!({ "type": "file", "oid": &object.sha256()[..40], "size": size, "path": name });
            if is_large(name, object) {
                entry["lfs"] = json!({ "oid": object.sha256(), "size": size, "pointerSize": 135 });
            }
            entries.insert(name.clone(), entry);
        }
    }
    if entries.is_empty() {
        return call.fail(Failure::new(404, "EntryNotFound", format!("{folder} does not exist on {commit}")));
    }
    let after = call.ask.param("cursor").unwrap_or_default().to_owned();
    let page_size = call.state.config.page_size.max(1);
    let mut left = entries.into_iter().filter(|(path, _)| *path > after);
    let page: Vec<(String, Value)> = left.by_ref().take(page_size).collect();
    let more = left.next().is_some();
    let mut response = Response::builder().header(header::CONTENT_TYPE, "application/json");
    if let Some((last, _)) = page.last().filter(|_| more) {
        let host = call.ask.header(header::HOST).unwrap_or_default();
        let kept = call.ask.raw_query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
        let query: String = kept.map(|pair| format!("{pair}&")).collect();
        let next = format!("<http://{host}{}?{query}cursor={}>; rel=\"next\"", call.ask.raw_path, encode(last));
        response = response.header(header::LINK, next);
    }
    call.ticket.status(200);
    let list: Vec<Value> = page.into_iter().map(|(_, entry)| entry).collect();
    built(response.body(body::text(Value::from(list).to_string())))
}
