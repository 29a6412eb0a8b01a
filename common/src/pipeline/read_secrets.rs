//! Reads which secrets a step gets.

use super::diagnostic::quote;
use super::limits::STEP_LIST_MAX;
use super::reader::Reader;
use super::template::Template;
use super::values;
use super::yaml::{Node, Value};
use crate::job::SecretRef;

pub(super) const SECRET_FIELDS: [&str; 3] = ["name", "env", "optional"];

impl Reader<'_> {
    /// `env`: the step's own variables, which a secret must not take the place of.
    pub(super) fn secrets(&mut self, node: &Node, env: &[(String, Template)]) -> Vec<SecretRef> {
        let mut secrets: Vec<SecretRef> = Vec::new();
        for item in self.list(node, "`secrets`", STEP_LIST_MAX) {
            let Some(secret) = self.secret(item, env) else { continue };
            if secrets.iter().any(|other| other.name == secret.name) {
                let message = format!("{} stands in `secrets` twice", quote(secret.name.as_str()));
                self.problems.add(item.at, message);
            } else if secret.env.is_some() && secrets.iter().any(|other| other.env == secret.env) {
                let name = quote(secret.env.as_deref().unwrap_or_default());
                self.problems.add(item.at, format!("two of `secrets` want to be the variable {name}"));
            } else {
                secrets.push(secret);
            }
        }
        secrets
    }

    fn secret(&mut self, node: &Node, env: &[(String, Template)]) -> Option<SecretRef> {
        if let Value::Text(_) = node.value {
            let (name, optional) = self.parsed(node, "a secret", values::secret)?;
            return Some(SecretRef { name, env: None, optional });
        }
        let fields = self.fields(node, "a secret", &SECRET_FIELDS)?;
        let Some(name) = fields.get("name") else {
            self.problems.add_help(fields.at, "the secret has no `name`", "write `- name: signing-key`");
            return None;
        };
        let (name, optional) = self.parsed(name, "the secret's `name`", values::secret)?;
        let optional = self.flag(fields.get("optional"), "`optional`") || optional;
        let variable = match fields.get("env") {
            Some(node) => Some(self.variable(node, env)?),
            None => None,
        };
        Some(SecretRef { name, env: variable, optional })
    }

    fn variable(&mut self, node: &Node, env: &[(String, Template)]) -> Option<String> {
        let parse = |text: &str| match text {
            _ if !values::is_env_name(text) => {
                Err("the name of an environment variable: letters, digits and _, not starting with a digit".to_owned())
            }
            _ if text.starts_with("RAILYARD_") => {
                Err("another name: those that start with RAILYARD_ are reserved".to_owned())
            }
            _ if env.iter().any(|(name, _)| name == text) => Err("a variable that `env` does not set".to_owned()),
            _ => Ok(text.to_owned()),
        };
        self.parsed(node, "the secret's `env`", parse)
    }
}

#[cfg(test)]
mod tests {
    use crate::job::SecretRef;
    use crate::pipeline::{Pipeline, Request, Source};

    fn read(secrets: &str) -> Result<Vec<SecretRef>, String> {
        let text = format!(
            "name: p\nplatforms: [linux/amd64]\nsteps:\n  - name: a\n    image: x\n    script: 'true'\n    env: {{ SET: x }}\n    secrets: {secrets}\n"
        );
        let files = std::collections::BTreeMap::new();
        let source = Source { file_name: "p.yaml", text: &text, files: &files };
        let pipeline = Pipeline::parse(&source).map_err(|problems| format!("{problems:?}"))?;
        let request = Request::of("1".parse().unwrap());
        let plan = pipeline.plan(&request).map_err(|problems| format!("{problems:?}"))?;
        Ok(plan.jobs[0].run.secrets.clone())
    }

    fn secret(name: &str, env: Option<&str>, optional: bool) -> SecretRef {
        SecretRef { name: name.parse().unwrap(), env: env.map(str::to_owned), optional }
    }

    #[test]
    fn a_secret_is_a_name_or_a_map() {
        assert_eq!(
            read("[key, 'key.2?', { name: token, env: TOKEN }, { name: other, optional: true }]"),
            Ok(vec![
                secret("key", None, false),
                secret("key.2", None, true),
                secret("token", Some("TOKEN"), false),
                secret("other", None, true)
            ])
        );
    }

    #[test]
    fn what_cannot_be_a_secret_is_told() {
        for (text, part) in [
            ("[a, a?]", "stands in `secrets` twice"),
            ("[../etc]", "the name of a secret"),
            ("[{ env: X }]", "has no `name`"),
            ("[{ name: a, env: 1X }]", "the name of an environment variable"),
            ("[{ name: a, env: RAILYARD_X }]", "reserved"),
            ("[{ name: a, env: SET }]", "a variable that `env` does not set"),
            ("[{ name: a, env: X }, { name: b, env: X }]", "want to be the variable `X`"),
            ("[{ name: a, file: x }]", "unknown field `file`"),
            ("key", "to be a list"),
        ] {
            let message = read(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
