//! An archive that `docker load` takes: a configuration, layers, and a manifest that names them.

use super::root::Packing;
use crate::inputs::Coming;
use crate::runtime::{ByteStream, ImageName};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use railyard_common::digest::Digest;
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tar::{Builder, Header};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// What is passed on at a time from the thread that writes the archive to the one that sends it, and how many such pieces wait.
const PIECE_BYTES: usize = 512 * 1024;
const PIECES: usize = 4;

/// A layer of the archive.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its diff id.
    pub digest: Digest,
    /// Where its tar is; `None` leaves it out, because the engine has it.
    pub tar: Option<LayerTar>,
}

impl Layer {
    /// Whether it is on its way: such a layer can be written once.
    pub fn is_coming(&self) -> bool {
        matches!(self.tar, Some(LayerTar { content: Content::Coming(_), .. }))
    }
}

/// A layer's tar.
#[derive(Clone, Debug)]
pub struct LayerTar {
    /// Where it is.
    pub content: Content,
    /// Its length when it is unpacked.
    pub size_bytes: u64,
}

/// Where a layer's tar is.
#[derive(Clone, Debug)]
pub enum Content {
    /// In a file.
    File {
        /// The file.
        file: PathBuf,
        /// How it is packed.
        packing: Packing,
    },
    /// On its way here. It comes once.
    Coming(Arc<Mutex<Option<oneshot::Receiver<Coming>>>>),
}

impl Content {
    /// Of a layer that is being fetched.
    pub fn coming(told: oneshot::Receiver<Coming>) -> Self {
        Self::Coming(Arc::new(Mutex::new(Some(told))))
    }

    /// The plain bytes. Waits for them.
    fn open(&self) -> io::Result<Box<dyn Read>> {
        let gone = || io::Error::other("the layer did not come");
        match self {
            Self::File { file, packing } => packing.open(File::open(file)?),
            Self::Coming(told) => {
                let told = told.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(gone)?;
                match told.blocking_recv().map_err(|_| gone())? {
                    Coming::Here(file, encoding) => Packing::from(encoding).open(File::open(file)?),
                    Coming::Soon(pieces) => Ok(Box::new(Arriving { pieces, piece: Bytes::new() })),
                }
            }
        }
    }
}

/// Bytes as they come.
struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let some = self.piece.len().min(buffer.len());
        self.piece.split_to(some).copy_to_slice(&mut buffer[..some]);
        Ok(some)
    }
}

/// The archive, written while it is read.
pub fn stream(config: Bytes, layers: Vec<Layer>, name: ImageName) -> ByteStream {
    let (sender, pieces) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces { filling: BytesMut::with_capacity(PIECE_BYTES), sender };
        if let Err(error) = write(&mut out, &config, &layers, &name).and_then(|()| out.flush()) {
            // Whoever has gone away need not hear it.
            let _ = out.sender.blocking_send(Err(error));
        }
    });
    ReceiverStream::new(pieces).boxed()
}

/// Passes on what is written, in pieces of some size.
struct Pieces {
    filling: BytesMut,
    sender: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.filling.extend_from_slice(bytes);
        if self.filling.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let next = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
        let piece = std::mem::replace(&mut self.filling, next).freeze();
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn write(out: &mut impl Write, config: &[u8], layers: &[Layer], name: &ImageName) -> io::Result<()> {
    let mut tar = Builder::new(out);
    let config_path = format!("{}.json", Digest::of(config).hex());
    append(&mut tar, &config_path, config.len() as u64, config)?;
    for layer in layers {
        let Some(LayerTar { content, size_bytes }) = &layer.tar else { continue };
        append(&mut tar, &layer_path(&layer.digest), *size_bytes, content.open()?)?;
    }
    let manifest = json!([{
        "Config": config_path,
        "RepoTags": [name.to_string()],
        "Layers": layers.iter().map(|layer| layer_path(&layer.digest)).collect::<Vec<_>>(),
    }]);
    let manifest = manifest.to_string();
    append(&mut tar, "manifest.json", manifest.len() as u64, manifest.as_bytes())?;
    tar.finish()
}

fn layer_path(digest: &Digest) -> String {
    format!("{}/layer.tar", digest.hex())
}

fn append(tar: &mut Builder<impl Write>, path: &str, size_bytes: u64, content: impl Read) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(size_bytes);
    header.set_mode(0o644);
    // The header promises a length; content that is longer or shorter would make the rest of the archive nonsense.
    let mut counted = Counted { content, left: size_bytes };
    tar.append_data(&mut header, path, &mut counted)?;
    match counted.left {
        0 => Ok(()),
        left => Err(io::Error::other(format!("{path} is {left} bytes shorter than expected"))),
    }
}

/// Content that is read up to its promised length.
struct Counted<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.content.read(&mut buffer[..most])?;
        self.left -= n as u64;
        Ok(n)
    }
}
