//! The headers of a tar, in the POSIX form: what a plain field cannot hold stands in records before it.

/// Length of a block; everything in a tar is a multiple of it.
pub const BLOCK_BYTES: usize = 512;

/// Longest name that the plain field holds.
const NAME_MAX: usize = 100;

/// The name of the records' own entry. Nobody reads it; a fixed one keeps equal trees equal.
const RECORDS_NAME: &[u8] = b"PaxHeaders.0/records";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A file of so many bytes, which follow.
    File(u64),
    /// One more name of the file at that path, which came before.
    Link(&'a [u8]),
    /// A symbolic link to there.
    Symlink(&'a [u8]),
    /// A character device: major and minor number.
    Char(u64, u64),
    /// A block device.
    Block(u64, u64),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Without a leading slash; a directory's ends with one.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind<'a>,
    /// Permissions, with the setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime_secs: i64,
    /// And nanoseconds on top of them.
    pub mtime_nanos: u32,
    /// Extended attributes: name and value.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl Header<'_> {
    /// Writes the header to the end of `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let records = self.records();
        if !records.is_empty() {
            let mut block = Block::new();
            block.bytes(0, NAME_MAX, RECORDS_NAME);
            block.number(Field::Mode, 0o644);
            block.number(Field::Size, records.len() as u64);
            block.write(b'x', out);
            out.extend_from_slice(&records);
            out.resize(out.len() + padding(records.len() as u64), 0);
        }
        let (flag, size, link, device) = match self.kind {
            Kind::File(size) => (b'0', size, None, None),
            Kind::Link(to) => (b'1', 0, Some(to), None),
            Kind::Symlink(to) => (b'2', 0, Some(to), None),
            Kind::Char(major, minor) => (b'3', 0, None, Some((major, minor))),
            Kind::Block(major, minor) => (b'4', 0, None, Some((major, minor))),
            Kind::Directory => (b'5', 0, None, None),
            Kind::Fifo => (b'6', 0, None, None),
        };
        let mut block = Block::new();
        block.bytes(0, NAME_MAX, self.path);
        block.number(Field::Mode, self.mode.into());
        block.number(Field::Uid, self.uid.into());
        block.number(Field::Gid, self.gid.into());
        block.number(Field::Size, size);
        block.number(Field::Mtime, u64::try_from(self.mtime_secs).unwrap_or(0));
        block.bytes(157, NAME_MAX, link.unwrap_or_default());
        let (major, minor) = device.unwrap_or_default();
        block.number(Field::Major, major);
        block.number(Field::Minor, minor);
        block.write(flag, out);
    }

    /// What the plain fields cannot hold.
    fn records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.path.len() > NAME_MAX {
            record(&mut out, b"path", self.path);
        }
        if let Kind::Link(to) | Kind::Symlink(to) = self.kind
            && to.len() > NAME_MAX
        {
            record(&mut out, b"linkpath", to);
        }
        if let Kind::File(size) = self.kind
            && !Field::Size.holds(size)
        {
            record(&mut out, b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", self.uid), (b"gid", self.gid)] {
            if !Field::Uid.holds(id.into()) {
                record(&mut out, key, id.to_string().as_bytes());
            }
        }
        if self.mtime_nanos != 0 || u64::try_from(self.mtime_secs).map_or(true, |secs| !Field::Mtime.holds(secs)) {
            record(&mut out, b"mtime", seconds(self.mtime_secs, self.mtime_nanos).as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut out, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        out
    }
}

/// How many bytes are missing from `length` to the end of its block.
pub fn padding(length: u64) -> usize {
    let over = usize::try_from(length % BLOCK_BYTES as u64).unwrap_or(0);
    (BLOCK_BYTES - over) % BLOCK_BYTES
}

/// A record tells its own length, the digits of which are part of it.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let bare = key.len() + value.len() + " =\n".len();
    let mut length = bare + bare.to_string().len();
    if length.to_string().len() > bare.to_string().len() {
        length = bare + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// As a decimal fraction. The kernel counts nanoseconds upwards from a whole second, also before the epoch.
fn seconds(secs: i64, nanos: u32) -> String {
    const NANOS: u32 = 1_000_000_000;
    let (sign, whole, nanos) = match (secs, nanos) {
        (0.., _) => ("", secs.unsigned_abs(), nanos),
        (_, 0) => ("-", secs.unsigned_abs(), 0),
        (..0, _) => ("-", secs.unsigned_abs() - 1, NANOS - nanos),
    };
    let text = format!("{sign}{whole}.{nanos:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The fields that hold octal digits.
#[derive(Clone, Copy)]
enum Field {
    Mode,
    Uid,
    Gid,
    Size,
    Mtime,
    Major,
    Minor,
}

impl Field {
    /// Where it begins, and its length with the byte that ends it.
    fn place(self) -> (usize, usize) {
        match self {
            Self::Mode => (100, 8),
            Self::Uid => (108, 8),
            Self::Gid => (116, 8),
            Self::Size => (124, 12),
            Self::Mtime => (136, 12),
            Self::Major => (329, 8),
            Self::Minor => (337, 8),
        }
    }

    fn holds(self, value: u64) -> bool {
        let digits = self.place().1 - 1;
        value < 1 << (3 * digits)
    }
}

/// A header block that grows.
struct Block([u8; BLOCK_BYTES]);

impl Block {
    fn new() -> Self {
        let mut block = Self([0; BLOCK_BYTES]);
        block.bytes(257, 8, b"ustar\x0000");
        block
    }

    /// As much as fits. What does not is in a record.
    fn bytes(&mut self, at: usize, most: usize, bytes: &[u8]) {
        let length = bytes.len().min(most);
        self.0[at..at + length].copy_from_slice(&bytes[..length]);
    }

    /// A number, or 0 where a record has it.
    fn number(&mut self, field: Field, value: u64) {
        let (at, length) = field.place();
        let value = if field.holds(value) { value } else { 0 };
        let text = format!("{value:0digits$o}", digits = length - 1);
        self.bytes(at, length, text.as_bytes());
    }

    fn write(mut self, flag: u8, out: &mut Vec<u8>) {
        self.0[156] = flag;
        // The sum counts its own place as spaces.
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        let text = format!("{sum:06o}\0 ");
        self.bytes(148, 8, text.as_bytes());
        out.extend_from_slice(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    const PLAIN: Header<'static> = Header {
        path: b"a",
        kind: Kind::File(0),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_secs: 0,
        mtime_nanos: 0,
        xattrs: &[],
    };

    fn records_of(header: &Header<'_>) -> Vec<(String, Vec<u8>)> {
        let mut bytes = Vec::new();
        header.write(&mut bytes);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let records = entry.pax_extensions().unwrap().into_iter().flatten().map(|record| record.unwrap());
        records.map(|record| (record.key().unwrap().to_owned(), record.value_bytes().to_owned())).collect()
    }

    #[test]
    fn what_fits_needs_no_record() {
        let mut bytes = Vec::new();
        let header = Header { path: &[b'n'; NAME_MAX], uid: 0o777_7777, mtime_secs: 0o777_7777_7777, ..PLAIN };
        header.write(&mut bytes);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert!(records_of(&header).is_empty());
    }

    #[test]
    fn what_does_not_fit_has_one() {
        let long = vec![0xff; NAME_MAX + 1];
        let sized = Header { path: &long, kind: Kind::File(1 << 33), uid: u32::MAX, gid: 1 << 21, ..PLAIN };
        let told = records_of(&sized);
        let want = [("path", long.clone()), ("size", b"8589934592".to_vec()), ("uid", b"4294967295".to_vec())];
        assert_eq!(told[..3], want.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(told[3], ("gid".to_owned(), b"2097152".to_vec()));
        let linked = Header { kind: Kind::Symlink(&long), ..PLAIN };
        assert_eq!(records_of(&linked), [("linkpath".to_owned(), long.clone())]);
    }

    #[test]
    fn times_are_exact() {
        let told = [(0, 500_000_000), (1, 1), (-1, 0), (-1, 500_000_000), (-2, 999_999_999), (1 << 33, 0)]
            .map(|(secs, nanos)| seconds(secs, nanos));
        assert_eq!(told, ["0.5", "1.000000001", "-1", "-0.5", "-1.000000001", "8589934592"]);
    }

    #[test]
    fn a_record_s_length_counts_its_own_digits() {
        for length in [1, 80, 90, 91, 92, 93, 94, 95, 980, 990, 991, 992, 993, 994, 9_970, 9_990] {
            let mut out = Vec::new();
            record(&mut out, b"key", &vec![b'v'; length]);
            let digits: String = out.iter().take_while(|byte| **byte != b' ').map(|byte| char::from(*byte)).collect();
            assert_eq!(digits.parse(), Ok(out.len()), "value of {length} bytes");
        }
    }

    #[test]
    fn the_content_follows_its_header() {
        let mut bytes = Vec::new();
        Header { kind: Kind::File(3), ..PLAIN }.write(&mut bytes);
        bytes.extend_from_slice(b"xyz");
        bytes.resize(bytes.len() + padding(3), 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut content = String::new();
        archive.entries().unwrap().next().unwrap().unwrap().read_to_string(&mut content).unwrap();
        assert_eq!((content.as_str(), bytes.len()), ("xyz", 2 * BLOCK_BYTES));
    }
}
