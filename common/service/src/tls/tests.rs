//! The authority on disk, and what its certificates say.

use super::*;
use crate::clock::{Clock as _, SystemClock};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

fn authority(dir: &Path) -> Authority {
    Authority::open_or_create(dir, "test").unwrap()
}

fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn fault(dir: &Path) -> String {
    Authority::open_or_create(dir, "test").unwrap_err().to_string()
}

#[test]
fn the_authority_is_made_once_and_its_key_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("pki");
    let first = authority(&home);
    assert_eq!(first.ca_pem(), authority(&home).ca_pem());
    assert_eq!((mode(&home.join("ca.key")), mode(&home.join("ca.pem"))), (0o600, 0o644));
    assert_eq!(std::fs::read_to_string(home.join("ca.pem")).unwrap(), first.ca_pem());
    assert_eq!(fingerprint(first.ca_pem()).unwrap().len(), 64);
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    drop(authority(dir.path()));
    let key = dir.path().join("ca.key");
    for bad in [0o644, 0o640] {
        std::fs::set_permissions(&key, Permissions::from_mode(bad)).unwrap();
        let told = fault(dir.path());
        assert!(told.contains(&format!("`chmod 600 {}`", key.display())), "{told}");
    }
    std::fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    drop(authority(dir.path()));
}

#[test]
fn processes_that_start_at_once_get_the_same_authority() {
    let dir = tempfile::tempdir().unwrap();
    let prints: BTreeSet<String> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| authority(dir.path()).ca_pem().to_owned())).collect();
        starts.into_iter().map(|start| fingerprint(&start.join().unwrap()).unwrap()).collect()
    });
    assert_eq!(prints.len(), 1);
}

#[test]
fn a_reopened_authority_signs_what_the_first_one_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = der(authority(dir.path()).ca_pem());
    let pair = authority(dir.path()).issue_server(&["farm.example".to_owned()]).unwrap();
    let leaf = der(&pair.cert_pem);
    let (_, ca) = X509Certificate::from_der(&ca).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
    assert_eq!(leaf.issuer(), ca.subject());
    leaf.verify_signature(Some(ca.public_key())).unwrap();
}

#[test]
fn a_certificate_made_anew_from_the_same_key_keeps_all_trust() {
    let dir = tempfile::tempdir().unwrap();
    let before = authority(dir.path());
    std::fs::remove_file(dir.path().join("ca.pem")).unwrap();
    let after = authority(dir.path());
    assert_ne!(before.ca_pem(), after.ca_pem());
    for (trusted, issuer) in [(&before, &after), (&after, &before)] {
        let ca = der(trusted.ca_pem());
        let leaf = der(&issuer.issue_server(&["localhost".to_owned()]).unwrap().cert_pem);
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        assert_eq!(leaf.issuer(), ca.subject());
        leaf.verify_signature(Some(ca.public_key())).unwrap();
    }
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path());
    let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));

    let other = tempfile::tempdir().unwrap();
    authority(other.path());
    std::fs::copy(other.path().join("ca.key"), &key).unwrap();
    let message = fault(dir.path());
    assert!(message.starts_with(&format!("{}: the key is not that of", key.display())), "{message}");

    std::fs::write(&key, "nonsense").unwrap();
    let message = fault(dir.path());
    assert!(message.starts_with(&format!("{}: it is not a private key", key.display())), "{message}");

    std::fs::remove_file(&key).unwrap();
    let message = fault(dir.path());
    assert!(message.contains("ca.key: the CA's key is missing"), "{message}");
    assert!(cert.exists() && !key.exists(), "nothing is replaced behind the operator's back");

    let message = PemPair::read(dir.path(), "worker").unwrap_err().to_string();
    assert_eq!(message, format!("cannot read {}", dir.path().join("worker.pem").display()));
}

#[test]
fn a_leaf_is_not_taken_for_an_authority() {
    let dir = tempfile::tempdir().unwrap();
    let pair = authority(dir.path()).issue_server(&["farm.example".to_owned()]).unwrap();
    pair.write(dir.path(), "ca").unwrap();
    let message = fault(dir.path());
    assert!(message.ends_with("ca.pem: the certificate is not one of an authority"), "{message}");
}

#[test]
fn a_clients_certificate_says_who_it_is_and_for_how_long() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    for role in Role::ALL {
        let identity = Identity::new(role, "rack-3").unwrap();
        let pair = authority.issue_client(&identity, 3600).unwrap();
        assert_eq!(shown(&[der(&pair.cert_pem)]).unwrap().identity, identity);
    }
    let pair = authority.issue_client(&Identity::new(Role::Worker, "rack-3").unwrap(), 3600).unwrap();
    let cert = der(&pair.cert_pem);
    let (_, cert) = X509Certificate::from_der(&cert).unwrap();
    let now = i64::try_from(SystemClock.now().0 / 1000).unwrap();
    assert!(cert.validity().not_before.timestamp() < now - 60, "good for a host whose clock runs behind");
    assert!((now + 3500..=now + 3601).contains(&cert.validity().not_after.timestamp()));
}

