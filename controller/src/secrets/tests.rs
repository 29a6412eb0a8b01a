//! Secrets are kept, given to whom they are for, and unreadable without the key.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

const CANARY: &str = "canary-5d21e8-with some text\n";

fn scope(pipelines: &[&str], steps: &[&str]) -> SecretScope {
    SecretScope {
        pipelines: pipelines.iter().map(|name| name.parse().unwrap()).collect(),
        steps: steps.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

struct Room {
    dir: tempfile::TempDir,
    secrets: Secrets,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Self::open(dir.path());
        Self { dir, secrets }
    }

    fn open(dir: &Path) -> Secrets {
        Secrets::open(dir.join("secrets"), dir.join("pki/secrets.key")).unwrap()
    }

    fn set(&self, name: &str, scope: SecretScope, value: &str) -> Result<bool, SecretError> {
        self.put(name, scope, value, false)
    }

    fn put(&self, name: &str, scope: SecretScope, value: &str, replace: bool) -> Result<bool, SecretError> {
        let value = SecretValue::new(value.as_bytes().to_vec());
        self.secrets.set(name.parse().unwrap(), scope, (Millis(7), "operator/olga".to_owned()), &value, replace)
    }

    fn get(&self, name: &str, pipeline: &str, step: &str) -> Result<Option<String>, String> {
        let found = self.secrets.get(&name.parse().unwrap(), &pipeline.parse().unwrap(), &step.parse().unwrap());
        found
            .map(|value| value.map(|value| String::from_utf8(value.reveal().to_vec()).unwrap()))
            .map_err(|error| error.to_string())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("secrets").join(name)
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("pki/secrets.key")
    }
}

#[test]
fn a_secret_comes_back_to_its_own_steps_alone_also_after_a_restart() {
    let mut room = Room::new();
    assert!(!room.set("key", scope(&["os"], &["sign"]), CANARY).unwrap());
    for _ in 0..2 {
        assert_eq!(room.get("key", "os", "sign"), Ok(Some(CANARY.to_owned())));
        assert_eq!(room.get("key", "os", "build"), Ok(None));
        assert_eq!(room.get("key", "other", "sign"), Ok(None));
        assert_eq!(room.get("other", "os", "sign"), Ok(None));
        room.secrets = Room::open(room.dir.path());
    }
    assert!(room.set("key", scope(&["os"], &["sign"]), "the next value").unwrap(), "for the same steps");
    let refused = room.set("key", scope(&["os"], &[]), "another value").unwrap_err().to_string();
    assert!(refused.contains("there is a secret key for os: sign"), "{refused}");
    assert_eq!(room.get("key", "os", "sign"), Ok(Some("the next value".to_owned())));
    assert!(room.put("key", scope(&["os"], &[]), "another value", true).unwrap(), "it replaces");
    assert_eq!(room.get("key", "os", "build"), Ok(Some("another value".to_owned())));
    room.secrets.remove(&"key".parse().unwrap()).unwrap();
    assert_eq!(room.get("key", "os", "sign"), Ok(None));
    assert_eq!(room.secrets.remove(&"key".parse().unwrap()).unwrap_err().to_string(), "there is no secret key");
}

#[test]
fn the_disk_has_no_plain_value_and_others_cannot_read_the_files() {
    let room = Room::new();
    room.set("key", scope(&["os"], &[]), CANARY).unwrap();
    for path in [room.file("key.json"), room.key()] {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|part| part == b"canary"), "{}", path.display());
        assert!(!String::from_utf8_lossy(&bytes).contains(&hex::encode(b"canary")));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    let listed = room.secrets.list().unwrap();
    let told = format!("{listed:?} {:?}", room.secrets);
    assert!(!told.contains("canary"), "{told}");
    assert!(listed[0].fault.is_none() && listed[0].set_by == "operator/olga", "{told}");
}

#[test]
fn whoever_changes_a_file_without_the_key_gains_nothing() {
    let room = Room::new();
    room.set("key", scope(&["os"], &["sign"]), CANARY).unwrap();
    let text = fs::read_to_string(room.file("key.json")).unwrap();
    let swapped: String = {
        let at = text.find("\"sealed\": \"").unwrap() + 11;
        let digit = if &text[at..=at] == "0" { "1" } else { "0" };
        format!("{}{digit}{}", &text[..at], &text[at + 1..])
    };
    for (changed, why) in [
        (text.replace("\"sign\"", "\"evil\""), "was changed since it was stored"),
        (text.replace("olga", "otto"), "was changed since it was stored"),
        (swapped, "was changed since it was stored"),
        (text.replace("\"version\": 1", "\"version\": 2"), "it is of version 2"),
        (text.replace("\"name\": \"key\"", "\"name\": \"other\""), "its file is that of other"),
        (text[..text.len() / 2].to_owned(), "cannot be used"),
        (String::new(), "cannot be used"),
    ] {
        assert_ne!(changed, text);
        fs::write(room.file("key.json"), &changed).unwrap();
        let refused = [room.get("key", "os", "evil"), room.get("key", "os", "sign")];
        assert!(refused.iter().any(|refused| refused.as_ref().is_err_and(|error| error.contains(why))), "{refused:?}");
        assert!(refused.iter().all(|refused| !matches!(refused, Ok(Some(_)))), "{refused:?}");
        let listed = room.secrets.list().unwrap();
        assert!(listed[0].fault.is_some(), "{listed:?}");
    }
    // A secret moved under another's name.
    fs::write(room.file("key.json"), &text).unwrap();
    room.set("mine", scope(&["mine"], &[]), "some other value").unwrap();
    fs::copy(room.file("key.json"), room.file("mine.json")).unwrap();
    assert!(room.get("mine", "os", "sign").unwrap_err().contains("its file is that of key"));
}

#[test]
fn another_key_and_no_key_are_told_and_never_made_anew_under_secrets() {
    let room = Room::new();
    room.set("key", scope(&["os"], &[]), CANARY).unwrap();
    let own = fs::read(room.key()).unwrap();
    fs::remove_file(room.key()).unwrap();
    let again = Room::open(room.dir.path());
    assert!(!room.key().exists(), "a new key would hide that the old one is gone");
    assert!(room.get("key", "os", "a").unwrap_err().contains("secrets.key, cannot be used"));
    assert!(again.list().unwrap()[0].fault.is_some());
    assert!(room.set("more", scope(&["os"], &[]), CANARY).is_err());

    Key::create(&room.key()).unwrap();
    assert!(room.get("key", "os", "a").unwrap_err().contains("sealed with another key"));
    fs::write(room.key(), own).unwrap();
    assert_eq!(room.get("key", "os", "a"), Ok(Some(CANARY.to_owned())));
    fs::set_permissions(room.key(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(room.get("key", "os", "a").unwrap_err().contains("set its mode to 600"));
}

#[test]
fn what_cannot_be_a_secret_is_refused() {
    let room = Room::new();
    let refused = |value: &str, scope: SecretScope| room.set("key", scope, value).unwrap_err().to_string();
    assert!(refused("   short \n", scope(&["os"], &[])).contains("5 bytes without the space around it; at least 8"));
    assert!(refused(&"x".repeat(SECRET_MAX_BYTES + 1), scope(&["os"], &[])).contains("at most 65536"));
    assert!(refused(CANARY, scope(&[], &["sign"])).contains("for no pipeline"));
    assert!(room.secrets.list().unwrap().is_empty());
    fs::write(room.file("note.txt"), "x").unwrap();
    fs::write(room.file(".key.json.12.part"), "x").unwrap();
    assert!(room.secrets.list().unwrap().is_empty(), "what is no secret is let be");
}
