//! Messages that do not show what is in them: secrets, and tokens that stand for somebody.

use crate::v1;
use std::fmt;

/// In the place of what nobody may see.
const HIDDEN: &str = "…";

impl fmt::Debug for v1::SetSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, value: _, pipelines, steps, replace } = self;
        let mut told = f.debug_struct("SetSecretRequest");
        told.field("name", name).field("value", &HIDDEN).field("pipelines", pipelines);
        told.field("steps", steps).field("replace", replace).finish()
    }
}

impl fmt::Debug for v1::SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile").field("name", &self.name).field("value", &HIDDEN).finish()
    }
}

impl fmt::Debug for v1::EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest").field("token", &HIDDEN).field("csr", &self.csr.len()).finish()
    }
}

impl fmt::Debug for v1::CreateTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateTokenResponse").field("token", &HIDDEN).field("view", &self.view).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_has_no_secret() {
        let canary = "canary-1f6e";
        let told = [
            format!("{:?}", v1::SetSecretRequest { value: canary.into(), ..Default::default() }),
            format!(
                "{:?}",
                v1::FetchSecretsResponse {
                    secrets: vec![v1::SecretFile { name: "n".to_owned(), value: canary.into() }]
                }
            ),
            format!("{:?}", v1::EnrolRequest { token: canary.to_owned(), ..Default::default() }),
            format!("{:?}", v1::CreateTokenResponse { token: canary.to_owned(), view: None }),
        ];
        let bytes = format!("{:?}", canary.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        assert!(told.iter().all(|told| !told.contains(canary) && !told.contains(bytes)), "{told:?}");
    }
}
