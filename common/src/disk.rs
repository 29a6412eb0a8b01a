//! What a worker's disks hold, and how full they are.

/// Which file system of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// That of its own directory.
    Data,
    /// The engine's, if that is another one.
    Engine,
}

/// What of the worker's takes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Fetched files, kept for the next job that wants them.
    Blobs,
    /// Image layers and other files that are kept packed.
    Layers,
    /// Images in the engine.
    Images,
    /// Directories of jobs.
    Work,
    /// What containers have changed in their own roots.
    Containers,
    /// Volumes of containers.
    Volumes,
    /// Logs of jobs that are on their way.
    Logs,
}

impl Kind {
    /// All of them, in the order that people are shown.
    pub const ALL: [Self; 7] =
        [Self::Blobs, Self::Layers, Self::Images, Self::Work, Self::Containers, Self::Volumes, Self::Logs];

    /// For people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Layers => "layers",
            Self::Images => "images",
            Self::Work => "work",
            Self::Containers => "containers",
            Self::Volumes => "volumes",
            Self::Logs => "logs",
        }
    }
}

/// A file system that a worker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Which.
    pub role: Role,
    /// What it can hold.
    pub total_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
    /// What of the worker's could be removed for a job.
    pub evictable_bytes: u64,
    /// With more in use, the worker removes what nobody needs …
    pub high_bytes: u64,
    /// … until so much is in use.
    pub low_bytes: u64,
    /// Never given to jobs.
    pub reserve_bytes: u64,
}

/// What things of one kind take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindUse {
    /// Of which kind.
    pub kind: Kind,
    /// Where.
    pub on: Role,
    /// How many there are.
    pub count: u64,
    /// All together.
    pub bytes: u64,
    /// Of that, what could be removed for a job.
    pub evictable_bytes: u64,
}

/// All that a worker says of its disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    /// What it uses.
    pub file_systems: Vec<FileSystem>,
    /// What of that is its own.
    pub uses: Vec<KindUse>,
    /// What a job that comes can have: free or to be freed, and neither reserved for the host nor promised to jobs that run.
    pub room_bytes: u64,
    /// How long ago it was counted, when it was said.
    pub counted_millis_ago: u64,
}
