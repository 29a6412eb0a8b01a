//! The farm's certificate authority.

use super::files::{PUBLIC, SECRET, make_dir, read, write_atomic};
use super::identity::{SERIAL_LEN, SERIAL_TIME_LEN};
use super::{Identity, PemPair, TlsError};
use crate::clock::{Clock as _, SystemClock, system_time};
use railyard_common::digest::Digest;
use railyard_common::time::Millis;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How long a client's certificate is good where nothing renews it, as in `railyard dev`: a year.
pub const CLIENT_VALIDITY_SECS: u64 = 365 * DAY_SECS;

const DAY_SECS: u64 = 24 * 3600;
/// Ten years: replacing the CA means touching every host.
const CA_VALIDITY_SECS: u64 = 3653 * DAY_SECS;
/// A year: the controller issues its own anew at each start.
const SERVER_VALIDITY_SECS: u64 = 365 * DAY_SECS;
/// Permissions that the key must not have: those of others than its owner.
const OTHERS: u32 = 0o077;
/// Certificates are good from a little before now, for hosts whose clock runs behind.
const BACKDATE_MILLIS: u64 = 5 * 60 * 1000;

/// The farm's certificate authority: its certificate and its key.
#[derive(Debug)]
pub struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority in `dir` (`ca.pem`, and `ca.key` with mode 0600), or makes one named after the farm if there
    /// is none. Two processes that start at once get the same one.
    ///
    /// # Errors
    /// [`TlsError`], which names the file. A certificate whose key is missing or is another one's is an error: a new
    /// authority would silently lock out every worker that trusts the old one.
    pub fn open_or_create(dir: &Path, farm: &str) -> Result<Self, TlsError> {
        make_dir(dir)?;
        let _lock = lock(dir)?;
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (cert_path.exists(), key_path.exists()) {
            (true, true) => Self::open(&cert_path, &key_path),
            (true, false) => Err(TlsError::BadFile {
                path: key_path,
                why: "the CA's key is missing though its certificate is there; restore the key, or remove ca.pem to \
                      make a new authority, which every worker and client must then be given"
                    .to_owned(),
            }),
            // The first start was cut short, or somebody removed the certificate. The same key keeps all trust.
            (false, true) => Self::certify(&cert_path, read_key(&key_path)?, farm),
            (false, false) => {
                let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| not_issued(farm, &error))?;
                write_atomic(&key_path, &key.serialize_pem(), SECRET)?;
                Self::certify(&cert_path, key, farm)
            }
        }
    }

    fn open(cert_path: &Path, key_path: &Path) -> Result<Self, TlsError> {
        let bad = |path: &Path, why: String| TlsError::BadFile { path: path.to_owned(), why };
        let ca_pem = read(cert_path)?;
        check_mode(key_path)?;
        let key = read_key(key_path)?;
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|error| bad(cert_path, format!("it is not a certificate in PEM: {error}")))?;
        let (_, cert) = X509Certificate::from_der(&der)
            .map_err(|error| bad(cert_path, format!("the certificate does not parse: {error}")))?;
        if cert.public_key().subject_public_key.data != key.public_key_raw() {
            let why = format!("the key is not that of the certificate {}; restore the pair", cert_path.display());
            return Err(bad(key_path, why));
        }
        if !cert.is_ca() {
            return Err(bad(cert_path, "the certificate is not one of an authority".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|error| bad(cert_path, format!("the certificate cannot issue others: {error}")))?;
        Ok(Self { ca_pem, issuer })
    }

    /// Makes the key an authority by a certificate of its own.
    fn certify(cert_path: &Path, key: KeyPair, farm: &str) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Railyard CA of {farm}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        valid_for(&mut params, CA_VALIDITY_SECS);
        let ca_pem = params.self_signed(&key).map_err(|error| not_issued(farm, &error))?.pem();
        write_atomic(cert_path, &ca_pem, PUBLIC)?;
        Ok(Self { ca_pem, issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The SHA-256 of the authority's certificate: what a token to join with carries.
    ///
    /// # Errors
    /// [`TlsError::BadPem`] if the certificate does not parse.
    pub fn fingerprint(&self) -> Result<[u8; 32], TlsError> {
        let cert = CertificateDer::from_pem_slice(self.ca_pem.as_bytes())
            .map_err(|error| TlsError::BadPem { what: "the farm's CA certificate", why: error.to_string() })?;
        Ok(*Digest::of(&cert).bytes())
    }

    /// A server's certificate for host names and IP addresses, good for a year.
    ///
    /// # Errors
    /// [`TlsError::Issue`] if there is no name or one is neither a host name nor an IP address.
    pub fn issue_server(&self, names: &[String]) -> Result<PemPair, TlsError> {
        let subject = names.join(", ");
        let failed = |why: String| TlsError::Issue { subject: format!("`{subject}`"), why };
        let Some(first) = names.first() else {
            return Err(failed("a server needs at least one host name or IP address".to_owned()));
        };
        // Turns what parses as an IP address into one, and the rest into DNS names.
        let mut params = CertificateParams::new(names).map_err(|error| failed(error.to_string()))?;
        params.distinguished_name.push(DnType::CommonName, first.as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, SERVER_VALIDITY_SECS).map_err(|error| failed(error.to_string()))
    }

    /// A client's certificate, good for `validity_secs` from now.
    ///
    /// # Errors
    /// [`TlsError::Issue`].
    pub fn issue_client(&self, identity: &Identity, validity_secs: u64) -> Result<PemPair, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Issue { subject: identity.to_string(), why: error.to_string() };
        let params = client_params(identity).map_err(failed)?;
        self.sign(params, validity_secs).map_err(failed)
    }

    /// A client's certificate for a key that stays with the client. Of the request nothing counts but the key, and the proof
    /// that whoever asks has it.
    ///
    /// # Errors
    /// [`TlsError::BadPem`] if it is no PKCS #10 request (DER) or not signed by its key; [`TlsError::Issue`].
    pub fn certify_client(&self, csr: &[u8], identity: &Identity, validity_secs: u64) -> Result<Certified, TlsError> {
        let bad = |error: rcgen::Error| TlsError::BadPem { what: "the certificate request", why: error.to_string() };
        let failed = |error: rcgen::Error| TlsError::Issue { subject: identity.to_string(), why: error.to_string() };
        let request =
            CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr)).map_err(bad)?;
        let params = client_params(identity).map_err(failed)?;
        let cert = self.sign_for(params, &request.public_key, validity_secs).map_err(failed)?;
        Ok(Certified { cert_pem: cert.pem(), key: Digest::of(request.public_key.der_bytes()) })
    }

    fn sign(&self, params: CertificateParams, validity_secs: u64) -> Result<PemPair, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert = self.sign_for(params, &key, validity_secs)?;
        Ok(PemPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    fn sign_for(
        &self,
        mut params: CertificateParams,
        key: &impl PublicKeyData,
        validity_secs: u64,
    ) -> Result<Certificate, rcgen::Error> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, validity_secs);
        params.serial_number = Some(serial(SystemClock.now())?);
        params.signed_by(key, &self.issuer)
    }
}

