//! The build cache: one suite against both backends, over real listeners and with the real transfer code.

#[path = "cache/embedded.rs"]
mod embedded;
#[path = "cache/faults.rs"]
mod faults;
#[path = "cache/fixture.rs"]
mod fixture;
#[path = "cache/proxy.rs"]
mod proxy;
#[path = "cache/s3.rs"]
mod s3;
#[path = "cache/sending.rs"]
mod sending;
mod store;
#[path = "cache/suite.rs"]
mod suite;
#[path = "cache/untrusted.rs"]
mod untrusted;

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::suite::$case(super::fixture::Fixture::open(super::fixture::Backend::Embedded).await).await;
                }
            )*
        }
        mod on_s3 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::suite::$case(super::fixture::Fixture::open(super::fixture::Backend::S3).await).await;
                }
            )*
        }
    };
}

on_both!(
    round_trip,
    compressed,
    dedupe,
    damaged_part,
    wrong_digest,
    oversized_part,
    missing_parts,
    aborted,
    concurrent_uploads,
    a_corrupt_upload_does_not_replace_a_good_blob,
    an_upload_goes_on,
    an_upload_is_one_lease_s,
    another_form_begins_anew,
    uploads_end_with_their_lease,
    ranges,
    interrupted_pull,
    signatures,
    expired,
    conditional_put,
    publish,
    list_and_delete,
    files_and_streams,
    senseless_requests,
    bytes_that_changed_after_they_were_hashed,
    wrong_bytes_of_an_untrusted_build_never_have_a_blob_s_name,
    right_bytes_of_an_untrusted_build_are_a_blob_for_everybody,
);
