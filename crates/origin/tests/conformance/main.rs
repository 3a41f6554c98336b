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
mod writing;

use longshore_testkit::Dialect;

/// All cases of the suite.
macro_rules! for_each_case {
    ($run:ident $($rest:tt)*) => {
        $run! { $($rest)* folder_is_resolved, single_file_is_resolved, ranges_are_exact, empty_object_is_read,
            changed_object_is_noticed, deleted_object_is_noticed, what_is_missing_is_named, revision_follows_the_files,
            long_listing_is_paged, odd_names_survive, folder_markers_are_left_out, parallel_reads_agree }
    };
}

/// All cases of the suite for origins that are written to.
macro_rules! for_each_writing_case {
    ($run:ident $($rest:tt)*) => {
        $run! { $($rest)* puts_tell_the_version, create_finds_what_is_there, one_of_many_creators_wins,
            replace_wants_the_right_version, conditional_puts_are_checked, upload_goes_on_after_a_restart,
            small_upload_is_one_part, aborted_upload_is_gone, open_uploads_are_found, verify_finds_a_flipped_byte,
            written_objects_are_listed, deleted_objects_are_gone, attempt_versions_are_read_unconditionally,
            wrong_use_is_refused }
    };
}

/// One test for each case over a double: these start in no time.
macro_rules! doubles {
    ($each:ident $suite:ident $($name:ident: $prepare:expr;)*) => { $(mod $name {
        use super::*;
        $each! { doubles @cases $suite $prepare; }
    })* };
    (@cases $suite:ident $prepare:expr; $($case:ident),*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            $suite::$case(&$prepare.await).await;
        }
    )* };
}

/// One test for all cases over a real server, which takes seconds to start.
macro_rules! real_servers {
    ($each:ident $suite:ident $($name:ident: $prepare:expr;)*) => { $(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let prepared = $prepare.await;
            $each! { real_servers @cases $suite prepared; }
        }
    )* };
    (@cases $suite:ident $prepared:ident; $($case:ident),*) => { $(
        // Shown when the test fails: the case that did is the last one.
        println!("case {}", stringify!($case));
        $suite::$case(&$prepared).await;
    )* };
}

doubles! { for_each_case suite
    local_folder: doubles::local();
    fake_s3: doubles::fake(Dialect::S3);
    fake_gcs: doubles::fake(Dialect::Gcs);
    fake_hub: doubles::fake(Dialect::Hub);
    fake_hub_with_redirects: doubles::redirecting_hub();
    fake_http: doubles::fake(Dialect::Http);
    s3_that_ignores_conditions: doubles::without_conditions();
    http_without_etags: doubles::without_etags();
}

doubles! { for_each_writing_case writing
    written_local_folder: doubles::local();
    written_fake_s3: doubles::fake(Dialect::S3);
    written_fake_gcs: doubles::fake(Dialect::Gcs);
}

real_servers! { for_each_case suite
    moto: servers::moto();
    s3s_fs: servers::s3s_fs();
    azurite: servers::azurite();
    nginx: servers::nginx();
}

real_servers! { for_each_writing_case writing
    written_moto: servers::moto();
    written_s3s_fs: servers::s3s_fs();
    written_azurite: servers::azurite();
}
