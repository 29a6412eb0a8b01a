//! A controller in this process, people who talk to it, and workers whose jobs the test itself does.

pub mod controller;
pub mod disk;
pub mod ground;
pub mod heard;
pub mod logs;
pub mod memory;
pub mod people;
pub mod pipelines;
pub mod stage;
pub mod sweeps;
pub mod transfers;
pub mod wait;
pub mod watched;
pub mod worker;

pub use controller::Controller;
pub use ground::{Backend, Ground};
pub use wait::{soon, until};
pub use worker::Worker;

use railyard_service::rpc_error;
use tonic::{Code, Status};

/// Runs cases on both kinds of cache.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_embedded {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(crate::common::Backend::Embedded).await;
                }
            )*
        }
        mod on_s3 {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(crate::common::Backend::S3).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;

/// The code, the stable reason and the message of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String, String) {
    let status = result.expect_err("this must be refused");
    let reason = rpc_error::reason_of(&status).unwrap_or_else(|| panic!("{status:?} has no reason"));
    (status.code(), reason, status.message().to_owned())
}

/// Asserts that a call was refused with this code and reason; gives the message.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> String {
    let (was, why, message) = refusal(result);
    assert_eq!((was, why.as_str()), (code, reason), "{message}");
    message
}
