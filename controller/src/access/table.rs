//! Who may call what: the one table.
//!
//! A call without a row is refused, so that a new one is not open by accident; a test goes through every call that the farm's
//! reflection names.

use railyard_service::tls::{Identity, Role};

/// What the table says of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Go on.
    Yes,
    /// Turn away.
    No,
    /// Who it is does not decide: whoever answers asks for a signed URL, unless the cache is public.
    Url,
}

/// What may be called, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// `/package.Service/Method`, a route, or a rule within a call.
    pub call: &'static str,
    nobody: Say,
    viewer: Say,
    submitter: Say,
    operator: Say,
    worker: Say,
}

const fn row(call: &'static str, [nobody, viewer, submitter, operator, worker]: [Say; 5]) -> Row {
    Row { call, nobody, viewer, submitter, operator, worker }
}

const YES: Say = Say::Yes;
const NO_: Say = Say::No;
const URL: Say = Say::Url;

/// To submit a build that goes before all others.
pub const SUBMIT_RELEASE: &str = "submit with priority release";
/// To take back or replace a pin that somebody else has set.
pub const OTHERS_PINS: &str = "change others' pins";
/// What is in the cache.
pub const READ_CACHE: &str = "/cache/{*path}";
/// What is in the registry.
pub const READ_REGISTRY: &str = "/v2/{*rest}";

