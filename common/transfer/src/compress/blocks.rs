//! Codecs without threads of their own: blocks of one length are packed side by side and written in their order.

use super::source::{Sink, Source};
use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Blocks that are read, packed or waiting for their turn, for each thread: one in work, one on either side of it.
pub(super) const BLOCKS_PER_THREAD: usize = 3;

/// How a file is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Every block but the last.
    pub block_bytes: usize,
    /// So much of what came before is given along with a block.
    pub before_bytes: usize,
    pub threads: usize,
}

/// A part of the file.
#[derive(Debug)]
pub(super) struct Block {
    /// What came before, and the block.
    bytes: Vec<u8>,
    start: usize,
    /// Nothing comes behind it. The only block of an empty file is empty.
    pub last: bool,
}

impl Block {
    /// What came before, as much as was asked for.
    pub(super) fn before(&self) -> &[u8] {
        &self.bytes[..self.start]
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// A block, packed.
#[derive(Debug)]
pub(super) struct Packed<T> {
    pub bytes: Vec<u8>,
    /// What the codec must know of it in the end.
    pub more: T,
}

type Reply<T> = io::Result<Packed<T>>;
type Job<T> = (Block, SyncSender<Reply<T>>);

/// Packs all of `source`. `packer` makes what one thread packs with; `seen` is told of every block, in order.
pub(super) fn pack_blocks<T: Send, P: FnMut(&Block) -> Reply<T>>(
    source: &mut Source,
    sink: &mut Sink,
    cut: Cut,
    packer: impl Fn() -> P + Sync,
    mut seen: impl FnMut(T),
) -> io::Result<()> {
    let (jobs, queue) = mpsc::sync_channel::<Job<T>>(cut.threads);
    let queue = Mutex::new(queue);
    thread::scope(|scope| {
        // Moved in, so that the threads end whichever way this one does.
        let jobs = jobs;
        for _ in 0..cut.threads {
            scope.spawn(|| work(&queue, packer()));
        }
        let mut pending: VecDeque<Receiver<Reply<T>>> = VecDeque::new();
        let mut write_first = |pending: &mut VecDeque<Receiver<Reply<T>>>| {
            let Some(first) = pending.pop_front() else { return Ok(()) };
            let packed = first.recv().map_err(|_| io::Error::other("a thread that compressed has died"))??;
            sink.write_all(&packed.bytes)?;
            seen(packed.more);
            Ok::<_, io::Error>(())
        };
        let mut before = Vec::new();
        loop {
            let block = next(source, cut, &mut before)?;
            let last = block.last;
            let (reply, answer) = mpsc::sync_channel(1);
            if jobs.send((block, reply)).is_err() {
                return Err(io::Error::other("the threads that compress have died"));
            }
            pending.push_back(answer);
            if last {
                break;
            }
            while pending.len() >= cut.threads * (BLOCKS_PER_THREAD - 1) {
                write_first(&mut pending)?;
            }
        }
        while !pending.is_empty() {
            write_first(&mut pending)?;
        }
        Ok(())
    })
}

/// Reads the next block; leaves in `before` what its follower will need.
fn next(source: &mut Source, cut: Cut, before: &mut Vec<u8>) -> io::Result<Block> {
    let start = before.len();
    let mut bytes = Vec::with_capacity(start + cut.block_bytes);
    bytes.append(before);
    source.read_block(cut.block_bytes, &mut bytes)?;
    let kept = bytes.len().saturating_sub(cut.before_bytes);
    before.extend_from_slice(&bytes[kept..]);
    // A file that turned out shorter is told by who opened it.
    let last = bytes.len() - start < cut.block_bytes || source.seen() >= source.expected();
    Ok(Block { bytes, start, last })
}

fn work<T>(queue: &Mutex<Receiver<Job<T>>>, mut pack: impl FnMut(&Block) -> Reply<T>) {
    loop {
        // Held while it waits: the others wait for the same.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((block, reply)) = job else { return };
        // Nobody listens only if the work was given up.
        let _ = reply.send(pack(&block));
    }
}
