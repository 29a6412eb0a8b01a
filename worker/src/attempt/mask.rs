//! What a container writes, with the secrets of its step hidden, before anything else of the worker sees it.
//!
//! A hidden byte takes the place of a byte, and what is hidden depends on the whole stream and not on how it came in pieces. So a
//! stream that is read again from its beginning is the same, and whoever counts its bytes counts right.

use crate::runtime::{Chunk, Hearing, Output, RuntimeError, Source};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use railyard_common::redact::{Masker, Masks};
use std::collections::VecDeque;
use std::sync::Arc;

/// `engine`, whose containers' output comes with secrets hidden.
pub fn hearing(engine: Arc<dyn Hearing>, masks: &Masks) -> Arc<dyn Hearing> {
    if masks.is_empty() { engine } else { Arc::new(Masked { engine, masks: masks.clone() }) }
}

/// Output from its first byte, with secrets hidden.
pub fn live(output: Output, masks: &Masks) -> Output {
    masked(output, masks, Form::Pieces)
}

struct Masked {
    engine: Arc<dyn Hearing>,
    masks: Masks,
}

#[async_trait]
impl Hearing for Masked {
    async fn attach(&self, container: &str) -> Result<Output, RuntimeError> {
        Ok(masked(self.engine.attach(container).await?, &self.masks, Form::Pieces))
    }

    async fn log(&self, container: &str) -> Result<Output, RuntimeError> {
        Ok(masked(self.engine.log(container).await?, &self.masks, Form::Messages))
    }

    async fn leave_mark(&self, container: &str) -> Result<String, RuntimeError> {
        self.engine.leave_mark(container).await
    }

    async fn remembers(&self, container: &str, mark: Option<&str>) -> Result<bool, RuntimeError> {
        self.engine.remembers(container, mark).await
    }
}

/// How what may be told is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// At once, in whatever pieces.
    Pieces,
    /// In the messages that came.
    Messages,
}

/// One of a container's two streams.
struct Lane {
    source: Source,
    masker: Masker,
    /// What may be told of messages that are not whole yet.
    ready: Vec<u8>,
    /// The lengths of the messages that are not told yet.
    waiting: VecDeque<usize>,
}

impl Lane {
    fn new(source: Source, masks: &Masks) -> Self {
        Self { source, masker: masks.stream(), ready: Vec::new(), waiting: VecDeque::new() }
    }

    fn take(&mut self, bytes: &[u8], form: Form, out: &mut VecDeque<Chunk>) {
        self.ready.extend(self.masker.push(bytes));
        self.waiting.push_back(bytes.len());
        match form {
            Form::Pieces => self.tell_all(out),
            Form::Messages => {
                while let Some(length) = self.waiting.front().copied().filter(|length| *length <= self.ready.len()) {
                    self.waiting.pop_front();
                    let rest = self.ready.split_off(length);
                    let whole = std::mem::replace(&mut self.ready, rest);
                    self.tell(whole, out);
                }
            }
        }
    }

    fn tell_all(&mut self, out: &mut VecDeque<Chunk>) {
        self.waiting.clear();
        let bytes = std::mem::take(&mut self.ready);
        self.tell(bytes, out);
    }

    fn tell(&self, bytes: Vec<u8>, out: &mut VecDeque<Chunk>) {
        if !bytes.is_empty() {
            out.push_back(Chunk { source: self.source, bytes: bytes.into() });
        }
    }

    fn finish(&mut self, form: Form, out: &mut VecDeque<Chunk>) {
        self.ready.extend(self.masker.finish());
        if form == Form::Messages {
            self.take(&[], form, out);
            self.waiting.clear();
        }
        self.tell_all(out);
    }
}

struct State {
    output: Output,
    form: Form,
    lanes: [Lane; 2],
    out: VecDeque<Chunk>,
    is_over: bool,
}

fn masked(output: Output, masks: &Masks, form: Form) -> Output {
    if masks.is_empty() {
        return output;
    }
    let lanes = [Source::Stdout, Source::Stderr].map(|source| Lane::new(source, masks));
    let state = State { output, form, lanes, out: VecDeque::new(), is_over: false };
    stream::unfold(state, |mut state| async move {
        loop {
            if let Some(chunk) = state.out.pop_front() {
                return Some((Ok(chunk), state));
            }
            if state.is_over {
                return None;
            }
            match state.output.next().await {
                Some(Ok(Chunk { source, bytes })) => {
                    let lane = state.lanes.iter_mut().find(|lane| lane.source == source);
                    if let Some(lane) = lane {
                        lane.take(&bytes, state.form, &mut state.out);
                    }
                }
                // What is held back comes again from the engine's log, if that is read again.
                Some(Err(error)) => {
                    state.is_over = true;
                    return Some((Err(error), state));
                }
                None => {
                    state.is_over = true;
                    state.lanes.iter_mut().for_each(|lane| lane.finish(state.form, &mut state.out));
                }
            }
        }
    })
    .boxed()
}