/// The table.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    //                                                nobody viewer submitter operator worker
    row("/railyard.v1.ClientService/GetFarm",        [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/Plan",           [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/Submit",         [NO_,   NO_,   YES,      YES,     NO_]),
    row(SUBMIT_RELEASE,                              [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/ListBuilds",     [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/GetBuild",       [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/WatchBuild",     [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/ReadLog",        [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/SignArtifacts",  [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/Cancel",         [NO_,   NO_,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/Approve",        [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/Retry",          [NO_,   NO_,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/ListWorkers",    [NO_,   YES,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/HoldWorker",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/ReleaseWorker",  [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/PinBuild",       [NO_,   NO_,   YES,      YES,     NO_]),
    row("/railyard.v1.ClientService/UnpinBuild",     [NO_,   NO_,   YES,      YES,     NO_]),
    row(OTHERS_PINS,                                 [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/TagBuild",       [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/PromoteBuild",   [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/UntagBuild",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.ClientService/DeleteBuild",    [NO_,   NO_,   NO_,      YES,     NO_]),
    //                                                nobody viewer submitter operator worker
    row("/railyard.v1.WorkerService/Session",        [NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/AppendLog",      [NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/PrepareUpload",  [NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/SignParts",      [NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/PrepareDownload",[NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/FetchSecrets",   [NO_,   NO_,   NO_,      NO_,     YES]),
    row("/railyard.v1.WorkerService/Report",         [NO_,   NO_,   NO_,      NO_,     YES]),
    //                                                nobody viewer submitter operator worker
    row("/railyard.v1.AdminService/Backup",          [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/ShowAudit",       [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/VerifyAudit",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/SetSecret",       [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/ListSecrets",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/RemoveSecret",    [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/PlanSweep",       [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/RunSweep",        [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AdminService/ResumeSweep",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AccessService/Enrol",          [YES,   YES,   YES,      YES,     YES]),
    row("/railyard.v1.AccessService/Renew",          [NO_,   YES,   YES,      YES,     YES]),
    row("/railyard.v1.AccessService/CreateToken",    [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AccessService/ListTokens",     [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AccessService/RevokeToken",    [NO_,   NO_,   NO_,      YES,     NO_]),
    row("/railyard.v1.AccessService/Revoke",         [NO_,   NO_,   NO_,      YES,     NO_]),
    //                                                nobody viewer submitter operator worker
    row("/grpc.health.v1.Health/Check",              [YES,   YES,   YES,      YES,     YES]),
    row("/grpc.health.v1.Health/Watch",              [YES,   YES,   YES,      YES,     YES]),
    row("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [YES, YES, YES, YES, YES]),
    //                                                nobody viewer submitter operator worker
    row("/healthz",                                  [YES,   YES,   YES,      YES,     YES]),
    row("/readyz",                                   [YES,   YES,   YES,      YES,     YES]),
    row("/cache",                                    [URL,   YES,   YES,      YES,     URL]),
    row("/cache/",                                   [URL,   YES,   YES,      YES,     URL]),
    row(READ_CACHE,                                  [URL,   YES,   YES,      YES,     URL]),
    row("/v2",                                       [URL,   YES,   YES,      YES,     URL]),
    row("/v2/",                                      [URL,   YES,   YES,      YES,     URL]),
    row(READ_REGISTRY,                               [URL,   YES,   YES,      YES,     URL]),
];

impl Row {
    /// What it says of a role; `None`: of somebody who showed nothing.
    pub fn says(&self, role: Option<Role>) -> Say {
        match role {
            None => self.nobody,
            Some(Role::Viewer) => self.viewer,
            Some(Role::Submitter) => self.submitter,
            Some(Role::Operator) => self.operator,
            Some(Role::Worker) => self.worker,
        }
    }

    /// Whether it is the operator's alone.
    pub fn is_operators(&self) -> bool {
        self.operator == YES && [self.viewer, self.submitter, self.worker] == [NO_; 3]
    }
}

/// The row of a call.
pub fn find(call: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.call == call)
}

/// Whether the table lets somebody with this identity read there: whoever it does not needs a signed URL, or a public cache.
pub fn may_read(what: &str, identity: &Identity) -> bool {
    find(what).is_some_and(|row| row.says(Some(identity.role)) == Say::Yes)
}

/// Why somebody may not make a call; `None` if they may, as far as who they are decides it.
pub fn refuses(call: &str, identity: Option<&Identity>) -> Option<Refused> {
    let Some(row) = find(call) else { return Some(Refused::NoRow) };
    match (row.says(identity.map(|identity| identity.role)), identity) {
        (Say::Yes | Say::Url, _) => None,
        (Say::No, None) => Some(Refused::Nobody),
        (Say::No, Some(identity)) => {
            let whose = if row.is_operators() { "; it is the operator's" } else { "" };
            let what = if call.starts_with('/') { "do this" } else { call };
            Some(Refused::Forbidden(format!("{} {} may not {what}{whose}", identity.role, identity.name)))
        }
    }
}

/// Why the table turns somebody away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not know the call.
    NoRow,
    /// The caller showed nothing.
    Nobody,
    /// The caller is somebody else than it takes.
    Forbidden(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;
    use railyard_proto::v1;
    use std::collections::BTreeSet;
    use tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET as REFLECTION;

    fn calls(descriptors: &[u8]) -> Vec<String> {
        let files = FileDescriptorSet::decode(descriptors).unwrap().file;
        let services = files.iter().flat_map(|file| file.service.iter().map(|service| (file.package(), service)));
        let calls = services.flat_map(|(package, service)| {
            service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
        });
        calls.collect()
    }

    #[test]
    fn every_call_of_the_protocol_has_one_row_and_every_row_a_call() {
        let all: Vec<String> = [v1::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, REFLECTION]
            .iter()
            .flat_map(|descriptors| calls(descriptors))
            .collect();
        let known: BTreeSet<&str> = all.iter().map(String::as_str).collect();
        let missing: Vec<&&str> = known.iter().filter(|call| find(call).is_none()).collect();
        assert!(missing.is_empty(), "calls without a row in the table: {missing:?}");
        let is_rpc = |call: &str| call.starts_with("/railyard.") || call.starts_with("/grpc.");
        let stale: Vec<_> =
            TABLE.iter().map(|row| row.call).filter(|call| is_rpc(call) && !known.contains(call)).collect();
        assert!(stale.is_empty(), "rows without a call: {stale:?}");
        let names: BTreeSet<&str> = TABLE.iter().map(|row| row.call).collect();
        assert_eq!(names.len(), TABLE.len(), "a call has one row");
    }

    #[test]
    fn nobody_may_change_anything_and_workers_are_not_people() {
        for row in TABLE {
            let open = matches!(row.call, "/railyard.v1.AccessService/Enrol" | "/healthz" | "/readyz");
            let about_itself = row.call.starts_with("/grpc.");
            assert!(row.nobody != YES || open || about_itself, "{} is open to everybody", row.call);
            if row.call.contains("WorkerService") {
                assert_eq!([row.viewer, row.submitter, row.operator, row.worker], [NO_, NO_, NO_, YES], "{}", row.call);
            }
            if row.call.contains("ClientService") || row.call.contains("AdminService") {
                assert_eq!((row.worker, row.operator), (NO_, YES), "{}", row.call);
                assert!(row.viewer == NO_ || row.submitter == YES, "{}: a submitter may what a viewer may", row.call);
            }
        }
        assert_eq!(refuses("/railyard.v1.ClientService/NewCall", None), Some(Refused::NoRow));
    }
}
