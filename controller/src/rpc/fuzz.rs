//! Messages to the controller, from any bytes: see [`crate::fuzz`].

use super::{bad_request, submit, worker};
use prost::{Message, Name};
use railyard_common::blob::{Artifact, Blob, Image, PartToSign};
use railyard_common::id::{BuildId, JobSelector, LeaseId};
use railyard_common::identity::{Identity, Role};
use railyard_common::outcome::Outcome;
use railyard_proto::v1;
use railyard_service::convert::{self, BadMessage, FromProto, ToProto};
use std::fmt::Debug;
use tonic::Status;

/// The first byte says what the others are.
pub fn message(bytes: &[u8]) -> String {
    let Some((kind, bytes)) = bytes.split_first() else { return "empty".to_owned() };
    let ended = match kind % 8 {
        0 => read::<v1::SubmitRequest>(bytes).and_then(|request| {
            let somebody = Identity::new(Role::Submitter, "ana").map_err(bad_request)?;
            submit::Checked::new(&somebody, request)?.plan_for_fuzz()
        }),
        1 => read::<v1::WorkerMessage>(bytes).and_then(worker::fuzz_hello),
        2 => read::<v1::ReportRequest>(bytes).and_then(report),
        3 => read::<v1::PrepareUploadRequest>(bytes).and_then(|request| {
            let blobs = convert::list::<_, Blob>("blobs", request.blobs)?;
            Ok(blobs.iter().try_for_each(same_again)?)
        }),
        4 => read::<v1::LogBatch>(bytes).and_then(|batch| lease(batch.lease)),
        5 => read::<v1::ReadLogRequest>(bytes).and_then(|request| {
            let build: BuildId = convert::parsed("build", &request.build)?;
            assert_eq!(build.to_string().parse(), Ok(build));
            convert::parsed::<JobSelector>("job", &request.job)?;
            Ok(())
        }),
        6 => read::<v1::HoldWorkerRequest>(bytes).map(drop),
        _ => read::<v1::SignPartsRequest>(bytes).and_then(|request| {
            lease(request.lease)?;
            same_again::<Blob>(&convert::required("blob", request.blob)?)?;
            Ok(convert::list::<_, PartToSign>("parts", request.parts)?.iter().try_for_each(same_again)?)
        }),
    };
    format!("{} {}", kind % 8, ended.map_or_else(|status| status.message().to_owned(), |()| "fine".to_owned()))
}

fn read<M: Message + Name + Default>(bytes: &[u8]) -> Result<M, Status> {
    railyard_proto::bounded::decode(bytes)
}

fn lease(proto: Option<v1::LeaseId>) -> Result<(), Status> {
    Ok(same_again::<LeaseId>(&worker::lease_of(proto)?)?)
}

fn report(request: v1::ReportRequest) -> Result<(), Status> {
    lease(request.lease)?;
    same_again::<Outcome>(&convert::required("outcome", request.outcome)?)?;
    convert::list::<_, Artifact>("artifacts", request.artifacts)?.iter().try_for_each(same_again)?;
    if let Some(image) = request.image {
        same_again(&Image::from_proto(image)?)?;
    }
    Ok(())
}

/// What was read is written and read as the same.
fn same_again<T>(value: &T) -> Result<(), BadMessage>
where
    T: ToProto + FromProto<T::Proto> + PartialEq + Debug,
{
    assert_eq!(&T::from_proto(value.to_proto())?, value);
    Ok(())
}
