//! Trees of every kind that a container can leave.

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any as arbitrary, prop_oneof};
use proptest::sample::Index;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{self as unix, FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Longest name that a file system takes.
const NAME_MAX: usize = 255;

/// A directory's entries, by name.
type Entries = BTreeMap<Vec<u8>, Node>;

/// A tree, and further names for some of its files.
#[derive(Clone, Debug)]
pub struct Tree {
    entries: Entries,
    links: Vec<(Index, Index, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Node {
    Directory { entries: Entries, opaque: bool, default_acl: bool, owned: Owned },
    File { content: Content, capability: bool, owned: Owned },
    Symlink { to: Vec<u8>, owned: Owned },
    Fifo(Owned),
    Char(u64, Owned),
    Block(u64, Owned),
    Whiteout,
    Socket,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    Sparse { runs: Vec<(u32, u16)>, length: u32 },
}

/// What every file has.
#[derive(Clone, Debug)]
struct Owned {
    uid: u32,
    gid: u32,
    mode: u32,
    secs: i64,
    nanos: i64,
    user: BTreeMap<String, Vec<u8>>,
    trusted: BTreeMap<String, Vec<u8>>,
    acl: bool,
}

pub fn any() -> impl Strategy<Value = Tree> {
    (entries(), vec((arbitrary::<Index>(), arbitrary::<Index>(), name()), 0..6))
        .prop_map(|(entries, links)| Tree { entries, links })
}

fn entries() -> impl Strategy<Value = Entries> {
    let node = leaf().prop_recursive(4, 40, 8, |inner| {
        let dir = (btree_map(name(), inner, 0..8), arbitrary::<bool>(), arbitrary::<bool>(), owned());
        dir.prop_map(|(entries, opaque, default_acl, owned)| Node::Directory { entries, opaque, default_acl, owned })
    });
    btree_map(name(), node, 0..8)
}

fn leaf() -> impl Strategy<Value = Node> {
    prop_oneof![
        6 => (content(), arbitrary::<bool>(), owned())
            .prop_map(|(content, capability, owned)| Node::File { content, capability, owned }),
        2 => (vec(1..=u8::MAX, 1..300), owned()).prop_map(|(to, owned)| Node::Symlink { to, owned }),
        1 => owned().prop_map(Node::Fifo),
        1 => (device(), owned()).prop_map(|(device, owned)| Node::Char(device, owned)),
        1 => (device(), owned()).prop_map(|(device, owned)| Node::Block(device, owned)),
        2 => Just(Node::Whiteout),
        1 => Just(Node::Socket),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => vec(arbitrary::<u8>(), 0..2000).prop_map(Content::Bytes),
        1 => (arbitrary::<u8>(), 0..3_000_000_usize).prop_map(|(byte, length)| Content::Bytes(vec![byte; length])),
        1 => Just(Content::Bytes(Vec::new())),
        1 => (vec((0..2_000_000_u32, 1..9000_u16), 0..4), 0..2_500_000_u32)
            .prop_map(|(runs, length)| Content::Sparse { runs, length }),
    ]
}

/// Every number but that of a whiteout.
fn device() -> impl Strategy<Value = u64> {
    (0..4096_u64, 0..(1_u64 << 20)).prop_map(|(major, minor)| makedev(major, minor.max(1)))
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |length| vec(prop_oneof![1..=b'.', b'0'..=u8::MAX], length);
    prop_oneof![4 => bytes(1..12), 1 => bytes(95..105), 1 => bytes(200..256)]
        .prop_filter("it means something", |name| name != b"." && name != b".." && !name.starts_with(b".wh."))
}

fn owned() -> impl Strategy<Value = Owned> {
    let id = || prop_oneof![Just(0), 0..70_000_u32, 0..u32::MAX];
    // What ext4 can hold, from 1901 on.
    let secs = prop_oneof![4 => 0..2_000_000_000_i64, 1 => -(1_i64 << 31)..(1_i64 << 34) - 1];
    let nanos = prop_oneof![Just(0), 0..1_000_000_000_i64];
    let xattrs = || btree_map("[a-z.]{1,40}[a-z]", vec(arbitrary::<u8>(), 0..200), 0..3);
    (id(), id(), 0..0o10000_u32, secs, nanos, xattrs(), xattrs(), arbitrary::<bool>()).prop_map(
        |(uid, gid, mode, secs, nanos, user, trusted, acl)| Owned { uid, gid, mode, secs, nanos, user, trusted, acl },
    )
}

impl Tree {
    /// The same without what a container cannot make, and without times and attributes that engines do not set.
    pub fn for_engines(mut self) -> Self {
        settle(&mut self.entries);
        self
    }

    /// Makes it below `root`.
    pub fn make(&self, root: &Path) {
        let (mut files, mut dirs) = (Vec::new(), vec![root.to_owned()]);
        make_all(&self.entries, root, &mut files, &mut dirs);
        for (file, dir, name) in &self.links {
            if !files.is_empty() {
                let to = dirs[dir.index(dirs.len())].join(OsStr::from_bytes(name));
                // The name may be taken, or be too long there.
                let _ = fs::hard_link(&files[file.index(files.len())], to);
            }
        }
        set_times(&self.entries, root);
    }
}

fn settle(entries: &mut Entries) {
    entries.retain(|_, node| !matches!(node, Node::Whiteout | Node::Socket));
    for node in entries.values_mut() {
        let owned = match node {
            Node::Directory { entries, opaque, owned, .. } => {
                *opaque = false;
                settle(entries);
                owned
            }
            Node::File { owned, .. } | Node::Symlink { owned, .. } => owned,
            Node::Fifo(owned) | Node::Char(_, owned) | Node::Block(_, owned) => owned,
            Node::Whiteout | Node::Socket => continue,
        };
        // What is before the epoch, or does not fit into their nanoseconds, is the epoch to them.
        owned.secs = owned.secs.clamp(0, i64::MAX / 1_000_000_000 - 1);
        // In a tar, an attribute without a value is none to them.
        for value in owned.user.values_mut().chain(owned.trusted.values_mut()).filter(|value| value.is_empty()) {
            value.push(0);
        }
    }
}

fn make_all(entries: &Entries, dir: &Path, files: &mut Vec<PathBuf>, dirs: &mut Vec<PathBuf>) {
    for (name, node) in entries {
        let at = dir.join(OsStr::from_bytes(name));
        match node {
            Node::Directory { entries, opaque, default_acl, owned } => {
                fs::create_dir(&at).unwrap();
                dirs.push(at.clone());
                make_all(entries, &at, files, dirs);
                owned.give(&at, true);
                if *opaque {
                    xattr::set(&at, "trusted.overlay.opaque", b"y").unwrap();
                }
                if *default_acl {
                    xattr::set(&at, "system.posix_acl_default", &acl()).unwrap();
                }
            }
            Node::File { content, capability, owned } => {
                content.write(&at);
                owned.give(&at, true);
                if *capability {
                    // Revision 2, effective: net_bind_service.
                    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    xattr::set(&at, "security.capability", &value).unwrap();
                }
                files.push(at);
            }
            Node::Symlink { to, owned } => {
                unix::symlink(OsStr::from_bytes(to), &at).unwrap();
                owned.give(&at, false);
                files.push(at);
            }
            Node::Fifo(owned) => special(&at, SFlag::S_IFIFO, 0, owned, files),
            Node::Char(device, owned) => special(&at, SFlag::S_IFCHR, *device, owned, files),
            Node::Block(device, owned) => special(&at, SFlag::S_IFBLK, *device, owned, files),
            // In tar's hands it is a file whose name is longer.
            Node::Whiteout if name.len() > NAME_MAX - ".wh.".len() => {}
            Node::Whiteout => whiteout(&at),
            Node::Socket => {
                mknod(&at, SFlag::S_IFSOCK, Mode::empty(), 0).unwrap();
            }
        }
    }
}

fn special(at: &Path, kind: SFlag, device: u64, owned: &Owned, files: &mut Vec<PathBuf>) {
    mknod(at, kind, Mode::empty(), device).unwrap();
    owned.give(at, false);
    files.push(at.to_owned());
}

/// The last thing that is done to a directory, and to what is in it before.
fn set_times(entries: &Entries, dir: &Path) {
    for (name, node) in entries {
        let at = dir.join(OsStr::from_bytes(name));
        let owned = match node {
            Node::Directory { entries, owned, .. } => {
                set_times(entries, &at);
                owned
            }
            Node::File { owned, .. } | Node::Symlink { owned, .. } => owned,
            Node::Fifo(owned) | Node::Char(_, owned) | Node::Block(_, owned) => owned,
            Node::Whiteout | Node::Socket => continue,
        };
        set_time(&at, owned.secs, owned.nanos);
    }
}

impl Owned {
    /// Everything but the time. `plain`: a file or a directory, which can have more.
    fn give(&self, at: &Path, plain: bool) {
        unix::lchown(at, Some(self.uid), Some(self.gid)).unwrap();
        if !fs::symlink_metadata(at).unwrap().is_symlink() {
            fs::set_permissions(at, Permissions::from_mode(self.mode)).unwrap();
        }
        let names = |space: &str, all: &BTreeMap<String, Vec<u8>>| {
            for (name, value) in all {
                xattr::set(at, format!("{space}.{name}"), value).unwrap();
            }
        };
        names("trusted", &self.trusted);
        if plain {
            names("user", &self.user);
            if self.acl {
                xattr::set(at, "system.posix_acl_access", &acl()).unwrap();
            }
        }
    }
}

impl Content {
    fn write(&self, at: &Path) {
        match self {
            Self::Bytes(bytes) => fs::write(at, bytes).unwrap(),
            Self::Sparse { runs, length } => {
                let runs: Vec<_> =
                    runs.iter().map(|(from, count)| (u64::from(*from), vec![9; (*count).into()])).collect();
                let runs: Vec<_> = runs.iter().map(|(from, bytes)| (*from, bytes.as_slice())).collect();
                sparse(at, &runs, (*length).into());
            }
        }
    }
}

/// A file of that length with these runs of bytes, as far as they are in it, and holes between them.
pub fn sparse(at: &Path, runs: &[(u64, &[u8])], length: u64) {
    let file = File::create(at).unwrap();
    for (from, bytes) in runs {
        file.write_all_at(bytes, *from).unwrap();
    }
    file.set_len(length).unwrap();
}

/// What overlay leaves of a file that was removed.
pub fn whiteout(at: &Path) {
    mknod(at, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

/// Sets when it was changed.
pub fn set_time(at: &Path, secs: i64, nanos: i64) {
    let time = TimeSpec::new(secs, nanos);
    utimensat(nix::fcntl::AT_FDCWD, at, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// Owner rwx, user 7 r-x, group r--, mask r-x, others none.
fn acl() -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1_u16, 7_u16, u32::MAX), (2, 5, 7), (4, 4, u32::MAX), (0x10, 5, u32::MAX), (0x20, 0, u32::MAX)]
    {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}
