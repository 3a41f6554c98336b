//! An origin that is ready for the suite: where it is, how a test puts things there, and what it cannot do.

use std::any::Any;
use std::path::Path;

use futures::future::BoxFuture;
use longshore_origin::{OriginOptions, Origins};

/// Puts or removes an object below the origin's prefix, by relative name. The bytes are owned, so the future is too.
pub type Put = Box<dyn Fn(String, Vec<u8>) -> BoxFuture<'static, ()> + Send + Sync>;
pub type Remove = Box<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// What differs between origins. The default is an origin that does everything right.
#[derive(Clone, Copy)]
pub struct Capabilities {
    /// Folders can be listed.
    pub lists: bool,
    /// Asking for an object by a folder's name gives "not found".
    pub folder_is_no_object: bool,
    /// A listing gives the same versions as a question for one object, without asking for each.
    pub listing_has_versions: bool,
    /// The URL of a file names the commit at which it was resolved, not the branch that was asked for.
    pub urls_carry_commits: bool,
    /// A version that was resolved stays readable after a change.
    pub keeps_versions: bool,
    /// Any change gives a new version, also one of the same size within the same second.
    pub versions_are_exact: bool,
    /// Names with spaces, `%`, `+` and letters outside of ASCII can be stored.
    pub odd_names: bool,
    /// Objects whose name ends with a slash can be stored by `put`.
    pub folder_markers: bool,
    /// Requests that resolving a small folder costs.
    pub requests_of_folder: u64,
    /// Entries of a page of its listing; the suite stores a few more.
    pub page_size: usize,
    /// It keeps a checksum over each whole object, also one of parts, and tells it.
    pub keeps_checksums: bool,
    /// Uploads that are open can be listed.
    pub lists_uploads: bool,
    /// It tells when they were begun.
    pub tells_upload_times: bool,
    /// Of several writers that create an object at once, exactly one does.
    pub creates_atomically: bool,
    /// An upload can be ended before its time.
    pub aborts: bool,
    /// It says of an upload that was completed or aborted that there is none.
    pub knows_ended_uploads: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            lists: true,
            folder_is_no_object: true,
            listing_has_versions: true,
            urls_carry_commits: false,
            keeps_versions: false,
            versions_are_exact: true,
            odd_names: true,
            folder_markers: false,
            requests_of_folder: 1,
            page_size: 1000,
            keeps_checksums: false,
            lists_uploads: true,
            tells_upload_times: true,
            creates_atomically: true,
            aborts: true,
            knows_ended_uploads: true,
        }
    }
}

/// One origin, empty below `prefix`, for one test.
pub struct Prepared {
    pub origins: Origins,
    /// What `origins` was made of.
    pub options: OriginOptions,
    /// URL without a slash at the end.
    pub prefix: String,
    pub put: Put,
    pub remove: Remove,
    pub capabilities: Capabilities,
    /// What must live as long as the test: the server, its folder.
    pub _keep: Box<dyn Any + Send + Sync>,
}

impl Prepared {
    pub async fn put(&self, name: &str, bytes: &[u8]) {
        (self.put)(name.to_owned(), bytes.to_vec()).await;
    }

    pub async fn remove(&self, name: &str) {
        (self.remove)(name.to_owned()).await;
    }

    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }
}

/// `put` and `remove` for origins that serve a folder of this machine. A file is replaced as editors and downloaders
/// do it, by renaming a new one over it.
pub fn of_folder(folder: &Path) -> (Put, Remove) {
    let (for_put, for_remove) = (folder.to_owned(), folder.to_owned());
    let put: Put = Box::new(move |name, bytes| {
        let target = for_put.join(name);
        Box::pin(async move {
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            let temporary = target.with_extension("new");
            std::fs::write(&temporary, bytes).unwrap();
            std::fs::rename(&temporary, &target).unwrap();
        })
    });
    let remove: Remove = Box::new(move |name| {
        let target = for_remove.join(name);
        Box::pin(async move { std::fs::remove_file(target).unwrap() })
    });
    (put, remove)
}