/// A certificate for a key that is elsewhere.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub cert_pem: String,
    /// The SHA-256 of the public key.
    pub key: Digest,
}

fn client_params(identity: &Identity) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, identity.to_string());
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.uri())?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Unique, not to be guessed, and it tells when: a revocation ends what was issued before it, to the millisecond.
fn serial(now: Millis) -> Result<SerialNumber, rcgen::Error> {
    let mut serial = [0; SERIAL_LEN];
    let (time, chance) = serial.split_at_mut(SERIAL_TIME_LEN);
    time.copy_from_slice(&now.0.to_be_bytes()[8 - SERIAL_TIME_LEN..]);
    getrandom::fill(chance).map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(SerialNumber::from_slice(&serial))
}

/// Whoever can read the key can be anybody.
fn check_mode(path: &Path) -> Result<(), TlsError> {
    let read = std::fs::metadata(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    if read.permissions().mode() & OTHERS == 0 {
        return Ok(());
    }
    let why = format!("others than its owner can read it, and be anybody then: `chmod 600 {}`", path.display());
    Err(TlsError::BadFile { path: path.to_owned(), why })
}

fn read_key(path: &Path) -> Result<KeyPair, TlsError> {
    KeyPair::from_pem(&read(path)?).map_err(|error| TlsError::BadFile {
        path: path.to_owned(),
        why: format!("it is not a private key in PEM: {error}"),
    })
}

fn not_issued(farm: &str, error: &rcgen::Error) -> TlsError {
    TlsError::Issue { subject: format!("the authority of {farm}"), why: error.to_string() }
}

fn valid_for(params: &mut CertificateParams, secs: u64) {
    let now = SystemClock.now();
    params.not_before = system_time(Millis(now.0.saturating_sub(BACKDATE_MILLIS))).into();
    params.not_after = system_time(now.plus(secs.saturating_mul(1000))).into();
}

/// Held while the authority is looked for and made; released when dropped.
fn lock(dir: &Path) -> Result<File, TlsError> {
    let path = dir.join("ca.lock");
    let attempt = || {
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        file.lock()?;
        Ok(file)
    };
    attempt().map_err(|source| TlsError::Write { path: path.clone(), source })
}
