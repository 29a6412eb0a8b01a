//! What a worker says of its disks.

use super::{BadMessage, FromProto, ToProto, all};
use railyard_common::disk::{DiskReport, FileSystem, Kind, KindUse, Role};
use railyard_proto::v1;

/// File systems that a worker can have: its own directory's, and the engine's.
const FILE_SYSTEMS_MAX: usize = 2;
/// Kinds of things, on each of them.
const USES_MAX: usize = FILE_SYSTEMS_MAX * Kind::ALL.len();

impl ToProto for Role {
    type Proto = v1::FileSystemRole;

    fn to_proto(&self) -> v1::FileSystemRole {
        match self {
            Self::Data => v1::FileSystemRole::Data,
            Self::Engine => v1::FileSystemRole::Engine,
        }
    }
}

fn role(proto: v1::FileSystemRole) -> Option<Role> {
    match proto {
        v1::FileSystemRole::Unspecified => None,
        v1::FileSystemRole::Data => Some(Role::Data),
        v1::FileSystemRole::Engine => Some(Role::Engine),
    }
}

impl ToProto for Kind {
    type Proto = v1::DiskKind;

    fn to_proto(&self) -> v1::DiskKind {
        match self {
            Self::Blobs => v1::DiskKind::Blobs,
            Self::Layers => v1::DiskKind::Layers,
            Self::Images => v1::DiskKind::Images,
            Self::Work => v1::DiskKind::Work,
            Self::Containers => v1::DiskKind::Containers,
            Self::Volumes => v1::DiskKind::Volumes,
            Self::Logs => v1::DiskKind::Logs,
        }
    }
}

fn kind(proto: v1::DiskKind) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.to_proto() == proto)
}

impl ToProto for FileSystem {
    type Proto = v1::FileSystem;

    fn to_proto(&self) -> v1::FileSystem {
        v1::FileSystem {
            role: self.role.to_proto().into(),
            total_bytes: self.total_bytes,
            free_bytes: self.free_bytes,
            evictable_bytes: self.evictable_bytes,
            high_bytes: self.high_bytes,
            low_bytes: self.low_bytes,
            reserve_bytes: self.reserve_bytes,
        }
    }
}

impl ToProto for KindUse {
    type Proto = v1::DiskUse;

    fn to_proto(&self) -> v1::DiskUse {
        v1::DiskUse {
            kind: self.kind.to_proto().into(),
            on: self.on.to_proto().into(),
            count: self.count,
            bytes: self.bytes,
            evictable_bytes: self.evictable_bytes,
        }
    }
}

impl ToProto for DiskReport {
    type Proto = v1::DiskReport;

    fn to_proto(&self) -> v1::DiskReport {
        v1::DiskReport {
            file_systems: all(&self.file_systems),
            uses: all(&self.uses),
            room_bytes: self.room_bytes,
            counted_millis_ago: self.counted_millis_ago,
        }
    }
}

/// File systems and kinds that only a newer worker knows are left out.
impl FromProto<v1::DiskReport> for DiskReport {
    fn from_proto(proto: v1::DiskReport) -> Result<Self, BadMessage> {
        if proto.file_systems.len() > FILE_SYSTEMS_MAX {
            return Err(BadMessage::new("file_systems", format!("more than {FILE_SYSTEMS_MAX}")));
        }
        if proto.uses.len() > USES_MAX {
            return Err(BadMessage::new("uses", format!("more than {USES_MAX}")));
        }
        let file_system = |found: &v1::FileSystem| {
            Some(FileSystem {
                role: role(found.role())?,
                total_bytes: found.total_bytes,
                free_bytes: found.free_bytes,
                evictable_bytes: found.evictable_bytes,
                high_bytes: found.high_bytes,
                low_bytes: found.low_bytes,
                reserve_bytes: found.reserve_bytes,
            })
        };
        let used = |found: &v1::DiskUse| {
            Some(KindUse {
                kind: kind(found.kind())?,
                on: role(found.on())?,
                count: found.count,
                bytes: found.bytes,
                evictable_bytes: found.evictable_bytes,
            })
        };
        Ok(Self {
            file_systems: proto.file_systems.iter().filter_map(file_system).collect(),
            uses: proto.uses.iter().filter_map(used).collect(),
            room_bytes: proto.room_bytes,
            counted_millis_ago: proto.counted_millis_ago,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_of_its_disks_comes_through() {
        let report = DiskReport {
            file_systems: [Role::Data, Role::Engine]
                .map(|role| FileSystem {
                    role,
                    total_bytes: 100,
                    free_bytes: 20,
                    evictable_bytes: 10,
                    high_bytes: 85,
                    low_bytes: 75,
                    reserve_bytes: 2,
                })
                .to_vec(),
            uses: Kind::ALL
                .map(|kind| KindUse { kind, on: Role::Data, count: 2, bytes: 9, evictable_bytes: 1 })
                .to_vec(),
            room_bytes: 28,
            counted_millis_ago: 5,
        };
        let proto = report.to_proto();
        assert_eq!(DiskReport::from_proto(proto.clone()).unwrap(), report);
        let mut newer = proto.clone();
        (newer.uses[0].kind, newer.file_systems[1].role) = (99, 99);
        let read = DiskReport::from_proto(newer).unwrap();
        assert_eq!((read.uses.len(), read.file_systems.len()), (Kind::ALL.len() - 1, 1));
        let mut endless = proto;
        endless.uses = vec![v1::DiskUse::default(); USES_MAX + 1];
        assert!(DiskReport::from_proto(endless).unwrap_err().to_string().contains("uses"));
    }
}