#[test]
fn a_servers_certificate_names_hosts_and_addresses_and_no_role() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let pair = authority.issue_server(&["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let der = der(&pair.cert_pem);
    let (_, cert) = X509Certificate::from_der(&der).unwrap();
    let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
    let address = Ipv4Addr::LOCALHOST.octets();
    assert_eq!(names, &[GeneralName::DNSName("localhost"), GeneralName::IPAddress(&address)]);
    let error = shown(std::slice::from_ref(&der)).unwrap_err().to_string();
    assert!(error.contains("no railyard:// name"), "{error}");
    assert!(shown(&[]).is_err());
    let error = authority.issue_server(&[]).unwrap_err().to_string();
    assert!(error.contains("at least one host name"), "{error}");
    assert!(authority.issue_server(&["höst".to_owned()]).is_err());
}

#[test]
fn a_pair_is_written_whole_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("keys");
    let pair = authority(dir.path()).issue_client(&Identity::new(Role::Viewer, "eve@x.y").unwrap(), 60).unwrap();
    pair.write(&home, "viewer").unwrap();
    pair.write(&home, "viewer").unwrap();
    assert_eq!(PemPair::read(&home, "viewer").unwrap(), pair);
    assert_eq!((mode(&home.join("viewer.key")), mode(&home.join("viewer.pem"))), (0o600, 0o644));
    let names = std::fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(["viewer.key".to_owned(), "viewer.pem".to_owned()]));
    assert!(!format!("{pair:?}").contains("PRIVATE"), "keys stay out of logs");
}

#[test]
fn identities_read_back_what_they_write() {
    let identity = Identity::new(Role::Operator, "ann@example.org").unwrap();
    assert_eq!(
        (identity.uri().as_str(), identity.to_string().as_str()),
        ("railyard://operator/ann@example.org", "operator/ann@example.org")
    );
    assert_eq!(identity.uri().parse(), Ok(identity));
    for bad in ["", "worker/a", "railyard://worker", "railyard://root/a", "railyard://worker/", "railyard://worker/a/b"]
    {
        assert!(bad.parse::<Identity>().is_err(), "{bad}");
    }
}

#[test]
fn texts_that_are_not_pem_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let pair = authority.issue_server(&["localhost".to_owned()]).unwrap();
    let error = server_config(&pair, "").unwrap_err().to_string();
    assert_eq!(error, "the farm's CA certificate is not usable: there is no certificate in it");
    let without_key = PemPair { key_pem: String::new(), ..pair.clone() };
    let error = server_config(&without_key, authority.ca_pem()).unwrap_err().to_string();
    assert!(error.starts_with("the private key is not usable"), "{error}");
    let other = authority.issue_server(&["localhost".to_owned()]).unwrap();
    let mixed = PemPair { key_pem: other.key_pem, ..pair };
    assert!(matches!(server_config(&mixed, authority.ca_pem()), Err(TlsError::Setup(_))));
}

#[test]
fn a_key_is_certified_that_never_leaves_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let key = KeyRequest::generate().unwrap();
    let identity: Identity = "railyard://worker/rack-3?platform=linux/arm64".parse().unwrap();
    let before = SystemClock.now();
    let certified = authority.certify_client(key.csr(), &identity, 3600).unwrap();
    let after = SystemClock.now();
    let shown = shown(&[der(&certified.cert_pem)]).unwrap();
    assert_eq!(shown.identity, identity, "the limits come along");
    assert!((before..=after).contains(&shown.issued), "{shown:?}");
    let pair = key.certified(&certified.cert_pem).unwrap();
    client_config(authority.ca_pem(), Some(&pair)).unwrap();

    let other = KeyRequest::generate().unwrap().certified(&certified.cert_pem).unwrap_err().to_string();
    assert!(other.contains("is for another key"), "{other}");
    let again = authority.certify_client(key.csr(), &identity, 3600).unwrap();
    assert_eq!(again.key, certified.key, "the key is told from others");
    assert_ne!(again.cert_pem, certified.cert_pem);
}

#[test]
fn a_request_that_was_tampered_with_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(dir.path());
    let identity = Identity::new(Role::Worker, "w").unwrap();
    let csr = KeyRequest::generate().unwrap().csr().to_vec();
    let key = authority.certify_client(&csr, &identity, 60).unwrap().key;
    let mut refused = 0;
    for at in 0..csr.len() {
        let mut changed = csr.clone();
        changed[at] ^= 1;
        match authority.certify_client(&changed, &identity, 60) {
            // Outside of what is signed, DER has a bit or two that do not matter.
            Ok(certified) => assert_eq!(certified.key, key, "byte {at}"),
            Err(_) => refused += 1,
        }
        assert!(authority.certify_client(&csr[..at], &identity, 60).is_err(), "cut at {at}");
    }
    assert!(refused > csr.len() - 8, "{refused} of {}", csr.len());
}
