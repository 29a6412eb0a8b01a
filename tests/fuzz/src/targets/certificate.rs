//! Certificates and the requests for them, in DER.

use super::{Target, texts};
use railyard_service::tls::{Authority, Identity, Role, shown};
use rustls_pki_types::CertificateDer;
use std::sync::LazyLock;

pub const CERTIFICATE: Target = Target {
    name: "certificate",
    parse,
    // Good ones are in the corpus: a key is made anew each time, and a run must be its seed.
    examples: || texts(&["r0", "c0"]),
    words: &[
        "railyard://worker/",
        "railyard://",
        "\u{86}",
        "0\u{82}",
        "\u{6}",
        "\u{0}",
        "?platform=linux/amd64",
        "\u{a0}",
    ],
    max_len: 8 * 1024,
    // What is made of a request is a certificate, of a kilobyte or two however long the request is.
    memory_factor: 64,
    memory_base: 64 * 1024,
};

/// The first byte of a request; a certificate follows any other.
const REQUEST: u8 = b'r';

/// Of these runs only: what it certifies does not matter.
static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    let dir = std::env::temp_dir().join(format!("railyard-fuzz-authority-{}", std::process::id()));
    let authority =
        Authority::open_or_create(&dir, "fuzz").expect("an authority is made in a directory for passing files");
    // It is in memory now.
    let _ = std::fs::remove_dir_all(&dir);
    authority
});

fn parse(bytes: &[u8]) -> String {
    match bytes.split_first() {
        None => "empty".to_owned(),
        Some((&REQUEST, request)) => certify(request),
        Some((_, certificate)) => match shown(&[CertificateDer::from(certificate)]) {
            Ok(shown) => {
                assert_eq!(shown.identity.uri().parse(), Ok(shown.identity.clone()));
                format!("of a {}", shown.identity.role)
            }
            Err(error) => error.to_string().chars().filter(|c| !c.is_ascii_digit()).take(120).collect(),
        },
    }
}

/// Nothing of a request counts but its key: whatever else it says, the certificate is for whom the authority says.
fn certify(request: &[u8]) -> String {
    let who = Identity::new(Role::Worker, "rack-3").expect("a good name");
    match AUTHORITY.certify_client(request, &who, 60) {
        Ok(certified) => {
            let der = pem(&certified.cert_pem);
            let shown = shown(&[CertificateDer::from(der)]).expect("what the authority makes can be shown");
            assert_eq!(shown.identity, who);
            "certified".to_owned()
        }
        Err(error) => error.to_string().chars().filter(|c| !c.is_ascii_digit()).take(120).collect(),
    }
}

fn pem(text: &str) -> Vec<u8> {
    use base64::Engine as _;
    let lines: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    base64::engine::general_purpose::STANDARD.decode(lines).expect("PEM is base64")
}
