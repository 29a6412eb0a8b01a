//! How a secret is sealed: AES-256-GCM under the farm's key, with everything that is known of it bound to it.
//!
//! **Invariant:** a sealed secret opens only with its key and with its own header. Whoever can write its file and has no key cannot
//! give it to other steps, nor under another name.

use super::SecretError;
use railyard_common::id::SecretName;
use railyard_common::secret::{SecretScope, SecretValue};
use railyard_common::time::Millis;
use railyard_service::tls;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use zeroize::Zeroizing;

/// The version of the file's form.
const VERSION: u32 = 1;
const KEY_BYTES: usize = 32;
/// Permissions that a key must not have: those of others than its owner.
const OTHERS: u32 = 0o077;
/// Enough of a hash to tell keys apart.
const KEY_ID_BYTES: usize = 8;

/// What is known of a secret by everybody who can read its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    version: u32,
    pub name: SecretName,
    pub scope: SecretScope,
    pub set_at: Millis,
    pub set_by: String,
    /// Which key it is sealed with.
    key: String,
}

/// A secret as it lies on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sealed {
    pub header: Header,
    /// Hexadecimal.
    nonce: String,
    sealed: String,
}

/// The key.
pub(super) struct Key {
    aead: LessSafeKey,
    id: String,
}

impl Key {
    /// Writes a new one.
    pub(super) fn create(file: &Path) -> Result<(), SecretError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *bytes).map_err(|_| SecretError::NoRandomness)?;
        let text = Zeroizing::new(format!("{}\n", hex::encode(bytes.as_slice())));
        tls::write_secret(file, &text)
            .map_err(|error| SecretError::BadKey { path: file.to_owned(), why: railyard_service::error_chain(&error) })
    }

    /// Reads it. It is read for each use, and is in memory only then.
    pub(super) fn read(file: &Path) -> Result<Self, SecretError> {
        let bad = |why: String| SecretError::BadKey { path: file.to_owned(), why };
        let mode = fs::metadata(file).map_err(|error| bad(error.to_string()))?.permissions().mode();
        if mode & OTHERS != 0 {
            let why = format!("others than its owner may use it (mode {:o}); set its mode to 600", mode & 0o777);
            return Err(bad(why));
        }
        let text = Zeroizing::new(fs::read_to_string(file).map_err(|error| bad(error.to_string()))?);
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        hex::decode_to_slice(text.trim(), &mut *bytes)
            .map_err(|_| bad(format!("expected {} hexadecimal digits", 2 * KEY_BYTES)))?;
        let key = UnboundKey::new(&AES_256_GCM, &*bytes).map_err(|_| bad("it is no key".to_owned()))?;
        let id = Sha256::new().chain_update(b"railyard secret key").chain_update(bytes.as_slice()).finalize();
        Ok(Self { aead: LessSafeKey::new(key), id: hex::encode(&id[..KEY_ID_BYTES]) })
    }

    /// Seals a value.
    pub(super) fn seal(
        &self,
        name: SecretName,
        scope: SecretScope,
        (set_at, set_by): (Millis, String),
        value: &SecretValue,
    ) -> Result<Sealed, SecretError> {
        let header = Header { version: VERSION, name, scope, set_at, set_by, key: self.id.clone() };
        let mut nonce = [0; NONCE_LEN];
        // Random ones repeat with the first of 2^32 secrets; a farm has dozens.
        getrandom::fill(&mut nonce).map_err(|_| SecretError::NoRandomness)?;
        let mut bytes = Zeroizing::new(value.reveal().to_vec());
        // Room for the tag, so that the plain bytes are not copied to make it.
        bytes.reserve_exact(AES_256_GCM.tag_len());
        let bound = bound(&header)?;
        self.aead
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&bound), &mut *bytes)
            .map_err(|_| SecretError::damaged(&header.name, "it cannot be sealed"))?;
        Ok(Sealed { header, nonce: hex::encode(nonce), sealed: hex::encode(&*bytes) })
    }

    /// Opens it.
    pub(super) fn open(&self, sealed: &Sealed) -> Result<SecretValue, SecretError> {
        let Sealed { header, nonce, sealed } = sealed;
        let damaged = |why: &str| SecretError::damaged(&header.name, why);
        if header.version != VERSION {
            return Err(damaged(&format!("it is of version {}, and this controller knows {VERSION}", header.version)));
        }
        if header.key != self.id {
            return Err(SecretError::OtherKey(header.name.clone()));
        }
        let mut bytes = [0; NONCE_LEN];
        hex::decode_to_slice(nonce, &mut bytes).map_err(|_| damaged("its nonce makes no sense"))?;
        let mut value = Zeroizing::new(hex::decode(sealed).map_err(|_| damaged("it is no hexadecimal text"))?);
        let bound = bound(header)?;
        let nonce = Nonce::assume_unique_for_key(bytes);
        let opened = self.aead.open_in_place(nonce, Aad::from(&bound), &mut value);
        let opened = opened.map_err(|_| damaged("it was changed since it was stored"))?;
        Ok(SecretValue::new(opened.to_vec()))
    }
}

/// What the seal covers besides the value.
fn bound(header: &Header) -> Result<Vec<u8>, SecretError> {
    serde_json::to_vec(header).map_err(|error| SecretError::damaged(&header.name, error.to_string()))
}
