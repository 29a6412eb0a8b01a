//! A stream that is read again from its beginning, without what is in the log already.

use super::place::{Counts, Head, index};
use crate::runtime::Source;
use bytes::Bytes;

/// What a log has of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How much of each stream, as the engine's log counts.
    pub(super) counts: Counts,
    /// How each stream begins, as far as that is known.
    pub(super) heads: [Head; 2],
    /// The last bytes that were taken of one stream, if they are known.
    pub(super) recent: Option<(Source, Vec<u8>)>,
}

/// Leaves out of an engine's log what was taken.
///
/// An engine that dies takes the line along that it had begun to hear: it told it to whoever was attached, and did not get
/// to write it down. After that its log is shorter than what was taken. So the last bytes that were taken are held
/// against those that come now, and a message that differs is news from its first byte on.
#[derive(Debug)]
pub struct Catchup {
    taken: Taken,
    seen: Counts,
}

/// What was not heard before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The news.
    pub bytes: Bytes,
    /// Something that was taken is not in the engine's log, which has these bytes in its place: where.
    pub instead_at: Option<u64>,
}

/// The engine's log does not begin with what was taken: it has thrown its beginning away.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's log does not reach back to what was taken of it")]
pub struct Rotated;

impl Catchup {
    /// Begins at the beginning of the engine's log.
    pub fn new(taken: Taken) -> Self {
        Self { taken, seen: Counts::default() }
    }

    /// What is news of the next message; often nothing. Whole messages of the engine's log, please.
    ///
    /// # Errors
    /// [`Rotated`].
    pub fn take(&mut self, source: Source, message: Bytes) -> Result<Option<News>, Rotated> {
        let news = |bytes| News { bytes, instead_at: None };
        let at = self.seen.of(source);
        let left = self.taken.counts.of(source).saturating_sub(at);
        self.seen.add(source, message.len() as u64);
        if left == 0 {
            return Ok((!message.is_empty()).then(|| news(message)));
        }
        if self.differs(source, left, &message) {
            self.taken.counts.set(source, 0);
            return Ok(Some(News { bytes: message, instead_at: Some(at) }));
        }
        self.check_head(source, at, &message)?;
        match usize::try_from(left) {
            Ok(left) if left < message.len() => Ok(Some(news(message.slice(left..)))),
            _ => Ok(None),
        }
    }

    fn check_head(&self, source: Source, at: u64, message: &[u8]) -> Result<(), Rotated> {
        let head = &self.taken.heads[index(source)];
        let expected = usize::try_from(at).ok().and_then(|at| head.get(at..)).unwrap_or_default();
        let same = expected.iter().zip(message).all(|(expected, got)| expected == got);
        if same { Ok(()) } else { Err(Rotated) }
    }

    /// Whether the message is another one than what was taken at its place, of which `left` bytes are there.
    fn differs(&self, source: Source, left: u64, message: &[u8]) -> bool {
        let Some((_, recent)) = self.taken.recent.as_ref().filter(|(of, _)| *of == source) else { return false };
        let recent_bytes = recent.len() as u64;
        // Where in the message the known bytes begin, or where in those the message does.
        let message = behind(message, left.saturating_sub(recent_bytes));
        let recent = behind(recent, recent_bytes.saturating_sub(left));
        message.iter().zip(recent).any(|(got, known)| got != known)
    }
}

fn behind(bytes: &[u8], skip: u64) -> &[u8] {
    usize::try_from(skip).ok().and_then(|skip| bytes.get(skip..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Source::{Stderr, Stdout};

    fn taken(stdout: &[u8], stderr: u64, recent: usize) -> Taken {
        let mut counts = Counts::default();
        counts.add(Stdout, stdout.len() as u64);
        counts.add(Stderr, stderr);
        let recent = Some((Stdout, stdout[stdout.len() - recent..].to_vec()));
        Taken { counts, heads: [stdout[..stdout.len().min(4)].to_vec(), Vec::new()], recent }
    }

    fn news(catchup: &mut Catchup, source: Source, messages: &[&'static str]) -> String {
        let news =
            messages.iter().filter_map(|message| catchup.take(source, Bytes::from_static(message.as_bytes())).unwrap());
        news.map(|news| String::from_utf8(news.bytes.to_vec()).unwrap()).collect()
    }

    #[test]
    fn what_was_taken_is_left_out_in_each_stream() {
        for recent in [0, 1, 5, 14] {
            let mut catchup = Catchup::new(taken(b"one\ntwo\nthree ", 4, recent));
            assert_eq!(news(&mut catchup, Stderr, &["err\n", "more\n"]), "more\n");
            assert_eq!(
                news(&mut catchup, Stdout, &["one\n", "two\n", "three four\n", "five"]),
                "four\nfive",
                "{recent}"
            );
        }
    }

    #[test]
    fn a_line_that_died_with_the_engine_does_not_swallow_what_came_after_it() {
        let mut catchup = Catchup::new(taken(b"one\nBuilding 10%", 4, 12));
        assert_eq!(news(&mut catchup, Stdout, &["one\n", " 20% done\n", "two\n"]), " 20% done\ntwo\n");
        assert_eq!(news(&mut catchup, Stderr, &["err\n", "more\n"]), "more\n", "the other stream has lost nothing");
    }

    #[test]
    fn a_log_that_lost_its_beginning_is_seen() {
        let mut catchup = Catchup::new(taken(b"one\ntwo\nthree\n", 0, 3));
        assert_eq!(catchup.take(Stdout, Bytes::from_static(b"two\n")), Err(Rotated));
    }
}
