//! Where files of a build are published, with the channel left open.

use crate::id::ChannelName;
use crate::path::{BadPath, RelPath};
use serde::{Deserialize, Serialize};

/// A published directory of which the channel's name is a part: `images/{{ channel }}/amd64`.
///
/// It is kept as the texts between which the name stands, of which there are at least two: no character that a path may have could
/// stand for the name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct ByChannel(Vec<String>);

/// There is no place for a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a directory by channel has two or more texts, between which the channel stands")]
pub struct NoPlace;

impl ByChannel {
    /// Of these texts, between each two of which the channel stands.
    ///
    /// # Errors
    /// [`NoPlace`] if there are fewer than two.
    pub fn new(texts: Vec<String>) -> Result<Self, NoPlace> {
        if texts.len() < 2 { Err(NoPlace) } else { Ok(Self(texts)) }
    }

    /// The directory for a channel.
    ///
    /// # Errors
    /// [`BadPath`], for instance if it is too long.
    pub fn of(&self, channel: &ChannelName) -> Result<RelPath, BadPath> {
        self.0.join(channel.as_str()).parse()
    }
}

impl TryFrom<Vec<String>> for ByChannel {
    type Error = NoPlace;

    fn try_from(texts: Vec<String>) -> Result<Self, NoPlace> {
        Self::new(texts)
    }
}

impl From<ByChannel> for Vec<String> {
    fn from(by_channel: ByChannel) -> Self {
        by_channel.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_channel_stands_between_the_texts() {
        let beta = "beta".parse().unwrap();
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for (given, want) in
            [(&["images/", "/amd64"][..], "images/beta/amd64"), (&["", ""], "beta"), (&["a-", "/", ""], "a-beta/beta")]
        {
            let by_channel = ByChannel::new(texts(given)).unwrap();
            assert_eq!(by_channel.of(&beta).unwrap().as_str(), want);
            let json = serde_json::to_string(&by_channel).unwrap();
            assert_eq!(serde_json::from_str::<ByChannel>(&json).unwrap(), by_channel);
        }
        assert_eq!(ByChannel::new(texts(&["images"])), Err(NoPlace));
        assert!(serde_json::from_str::<ByChannel>("[]").is_err());
        assert!(ByChannel::new(vec!["x".repeat(1020), String::new()]).unwrap().of(&beta).is_err());
    }
}
