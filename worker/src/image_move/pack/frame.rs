//! A file with one zstd frame that tells its content's size, though that is known only at the end.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;

/// What every frame begins with.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Magic, descriptor and window of a frame without a size.
const SIZELESS_BYTES: usize = MAGIC.len() + 2;

/// The bits of the descriptor that say which further fields there are: size, single segment, dictionary.
const FIELDS: u8 = 0b1110_0011;

/// The descriptor's bits for a size of eight bytes.
const SIZE_OF_EIGHT: u8 = 0b1100_0000;

/// Takes what the encoder writes, and puts the size into its header.
#[derive(Debug)]
pub struct FrameFile {
    file: File,
    /// The frame's own header, until it is whole.
    header: Vec<u8>,
    written: u64,
}

impl FrameFile {
    /// An empty file, for one frame.
    pub fn new(file: File) -> Self {
        Self { file, header: Vec::with_capacity(SIZELESS_BYTES), written: 0 }
    }

    /// The frame is over, and has that many plain bytes. Gives the length of the file.
    ///
    /// # Errors
    /// If the disk fails, or the encoder wrote something else than a frame.
    pub fn finish(self, size_bytes: u64) -> io::Result<u64> {
        let [m0, m1, m2, m3, descriptor, window] = self.header[..] else { return Err(no_frame()) };
        if [m0, m1, m2, m3] != MAGIC {
            return Err(no_frame());
        }
        if descriptor & FIELDS == 0 {
            let mut header = [0; SIZELESS_BYTES + size_of::<u64>()];
            header[..4].copy_from_slice(&MAGIC);
            header[4] = descriptor | SIZE_OF_EIGHT;
            header[5] = window;
            header[6..].copy_from_slice(&size_bytes.to_le_bytes());
            self.file.write_all_at(&header, 0)?;
        }
        Ok(self.written)
    }

    /// The header is whole: it goes to the file with room for the size.
    fn begin(&mut self) -> io::Result<()> {
        let room = if self.header[4] & FIELDS == 0 { size_of::<u64>() } else { 0 };
        let first = [self.header.as_slice(), &vec![0; room]].concat();
        self.file.write_all(&first)?;
        self.written = first.len() as u64;
        Ok(())
    }
}

fn no_frame() -> io::Error {
    io::Error::other("the encoder did not write a zstd frame")
}

impl Write for FrameFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let missing = SIZELESS_BYTES - self.header.len();
        if missing > 0 {
            let taken = missing.min(bytes.len());
            self.header.extend_from_slice(&bytes[..taken]);
            if self.header.len() == SIZELESS_BYTES {
                self.begin()?;
            }
            return Ok(taken);
        }
        let taken = self.file.write(bytes)?;
        self.written += taken as u64;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zstd::stream::write::Encoder;

    #[test]
    fn the_frame_tells_its_size_and_unpacks_to_what_went_in() {
        let dir = tempfile::tempdir().unwrap();
        for (size, workers) in [(0, 0), (1024, 0), (1024, 2), (5_000_000, 2)] {
            let path = dir.path().join("frame");
            let plain: Vec<u8> = (0..size).map(|n: u32| (n / 7) as u8).collect();
            let mut encoder = Encoder::new(FrameFile::new(File::create(&path).unwrap()), 1).unwrap();
            encoder.multithread(workers).unwrap();
            for piece in plain.chunks(1000) {
                encoder.write_all(piece).unwrap();
            }
            let length = encoder.finish().unwrap().finish(plain.len() as u64).unwrap();
            let packed = std::fs::read(&path).unwrap();
            assert_eq!(packed.len() as u64, length);
            let told = zstd::zstd_safe::get_frame_content_size(&packed).unwrap();
            assert_eq!(told, Some(plain.len() as u64), "{size} bytes with {workers} workers");
            assert!(zstd::decode_all(&packed[..]).unwrap() == plain);
        }
    }
}
