//! The store's keys, read from a file.

use crate::cache::CacheError;
use std::path::Path;

/// Keys as the AWS tools write them.
#[derive(PartialEq, Eq)]
pub(super) struct Keys {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl Keys {
    pub(super) fn read(file: &Path) -> Result<Self, CacheError> {
        let text = std::fs::read_to_string(file).map_err(CacheError::local("read the credentials", file))?;
        Self::parse(&text).map_err(|missing| CacheError::Config {
            why: format!("{} has no `{missing} = …` line in its [default] section", file.display()),
        })
    }

    /// The keys, or the name of what is missing.
    fn parse(text: &str) -> Result<Self, &'static str> {
        // A file without sections counts as the default one.
        let mut in_default = true;
        let (mut access_key_id, mut secret_access_key, mut session_token) = (None, None, None);
        for line in text.lines().map(str::trim) {
            if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                in_default = section.trim() == "default";
            }
            let Some((name, value)) = line.split_once('=').filter(|_| in_default && !line.starts_with(['#', ';']))
            else {
                continue;
            };
            let value = Some(value.trim().trim_matches('"').to_owned());
            match name.trim().trim_start_matches("aws_") {
                "access_key_id" => access_key_id = value,
                "secret_access_key" => secret_access_key = value,
                "session_token" => session_token = value,
                _ => {}
            }
        }
        Ok(Self {
            access_key_id: access_key_id.ok_or("aws_access_key_id")?,
            secret_access_key: secret_access_key.ok_or("aws_secret_access_key")?,
            session_token,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_aws_tools_write() {
        let text =
            "# farm\n[other]\naws_access_key_id = no\n[default]\naws_access_key_id = AK\naws_secret_access_key=SE=CR\n";
        let keys = Keys::parse(text).ok().unwrap();
        assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.as_str()), ("AK", "SE=CR"));
        assert!(keys.session_token.is_none());
        assert!(Keys::parse("access_key_id = \"AK\"\nsecret_access_key = \"S\"").is_ok());
        assert_eq!(Keys::parse("[default]\naws_access_key_id = AK").err(), Some("aws_secret_access_key"));
    }
}
