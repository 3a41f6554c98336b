//! One suite, run over every kind of origin: the doubles of `longshore-testkit`, a local folder, and real servers.
//!
//! What a server gets wrong is a capability in its [`prepared::Prepared`], with the reason beside it, so that the
//! suite still asserts what remains. The real servers come from `make setup`.

// A helper of a test may fail it as the test itself may.
#![allow(clippy::unwrap_used)]

mod doubles;
mod prepared;
mod servers;
mod suite;

use longshore_testkit::Dialect;

/// All cases of the suite.
macro_rules! for_each_case {
    ($run:ident $($rest:tt)*) => {
        $run! { $($rest)* folder_is_resolved, single_file_is_resolved, ranges_are_exact, empty_object_is_read,
            changed_object_is_noticed, deleted_object_is_noticed, what_is_missing_is_named, revision_follows_the_files,
            long_listing_is_paged, odd_names_survive, folder_markers_are_left_out, parallel_reads_agree }
    };
}

/// One test for each case over a double: these start in no time.
macro_rules! doubles {
    ($($name:ident: $prepare:expr;)*) => { $(mod $name {
        use super::*;
        for_each_case! { doubles @cases $prepare; }
    })* };
    (@cases $prepare:expr; $($case:ident),*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            suite::$case(&$prepare.await).await;
        }
    )* };
}

/// One test for all cases over a real server, which takes seconds to start.
macro_rules! real_servers {
    ($($name:ident: $prepare:expr;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let prepared = $prepare.await;
            for_each_case! { real_servers @cases prepared; }
        }
    )* };
    (@cases $prepared:ident; $($case:ident),*) => { $(
        // Shown when the test fails: the case that did is the last one.
        println!("case {}", stringify!($case));
        suite::$case(&$prepared).await;
    )* };
}

doubles! {
    local_folder: doubles::local();
    fake_s3: doubles::fake(Dialect::S3);
    fake_gcs: doubles::fake(Dialect::Gcs);
    fake_hub: doubles::fake(Dialect::Hub);
    fake_hub_with_redirects: doubles::redirecting_hub();
    fake_http: doubles::fake(Dialect::Http);
    s3_that_ignores_conditions: doubles::without_conditions();
    http_without_etags: doubles::without_etags();
}

real_servers! {
    moto: servers::moto();
    s3s_fs: servers::s3s_fs();
    azurite: servers::azurite();
    nginx: servers::nginx();
}
