//! How attempts end.

use super::{BadMessage, FromProto, ToProto};
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind, Reason};
use railyard_proto::v1;

/// Longest message of an outcome; it is journaled, so what is longer is cut, not refused: a result must get home.
const MESSAGE_MAX_BYTES: usize = 16 * 1024;
/// Longest line of an outcome's log tail, cut for the same reason.
const LOG_LINE_MAX_BYTES: usize = 2 * 1024;

impl ToProto for OutcomeKind {
    type Proto = v1::OutcomeKind;

    fn to_proto(&self) -> v1::OutcomeKind {
        match self {
            Self::Succeeded => v1::OutcomeKind::Succeeded,
            Self::Failed => v1::OutcomeKind::Failed,
            Self::TimedOut => v1::OutcomeKind::TimedOut,
            Self::Cancelled => v1::OutcomeKind::Cancelled,
            Self::Lost => v1::OutcomeKind::Lost,
            Self::Refused => v1::OutcomeKind::Refused,
        }
    }
}

impl FromProto<i32> for OutcomeKind {
    fn from_proto(proto: i32) -> Result<Self, BadMessage> {
        match v1::OutcomeKind::try_from(proto) {
            Ok(v1::OutcomeKind::Succeeded) => Ok(Self::Succeeded),
            Ok(v1::OutcomeKind::Failed) => Ok(Self::Failed),
            Ok(v1::OutcomeKind::TimedOut) => Ok(Self::TimedOut),
            Ok(v1::OutcomeKind::Cancelled) => Ok(Self::Cancelled),
            Ok(v1::OutcomeKind::Lost) => Ok(Self::Lost),
            Ok(v1::OutcomeKind::Refused) => Ok(Self::Refused),
            Ok(v1::OutcomeKind::Unspecified) => Err(BadMessage::new("", "it is missing")),
            Err(_) => Err(BadMessage::new("", format!("{proto} is not a kind that this side knows"))),
        }
    }
}

impl ToProto for Outcome {
    type Proto = v1::Outcome;

    fn to_proto(&self) -> v1::Outcome {
        v1::Outcome {
            kind: self.kind.to_proto().into(),
            reason: self.reason.as_str().to_owned(),
            message: self.message.clone(),
            exit_code: self.exit_code,
            log_tail: self.log_tail.clone(),
        }
    }
}

impl FromProto<v1::Outcome> for Outcome {
    fn from_proto(proto: v1::Outcome) -> Result<Self, BadMessage> {
        let kind = OutcomeKind::from_proto(proto.kind).map_err(|bad| bad.within("kind"))?;
        let reason = Reason::from_word(&proto.reason).ok_or_else(|| {
            BadMessage::new("reason", format!("`{}` is not a reason that this side knows", proto.reason))
        })?;
        let spare = proto.log_tail.len().saturating_sub(LOG_TAIL_LINES);
        let log_tail = proto.log_tail.into_iter().skip(spare).map(|line| cut(line, LOG_LINE_MAX_BYTES)).collect();
        Ok(Self { kind, reason, message: cut(proto.message, MESSAGE_MAX_BYTES), exit_code: proto.exit_code, log_tail })
    }
}

/// The text, cut at a character if it is longer than `max_bytes`.
fn cut(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push('…');
    }
    text
}
